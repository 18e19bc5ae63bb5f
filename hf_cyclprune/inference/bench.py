"""How long a model takes on this machine: dense, sparse, and in other runtimes."""

import copy
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_cyclprune.checks import check_count, reason_of
from hf_cyclprune.inference.accelerate import accelerate_
from hf_cyclprune.inference.graphs import Batch, Outputs, make_batch
from hf_cyclprune.inference.runtimes import RUNTIMES, build_runtime
from hf_cyclprune.inference.source import find_folder
from hf_cyclprune.inference.sparse_linear import SparseLinear, load_kernel
from hf_cyclprune.inference.timings import Bench, Timing
from hf_cyclprune.packing.model import read_model
from hf_cyclprune.packing.weights import fingerprint, read_model_config

_ROUNDS = 15
_VERSIONED = ("hf_cyclprune", "torch", "transformers", "onnxruntime", "openvino")

Run = Callable[[], object]


def bench(
    model: str, *, batch_size: int = 1, seq_length: int = 128, num_threads: int | None = None
) -> Bench:
    """Time a model in float32 on the CPU, all runtimes in turn, so that others slow all of them.

    Args:
        model: a folder, dense or packed, or a name on the Hub.
        num_threads: by default as many as torch uses.

    Raises:
        ValueError: A number is below 1, or the model does not read tokens.
        ImportError: numba is not installed.
    """
    check_count("batch_size", batch_size)
    check_count("seq_length", seq_length)
    check_count("threads", 1 if num_threads is None else num_threads)
    load_kernel()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads or before)
        return _bench(model, batch_size, seq_length)
    finally:
        torch.set_num_threads(before)


def _bench(name: str, batch_size: int, seq_length: int) -> Bench:
    folder = find_folder(name)
    limit = getattr(read_model_config(folder), "max_position_embeddings", 0)
    if limit and seq_length > limit:
        raise ValueError(
            f"seq_length must be at most {limit} for this model; got {seq_length}. Pass less."
        )
    dense = _outputs_of(read_model(folder, torch.float32), name)
    batch = make_batch(dense.model, batch_size, seq_length)
    _check_runs(dense, batch, seq_length)
    sparse = copy.deepcopy(dense)
    report = accelerate_(sparse.model, num_tokens=batch_size * seq_length)
    runs: dict[str, Run] = {"dense": lambda: dense(**batch)}
    missing = {}
    if report.sparse:
        runs["sparse"] = lambda: sparse(**batch)
    else:
        missing["sparse"] = "accelerate_ left all layers dense"
    with TemporaryDirectory() as place:
        missing |= _add_runtimes(runs, dense.model, batch, Path(place))
        times = _time_in_turn(runs)
    memory = {"dense": _megabytes(dense), "sparse": _megabytes(sparse)}
    timings = []
    for run, values in times.items():
        low, median, high = quantiles(values, n=4, method="inclusive")
        timings.append(Timing(run, median, low, high, memory.get(run)))
    where = (_processor(), torch.get_num_threads(), batch_size, seq_length)
    about = (missing, _versions(), fingerprint(folder))
    return Bench(name, *where, str(report), timings, *about)


def _outputs_of(model: PreTrainedModel, name: str) -> Outputs:
    try:
        return Outputs(model)
    except ValueError as error:
        raise ValueError(
            f"MODEL must turn tokens into logits or hidden states; got '{name}': {error}. Name "
            "another one."
        ) from error


def _check_runs(dense: Outputs, batch: Batch, seq_length: int) -> None:
    """Raise a ValueError if the model has fewer positions: RoBERTa's config has two too many."""
    try:
        with torch.inference_mode():
            dense(**batch)
    except (IndexError, RuntimeError) as error:
        raise ValueError(
            f"seq_length must be a length that the model can read; got {seq_length}: "
            f"{reason_of(error)}. Pass a smaller one."
        ) from error


def _add_runtimes(
    runs: dict[str, Run], model: PreTrainedModel, batch: Batch, folder: Path
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


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in _VERSIONED:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
