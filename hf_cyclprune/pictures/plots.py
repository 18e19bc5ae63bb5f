"""Runs -> pictures in files.

Needs matplotlib; without it, importing this module is a ValueError that says how to get it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ValueError(
        f"pictures must have matplotlib; got no '{error.name}'. Run "
        '`pip install "hf_cyclprune[plots]"`.'
    ) from error

from hf_cyclprune.pictures.comparison import draw_comparison
from hf_cyclprune.pictures.curves import draw_schedule
from hf_cyclprune.pictures.runs import Run, distinct_names, read_run
from hf_cyclprune.pictures.shares import draw_density, draw_recovery
from hf_cyclprune.pictures.style import DPI, write_picture

__all__ = [
    "Run",
    "draw_comparison",
    "draw_density",
    "draw_recovery",
    "draw_schedule",
    "plot_runs",
    "read_run",
    "save_pictures",
]


def save_pictures(folder: str | Path, out: str | Path, *, dpi: float = DPI) -> dict[str, Path]:
    """Write schedule.png, density.png and recovery.png of a run; name -> path of those written.

    A picture for which the run has nothing is left out: density needs a sparsity report, recovery
    two finished cycles.

    Args:
        folder: as for `read_run`.
        out: where to write; made if it is not there.
        dpi: pixels per inch; pictures are 7 inches wide, made for 700 px of a page.

    Raises:
        ValueError: there is nothing to draw.
    """
    run = read_run(folder)
    figures = {"schedule": draw_schedule(run)}
    if run.report is not None:
        figures["density"] = draw_density(run.report)
        figures["recovery"] = draw_recovery(run.report)
    return {
        name: write_picture(figure, Path(out) / f"{name}.png", dpi)
        for name, figure in figures.items()
        if figure is not None
    }


def plot_runs(folders: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Write the pictures of one run, or comparison.png of several; the paths written.

    Raises:
        ValueError: no folder or one given twice; there is nothing to draw.
    """
    if not folders:
        raise ValueError("RUN must be given; got none. Pass the output_dir of one run or more.")
    if len(folders) == 1:
        paths = save_pictures(folders[0], out).values()
        if not paths:
            raise ValueError(
                f"RUN must have logged something to draw; got '{folders[0]}' with neither a "
                "learning rate, a sparsity, a loss nor an evaluation. Train with logging_steps."
            )
        return list(paths)
    names = distinct_names(folders)
    runs = [
        replace(read_run(folder), name=name) for folder, name in zip(folders, names, strict=True)
    ]
    return [write_picture(draw_comparison(runs), Path(out) / "comparison.png")]
