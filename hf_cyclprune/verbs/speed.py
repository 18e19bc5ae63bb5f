"""Verbs about the speed of a saved model."""

import json
from typing import Any

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
