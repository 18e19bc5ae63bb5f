"""How much is there to win by the mask, and what tells which pruned weights should come back?

    pip install "hf_cyclprune[demo,glue]"
    python examples/mask_probes.py sst2 FOLDER RUNS.jsonl --num_layers 3 --max_steps 300 \
        --num_held_out 2000 --bf16

Data and training are those of compare_methods.py, and finished runs are skipped as there.

Mask transplant: the pretrained model is trained for --max_steps with one mask, which stays, by
"magnitude" of its own weights; "fisher": w^2 v after a dense fine-tuning of --max_steps, v being
Adam's second moment; "movement": the end of --long_steps of movement pruning; "end of gradual" and
"end of fisher": that of --long_steps of these methods; "fisher's densities": random, with as many
weights in each matrix as "end of fisher"; "random". The scope is each method's own: all layers
together for fisher, each layer alone for the others.

Regrowth: to the end of the long fisher run (which keeps the values that weights had when they were
pruned) 1 % of all target weights (--regrowth_share) are returned, those with the highest score by
--num_batches batches, with the value 0 or the stored one. Loss on 1600 held-out rows at once, and
after --regrowth_steps more with all masks fixed, from a third of the learning rate down to 0.
"""

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from compare_methods import (
    build_trainer,
    check_finished,
    common_settings,
    finish_in_processes,
    parser_of_runs,
    train_and_evaluate,
)
from experiment import Run, key, mean_and_error, print_table
from method_tables import show

SOURCES: dict[str, dict[str, Any]] = {
    "dense": {},
    "gradual": {"method": "gradual"},
    "movement": {"method": "movement"},
    "fisher": {"method": "fisher", "pruned_weights": "stored"},
}
MASKS = {  # name -> the run that it comes from, if any
    "magnitude": None,
    "fisher": "dense",
    "movement": "movement",
    "end of gradual": "gradual",
    "end of fisher": "fisher",
    "fisher's densities": "fisher",
    "random": None,
}


def parse() -> Any:
    parser = parser_of_runs()
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--max_steps", type=int, default=1500)
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=list(MASKS), metavar="MASK")
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--long_steps", type=int, help="by default twice --max_steps")
    parser.add_argument("--num_batches", type=int, default=100)
    parser.add_argument("--regrowth_steps", type=int, default=50)
    parser.add_argument("--regrowth_share", type=float, help="of the weights; by default 0.01")
    return parser.parse_args()


def wanted(options: Any) -> tuple[list[Run], list[Run]]:
    """Return the runs that masks come from, and those that train with them."""
    names = ("sparsity", "max_steps", "learning_rate")
    common = common_settings(options) | {name: getattr(options, name) for name in names}
    long = {"max_steps": options.long_steps or 2 * options.max_steps}
    regrowth = {"num_batches": options.num_batches, "regrowth_steps": options.regrowth_steps}
    if options.regrowth_share is not None:
        regrowth["regrowth_share"] = options.regrowth_share
    sources, transplants = [], []
    for seed in options.seeds:
        made = {
            name: common | {"arm": name, "pruning": pruning, "seed": seed, "probe": "source"}
            for name, pruning in SOURCES.items()
        }
        for name in ("gradual", "movement", "fisher"):
            made[name] |= long
        made["fisher"] |= regrowth
        fixed = {"pruning": {"method": "hold", "sparsity": None}, "seed": seed}
        transplants += [
            common
            | fixed
            | {"arm": mask, "probe": "transplant"}
            # what the mask depends on besides
            | ({"source": key(made[source])} if source else {})
            for mask, source in MASKS.items()
            if mask in options.masks
        ]
        needed = {MASKS[mask] for mask in options.masks} | {"fisher"}  # for the regrowth
        sources += [run for name, run in made.items() if name in needed]
    return sources, transplants


def masks_file(out: Path, source: str) -> Path:
    """Return where the masks of a source are kept, beside the runs."""
    return out.with_suffix("") / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.safetensors"


def train(run: Run, tokenized: str, out: Path) -> Run:
    """Train one model and return what was measured."""
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = build_trainer(run, tokenized, output_dir)
        similarity = transplant_(trainer.model, run, out) if run["probe"] == "transplant" else {}
        result = train_and_evaluate(trainer, run, tokenized) | similarity
        result["sparsity"] = trainer.sparsity_report().sparsity if run["pruning"] else 0.0
        if run["probe"] == "source":
            save_masks(trainer, run, masks_file(out, key(run)))
        if "regrowth_steps" in run:
            from regrowth import probe

            result["regrowth"] = probe(trainer, run, tokenized)
    return result


def save_masks(trainer: Any, run: Run, path: Path) -> None:
    """Save the masks of a trained model; of a dense one, those that fisher prunes now."""
    from safetensors.torch import save_file

    from hf_cyclprune import PruningConfig, find_targets

    pruner = trainer.pruner
    if pruner is None:
        config = PruningConfig(sparsity=run["sparsity"], method="fisher")
        targets = find_targets(trainer.model)
        pruner = config.build_pruner(targets, run["max_steps"], trainer.optimizer)
        pruner.prune_to(run["sparsity"])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: mask.cpu() for name, mask in pruner.masks.items()}, path)


def transplant_(model: Any, run: Run, out: Path) -> Run:
    """Prune a model by the mask of a run; return how far it is from that of magnitude."""
    import torch
    from safetensors.torch import load_file

    from hf_cyclprune import PruningConfig, find_targets
    from hf_cyclprune.pruning.masks import compare_masks, pack_mask

    targets = find_targets(model)
    options: dict[str, Any] = {"criterion": "magnitude" if run["arm"] == "magnitude" else "random"}
    known = load_file(masks_file(out, run["source"])) if "source" in run else {}
    if run["arm"] == "fisher's densities":  # the last layer gets what the others leave
        zeros = {n: 1.0 - m.double().mean().item() for n, m in list(known.items())[:-1]}
        options["layer_sparsities"] = [f"^{re.escape(n)}$={share}" for n, share in zeros.items()]
    start = {name: weight.detach().clone() for name, weight in targets.items()}

    def masks(**options: Any) -> dict[str, Any]:
        config = PruningConfig(sparsity=run["sparsity"], method="one_shot", **options)
        pruner = config.build_pruner(targets, total_steps=1)
        pruner.prune_to(run["sparsity"])
        with torch.no_grad():
            for name, weight in targets.items():
                weight.copy_(start[name])
        return dict(pruner.masks)

    seed = {"pruning_seed": run["seed"]}
    magnitude = {name: pack_mask(mask) for name, mask in masks().items()}
    is_given = known and "layer_sparsities" not in options
    chosen = known if is_given else masks(**options, **seed)
    with torch.no_grad():
        for name, weight in targets.items():
            weight.mul_(chosen[name].to(weight.device))
    return {"distance_to_magnitude": compare_masks(magnitude, chosen)[1]}


def show_regrowth(runs: list[Run]) -> None:
    """Print what the loss changes by the returned weights, and how alike two choices are."""
    results = [run["result"]["regrowth"] for run in runs if "regrowth" in run["result"]]
    if not results:
        return

    def change(name: str, value: str, when: int, against: str) -> str:
        changes = [r["losses"][name][value][when] - r[against] for r in results]
        return mean_and_error(changes, 5)

    def alike(name: str, measure: str) -> str:
        return mean_and_error([r[measure][name] for r in results if name in r[measure]], 3)

    print("\nRegrowth: change of the loss at once, and after training against no regrowth\n")
    rows = []
    for name in results[0]["losses"]:
        stored = change(name, "stored", 0, "before"), change(name, "stored", 1, "after")
        zero = change(name, "zero", 1, "after")
        rows.append([name, *stored, zero, alike(name, "correlation"), alike(name, "overlap")])
    header = ("score", "stored, at once", "stored, after", "zero, after", "rank correlation")
    print_table([*header, "same choice"], rows)
    losses = [mean_and_error([r[name] for r in results], 5) for name in ("before", "after")]
    print(f"\nLoss before: {losses[0]}; after training without regrowth: {losses[1]}")


def main() -> None:
    options = parse()
    if options.run:
        run, tokenized = options.run
        print(json.dumps(train(json.loads(run), tokenized, options.out)))
        return
    sources, transplants = wanted(options)
    done = finish_in_processes(sources, options)
    show(done)
    show_regrowth(done)
    check_finished(sources, done)
    done = finish_in_processes(transplants, options)
    print("\nMask transplant\n")
    show(done)
    distances = [f"{r['arm']} {r['result']['distance_to_magnitude']:.2f}" for r in done]
    print(f"\nJaccard distances to the mask of magnitude: {', '.join(distances)}")
    check_finished(transplants, done)


if __name__ == "__main__":
    main()
