"""Table and picture of the runs of compare_methods.py, which mask_probes.py shares."""

import statistics
from pathlib import Path

from experiment import Run, differences, mean_and_error, plot_means, print_table


def score(run: Run, split: str = "held_out") -> float:
    """Return what a run scored on a split, by the first metric of its task."""
    result = run["result"]
    names = [n for n in result if n.startswith(f"{split}_") and not n.endswith("_loss")]
    return float(result[names[0]])


def show(runs: list[Run]) -> None:
    """Print a table of the finished runs, with the difference to those of the first arm."""
    best = choose(runs)
    rows = []
    for i, (arm, chosen) in enumerate(best.items()):
        gaps = differences(chosen, next(iter(best.values())), score)
        returned = [run["result"].get("returned_of_kept", 0.0) for run in chosen]
        cells = [arm, f"{chosen[0]['learning_rate']:g}", str(len(chosen))]
        cells += [mean_and_error([score(run) for run in chosen]), mean_and_error(gaps) if i else ""]
        cells += [mean_and_error([score(run, "validation") for run in chosen])]
        cells += [f"{statistics.mean(returned):.2f}"]
        rows.append(cells)
    header = ("arm", "learning rate", "seeds", "held-out", "difference", "validation")
    print_table([*header, "returned / kept"], rows)


def choose(runs: list[Run]) -> dict[str, list[Run]]:
    """Return for each arm the runs with the learning rate that is best on the held-out rows."""
    chosen = {}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        groups: dict[float, list[Run]] = {}
        for run in runs:
            if run["arm"] == arm:
                groups.setdefault(run["learning_rate"], []).append(run)
        chosen[arm] = max(groups.values(), key=lambda group: statistics.mean(map(score, group)))
    return chosen


def draw(runs: list[Run], path: Path) -> None:
    """Draw the difference to the first arm over the steps, a panel for each sparsity."""
    from hf_cyclprune.pictures.style import drawing, looks, new_figure, write_picture

    sparsities = list(dict.fromkeys(run["sparsity"] for run in runs))
    first, *arms = dict.fromkeys(run["arm"] for run in runs)
    with drawing():
        figure = new_figure(3.4)
        panels = figure.subplots(1, len(sparsities), sharey=True, squeeze=False)[0]
        for axes, sparsity in zip(panels, sparsities, strict=True):
            here = [run for run in runs if run["sparsity"] == sparsity]
            budgets = sorted({run["max_steps"] for run in here})
            best = [choose([run for run in here if run["max_steps"] == n]) for n in budgets]
            axes.axhline(0, linewidth=0.7, color="#777b82")
            for i, (arm, look) in enumerate(zip(arms, looks(len(arms)), strict=True)):
                x = [j + 0.05 * (i - len(arms) / 2) for j in range(len(budgets))]
                gaps = [differences(chosen[arm], chosen[first], score) for chosen in best]
                plot_means(axes, x, gaps, look).set_label(arm)
            axes.set_xticks(range(len(budgets)), list(map(str, budgets)))
            axes.set_xlabel(f"steps, {100 * sparsity:g} %")
        panels[0].set_ylabel(f"score - {first}")
        panels[0].legend()
    write_picture(figure, path)
