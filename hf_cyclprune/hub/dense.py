"""The metrics of a dense run, to compare a pruned one with."""

import json
from collections.abc import Mapping
from pathlib import Path

_RESULTS = ("all_results.json", "eval_results.json")
_MOST_ZEROS = 0.05  # more than training leaves by chance


def read_dense_metrics(folder: str | Path, metrics: Mapping[str, float]) -> dict[str, float]:
    """The values of a dense run that the pruned one has too.

    Args:
        folder: the output_dir of the dense run, with all_results.json or eval_results.json.
        metrics: of the pruned run.

    Raises:
        ValueError: there are no results, or of a pruned run, or on other data.
    """
    values = read_results(folder)
    common = {k: v for k, v in values.items() if k in metrics and k.startswith("eval_")}
    counts = {values.get("eval_samples"), metrics.get("eval_samples")} - {None}
    if not common or len(counts) > 1:
        raise ValueError(
            f"dense_run must be evaluated as the pruned run was; got '{folder}', evaluated on "
            "other data or by other metrics. Pass a run of the same task."
        )
    return common


def read_results(folder: str | Path) -> dict[str, float]:
    """All that a dense run measured.

    Raises:
        ValueError: there are no results, or of a pruned run.
    """
    path = next((p for p in (Path(folder) / name for name in _RESULTS) if p.is_file()), None)
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path is not None else None
    except ValueError:
        values = None
    sparsity = values.get("sparsity", 0.0) if isinstance(values, dict) else None
    if not isinstance(values, dict) or not isinstance(sparsity, int | float):
        raise ValueError(
            f"dense_run must be the folder of a dense run; got '{folder}' without a readable "
            f"{_RESULTS[0]}. Pass the output_dir of hf-cyclprune glue."
        )
    if sparsity > _MOST_ZEROS:
        raise ValueError(
            f"dense_run must be the folder of a dense run; got '{folder}' with a sparsity of "
            f"{sparsity:.2%}. Pass a run without pruning."
        )
    return values
