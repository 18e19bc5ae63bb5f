"""How long pruned models take on this CPU, beside other runtimes, and how that grows.

    pip install "hf_cyclprune[demo,export,inference,plots]"
    python examples/inference_times.py TIMES.jsonl [--picture growth.png]

First the tables: BERT-base's shape (random weights) and all-MiniLM-L6-v2, pruned at once by
magnitude, with each batch size, number of tokens and number of threads. Then, for BERT-base's shape
at 90 % and one thread, how latency grows with the length, the batch, and the share of kept weights.
Every setting is one process, in which all runtimes take turns, so that whatever else the machine
does slows all of them. Each adds one line to TIMES.jsonl; those that are there are not run again.
"""

import argparse
import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

LEVELS = ("0.8", "0.9", "0.95", "0.97", "2:4")
KEPT = ("0.5", "0.6", "0.7", "0.8", "0.9", "0.95", "0.97", "0.99")
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SECONDS = 60.0
"""For the rounds of a setting, at least 5 and at most 25 of them."""


def wanted(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the settings of all processes."""

    def setting(model: str, batch: int, length: int, threads: int, **more: Any) -> dict[str, Any]:
        shape = {"batch_size": batch, "seq_length": length, "threads": threads}
        return {"model": model, **shape, "runtimes": [], "keep_all": False, **more}

    others = ["torch.compile", "ONNX Runtime", "ONNX Runtime int8", "OpenVINO", "torch CSR"]
    table = [
        setting(model, batch, length, threads, part="table", levels=LEVELS, runtimes=others)
        for model in options.models
        for threads in options.threads
        for batch in options.batch_sizes
        for length in options.seq_lengths
    ]
    model = options.models[0]
    growth = {"length": [(1, n) for n in LENGTHS], "batch": [(n, 32) for n in BATCHES]}
    grown = [
        setting(model, batch, length, 1, part=part, levels=("0.9",))
        for part, shapes in growth.items()
        for batch, length in shapes
    ]
    # What is slower sparse, too: without the rule that leaves it dense.
    return [*table, *grown, setting(model, 1, 128, 1, part="kept", levels=KEPT, keep_all=True)]


def build(name: str) -> Any:
    """Return the dense model."""
    import torch
    from transformers import AutoModelForSequenceClassification, BertConfig

    torch.manual_seed(0)
    if name == "MiniLM":
        from hf_cyclprune.demo.model import find_model

        return AutoModelForSequenceClassification.from_pretrained(find_model()).eval()
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**(small if name == "tiny" else {}))
    return AutoModelForSequenceClassification.from_config(config).eval()


def measure(run: dict[str, Any]) -> dict[str, Any]:
    """Time all runtimes in turn; return the milliseconds of each."""
    import torch

    from hf_cyclprune import PruningConfig, prune_
    from hf_cyclprune.inference import accelerate_
    from hf_cyclprune.inference.graphs import make_batch
    from hf_cyclprune.inference.runtimes import build_runtime

    torch.set_num_threads(run["threads"])
    dense = build(run["model"])
    batch = make_batch(dense, run["batch_size"], run["seq_length"])
    runs: dict[str, Any] = {"dense": lambda: dense(**batch)}
    layers = {}
    with TemporaryDirectory() as folder:
        for name in run["runtimes"]:
            if name != "torch CSR":
                runs[name] = build_runtime(name, dense, batch, run["threads"], Path(folder))
        for level in run["levels"]:
            target = {"pattern": level} if ":" in level else {"sparsity": float(level)}
            model = copy.deepcopy(dense)
            prune_(model, PruningConfig(**target))
            if "torch CSR" in run["runtimes"]:
                runs[f"torch CSR {level}"] = build_runtime(
                    "torch CSR", model, batch, run["threads"], Path(folder)
                )
            report = accelerate_(
                model, num_tokens=batch["input_ids"].numel(), measure=not run["keep_all"]
            )
            layers[level] = len(report.sparse)
            runs[f"sparse {level}"] = lambda model=model: model(**batch)
        missing = {name: found for name, found in runs.items() if isinstance(found, str)}
        times = take_turns({name: found for name, found in runs.items() if name not in missing})
    return {"times": times, "missing": missing, "sparse_layers": layers}


def take_turns(runs: dict[str, Any]) -> dict[str, list[float]]:
    """Return the milliseconds of every round but the first."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        num_rounds, done = 25, -1
        while done < num_rounds:
            before = time.perf_counter()
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                times[name].append(round(1000 * (time.perf_counter() - start), 3))
            done += 1
            num_rounds = max(5, min(25, int(SECONDS / (time.perf_counter() - before))))
    return {name: values[1:] for name, values in times.items()}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the finished settings, with what was measured."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {key(line["run"]): line for line in map(json.loads, lines)}


def key(run: dict[str, Any]) -> str:
    """What tells one setting from another."""
    return json.dumps(run, sort_keys=True)


def show(lines: list[dict[str, Any]]) -> None:
    """Print a table for every model and number of threads, and the growth."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for line in lines:
        run = line["run"]
        groups.setdefault((run["part"], run["model"], run["threads"]), []).append(line)
    for (part, model, threads), group in groups.items():
        shapes = [f"{line['run']['batch_size']} x {line['run']['seq_length']}" for line in group]
        print(f"\n{part}: {model}, threads: {threads}, medians in ms\n")
        print("| | " + " | ".join(shapes) + " |\n|" + "---|" * (1 + len(shapes)))
        for name in {name: None for line in group for name in line["times"]}:
            cells = [
                f"{median(line['times'][name]):.1f}" if name in line["times"] else ""
                for line in group
            ]
            print("| " + " | ".join([name, *cells]) + " |")
        for line in group:
            for name, reason in line["missing"].items():
                print(f"{name}: {reason}")


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw how latency grows."""
    from hf_cyclprune.pictures.style import drawing, looks, new_figure, write_picture

    parts = {part: [x for x in lines if x["run"]["part"] == part] for part in ("length", "batch")}
    labels = {"length": "tokens, one sentence", "batch": "sentences of 32 tokens"}
    first, second = looks(2)
    with drawing():
        figure = new_figure(2.6)
        panels = figure.subplots(1, 3)
        for panel, (part, found) in zip(panels, parts.items(), strict=False):
            x = [r["run"]["seq_length" if part == "length" else "batch_size"] for r in found]
            for name, look in (("dense", first), ("sparse 0.9", second)):
                y = [median(r["times"][name]) for r in found]
                panel.plot(x, y, color=look.colour, marker=look.marker, ls=look.dash, label=name)
            panel.set(xscale="log", yscale="log", xlabel=labels[part])
            panel.set_xticks(x[::2], [str(value) for value in x[::2]])
            panel.yaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
        for line in (line for line in lines if line["run"]["part"] == "kept"):
            kept = [100 * (1 - float(level)) for level in line["run"]["levels"]]
            times = line["times"]
            y = [median(times[f"sparse {level}"]) for level in line["run"]["levels"]]
            panels[2].axhline(median(times["dense"]), color=first.colour, ls=first.dash)
            panels[2].plot(kept, y, color=second.colour, marker=second.marker, ls=second.dash)
        panels[2].set(xlabel="% of weights kept", ylim=(0, None))
        panels[0].set_ylabel("ms")
        panels[0].legend()
    write_picture(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("out", metavar="TIMES.jsonl", type=Path)
    parser.add_argument("--models", nargs="+", default=["BERT-base", "MiniLM"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seq_lengths", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--picture", type=Path, help="draw the growth here")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # one setting, in a process of its own
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(json.loads(options.run))))
        return
    runs = wanted(options)
    for run in runs:
        if key(run) not in read(options.out):
            command = [sys.executable, __file__, str(options.out), "--run", json.dumps(run)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            with options.out.open("a") as file:
                file.write(json.dumps({"run": run, **found}) + "\n")
            print(key(run), "is done.", flush=True)
    finished = read(options.out)
    lines = [finished[key(run)] for run in runs]
    show(lines)
    if options.picture is not None:
        draw(lines, options.picture)


if __name__ == "__main__":
    main()
