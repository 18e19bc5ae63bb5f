"""What a criterion is: the scores of some weights; the lowest are pruned first.

To add one, register a function of the quantities it needs, by their names in `Rows`:

    @criterion("square", is_signed=False, is_elementwise=True)
    def square(weight: Tensor) -> Tensor:
        return weight**2

or, where scores depend on more than that, a subclass of `Criterion`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from hf_cyclprune.engines.shard import Shard

CRITERIA: dict[str, type["Criterion"]] = {}
"""Every criterion under the name that `PruningConfig.criterion` takes."""

_Scorer = TypeVar("_Scorer", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rows:
    """Some rows of a target weight, and what is known of each of their weights."""

    name: str
    """The weight's name in the model."""
    weight: Tensor
    """The values after the optimizer's step; for a pruned weight the one that it would come back
    with: zero and the step's update, or the value that `pruned_weights` has kept.  # (R, I)"""
    kept: Tensor
    """False where the weight is pruned now.  # bool (R, I)"""
    gradient: Tensor | None = None
    """The one that the step was taken with; None unless the criterion reads it.  # (R, I)"""
    second_moment: Tensor | None = None
    """Moving average of the squared gradient; None unless the criterion reads it.  # (R, I)"""
    place: slice = field(default_factory=lambda: slice(None))
    """Which rows they are of the part of the target that this process holds."""
    shard: Shard | None = None
    """That part; None if it is the whole target. One that is not made of whole rows is flat, and
    so are all tensors here: then (R, I) means (R,), R weights in the order of the flat index."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole target, if it is known."""
        return self.shard.shape if self.shard is not None else tuple(self.weight.shape)

    def of_whole(self, values: Tensor) -> Tensor:
        """Return what belongs to these weights of values for the whole target.

        Args:
            values: may be expanded to the shape of the target.  # (O, I), (O, 1) or (I,)
        """
        if self.shard is not None and not self.shard.is_whole:
            return self.shard.part_of(values.expand(self.shape))[self.place]
        return values if values.dim() == 1 or len(values) == 1 else values[self.place]


_READABLE = tuple(f.name for f in fields(Rows) if f.name not in ("name", "place", "shard"))


@dataclass
class Criterion:
    """Scores one weight at a time, on demand; a pruning step asks several times for each.

    Between two optimizer steps the same question must get the same answer.
    """

    seed: int = 0
    """Only read by criteria that draw numbers; the same on every rank."""
    memory: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False, compare=False)
    """Quantity -> name of a target -> what was observed so far; saved with every checkpoint."""

    is_signed = True
    """Whether a score may have its sign bit set; False makes the selection faster."""
    is_elementwise = False
    """Whether `score` may be given a few rows of a weight at a time; True saves memory and time."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Which of "gradient" and "second_moment" `score` needs."""
    observes = False
    """Whether `observe` must see every optimizer step."""
    looks_at_inputs = False
    """Whether `observe_input` must see the inputs of the layers that the targets belong to."""

    @property
    def is_statistic(self) -> bool:
        """Whether scores are averages over steps, so that the first pruning steps must wait."""
        return self.observes or self.looks_at_inputs or "second_moment" in self.reads

    shared: ClassVar[frozenset[str]] = frozenset()
    """Quantities of which every process sees its own part, and a checkpoint holds the sum."""

    def begin_cycle(self, cycle: int) -> None:
        """Called before the scores of a pruning step in this cycle, 0..k-1, on every rank.

        `score` itself may ask other ranks only if it is not elementwise: the others are called as
        often as a rank has blocks of rows.
        """

    def attach(self, targets: Mapping[str, Tensor]) -> None:
        """Called once with the whole weights of all targets by name.

        Where they are divided among ranks, each lookup asks all of these for their parts.
        """

    def observe(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        """See a target before an optimizer step, after the backward pass and clipping.

        Args:
            name: of the target.
            weight: what `Rows.weight` is, before the optimizer's step: all that is held here.
            gradient: of the loss at the sparse point, also for pruned weights; finite.
        """

    def observe_input(self, name: str, inputs: Tensor) -> None:
        """See what the layer of a target gets in a forward pass in training mode.

        Args:
            name: of the target.
            inputs: in the dtype of the forward pass; may hold NaN or infinity.  # (..., I)
        """

    def forget(self) -> None:
        """Called when the scores were used to exchange weights; drops what described old masks."""

    def score(self, rows: Rows) -> Tensor:
        """Return scores shaped as `rows.weight`, in any floating dtype; compared in fp32."""
        raise NotImplementedError

    def remember(self, quantity: str, name: str, like: Tensor) -> Tensor:
        """Return what is remembered of a target, to change in place; fp32 zeros at first."""
        known = self.memory.setdefault(quantity, {})
        if name not in known:
            known[name] = torch.zeros_like(like, dtype=torch.float32)
        return known[name]


def criterion(name: str, **traits: bool) -> Callable[[_Scorer], _Scorer]:
    """Register a function or a subclass of `Criterion` under `name`.

    Args:
        name: what `PruningConfig(criterion=...)` calls it.
        **traits: for a function: `is_signed`, `is_elementwise` (see `Criterion`).

    Raises:
        ValueError: a function asks for a quantity that `Rows` does not have.
    """

    def register(scorer: _Scorer) -> _Scorer:
        made: Any = scorer
        is_class = isinstance(scorer, type) and issubclass(scorer, Criterion)
        CRITERIA[name] = made if is_class else _from_function(made, traits)
        return scorer

    return register


def _from_function(function: Callable[..., Tensor], traits: dict[str, bool]) -> type[Criterion]:
    """Return a criterion that asks a function of the quantities named by its parameters."""
    asked = list(inspect.signature(function).parameters)
    unknown = [parameter for parameter in asked if parameter not in _READABLE]
    if unknown:
        raise ValueError(
            f"A criterion's function can take {', '.join(_READABLE)}; got a parameter "
            f"'{unknown[0]}' in {function.__name__}. Rename it, or write a subclass of Criterion."
        )

    def score(self: Criterion, rows: Rows) -> Tensor:
        return function(**{parameter: getattr(rows, parameter) for parameter in asked})

    reads = frozenset(asked) & {"gradient", "second_moment"}
    members = {"score": score, "reads": reads, "__doc__": function.__doc__, **traits}
    return type(function.__name__, (Criterion,), members)
