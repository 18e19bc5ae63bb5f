"""Compare dense, gradual and cyclical fine-tuning with equal steps and several seeds.

    pip install "hf_cyclprune[demo,glue]"
    python examples/glue_results.py FOLDER OUT --bf16
    python examples/glue_results.py FOLDER OUT --only sst2-dense --seeds 0 1

FOLDER holds sst2/train.parquet and sst2/validation.parquet with the columns of nyu-mll/glue. Every
run has a folder of its own under OUT. Finished runs are skipped, interrupted ones continue from
their last checkpoint, and at the end a table shows all finished runs. The model is all-MiniLM-L6-v2
from the package of the demo, unless --model names another.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_cyclprune import PruningArguments
from hf_cyclprune.demo.model import find_model
from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.run import run_glue
from hf_cyclprune.glue.tasks import get_task
from hf_cyclprune.training.device import has_accelerator


@dataclass(frozen=True)
class Row:
    """A way to train on SST-2."""

    name: str
    pruning: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)

    def __str__(self) -> str:
        return f"sst2-{self.name}"


ROWS = [
    Row("dense"),
    Row("gradual-80", {"method": "gradual", "sparsity": 0.8}),
    Row("gradual-restarts-80", {"method": "gradual_restarts", "sparsity": 0.8}),
    Row("cyclical-80", {"method": "cyclical", "sparsity": 0.8}),
    Row("cyclical-2of4", {"method": "cyclical", "pattern": "2:4"}, seeds=(0,)),
]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", metavar="FOLDER", help="folder with the tasks as parquet")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the runs")
    parser.add_argument("--model", help="model to fine-tune (default: the demo's)")
    parser.add_argument("--only", nargs="+", help="run the rows whose names begin so")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the seeds of each row")
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


def run(row: Row, seed: int, options: argparse.Namespace) -> None:
    folder = options.out / f"{row}-seed{seed}"
    if (folder / "eval_results.json").is_file():
        return
    print(f"\n{folder.name}", flush=True)
    args = PruningArguments(
        output_dir=str(folder),
        do_train=True,
        do_eval=True,
        max_steps=1500,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        learning_rate=options.learning_rate,
        warmup_steps=0.06,
        seed=seed,
        bf16=options.bf16,
        use_cpu=not has_accelerator(),
        save_steps=250,
        save_total_limit=1,
        logging_steps=50,
        resume_from_checkpoint="True",
        disable_tqdm=True,
        report_to=[],
        **row.pruning,
    )
    model = options.model or str(find_model())
    glue = GlueArguments("sst2", model, dataset_dir=options.data, max_seq_length=64)
    run_glue(glue, args)


def table(out: Path) -> str:
    lines = [f"{'':<28}  seeds  metric                mean    s.e.   sparsity"]
    metric = get_task("sst2").best_metric
    for row in ROWS:
        files = sorted(out.glob(f"{row}-seed*/all_results.json"))
        results = [json.loads(file.read_text()) for file in files]
        values = [r[f"eval_{metric}"] for r in results if f"eval_{metric}" in r]
        if not values:
            continue
        spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        lines.append(
            f"{row!s:<28}  {len(values):>5}  {metric:<20}  {statistics.mean(values):.4f}  "
            f"{spread:.4f}  {results[0]['sparsity']:.4f}"
        )
    return "\n".join(lines)


def main() -> None:
    options = parse()
    for row in ROWS:
        if options.only is None or any(str(row).startswith(name) for name in options.only):
            for seed in options.seeds or row.seeds:
                run(row, seed, options)
    print("\n" + table(options.out))


if __name__ == "__main__":
    main()
