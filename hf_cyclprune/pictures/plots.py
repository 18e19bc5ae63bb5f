"""Draw runs and times, and write the pictures into files.

Pictures need matplotlib; without it, importing this module raises a ValueError that says so.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ValueError(
        f"Pictures need {error.name}, which is not installed. Run "
        '`pip install "hf_cyclprune[plots]"`.'
    ) from error

from hf_cyclprune.inference.timings import Bench
from hf_cyclprune.pictures.comparison import draw_comparison
from hf_cyclprune.pictures.curves import draw_schedule
from hf_cyclprune.pictures.shares import draw_density, draw_recovery
from hf_cyclprune.pictures.speed import draw_speed
from hf_cyclprune.pictures.style import DPI, write_picture
from hf_cyclprune.reporting.folder import distinct_names, read_run


def save_pictures(folder: str | Path, out: str | Path, *, dpi: float = DPI) -> dict[str, Path]:
    """Write schedule.png, density.png and recovery.png of a run into `out`; return name -> path.

    A picture for which the run has nothing is left out: density needs a sparsity report, recovery
    two finished cycles. Pictures are 7 inches wide, with `dpi` pixels per inch.

    Raises:
        ValueError: the folder holds no run.
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
    """Write the pictures of one run, or comparison.png of several; return their paths.

    Raises:
        ValueError: there is no folder or one is given twice, or there is nothing to draw.
    """
    if not folders:
        raise ValueError("No RUN is given. Pass the output_dir of one run or more.")
    if len(folders) > 1:
        named = zip(folders, distinct_names(folders), strict=True)
        runs = [replace(read_run(folder), name=name) for folder, name in named]
        return [write_picture(draw_comparison(runs), Path(out) / "comparison.png")]
    paths = list(save_pictures(folders[0], out).values())
    if not paths:
        raise ValueError(
            f"There is nothing to draw in '{folders[0]}': the run logged no learning rate, no "
            "sparsity, no loss and no evaluation. Train with logging_steps."
        )
    return paths


def plot_bench(bench: Bench, path: Path) -> Path:
    """Write the picture of the times that were measured of a model; return `path`."""
    return write_picture(draw_speed(bench), path)
