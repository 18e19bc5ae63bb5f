"""Compare methods at the same number of optimizer steps, with seeds, on a GLUE task.

    pip install "hf_cyclprune[demo,glue]"
    python examples/compare_methods.py sst2 FOLDER RUNS.jsonl --sparsity 0.9 --seeds 0 1 2 \
        --arm magnitude method=gradual --arm fisher method=fisher --arm swap method=swap

FOLDER holds train.parquet and validation.parquet with the columns of nyu-mll/glue. An arm is a name
and options of PruningConfig; without any it trains the dense model. Each arm is trained with each
seed and each learning rate, and evaluated on rows held out of the train split, for choices, and on
the validation split, for the report. The runs share a GPU if there is one. Each adds one line to
RUNS.jsonl; those that are there are not run again. At the end a table shows, for each arm at the
learning rate with the best mean on the held-out rows, mean and standard error over the seeds, and
the paired difference to the first arm.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("task", help="sst2, mrpc, cola, rte, qnli, ...")
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("out", metavar="RUNS.jsonl", type=Path)
    parser.add_argument("--arm", nargs="+", action="append", metavar=("NAME", "OPTION=VALUE"))
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[3e-4])
    parser.add_argument("--max_steps", type=int, default=1500)
    parser.add_argument("--model", help="folder of an encoder; by default the demo's MiniLM")
    parser.add_argument("--num_layers", type=int, help="cut the model to its first layers")
    parser.add_argument("--num_train", type=int, default=40_000, help="train rows at most")
    parser.add_argument("--num_held_out", type=int, default=4_000, help="train rows held out")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument(
        "--workers", type=int, default=2, help="runs at once, which share the cores"
    )
    # One run, in a process of its own: its settings as JSON, and the folder of the tokenized rows.
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def key(run: dict[str, Any]) -> str:
    """What tells one run from another."""
    return json.dumps({k: v for k, v in run.items() if k != "result"}, sort_keys=True)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the finished runs."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {key(run): run for run in map(json.loads, lines)}


def wanted(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the settings of all runs, seed by seed, so that a table of all arms is early there."""
    common = ("task", "sparsity", "max_steps", "num_layers", "num_train", "num_held_out", "bf16")
    model = {"model": options.model} if options.model is not None else {}
    arms = {
        name: {k: yaml.safe_load(v) for k, v in (option.split("=", 1) for option in given)}
        for name, *given in options.arm
    }
    return [
        {name: getattr(options, name) for name in common}
        | model
        | {"arm": name, "pruning": pruning, "seed": seed, "learning_rate": lr}
        for seed in options.seeds
        for lr in options.learning_rates
        for name, pruning in arms.items()
    ]


def find_folder(run: dict[str, Any]) -> Path:
    """Return the folder of the pretrained encoder and its tokenizer."""
    from hf_cyclprune.demo.model import find_model

    return Path(run["model"]) if "model" in run else find_model()


def tokenize(run: dict[str, Any], folder: Path, tokenized: Path) -> None:
    """Write the tokenized rows of the three splits, which are those of all runs."""
    import datasets
    from transformers import AutoTokenizer

    from hf_cyclprune.glue.tasks import get_task

    datasets.disable_progress_bars()
    task = get_task(run["task"])
    tokenizer = AutoTokenizer.from_pretrained(find_folder(run))
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "validation")}
    data = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tokenized / "cache"))
    shuffled = data["train"].shuffle(seed=1234)
    num_held_out = run["num_held_out"]
    num_used = min(num_held_out + run["num_train"], len(shuffled))
    data["held_out"] = shuffled.select(range(num_held_out))
    data["train"] = shuffled.select(range(num_held_out, num_used))
    data.map(
        lambda batch: tokenizer(
            *(batch[column] for column in task.columns), truncation=True, max_length=64
        ),
        batched=True,
        remove_columns=[c for c in shuffled.column_names if c != "label"],
    ).save_to_disk(tokenized)


def train(run: dict[str, Any], tokenized: str) -> dict[str, Any]:
    """Train one model and return what was measured."""
    import datasets
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

    from hf_cyclprune import PruningConfig, PruningTrainer
    from hf_cyclprune.glue.metrics import score
    from hf_cyclprune.glue.tasks import get_task

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    task, source = get_task(run["task"]), find_folder(run)
    encoded = datasets.load_from_disk(tokenized)
    torch.manual_seed(run["seed"])
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=len(task.labels), dtype=torch.float32
    )
    if run["num_layers"] is not None:
        model.base_model.encoder.layer = model.base_model.encoder.layer[: run["num_layers"]]
        model.config.num_hidden_layers = run["num_layers"]

    def measure(prediction: Any) -> dict[str, float]:
        answers = prediction.predictions
        answers = answers[:, 0] if task.is_regression else answers.argmax(-1)
        return score(task, answers, prediction.label_ids)

    pruning = dict(run["pruning"])
    config = PruningConfig(**{"sparsity": run["sparsity"], **pruning}) if pruning else None
    with tempfile.TemporaryDirectory() as output_dir:
        args = TrainingArguments(
            output_dir,
            max_steps=run["max_steps"],
            per_device_train_batch_size=32,
            per_device_eval_batch_size=128,
            learning_rate=run["learning_rate"],
            seed=run["seed"],
            weight_decay=0.01,
            bf16=run["bf16"],
            use_cpu=not torch.cuda.is_available(),
            # Rows of one length share a batch: a third of the tokens on SST-2, the rest padding.
            train_sampling_strategy="group_by_length",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            report_to=[],
        )
        trainer = PruningTrainer(
            model,
            args,
            train_dataset=encoded["train"],
            processing_class=AutoTokenizer.from_pretrained(source),
            compute_metrics=measure,
            pruning_config=config,
        )
        start = time.perf_counter()
        trainer.train()
        device = trainer.args.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        result: dict[str, Any] = {"seconds": time.perf_counter() - start, "device": name}
        for split in ("held_out", "validation"):
            metrics = trainer.evaluate(encoded[split], metric_key_prefix=split)
            names = [f"{split}_{name}" for name in (task.metrics[0], "loss")]
            result |= {name: metrics[name] for name in names}
        report = trainer.sparsity_report()
        if trainer.pruner is not None and report is not None:
            num_kept = trainer.pruner.num_weights - sum(trainer.pruner.num_pruned)
            result["sparsity"] = report.sparsity
            result["returned_of_kept"] = int(trainer.pruner.num_returned) / num_kept
            result["recovered_at_end"] = [c.recovered_share_at_end for c in report.cycles]
    return result


def run_in_process(run: dict[str, Any], tokenized: str, options: argparse.Namespace) -> None:
    """Train in a process of its own, so that runs share no state, and note the result."""
    command = [sys.executable, __file__, options.task, str(options.folder), str(options.out)]
    threads = str(max(1, (os.cpu_count() or 1) // options.workers))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [*command, "--run", json.dumps(run), tokenized],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(f"{run['arm']}, seed {run['seed']} failed:\n{done.stderr[-2000:]}", flush=True)
        return
    result = json.loads(done.stdout.splitlines()[-1])
    with options.out.open("a") as file:
        file.write(json.dumps({**run, "result": result}) + "\n")
    print(f"{run['arm']}, seed {run['seed']}, lr {run['learning_rate']:g}: {result}", flush=True)


def main() -> None:
    options = parse()
    if options.run:
        run, tokenized = options.run
        print(json.dumps(train(json.loads(run), tokenized)))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    runs, finished = wanted(options), read(options.out)
    missing = [run for run in runs if key(run) not in finished]
    with tempfile.TemporaryDirectory() as tokenized, ThreadPoolExecutor(options.workers) as pool:
        if missing:
            tokenize(missing[0], options.folder, Path(tokenized))
        list(pool.map(lambda run: run_in_process(run, tokenized, options), missing))
    finished = read(options.out)
    failed = [run["arm"] for run in runs if key(run) not in finished]
    show([finished[key(run)] for run in runs if key(run) in finished])
    if failed:
        raise SystemExit(f"Not finished: {', '.join(failed)}. The same command runs them again.")


def show(runs: list[dict[str, Any]]) -> None:
    """Print the table of the finished runs."""
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    best = {arm: _best_of([run for run in runs if run["arm"] == arm]) for arm in arms}
    print("| arm | learning rate | seeds | held-out | difference | validation | returned / kept |")
    print("|---|---|---|---|---|---|---|")
    for arm, chosen in best.items():
        first = {run["seed"]: _score(run) for run in best[arms[0]]}
        gaps = [_score(run) - first[run["seed"]] for run in chosen if run["seed"] in first]
        returned = [run["result"].get("returned_of_kept", 0.0) for run in chosen]
        cells = [arm, f"{chosen[0]['learning_rate']:g}", str(len(chosen))]
        cells += [_mean([_score(run) for run in chosen]), _mean(gaps) if arm != arms[0] else ""]
        cells += [_mean([_score(run, "validation") for run in chosen])]
        cells += [f"{statistics.mean(returned):.2f}"]
        print("| " + " | ".join(cells) + " |")


def _best_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs with the learning rate whose mean on held-out rows is highest."""
    rates = {run["learning_rate"] for run in runs}
    groups = [[run for run in runs if run["learning_rate"] == rate] for rate in rates]
    return max(groups, key=lambda group: statistics.mean(map(_score, group)))


def _score(run: dict[str, Any], split: str = "held_out") -> float:
    result = run["result"]
    names = [n for n in result if n.startswith(f"{split}_") and not n.endswith("_loss")]
    return float(result[names[0]])


def _mean(values: list[float]) -> str:
    """Write mean and standard error."""
    if not values:
        return ""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4f} ± {error:.4f}"


if __name__ == "__main__":
    main()
