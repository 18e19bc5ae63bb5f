"""Verbs about the speed of a saved model."""

import json
from pathlib import Path
from typing import Any

from hf_cyclprune.files import check_writable
from hf_cyclprune.verbs.registry import argument, verb


@verb(
    argument("model", metavar="MODEL", help="folder with a model, dense or packed, or a Hub name"),
    argument("--batch_size", type=int, default=1, help="sentences (default: %(default)s)"),
    argument("--seq_length", type=int, default=128, help="tokens of each (default: %(default)s)"),
    argument("--threads", type=int, dest="num_threads", help="(default: as torch chooses)"),
    argument("--json", action="store_true", dest="as_json", help="print JSON, for programs"),
)
def _bench(model: str, as_json: bool, **options: Any) -> None:
    """Time a model on this CPU: dense, sparse, and in other runtimes that are installed."""
    from hf_cyclprune.inference.bench import bench

    result = bench(model, **options)
    print(json.dumps(result.to_dict(), indent=2) if as_json else result)


@verb(
    argument("model", metavar="MODEL", help="folder with a model, dense or packed, or a Hub name"),
    argument("out", metavar="OUT", help="new folder for the graph, its config and its tokenizer"),
    argument("--format", choices=("onnx", "openvino"), default="onnx", help="(default: onnx)"),
    argument("--int8", action="store_true", help="round the weights to int8; for onnx only"),
)
def _export(model: str, out: str, **options: Any) -> None:
    """Write a model for ONNX Runtime or OpenVINO, and check its answers against torch."""
    from hf_cyclprune.inference.export import export

    check_writable("OUT", out)
    done = export(model, out, **options)
    print("\n".join(str(Path(out) / name) for name in done.files))
    found = f"{done.difference:.1e} of the largest output, on two batches of random tokens"
    if options["int8"]:
        print(f"The weights were rounded to int8: the outputs differ by up to {found}.")
    else:
        print(f"The outputs are those of torch: they differ by at most {found}.")
