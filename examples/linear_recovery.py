"""Linear models whose right zeros are known: which method prunes the right weights?

    pip install "hf_cyclprune[plots]"
    python examples/linear_recovery.py RUNS.jsonl --picture linear_recovery.png

1. Table 1 of https://arxiv.org/abs/2202.01290: d = 5 weights alpha of which one is zero, X in
   R^(d x n) with unit normal entries over sqrt(n), and the dense start
   w = (X X^T + lambda I)^-1 X X^T alpha. One-shot pruning removes the smallest |w|; projected
   gradient descent (`pgd`: cyclical with an interval of 1) takes steps of 1 / lambda_max(X X^T) on
   |X^T (w - alpha)|^2 / 2, and removes the smallest after each. "Adversarial" is the alpha of the
   paper that makes w largest at the zero: row c of (X X^T + lambda I)^-1 X X^T.
2. A planted support, the setting of iterative hard thresholding (see
   https://arxiv.org/abs/2509.20323) made small: y = A x + noise, m measurements of 100 numbers x,
   of which k are 1 or -1 and the others 0. From the dense least-squares solution of the smallest
   norm, every method takes the same number of steps of 1 / lambda_max(A^T A), and ends with k
   weights. The dense problem needs steps that small, one with k weights does not, so that `pgd`
   runs with 2.5 times that too. Measured: the share of the support that is found.

Each problem is one row (1) or one target weight (2) of a model that the library prunes. Finished
cells in RUNS.jsonl, one line each, are not run again.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from experiment import Run, finish, mean_and_error, plot_means, print_table
from torch import Tensor, nn

from hf_cyclprune import Pruner, PruningConfig

PAPER = {  # (n, alpha): one-shot, PGD, each over 100 runs
    (2, "random"): (0.33, 0.32),
    (2, "adversarial"): (0.12, 0.11),
    (4, "random"): (0.22, 0.36),
    (4, "adversarial"): (0.02, 0.23),
    (10, "random"): (0.35, 0.64),
    (10, "adversarial"): (0.04, 0.44),
}
ARMS: dict[str, tuple[dict[str, Any], float]] = {  # options, and the step size
    "one_shot": ({"method": "one_shot"}, 1.0),
    "gradual": ({"method": "gradual"}, 1.0),
    "pgd": ({"method": "pgd"}, 1.0),
    "pgd, step x 2.5": ({"method": "pgd"}, 2.5),
    "cyclical": ({"method": "cyclical"}, 1.0),
    "swap": ({"method": "swap", "regrowth_ratio": 0.3}, 1.0),
    "swap, magnitude": (
        {"method": "swap", "regrowth_ratio": 0.3, "criterion": "magnitude"},
        1.0,
    ),
}
SIZE = 100  # of the planted vector


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("out", metavar="RUNS.jsonl", type=Path)
    parser.add_argument("--picture", metavar="PNG", type=Path)
    parser.add_argument("--num_runs", type=int, default=4000, help="problems in a cell of table 1")
    parser.add_argument("--ridges", type=float, nargs="+", default=[1.0, 10.0, 100.0, 1000.0])
    parser.add_argument("--table_steps", type=int, nargs="+", default=[30, 300, 1000])
    parser.add_argument("--num_steps", type=int, default=300, help="with a planted support")
    parser.add_argument("--num_problems", type=int, default=60, help="planted ones in a cell")
    parser.add_argument("--supports", type=int, nargs="+", default=[2, 5, 8, 11, 14, 17, 20])
    parser.add_argument("--measurements", type=int, nargs="+", default=[20, 30, 40, 60, 80])
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def wanted(options: argparse.Namespace) -> list[Run]:
    """Return the settings of all cells."""
    seed = {"seed": options.seed}
    table = [
        {"experiment": "table", "n": n, "alpha": alpha, "ridge": ridge, "method": method}
        | {"num_runs": options.num_runs, "num_steps": num_steps, **seed}
        for num_steps in options.table_steps
        for ridge in options.ridges
        for n, alpha in PAPER
        for method in ("one_shot", "pgd")
    ]
    cells = [(50, k) for k in options.supports] + [(m, 11) for m in options.measurements]
    planted = [
        {"experiment": "planted", "m": m, "k": k, "noise": options.noise, "arm": arm, **seed}
        | {"num_problems": options.num_problems, "num_steps": options.num_steps}
        for m, k in dict.fromkeys(cells)
        for arm in ARMS
    ]
    return table + planted


def ridge_start(matrix: Tensor, answers: Tensor, ridge: float) -> Tensor:
    """Return the ridge regression of every problem.  # (P, M, D), (P, M) -> (P, D)"""
    gram = matrix.mT @ matrix + ridge * torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    return torch.linalg.solve(gram, (matrix.mT @ answers[..., None]))[..., 0]


def descend(pruner: Pruner, weights: Tensor, matrix: Tensor, answers: Tensor) -> None:
    """Take the steps of the pruner's schedule; the targets are rows of `weights`."""
    optimizer, rows = pruner.optimizer, list(pruner.targets.values())
    assert optimizer is not None
    gram, goal = matrix.mT @ matrix, (matrix.mT @ answers[..., None])[..., 0]
    largest = torch.linalg.eigvalsh(gram)[:, -1]
    gram, goal = (gram / largest[:, None, None]).float(), (goal / largest[:, None]).float()
    for t in range(1, pruner.schedule.total_steps + 1):
        gradient = (gram @ weights[..., None])[..., 0] - goal
        for row, part in zip(rows, gradient.split([len(r) for r in rows]), strict=True):
            row.grad = part
        pruner.begin_step(t)
        pruner.before_update(t)
        optimizer.step()
        pruner.step(t)


def table_cell(run: Run) -> dict[str, Any]:
    """Return how often the right weight of five is pruned."""
    torch.manual_seed(run["seed"])
    num, n, right = run["num_runs"], run["n"], 0  # the order of the weights means nothing
    x = torch.randn(num, n, 5, dtype=torch.float64) / n**0.5
    alpha = torch.randn(num, 5, dtype=torch.float64)
    if run["alpha"] == "adversarial":
        shrunk = x.mT @ x
        inverse = torch.linalg.inv(shrunk + run["ridge"] * torch.eye(5, dtype=x.dtype))
        alpha = (inverse @ shrunk)[:, right]
    alpha[:, right] = 0.0
    answers = (x @ alpha[..., None])[..., 0]
    weights = nn.Parameter(ridge_start(x, answers, run["ridge"]).float())
    # "4:5" keeps four of every five weights: one is pruned in each row.
    config = PruningConfig(method=run["method"], pattern="4:5")
    optimizer = torch.optim.SGD([weights], lr=1.0)
    pruner = config.build_pruner({"weights": weights}, run["num_steps"], optimizer)
    if run["method"] == "one_shot":
        pruner.prune_to(0.2)  # the dense start itself
    else:
        with torch.no_grad():
            descend(pruner, weights, x, answers)
    share = float((~pruner.masks["weights"][:, right]).double().mean())
    return {"right": share, "error": (share * (1 - share) / num) ** 0.5}


@torch.no_grad()
def planted_cell(run: Run) -> dict[str, Any]:
    """Return the share of the support that is found, of every problem."""
    torch.manual_seed(run["seed"])
    num, m, k = run["num_problems"], run["m"], run["k"]
    matrix = torch.randn(num, m, SIZE, dtype=torch.float64) / m**0.5
    support = torch.rand(num, SIZE).argsort(-1) < k
    planted = torch.randn(num, SIZE, dtype=torch.float64).sign() * support
    noise = run["noise"] * torch.randn(num, m, dtype=torch.float64)
    answers = (matrix @ planted[..., None])[..., 0] + noise
    weights = ridge_start(matrix, answers, 1e-6).float()
    rows = {f"problem{i}": nn.Parameter(weights[i : i + 1]) for i in range(num)}
    settings, step = ARMS[run["arm"]]
    config = PruningConfig(sparsity=1 - k / SIZE, scope="layer", **settings)
    optimizer = torch.optim.SGD(rows.values(), lr=step)
    pruner = config.build_pruner(rows, run["num_steps"], optimizer)
    descend(pruner, weights, matrix, answers)
    kept = torch.cat([pruner.masks[name] for name in rows])
    assert int(kept.sum()) == num * k
    return {"found": ((kept & support).sum(-1) / k).tolist()}


def show_table(runs: list[Run]) -> None:
    """Print ours beside the paper's table 1, and how far apart they are."""
    distances = []
    for steps, ridge in dict.fromkeys((run["num_steps"], run["ridge"]) for run in runs):
        rows, distance = [], 0.0
        for (n, alpha), paper in PAPER.items():
            place = (n, alpha, ridge, steps)
            names = ("n", "alpha", "ridge", "num_steps")
            ours = [r["result"] for r in runs if tuple(r[name] for name in names) == place]
            cells = [f"{o['right']:.3f} ± {o['error']:.3f}" for o in ours]
            rows.append([str(n), alpha, f"{paper[0]:.2f}", cells[0], f"{paper[1]:.2f}", cells[1]])
            for p, o in zip(paper, ours, strict=True):
                distance += (o["right"] - p) ** 2 / (p * (1 - p) / 100 + o["error"] ** 2)
        distances.append([f"{ridge:g}", str(steps), f"{distance:.0f}"])
        print(f"\nlambda {ridge:g}, {steps} steps, {runs[0]['num_runs']} runs in a cell\n")
        print_table(["n", "alpha", "one-shot, paper", "ours", "PGD, paper", "ours"], rows)
    print("\nDistance to the paper: chi-squared of the 12 cells\n")
    print_table(["lambda", "steps", "distance"], distances)


def show_planted(runs: list[Run]) -> None:
    """Print the recovered support of each method."""
    rows = []
    for m, k in dict.fromkeys((run["m"], run["k"]) for run in runs):
        here = {r["arm"]: r["result"]["found"] for r in runs if (r["m"], r["k"]) == (m, k)}
        gaps = [c - g for c, g in zip(here["cyclical"], here["gradual"], strict=True)]
        columns = [mean_and_error(found, 3) for found in (*here.values(), gaps)]
        rows.append([str(m), str(k), *columns])
    print(f"\nRecovered support of {SIZE} weights, {runs[0]['num_problems']} problems a cell\n")
    print_table(["measurements", "not zero", *ARMS, "cyclical - gradual"], rows)


def draw(runs: list[Run], path: Path) -> None:
    """Draw the recovered support over the sparsity and over the number of measurements."""
    from hf_cyclprune.pictures.style import drawing, looks, new_figure, write_picture

    panels = (
        ("k", "m", 50, "weights that are not zero, with 50 measurements"),
        ("m", "k", 11, "measurements, with 11 weights that are not zero"),
    )
    with drawing():
        figure = new_figure(2.9)
        for axes, (over, fixed, value, label) in zip(
            figure.subplots(1, 2, sharey=True), panels, strict=True
        ):
            for arm, look in zip(ARMS, looks(len(ARMS)), strict=True):
                here = [r for r in runs if r["arm"] == arm and r[fixed] == value]
                here.sort(key=lambda run: run[over])
                found = [run["result"]["found"] for run in here]
                x = [run[over] for run in here]
                plot_means(axes, x, found, look).set_label(arm)
            axes.set_xticks(x)
            axes.set_xlabel(label)
        figure.axes[0].set_ylabel("recovered share of the support")
        figure.axes[0].legend()
    write_picture(figure, path)


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    cells = {"table": table_cell, "planted": planted_cell}
    done = finish(options.out, wanted(options), lambda run: cells[run["experiment"]](run))
    planted = [run for run in done if run["experiment"] == "planted"]
    show_table([run for run in done if run["experiment"] == "table"])
    show_planted(planted)
    if options.picture:
        draw(planted, options.picture)


if __name__ == "__main__":
    main()
