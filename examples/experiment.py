"""The runs of an experiment, one JSON line each when finished, and their tables and curves.

Other scripts in this folder import it. One that is started again skips the runs that are there.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Run = dict[str, Any]
"""The settings of a run, and its "result" once it is finished."""


def key(run: Run) -> str:
    """What tells one run from another."""
    return json.dumps({k: v for k, v in run.items() if k != "result"}, sort_keys=True)


def read(path: Path) -> dict[str, Run]:
    """Return the finished runs."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {key(run): run for run in map(json.loads, lines)}


def append(path: Path, run: Run, result: Any) -> None:
    """Note a finished run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**run, "result": result}) + "\n")


def finish(path: Path, runs: Sequence[Run], measure: Callable[[Run], Any]) -> list[Run]:
    """Measure the runs that are not finished, one after another; return all with their results."""
    for run in runs:
        if key(run) not in read(path):
            append(path, run, measure(run))
            print(f"{len(read(path))} runs are finished", flush=True)
    return [read(path)[key(run)] for run in runs]


def mean_and_error(values: Sequence[float], digits: int = 4) -> str:
    """Write the mean and its standard error.

    >>> mean_and_error([0.5, 0.7, 0.9], digits=2)
    '0.70 ± 0.12'
    """
    if not values:
        return ""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"


def differences(
    runs: Sequence[Run], others: Sequence[Run], score: Callable[[Run], float]
) -> list[float]:
    """Return what each run scores more than the one of `others` with the same seed."""
    by_seed = {run["seed"]: score(run) for run in others}
    return [score(run) - by_seed[run["seed"]] for run in runs if run["seed"] in by_seed]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for cells in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(cells) + " |")


def plot_means(axes: Any, x: Sequence[float], samples: Sequence[Sequence[float]], look: Any) -> Any:
    """Draw the means of some samples over x, with their standard errors."""
    means = [statistics.mean(values) for values in samples]
    errors = [statistics.stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in samples]
    style = {"color": look.colour, "marker": look.marker, "linestyle": look.dash}
    return axes.errorbar(x, means, errors, elinewidth=0.8, **style)
