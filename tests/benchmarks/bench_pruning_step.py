"""One exact global pruning step over the 84.9 M target weights of BERT-base, beside its rivals.

Not collected by a plain `pytest`. Run all in one process:

    pytest tests/benchmarks/bench_pruning_step.py -s

`-s` shows the memory that it needs beyond weights and masks, measured in a process of its own.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.utils import prune

from hf_cyclprune import Pruner, Schedule
from hf_cyclprune.pruning.criterion import CRITERIA
from hf_cyclprune.pruning.patterns import Unstructured

SPARSITY = 0.9


def bert_base_weights(share_of_zeros: float) -> dict[str, torch.Tensor]:
    """The 72 encoder matrices of BERT-base, normal entries, some of them zero."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(12):
        for name, shape in [
            *[(f"{kind}", (768, 768)) for kind in ("query", "key", "value", "attention_output")],
            ("intermediate", (3072, 768)),
            ("output", (768, 3072)),
        ]:
            weight = torch.randn(shape, generator=generator) * 0.02
            if share_of_zeros:
                weight *= torch.rand(shape, generator=generator) >= share_of_zeros
            weights[f"{layer}.{name}"] = weight + 0.0
    return weights


def new_pruner(weights: dict[str, torch.Tensor], scope: str = "global") -> Pruner:
    schedule = Schedule(sparsity=SPARSITY, total_steps=10, ramp="constant")
    return Pruner(weights, schedule, CRITERIA["magnitude"](), Unstructured(scope))


@pytest.fixture(autouse=True)
def _one_thread():
    """Not here: every rival has all the cores, as a user's process would."""
    torch.set_num_threads(os.cpu_count() or 1)


@pytest.fixture(scope="module", params=[0.0, 0.8], ids=["fresh", "80% zeros"])
def weights(request):
    return bert_base_weights(request.param)


def measure(benchmark, function, rounds, setup=None):
    benchmark.group = "global pruning step"
    benchmark.pedantic(function, setup=setup, rounds=rounds, warmup_rounds=1)


def test_ours(benchmark, weights):
    """Threshold and masks."""
    pruner = new_pruner(weights)
    measure(benchmark, lambda: pruner._recompute(0, pruner.demand(SPARSITY)[0]), 5)
    total = sum(weight.numel() for weight in weights.values())
    kept = sum(int(mask.sum()) for mask in pruner.masks.values())
    assert total - kept == round(SPARSITY * total)


def test_torch_global_unstructured(benchmark, weights):
    """`torch.nn.utils.prune.global_unstructured`, L1."""

    def fresh_modules():
        modules = []
        for weight in weights.values():
            module = torch.nn.Linear(1, 1, bias=False)
            module.weight = torch.nn.Parameter(weight.clone())
            modules.append((module, "weight"))
        return (modules,), {}

    def run(modules):
        prune.global_unstructured(modules, pruning_method=prune.L1Unstructured, amount=SPARSITY)

    measure(benchmark, run, 2, fresh_modules)


def test_torch_topk(benchmark, weights):
    """`torch.topk` on the concatenated magnitudes, without the masks."""
    scores = torch.cat([weight.abs().view(-1) for weight in weights.values()])
    measure(
        benchmark, lambda: torch.topk(scores, round(SPARSITY * scores.numel()), largest=False), 2
    )


def test_torch_kthvalue(benchmark, weights):
    """`torch.kthvalue` on the concatenated magnitudes, without the masks."""
    scores = torch.cat([weight.abs().view(-1) for weight in weights.values()])
    measure(benchmark, lambda: torch.kthvalue(scores, round(SPARSITY * scores.numel())), 3)


def test_the_memory_beyond_weights_and_masks():
    printed = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, check=True
    ).stdout
    print(f"\n{printed}")
    assert float(printed.split()[-1]) < 10


def main() -> None:
    weights = bert_base_weights(0.0)
    size = sum(weight.numel() * 4 for weight in weights.values())
    pruner = new_pruner({"warm-up": torch.randn(64, 64)})
    pruner.prune_to(SPARSITY)
    pruner = new_pruner(weights)
    before = reset_peak()
    pruner.prune_to(SPARSITY)
    extra = memory("VmHWM") - before
    print(f"extra memory {extra / 2**20:.1f} MiB; % of the weights: {100 * extra / size:.2f}")


def memory(field: str) -> int:
    """Bytes that Linux reports for this process: VmRSS is held now, VmHWM was the most."""
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith(field)]
    return int(line.split()[1]) * 1024


def reset_peak() -> int:
    """Forget the most; return what is held now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return memory("VmRSS")


if __name__ == "__main__":
    main()
