"""The criteria that score a weight by its present values: weight, gradient, second moment."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_cyclprune.pruning.criterion import Criterion, Rows, criterion


@criterion("magnitude", is_signed=False, is_elementwise=True)
def magnitude(weight: Tensor) -> Tensor:
    """|w| (Han et al. 2015, https://arxiv.org/abs/1506.02626)."""
    return weight.abs()


@criterion("gradient", is_signed=False, is_elementwise=True)
def gradient_magnitude(gradient: Tensor) -> Tensor:
    """|g|, the gradient that the last optimizer step was taken with; as regrowth it is RigL's."""
    return gradient.abs()


@criterion("taylor", is_signed=False, is_elementwise=True)
def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """|w g|, the first-order change of the loss when w is removed (https://arxiv.org/abs/1611.06440).

    Of a pruned weight that would come back with nearly zero it is nearly zero, whatever the
    gradient: with `pruned_weights="stored"` or "latent" it sees the value that was kept.
    """
    return (weight * gradient).abs()


@criterion("fisher", is_signed=False, is_elementwise=True)
def fisher(weight: Tensor, second_moment: Tensor) -> Tensor:
    """w^2 v, with v the mean squared gradient: twice the rise of the loss when w is removed, to the
    second order and with the diagonal of the empirical Fisher matrix in place of the Hessian
    (Theis et al. 2018, https://arxiv.org/abs/1801.05787; the diagonal of Optimal Brain Surgeon).

    v is Adam's second moment, which costs neither time nor memory. Scores of different matrices
    can be compared, so `scope="global"` makes sense with it.
    """
    return (weight.float().square() * second_moment).abs()  # abs: a NaN may have a sign


@criterion("random")
@dataclass
class Random(Criterion):
    """Uniform in [0, 1), drawn anew in each cycle: the baseline that knows nothing.

    So after an edge, where kept weights stay, the next pruning step ranks all of them anew.
    Depends on the seed, the weight's name and the cycle only: not on the device or the rank.
    """

    is_signed = False
    cycle = 0

    def begin_cycle(self, cycle: int) -> None:
        self.cycle = cycle

    def score(self, rows: Rows) -> Tensor:
        seed = zlib.crc32(f"{self.seed}/{self.cycle}/{rows.name}".encode())
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(rows.shape, generator=generator)
        return rows.of_whole(drawn).to(rows.weight.device)


class FirstCycle(Criterion):
    """One criterion in the first cycle and another one after it (the row "sculpt" of METHODS).

    Args:
        first: for the first cycle.
        then: for the others, and for pruning without training.
    """

    def __init__(self, first: Criterion, then: Criterion) -> None:
        super().__init__(seed=then.seed, memory=then.memory)
        self.shared = first.shared | then.shared  # type: ignore[misc]
        self._first, self._then = first, then
        self.observes = then.observes
        self.looks_at_inputs = first.looks_at_inputs or then.looks_at_inputs
        if first.looks_at_inputs:
            first.memory = then.memory  # so that it is saved too
        self._use(then)

    def _use(self, now: Criterion) -> None:
        self._now = now
        self.is_signed, self.is_elementwise = now.is_signed, now.is_elementwise
        self.reads = now.reads  # type: ignore[misc]

    def begin_cycle(self, cycle: int) -> None:
        self._use(self._first if cycle == 0 else self._then)
        self._now.begin_cycle(cycle)

    def attach(self, targets: Mapping[str, Tensor]) -> None:
        self._first.attach(targets)
        self._then.attach(targets)

    def observe(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        self._then.observe(name, weight, gradient)

    def observe_input(self, name: str, inputs: Tensor) -> None:
        self._first.observe_input(name, inputs)
        self._then.observe_input(name, inputs)

    def score(self, rows: Rows) -> Tensor:
        return self._now.score(rows)
