"""Compare ramps, frozen masks and cycles in the paper's regime: small networks, many epochs.

    pip install "hf_cyclprune[glue,plots]"
    python examples/ablation.py RUNS.jsonl --picture ablation.png

The shape of table 5 of https://arxiv.org/abs/2202.01290: accuracy at the end of cycles 1 to 5, and
how far the masks have moved since the first. An MLP 64-256-256-10 learns the digits of
scikit-learn (1797 rows, a fifth of them for the test) for 30 epochs, and is then pruned in 5 cycles
of 20 epochs, each layer to the same sparsity, by SGD with momentum 0.9, batches of 64 and a linear
decay of the learning rate. All arms take the same number of steps from the same dense network. The
seed draws the split, the network and the order of the rows. The finished runs in RUNS.jsonl, one
line each, are not run again.
"""

import argparse
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import torch
from experiment import Run, differences, finish, mean_and_error, plot_means, print_table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from hf_cyclprune import PruningConfig, find_targets, get_restarting_scheduler
from hf_cyclprune.pruning.masks import compare_masks, pack_mask

RISING = {"levels": "rising", "ramp_ratio": 0.3}
ARMS: dict[str, dict[str, Any]] = {
    "gradual": {"method": "gradual"},
    "gradual_restarts": {"method": "gradual_restarts"},
    "frozen_restarts": {"method": "frozen_restarts"},
    "cubic (cyclical)": {"method": "cyclical"},
    "linear": {"method": "cyclical", "ramp": "linear"},
    "step": {"method": "cyclical", "ramp": "step"},
    "rising, dips to 0.8": {"method": "cyclical", **RISING, "reset_ratio": 0.8},
    "rising, dips to 0.5": {"method": "cyclical", **RISING, "reset_ratio": 0.5},
}
BATCH = 64
Data = tuple[Tensor, Tensor]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("out", metavar="RUNS.jsonl", type=Path)
    parser.add_argument("--picture", metavar="PNG", type=Path)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument(
        "--sparsities", type=float, nargs="+", default=[0.9, 0.95, 0.98, 0.99, 0.995]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--learning_rate", type=float, default=0.1)
    parser.add_argument("--dense_epochs", type=int, default=30)
    parser.add_argument("--cycle_epochs", type=int, default=20)
    parser.add_argument("--num_cycles", type=int, default=5)
    return parser.parse_args()


def wanted(options: argparse.Namespace) -> list[Run]:
    """Return the settings of all runs, seed by seed."""
    common = ("seed", "learning_rate", "dense_epochs", "cycle_epochs", "num_cycles")
    return [
        {"arm": arm, "sparsity": sparsity, "seed": seed}
        | {name: getattr(options, name) for name in common[1:]}
        for seed in options.seeds
        for sparsity in options.sparsities
        for arm in options.arms
    ]


@cache
def load_data(seed: int) -> tuple[Data, Data]:
    """Return rows and labels for training, and for the test."""
    rows, labels = load_digits(return_X_y=True)
    split = train_test_split(rows / 16, labels, test_size=0.2, random_state=seed, stratify=labels)
    x, x_test, y, y_test = map(torch.tensor, split)
    return (x.float(), y), (x_test.float(), y_test)


def build_network() -> nn.Sequential:
    sizes = (64, 256), (256, 256), (256, 10)
    layers = [layer for size in sizes for layer in (nn.Linear(*size), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def batches(data: Data, epochs: int, seed: int):
    """Yield whole batches of the rows, in a new order in every epoch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(data[0]), generator=generator)
        for i in range(len(order) // BATCH):
            chosen = order[i * BATCH : (i + 1) * BATCH]
            yield data[0][chosen], data[1][chosen]


def train(network: nn.Module, run: Run, config: PruningConfig, epochs: int):
    """Train, prune as the config says, and yield (step, pruner) after every step."""
    data = load_data(run["seed"])[0]
    total_steps = epochs * (len(data[0]) // BATCH)
    optimizer = torch.optim.SGD(network.parameters(), lr=run["learning_rate"], momentum=0.9)
    targets = find_targets(network, targets=["weight"])
    pruner = config.build_pruner(targets, total_steps, optimizer)
    whole = PruningConfig(sparsity=config.sparsity, method="gradual").build_schedule(total_steps)
    # A learning rate that restarts follows the cycles; without restarts, the whole run.
    schedule = pruner.schedule if config.restarts_lr else whole
    scheduler = get_restarting_scheduler("linear", optimizer, schedule)
    for t, (x, y) in enumerate(batches(data, epochs, run["seed"]), 1):
        pruner.begin_step(t)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        pruner.before_update(t)
        optimizer.step()
        pruner.step(t)
        scheduler.step()
        yield t, pruner


@cache
def dense_weights(seed: int, learning_rate: float, epochs: int) -> dict[str, Tensor]:
    """Return the weights of the dense network that all arms of a seed start from."""
    torch.manual_seed(seed)
    network = build_network()
    run = {"seed": seed, "learning_rate": learning_rate}
    nothing = PruningConfig(sparsity=0.0, method="one_shot")
    for _ in train(network, run, nothing, epochs):
        pass
    return network.state_dict()


@torch.no_grad()
def accuracy(network: nn.Module, data: Data) -> float:
    return float((network(data[0]).argmax(-1) == data[1]).double().mean())


def measure(run: Run) -> dict[str, Any]:
    """Prune one network; return what was measured after each fifth of the run."""
    network, test = build_network(), load_data(run["seed"])[1]
    network.load_state_dict(dense_weights(run["seed"], run["learning_rate"], run["dense_epochs"]))
    result: dict[str, Any] = {"dense": accuracy(network, test), "accuracy": [], "sparsity": []}
    result |= {"distance_to_first": [], "recovered": []}
    config = PruningConfig(sparsity=run["sparsity"], **cycles_of(run))
    epochs, first, last = run["cycle_epochs"] * run["num_cycles"], {}, {}
    steps_of_cycle = run["cycle_epochs"] * (len(load_data(run["seed"])[0][0]) // BATCH)
    for t, pruner in train(network, run, config, epochs):
        if t % steps_of_cycle:
            continue
        packed = {name: pack_mask(mask) for name, mask in pruner.masks.items()}
        first, last = first or packed, last or packed
        result["accuracy"].append(accuracy(network, test))
        result["sparsity"].append(pruner.sparsity)
        result["distance_to_first"].append(compare_masks(first, pruner.masks)[1])
        result["recovered"].append(compare_masks(last, pruner.masks)[0])
        last = packed
    return result


def cycles_of(run: Run) -> dict[str, Any]:
    """Return the options of an arm, with the number of cycles where its method has any."""
    options = ARMS[run["arm"]]
    has_cycles = PruningConfig(sparsity=0.5, **options).plan.num_cycles > 1
    return options | ({"num_cycles": run["num_cycles"]} if has_cycles else {})


def final(run: Run) -> float:
    return 100 * run["result"]["accuracy"][-1]


def show(runs: list[Run]) -> None:
    """Print a table for each sparsity."""
    for sparsity in dict.fromkeys(run["sparsity"] for run in runs):
        here = [run for run in runs if run["sparsity"] == sparsity]
        arms = {arm: [r for r in here if r["arm"] == arm] for arm in ARMS}
        rows = []
        for arm, group in arms.items():
            ends = zip(*(run["result"]["accuracy"] for run in group), strict=True)
            means = [f"{100 * statistics.mean(end):.2f}" for end in ends]
            gaps = differences(group, arms["gradual"], final)
            if group:
                rows.append([arm, *means[:-1], mean_and_error([*map(final, group)], 2)])
                rows[-1] += [mean_and_error(gaps, 2), distances(group), recovered(group)]
        ends = [f"cycle {c + 1}" for c in range(here[0]["num_cycles"])]
        print(f"\nSparsity {100 * sparsity:g} %, accuracy in % on the test rows\n")
        print_table(["arm", *ends, "- gradual", "mask distance", "recovered, %"], rows)
        gaps = differences(arms["cubic (cyclical)"], arms["frozen_restarts"], final)
        print(f"\nCyclical - frozen_restarts: {mean_and_error(gaps, 2)}")


def distances(runs: list[Run]) -> str:
    """Write the mean Jaccard distances to the first cycle's masks, where these are as sparse."""
    results = [run["result"] for run in runs]
    if any(r["sparsity"][0] < r["sparsity"][-1] for r in results):
        return ""
    ends = zip(*(r["distance_to_first"] for r in results), strict=True)
    return " ".join(f"{statistics.mean(end):.2f}" for end in ends)


def recovered(runs: list[Run]) -> str:
    """Write the mean share of weights that are pruned at a cycle's end and kept at the next."""
    shares = [statistics.mean(run["result"]["recovered"][1:] or [0.0]) for run in runs]
    return f"{100 * statistics.mean(shares):.3f}"


def draw(runs: list[Run], path: Path) -> None:
    """Draw the difference to gradual over the sparsities, with standard errors."""
    from hf_cyclprune.pictures.style import drawing, looks, new_figure, write_picture

    sparsities = sorted({run["sparsity"] for run in runs})
    arms = [arm for arm in dict.fromkeys(run["arm"] for run in runs) if arm != "gradual"]

    def group(arm: str, sparsity: float) -> list[Run]:
        return [run for run in runs if (run["arm"], run["sparsity"]) == (arm, sparsity)]

    with drawing():
        figure = new_figure(3.4)
        axes = figure.subplots()
        axes.axhline(0, linewidth=0.7, color="#777b82")
        for i, (arm, look) in enumerate(zip(arms, looks(len(arms)), strict=True)):
            gaps = [differences(group(arm, s), group("gradual", s), final) for s in sparsities]
            x = [j + 0.05 * (i - len(arms) / 2) for j in range(len(sparsities))]
            plot_means(axes, x, gaps, look).set_label(arm)
        axes.set_xticks(range(len(sparsities)), [f"{100 * s:g}" for s in sparsities])
        axes.set_xlabel("sparsity (%)")
        axes.set_ylabel("accuracy - gradual (points)")
        axes.legend(ncols=2, loc="lower left")
    write_picture(figure, path)


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    done = finish(options.out, wanted(options), measure)
    show(done)
    if options.picture:
        draw(done, options.picture)


if __name__ == "__main__":
    main()
