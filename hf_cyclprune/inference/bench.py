"""How long a model takes on this machine: dense, sparse, and in other runtimes."""

import copy
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from hf_cyclprune.checks import check_count
from hf_cyclprune.inference.accelerate import accelerate_
from hf_cyclprune.inference.runtimes import RUNTIMES, Batch, Run, build_runtime
from hf_cyclprune.inference.sparse_linear import SparseLinear
from hf_cyclprune.packing.weights import model_class

_ROUNDS = 15


@dataclass(frozen=True)
class Timing:
    """Milliseconds for one batch: the median, and the quartiles around it."""

    name: str
    median: float
    low: float
    high: float
    megabytes: float | None
    """Of weights in memory, where that is known."""


@dataclass(frozen=True)
class Bench:
    """What was measured, and where."""

    model: str
    processor: str
    num_threads: int
    batch_size: int
    seq_length: int
    layers: str
    """What `accelerate_` says of the layers."""
    timings: list[Timing]
    missing: dict[str, str]
    """Runtime -> why it has no time."""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON would hold it."""
        return asdict(self)

    def __str__(self) -> str:
        head = (
            f"{self.model} on {self.processor}, threads: {self.num_threads}, batch: "
            f"{self.batch_size} x {self.seq_length} tokens\n{self.layers}\n\n"
            f"{'':18} {'ms':>8} {'quartiles':>17} {'MB':>7} {'speed':>6}"
        )
        rows = [
            f"{t.name:18} {t.median:8.2f} {f'{t.low:.2f} to {t.high:.2f}':>17} "
            f"{'' if t.megabytes is None else f'{t.megabytes:.0f}':>7} "
            f"{self.timings[0].median / t.median:6.2f}"
            for t in self.timings
        ]
        gaps = [f"{name:18} no time: {reason}" for name, reason in self.missing.items()]
        return "\n".join([head, *rows, *gaps])


def bench(
    model: str, *, batch_size: int = 1, seq_length: int = 128, num_threads: int | None = None
) -> Bench:
    """Time a model in float32 on the CPU, all runtimes in turn, so that others slow all of them.

    Args:
        model: a folder, dense or packed, or a name on the Hub.
        num_threads: by default as many as torch uses.

    Raises:
        ValueError: A number is below 1, or the model does not read tokens.
        OSError: There is no such model.
        ImportError: numba is not installed.
    """
    check_count("batch_size", batch_size)
    check_count("seq_length", seq_length)
    check_count("threads", 1 if num_threads is None else num_threads)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads or before)
        return _bench(model, batch_size, seq_length)
    finally:
        torch.set_num_threads(before)


def _bench(name: str, batch_size: int, seq_length: int) -> Bench:
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    size, limit = getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", 0)
    if size is None:
        raise ValueError(f"MODEL must read tokens; got '{name}', which has no vocabulary.")
    if limit and seq_length > limit:
        raise ValueError(f"seq_length must be at most {limit} for this model; got {seq_length}.")
    cls, options = model_class(config), {"dtype": torch.float32, "trust_remote_code": False}
    dense = cls.from_pretrained(name, **options).eval()
    ids = torch.randint(0, size, (batch_size, seq_length), generator=torch.Generator())
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    sparse = copy.deepcopy(dense)
    report = accelerate_(sparse, num_tokens=ids.numel())
    runs: dict[str, Run] = {"dense": lambda: dense(**batch), "sparse": lambda: sparse(**batch)}
    with TemporaryDirectory() as folder:
        missing = _add_runtimes(runs, dense, batch, Path(folder))
        times = _time_in_turn(runs)
    memory = {"dense": _megabytes(dense), "sparse": _megabytes(sparse)}
    timings = []
    for run, values in times.items():
        low, median, high = quantiles(values, n=4, method="inclusive")
        timings.append(Timing(run, median, low, high, memory.get(run)))
    where = (_processor(), torch.get_num_threads(), batch_size, seq_length)
    return Bench(name, *where, str(report), timings, missing)


def _add_runtimes(
    runs: dict[str, Run], model: nn.Module, batch: Batch, folder: Path
) -> dict[str, str]:
    """Add the runtimes that work; return why the others do not."""
    missing = {}
    for name in RUNTIMES:
        run = build_runtime(name, model, batch, torch.get_num_threads(), folder)
        if isinstance(run, str):
            missing[name] = run
        else:
            runs[name] = run
    return missing


@torch.inference_mode()
def _time_in_turn(runs: Mapping[str, Run]) -> dict[str, list[float]]:
    """Return the milliseconds of every run, without those of the first round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + _ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: values[1:] for name, values in times.items()}


def _megabytes(model: nn.Module) -> float:
    held = sum(parameter.nbytes for parameter in model.parameters())
    layers = {module for module in model.modules() if isinstance(module, SparseLinear)}
    held += sum(layer.blocked.num_bytes + 4 * layer.out_features for layer in layers)
    return held / 1e6


def _processor() -> str:
    """Return the name of the CPU."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
