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

from experiment import Run, finish, print_table

LEVELS = ("0.8", "0.9", "0.95", "0.97", "2:4")
KEPT = ("0.5", "0.6", "0.7", "0.8", "0.9", "0.95", "0.97", "0.99")
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SECONDS = 60.0
"""For the rounds of a setting, at least 5 and at most 25 of them."""


def wanted(options: argparse.Namespace) -> list[Run]:
    """Return the settings of all processes."""

    def setting(model: str, batch: int, length: int, threads: int, **more: Any) -> Run:
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


def measure(run: Run) -> dict[str, Any]:
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


def show(lines: list[Run]) -> None:
    """Print a table for every model and number of threads, and the growth."""
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for line in lines:
        groups.setdefault((line["part"], line["model"], line["threads"]), []).append(line)
    for (part, model, threads), group in groups.items():
        print(f"\n{part}: {model}, threads: {threads}, medians in ms\n")
        shapes = [f"{line['batch_size']} x {line['seq_length']}" for line in group]
        names = {name: None for line in group for name in line["result"]["times"]}
        rows = [[name, *(cell(line["result"], name) for line in group)] for name in names]
        print_table(["", *shapes], rows)
        for line in group:
            for name, reason in line["result"]["missing"].items():
                print(f"{name}: {reason}")


def cell(result: dict[str, Any], name: str) -> str:
    """Write a median, and how many layers are sparse where others of this setting have more."""
    if name not in result["times"]:
        return ""
    layers = result["sparse_layers"]
    num_sparse = layers.get(name.removeprefix("sparse "), 0) if "sparse" in name else None
    note = "" if num_sparse in (None, max(layers.values())) else f" ({num_sparse} layers)"
    return f"{median(result['times'][name]):.1f}{note}"


def draw(lines: list[Run], path: Path) -> None:
    """Draw how latency grows."""
    from hf_cyclprune.pictures.style import drawing, looks, new_figure, write_picture

    parts = {part: [x for x in lines if x["part"] == part] for part in ("length", "batch")}
    labels = {"length": "tokens, one sentence", "batch": "sentences of 32 tokens"}
    first, second = looks(2)
    with drawing():
        figure = new_figure(2.6)
        panels = figure.subplots(1, 3)
        for panel, (part, found) in zip(panels, parts.items(), strict=False):
            x = [line["seq_length" if part == "length" else "batch_size"] for line in found]
            for name, look in (("dense", first), ("sparse 0.9", second)):
                y = [median(line["result"]["times"][name]) for line in found]
                panel.plot(x, y, color=look.colour, marker=look.marker, ls=look.dash, label=name)
            panel.set(xscale="log", yscale="log", xlabel=labels[part])
            panel.set_xticks(x[::2], [str(value) for value in x[::2]])
            panel.yaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
        for line in (line for line in lines if line["part"] == "kept"):
            kept = [100 * (1 - float(level)) for level in line["levels"]]
            times = line["result"]["times"]
            y = [median(times[f"sparse {level}"]) for level in line["levels"]]
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

    def measure_alone(run: Run) -> Any:
        command = [sys.executable, __file__, str(options.out), "--run", json.dumps(run)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    lines = finish(options.out, wanted(options), measure_alone)
    show(lines)
    if options.picture is not None:
        draw(lines, options.picture)


if __name__ == "__main__":
    main()
