"""A pruner on a GPU makes the masks of one on a CPU, and hardly ever waits for the device."""

import warnings

import pytest
import torch

from hf_cyclprune import CRITERIA, Pruner, PruningConfig, Schedule
from hf_cyclprune.pruning.patterns import NM, SCOPES, Unstructured

SHAPES = {"a": (64, 64), "b": (16, 48), "c": (128, 8), "d": (4, 4)}
PATTERNS = [*map(Unstructured, SCOPES), NM(2, 4)]
BITS = {2: torch.int16, 4: torch.int32}
NUM_STEPS = 12
WARM = 5  # steps after which nothing is done for the first time
MOST_WAITS = {"gradual": 5, "cyclical": 5, "cyclical_stored": 5, "fisher": 5, "swap": 8}


def draw(generator, dtype):
    """Weights with many ties, both zeros, NaN and infinities."""
    for shape in SHAPES.values():
        weight = (torch.randn(shape, generator=generator) * 8).round() / 8
        for value in (float("nan"), -0.0, float("inf"), float("-inf")):
            weight[torch.rand(shape, generator=generator) < 0.02] = value
        yield weight.to(dtype)


def new_pruner(place, dtype, pattern, criterion):
    weights = {
        name: torch.nn.Parameter(torch.ones(shape, dtype=dtype, device=place))
        for name, shape in SHAPES.items()
    }
    sparsity = pattern.sparsity if isinstance(pattern, NM) else 0.7
    schedule = Schedule(sparsity, total_steps=NUM_STEPS, num_cycles=3)
    optimizer = torch.optim.AdamW(weights.values())
    return Pruner(weights, schedule, CRITERIA[criterion](), pattern, optimizer=optimizer)


def take_step(pruner, t, dtype):
    """Set weights, gradients and second moments to what is drawn for this step, and prune."""
    generator = torch.Generator().manual_seed(t)
    for weight, value in zip(pruner.targets.values(), draw(generator, dtype), strict=True):
        gradient = torch.randn(value.shape, generator=generator).to(dtype)
        moment = torch.rand(value.shape, generator=generator)
        weight.grad = gradient.to(weight.device)
        pruner.optimizer.state[weight] = {
            "exp_avg_sq": moment.to(weight.device),
            "step": torch.tensor(float(t)),
        }
        pruner.before_update(t)
        weight.data.copy_(value)
    pruner.step(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "taylor", "fisher", "random"])
def test_masks_and_weights_are_those_of_the_cpu_to_the_bit(criterion, pattern, dtype, device):
    pruners = [new_pruner(place, dtype, pattern, criterion) for place in ("cpu", device)]
    for t in range(1, NUM_STEPS + 1):
        for pruner in pruners:
            take_step(pruner, t, dtype)
        here, there = pruners
        assert here.num_pruned == there.num_pruned
        for name, mask in here.masks.items():
            assert torch.equal(mask, there.masks[name].cpu()), (t, name)
            bits = [p.targets[name].detach().cpu().view(BITS[dtype.itemsize]) for p in pruners]
            assert torch.equal(*bits), (t, name)
        assert int(here.num_returned) == int(there.num_returned)
    assert here.is_at_target


@pytest.mark.parametrize("method", MOST_WAITS)
def test_a_plain_step_never_waits_for_the_gpu_and_a_pruning_step_rarely(
    method, device, record_property
):
    weights = [torch.nn.Parameter(torch.randn(64, 64, device=device)) for _ in range(12)]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, fused=True)
    config = PruningConfig(method=method, sparsity=0.8, interval_steps=2)
    targets = {f"{i}": weight for i, weight in enumerate(weights)}
    pruner = config.build_pruner(targets, 40, optimizer)
    waits = {}
    for t in range(1, 41):
        is_plain = not (pruner.schedule.is_pruning_step(t) or pruner.pending)
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("error" if is_plain and t > WARM else "warn")
            try:
                pruner.begin_step(t)
                pruner.before_update(t)
                optimizer.step()
                pruner.step(t)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        if t > WARM and not is_plain:
            waits[t] = sum("synchronizing" in str(warning.message) for warning in caught)
    record_property("waits", str(waits))
    assert waits
    assert max(waits.values()) <= MOST_WAITS[method]
