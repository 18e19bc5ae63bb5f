"""One global pruning step on a GPU over the 84.9 M target weights of BERT-base, beside its rivals.

    PYTHONPATH=. python tests/benchmarks/bench_gpu_step.py

Prints seconds (the median of several, after one to warm up) and the memory that each needs beyond
the weights and the masks; then one pruning step over 1 B weights in bf16; then the parts of a
pruning step, each waited for; then ways to count digits. The rivals kthvalue and topk get all
scores in one tensor, and make no masks. --device cpu runs the same without memory.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch.nn.utils import prune

from hf_cyclprune import CRITERIA, Pruner, Schedule
from hf_cyclprune.pruning.digits import KEY_BITS, count_digits
from hf_cyclprune.pruning.patterns import Unstructured
from hf_cyclprune.pruning.selection import LOWEST_KEY, find_cut, order_keys, prune_lowest_

SPARSITY, SIDE = 0.9, 4096
SHAPES = 12 * [*4 * [(768, 768)], (3072, 768), (768, 3072)]  # the encoder of BERT-base
PRUNING_STEP, PLAIN_STEP = 1, 2

Weights = dict[str, torch.Tensor]


def draw(shapes: Iterable[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> Weights:
    """Return normal weights, the same at every call."""
    torch.manual_seed(0)
    return {f"{i}": torch.randn(s, dtype=dtype, device=device) for i, s in enumerate(shapes)}


def new_pruner(weights: Weights) -> Pruner:
    schedule = Schedule(SPARSITY, total_steps=100, ramp="constant", interval_steps=PLAIN_STEP)
    assert schedule.is_pruning_step(PRUNING_STEP)
    assert not schedule.is_pruning_step(PLAIN_STEP)
    return Pruner(weights, schedule, CRITERIA["magnitude"](), Unstructured("global"))


def measure(
    device: torch.device,
    function: Callable[[], object],
    rounds: int,
    before: Callable[[], object] = lambda: None,
) -> str:
    """Return milliseconds and MiB at the peak; `before` is done ahead of each call, not timed."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    times, peak = [], 0
    for _ in range(rounds + 1):
        before()
        wait()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        start = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - start)
        if device.type == "cuda":
            peak = max(peak, torch.cuda.max_memory_allocated() - held)
    return f"{1000 * statistics.median(times[1:]):8.2f} ms {peak / 2**20:8.1f} MiB"


def rows(device: torch.device, dtype: torch.dtype, rounds: int) -> Iterable[tuple[str, str]]:
    """Yield a name and what was measured, for our step and each rival."""
    weights = draw(SHAPES, dtype, device)
    dense = {name: weight.clone() for name, weight in weights.items()}

    def restore() -> None:
        for name, weight in weights.items():
            weight.copy_(dense[name])

    def time_of(function: Callable[[], object], before: Callable[[], object] = restore) -> str:
        return measure(device, function, rounds, before)

    pruner = new_pruner(weights)
    yield "one read of the weights", time_of(lambda: [w.sum() for w in weights.values()])
    yield "ours, a pruning step", time_of(lambda: pruner.step(PRUNING_STEP))
    assert pruner.is_at_target
    yield "ours, a plain step", time_of(lambda: pruner.step(PLAIN_STEP))
    modules = [torch.nn.Linear(1, 1, bias=False) for _ in weights]

    def renew() -> None:
        for module, weight in zip(modules, dense.values(), strict=True):
            if prune.is_pruned(module):
                prune.remove(module, "weight")
            module.weight = torch.nn.Parameter(weight.clone())

    parameters, l1 = [(module, "weight") for module in modules], prune.L1Unstructured
    global_ = time_of(lambda: prune.global_unstructured(parameters, l1, amount=SPARSITY), renew)
    yield "torch.nn.utils.prune.global_unstructured", global_
    scores = torch.cat([w.abs().view(-1) for w in dense.values()])
    rank = round(SPARSITY * scores.numel())
    yield "torch.kthvalue", time_of(lambda: torch.kthvalue(scores, rank))
    yield "torch.topk", time_of(lambda: torch.topk(scores, rank, largest=False))


def parts(device: torch.device, dtype: torch.dtype, rounds: int) -> Iterable[tuple[str, str]]:
    """Yield the parts of a pruning step that keeps its keys."""
    weights = list(draw(SHAPES, dtype, device).values())
    masks = [torch.ones(w.numel(), dtype=torch.bool, device=device) for w in weights]

    def score() -> list[torch.Tensor]:
        return [order_keys(weight.abs(), is_signed=False) for weight in weights]

    def time_of(function: Callable[[], object]) -> str:
        return measure(device, function, rounds)

    yield "scores and keys", time_of(score)
    keys, prefix = score(), torch.tensor(LOWEST_KEY)
    rank = round(SPARSITY * sum(map(len, keys)))
    yield "one histogram of first digits", time_of(lambda: count_digits(keys, prefix, KEY_BITS))
    yield "all histograms", time_of(lambda: find_cut(lambda: keys, rank))
    both = time_of(lambda: prune_lowest_(masks, lambda: keys, rank))
    yield "all histograms, and the masks", both
    assert sum(int((~mask).sum()) for mask in masks) == rank
    pairs = list(zip(weights, masks, strict=True))
    yield "zeros in the weights", time_of(lambda: [w.mul_(m.view_as(w)) for w, m in pairs])
    yield "copies of the masks", time_of(lambda: [mask.clone() for mask in masks])


def histograms(device: torch.device, rounds: int) -> Iterable[tuple[str, str]]:
    """Yield ways to count the first bits of 2^26 normal weights, and of as many equal ones."""
    keys = order_keys(torch.randn(1 << 26, device=device).mul_(0.02).abs_(), is_signed=False)
    kinds = (torch.float32, torch.int32) if device.type == "cuda" else (torch.float32,)
    for num_bits in (16, 12, 11, 8):
        digits, size = keys >> (31 - num_bits), 1 << num_bits
        for dtype in kinds:  # the CPU's histc counts only floats
            count = partial(torch.histc, digits.to(dtype), bins=size, min=0, max=size)
            yield f"histc, {dtype}, {size} bins", measure(device, count, rounds)
        count = partial(torch.bincount, digits, minlength=size)
        yield f"bincount, which waits, {size} bins", measure(device, count, rounds)
    for dtype in kinds:
        equal = torch.full_like(keys, 5, dtype=dtype)
        count = partial(torch.histc, equal, bins=2048, min=0, max=2048)
        yield f"histc, {dtype}, 2048 bins, all in one", measure(device, count, rounds)


def large(device: torch.device, num_matrices: int) -> Iterable[tuple[str, str]]:
    """Yield our steps over many large matrices in bf16."""
    weights = draw(num_matrices * [(SIDE, SIDE)], torch.bfloat16, device)
    pruner = new_pruner(weights)
    for name, step in (("pruning", PRUNING_STEP), ("plain", PLAIN_STEP)):
        yield f"ours, a {name} step", measure(device, partial(pruner.step, step), 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num_matrices", type=int, default=60, help=f"of {SIDE} x {SIDE}, bf16")
    options = parser.parse_args()
    device = options.device
    print(torch.cuda.get_device_name() if device.type == "cuda" else device, torch.__version__)
    million = options.num_matrices * SIDE**2 / 1e6
    tables = {
        "84.9 M float32": rows(device, torch.float32, options.rounds),
        "84.9 M bfloat16": rows(device, torch.bfloat16, options.rounds),
        f"{million:.0f} M bfloat16": large(device, options.num_matrices),
        "parts, 84.9 M float32": parts(device, torch.float32, options.rounds),
        "67.1 M numbers": histograms(device, options.rounds),
    }
    for title, table in tables.items():
        for name, measured in table:
            print(f"{title:22} {name:42} {measured}", flush=True)


if __name__ == "__main__":
    main()
