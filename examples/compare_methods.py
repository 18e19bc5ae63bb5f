"""Compare methods at the same number of optimizer steps, with seeds, on a GLUE task.

    pip install "hf_cyclprune[demo,glue]"
    python examples/compare_methods.py sst2 FOLDER RUNS.jsonl --seeds 0 1 2 \
        --sparsity 0.8 0.9 --max_steps 500 1500 --picture compared.png \
        --arm magnitude method=gradual --arm fisher method=fisher --arm swap method=swap

FOLDER holds train.parquet and validation.parquet with the columns of nyu-mll/glue. An arm is a name
and options of PruningArguments; without any it trains the dense model. Each arm is trained with
each sparsity, number of steps, seed and learning rate, and evaluated on rows held out of the train
split, for choices, and on the validation split, for the report. The runs share a GPU if there is
one. Each adds one line to RUNS.jsonl; those that are there are not run again. At the end a table
for each sparsity and number of steps shows, for each arm at the learning rate with the best mean on
the held-out rows, mean and standard error over the seeds, and the paired difference to the first
arm. An arm with an n:m pattern needs --sparsity 0.5 for 2:4, 0.75 for 1:4.

A teacher that never saw the held-out rows: --arm dense --save_models MODELS, which writes
MODELS/dense-0.9-1500-0.0003-0 (sparsity, steps, learning rate, seed), and then arms with
teacher=MODELS/dense-0.9-1500-0.0003-0.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiment import Run, append, key, read
from method_tables import draw, show


def parser_of_runs() -> argparse.ArgumentParser:
    """Return a parser of the options that all scripts with runs on a GLUE task have."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("task", help="sst2, mrpc, cola, rte, qnli, ...")
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("out", metavar="RUNS.jsonl", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
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
    parser.set_defaults(save_models=None)  # only this script has it as an option
    return parser


def parse() -> argparse.Namespace:
    parser = parser_of_runs()
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9])
    parser.add_argument("--max_steps", type=int, nargs="+", default=[1500])
    parser.add_argument("--arm", nargs="+", action="append", metavar=("NAME", "OPTION=VALUE"))
    parser.add_argument("--picture", metavar="PNG", type=Path)
    parser.add_argument("--save_models", metavar="MODELS", type=Path)
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[3e-4])
    return parser.parse_args()


def common_settings(options: argparse.Namespace) -> Run:
    """Return the settings that all runs share."""
    names = ("task", "num_layers", "num_train", "num_held_out", "bf16")
    model = {"model": options.model} if options.model is not None else {}
    return {name: getattr(options, name) for name in names} | model


def read_value(text: str) -> Any:
    """Read an option's value as JSON, or as a string where it is none, such as 2:4."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def wanted(options: argparse.Namespace) -> list[Run]:
    """Return the settings of all runs, seed by seed, so that a table of all arms is early there."""
    arms = {
        name: {k: read_value(v) for k, v in (option.split("=", 1) for option in given)}
        for name, *given in options.arm
    }
    return [
        common_settings(options)
        | {"sparsity": sparsity, "max_steps": max_steps}
        | {"arm": name, "pruning": pruning, "seed": seed, "learning_rate": lr}
        for seed in options.seeds
        for sparsity in options.sparsity
        for max_steps in options.max_steps
        for lr in options.learning_rates
        for name, pruning in arms.items()
    ]


def find_folder(run: Run) -> Path:
    """Return the folder of the pretrained encoder and its tokenizer."""
    from hf_cyclprune.demo.model import find_model

    return Path(run["model"]) if "model" in run else find_model()


def tokenize(run: Run, folder: Path, tokenized: Path) -> None:
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


def build_trainer(run: Run, tokenized: str, output_dir: str) -> Any:
    """Return the trainer of a run, with its model."""
    import datasets
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_cyclprune import PruningArguments, PruningTrainer
    from hf_cyclprune.glue.metrics import score
    from hf_cyclprune.glue.tasks import get_task

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    task, source = get_task(run["task"]), find_folder(run)
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

    pruning = {"sparsity": run["sparsity"], **run["pruning"]} if run["pruning"] else {}
    # Rows of one length share a batch: otherwise two thirds of the tokens of SST-2 are padding.
    by_length: Run = {"train_sampling_strategy": "group_by_length"}
    if "train_sampling_strategy" not in PruningArguments.__dataclass_fields__:  # transformers 5.0
        by_length = {"group_by_length": True}
    args = PruningArguments(
        output_dir=output_dir,
        max_steps=run["max_steps"],
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        learning_rate=run["learning_rate"],
        seed=run["seed"],
        weight_decay=0.01,
        bf16=run["bf16"],
        use_cpu=not torch.cuda.is_available(),
        **by_length,
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        report_to=[],
        **pruning,
    )
    return PruningTrainer(
        model,
        args,
        train_dataset=datasets.load_from_disk(tokenized)["train"],
        processing_class=AutoTokenizer.from_pretrained(source),
        compute_metrics=measure,
    )


def train_and_evaluate(trainer: Any, run: Run, tokenized: str) -> Run:
    """Train, and return time, device and the scores on the two other splits."""
    import datasets
    import torch

    from hf_cyclprune.glue.tasks import get_task

    start = time.perf_counter()
    trainer.train()
    device = trainer.args.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    result: Run = {"seconds": time.perf_counter() - start, "device": name}
    encoded = datasets.load_from_disk(tokenized)
    for split in ("held_out", "validation"):
        metrics = trainer.evaluate(encoded[split], metric_key_prefix=split)
        names = [f"{split}_{name}" for name in (get_task(run["task"]).metrics[0], "loss")]
        result |= {name: metrics[name] for name in names}
    return result


def train(run: Run, tokenized: str, models: Path | None = None) -> Run:
    """Train one model, save it if there is a folder for models, and return what was measured."""
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = build_trainer(run, tokenized, output_dir)
        result = train_and_evaluate(trainer, run, tokenized)
        report = trainer.sparsity_report()
        if trainer.pruner is not None and report is not None:
            num_kept = trainer.pruner.num_weights - sum(trainer.pruner.num_pruned)
            result["sparsity"] = report.sparsity
            result["returned_of_kept"] = int(trainer.pruner.num_returned) / num_kept
            result["recovered_at_end"] = [c.recovered_share_at_end for c in report.cycles]
        if models is not None:
            parts = ("arm", "sparsity", "max_steps", "learning_rate", "seed")
            trainer.save_model(str(models / "-".join(str(run[part]) for part in parts)))
    return result


def run_in_process(run: Run, tokenized: str, options: argparse.Namespace) -> None:
    """Train in a process of its own, so that runs share no state, and note the result."""
    command = [sys.executable, sys.argv[0], options.task, str(options.folder), str(options.out)]
    threads = str(max(1, (os.cpu_count() or 1) // options.workers))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    if options.save_models is not None:
        command += ["--save_models", str(options.save_models)]
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
    append(options.out, run, result)
    print(f"{run['arm']}, seed {run['seed']}, lr {run['learning_rate']:g}: {result}", flush=True)


def finish_in_processes(runs: list[Run], options: argparse.Namespace) -> list[Run]:
    """Run what is missing, several at once; return the finished runs with their results."""
    missing = [run for run in runs if key(run) not in read(options.out)]
    with tempfile.TemporaryDirectory() as tokenized, ThreadPoolExecutor(options.workers) as pool:
        if missing:
            tokenize(missing[0], options.folder, Path(tokenized))
        list(pool.map(lambda run: run_in_process(run, tokenized, options), missing))
    finished = read(options.out)
    return [finished[key(run)] for run in runs if key(run) in finished]


def check_finished(runs: list[Run], done: list[Run]) -> None:
    """Exit with an error if runs are missing."""
    failed = [run["arm"] for run in runs if key(run) not in set(map(key, done))]
    if failed:
        raise SystemExit(f"Not finished: {', '.join(failed)}. The same command runs them again.")


def main() -> None:
    options = parse()
    if options.run:
        run, tokenized = options.run
        print(json.dumps(train(json.loads(run), tokenized, options.save_models)))
        return
    runs = wanted(options)
    done = finish_in_processes(runs, options)
    for sparsity in options.sparsity:
        for max_steps in options.max_steps:
            here = [r for r in done if (r["sparsity"], r["max_steps"]) == (sparsity, max_steps)]
            print(f"\n{100 * sparsity:g} %, {max_steps} steps\n")
            show(here)
    check_finished(runs, done)
    if options.picture:
        draw(done, options.picture)


if __name__ == "__main__":
    main()
