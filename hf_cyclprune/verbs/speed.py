"""Verbs about the speed of a saved model."""

import json
import sys
from pathlib import Path
from typing import Any

from hf_cyclprune.files import BENCH_PICTURE, check_writable
from hf_cyclprune.inference.timings import Bench
from hf_cyclprune.verbs.registry import argument, verb


@verb(
    argument("model", metavar="MODEL", help="folder with a model, dense or packed, or a Hub name"),
    argument("--batch_size", type=int, default=1, help="sentences (default: %(default)s)"),
    argument("--seq_length", type=int, default=128, help="tokens of each (default: %(default)s)"),
    argument("--threads", type=int, dest="num_threads", help="(default: as torch chooses)"),
    argument("--json", action="store_true", dest="as_json", help="print JSON, for programs"),
    argument(
        "--output_dir",
        help="folder for inference_times.json and inference_times.png (default: none)",
    ),
)
def _bench(model: str, as_json: bool, output_dir: str | None, **options: Any) -> None:
    """Time a model on this CPU: dense, sparse, and in other runtimes that are installed."""
    from hf_cyclprune.inference.bench import bench

    if output_dir is not None:
        check_writable("output_dir", output_dir)
    result = bench(model, **options)
    print(json.dumps(result.to_dict(), indent=2) if as_json else result)
    if output_dir is not None:
        for line in ("", result.save(output_dir), _draw(result, Path(output_dir))):
            print(line, file=sys.stderr if as_json else sys.stdout)


def _draw(result: Bench, folder: Path) -> Path | str:
    """Return the path of a picture of the times, or why there is none."""
    try:
        from hf_cyclprune.pictures.plots import plot_bench
    except ValueError as error:  # it names the extra
        return str(error)
    return plot_bench(result, folder / BENCH_PICTURE)


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
