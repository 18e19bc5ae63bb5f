"""DeepSpeed's ZeRO: its optimizer moves flat fp32 copies of the weights, and then copies them back.

So zeros must stand in the fp32 copy, and from there they come into the weights by themselves. What
pruning does around an optimizer step must run inside of DeepSpeed's step: the events of a Trainer
come after it. Nothing here imports DeepSpeed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hf_cyclprune.engines.shard import DividedShard, unwrapped


def is_zero3(parameter: object) -> bool:
    """Whether a parameter is divided by ZeRO-3, so that its data may be empty."""
    return hasattr(parameter, "ds_id")


def check_stage(parameters: Mapping[str, object], optimizer: object) -> None:
    """Raise a ValueError for an optimizer of DeepSpeed whose steps cannot be followed."""
    is_deepspeed = type(optimizer).__name__ == "DeepSpeedOptimizerWrapper"  # accelerate's
    if is_deepspeed and not any(map(is_zero, parameters.values())):
        raise ValueError(
            "zero_optimization must have stage 1, 2 or 3 to prune with DeepSpeed; got stage 0, "
            "whose step is over before a Trainer tells of it. Choose stage 1, or train without "
            "DeepSpeed, with DistributedDataParallel."
        )
    if getattr(getattr(optimizer, "optimizer", optimizer), "round_robin_gradients", False):
        raise ValueError(
            "round_robin_gradients must be false in zero_optimization, since DeepSpeed does not "
            "tell then where it keeps a weight; got true. Leave it out."
        )


def is_zero(parameter: object) -> bool:
    """Whether an optimizer of ZeRO moves an fp32 copy of a parameter."""
    return is_zero3(parameter) or hasattr(parameter, "_hp_mapping")


@dataclass(frozen=True)
class FlatRange:
    """Some elements of the flat fp32 copy of many weights."""

    flat: Tensor
    start: int
    numel: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return these elements of a tensor as long as the flat copy."""
        return tensor.narrow(0, self.start, self.numel)


class ZeroShard(DividedShard):
    """A range of a weight whose fp32 copy this process moves.

    Args:
        parameter: of the model, after DeepSpeed has taken it over.
        optimizer: that moves it; may be wrapped.
    """

    has_whole_rows = False

    def __init__(self, parameter: Any, optimizer: Optimizer | None) -> None:
        super().__init__(parameter)
        is_three = is_zero3(parameter)
        if optimizer is None:
            raise ValueError(
                "optimizer must be given to prune a model of DeepSpeed's ZeRO; got None. Pass the "
                "one that accelerate or DeepSpeed has prepared."
            )
        self.group = parameter.ds_process_group if is_three else parameter._dp_group
        self.rank = distributed.get_rank(self.group)
        self._held: Tensor | None = None
        if is_three:
            self._range = _range_of_zero3(parameter, self.rank)
        else:
            self._range = _range_of(parameter, unwrapped(optimizer))

    @property
    def flat(self) -> Tensor:
        """The flat fp32 copy that holds the range."""
        return self._range.flat

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(getattr(self.parameter, "ds_shape", self.parameter.shape))

    @property
    def weight(self) -> Tensor:
        return self._range.of(self.flat.detach())

    @property
    def gradient(self) -> Tensor | None:
        gradient = self.flat.grad
        return self._held if gradient is None else self._range.of(gradient)

    def hold_gradient(self) -> None:
        self._held = gradient.clone() if (gradient := self.gradient) is not None else None

    def state_of(self, optimizer: Optimizer | None) -> Mapping[str, Any]:
        inner = unwrapped(optimizer)
        state: Mapping[str, Any] = inner.state.get(self.flat, {}) if inner is not None else {}
        return {
            key: self._range.of(v) if isinstance(v, Tensor) and v.shape == self.flat.shape else v
            for key, v in state.items()
        }

    def publish_(self) -> None:
        parameter: Any = self.parameter
        if is_zero3(parameter):
            parameter.ds_tensor.view(-1)[: self._range.numel].copy_(self.weight)
        elif parameter._hp_mapping is not None:
            parameter._hp_mapping.lp_fragment.copy_(self.weight)

    def spread_(self) -> None:
        self.publish_()
        whole = self.gather(self.weight)
        if self.parameter.numel() == prod(self.shape):  # else it is gathered for every forward pass
            self.parameter.data.copy_(whole)


def _range_of(parameter: Any, inner: Any) -> FlatRange:
    """Return the range of a weight under ZeRO-1 and 2; an empty one if this process has none."""
    flats = [flat for group in inner.param_groups for flat in group["params"]]
    mapping = parameter._hp_mapping
    if mapping is None:
        return FlatRange(flats[-1], 0, 0)
    address = mapping.hp_fragment_address
    storage = mapping.hp_fragment.untyped_storage().data_ptr()
    flat = next(f for f in flats if f.untyped_storage().data_ptr() == storage)
    return FlatRange(flat, address.start, address.numel)


def _range_of_zero3(parameter: Any, rank: int) -> FlatRange:
    """Return the range of a weight under ZeRO-3, without the zeros that fill up the last one."""
    engine = parameter._z3_optimizer
    group, start, _ = engine.grad_position[engine.get_param_id(parameter)]
    size = parameter.ds_tensor.numel()
    numel = min(size, max(0, parameter.ds_numel - rank * size))
    return FlatRange(engine.fp32_partitioned_groups_flat[group], start, numel)


def around_step(
    shards: Mapping[str, object],
    optimizer: Optimizer | None,
    call: Callable[[Sequence[str] | None], None],
) -> list[RemovableHandle]:
    """Call a function around each step of ZeRO's optimizer, between its averaging and its copying.

    The inner optimizer takes a step for each of its groups of weights in turn. The function gets,
    before each of these steps, the names of the weights whose gradients are there only now; and
    None once, after the last of them. A step that is skipped for an overflow calls nothing.

    Returns:
        What removes the hooks; [] where the engine needs none.
    """
    inner = unwrapped(optimizer)
    divided = {name: shard for name, shard in shards.items() if isinstance(shard, ZeroShard)}
    if inner is None or not divided:
        return []
    last = _last_flat(inner, next(iter(divided.values())).parameter)

    def moved(stepped: Any) -> set[int]:
        return {id(flat) for group in stepped.param_groups for flat in group["params"]}

    def before(stepped: Any, *_: object) -> None:
        flats = moved(stepped)
        call([name for name, shard in divided.items() if id(shard.flat) in flats])

    def after(stepped: Any, *_: object) -> None:
        if id(last) in moved(stepped):
            call(None)

    return [inner.register_step_pre_hook(before), inner.register_step_post_hook(after)]


def _last_flat(inner: Any, parameter: Any) -> Tensor:
    """Return the flat fp32 copy that is moved last in every step, on every rank."""
    if is_zero3(parameter):
        flats = parameter._z3_optimizer.fp32_partitioned_groups_flat
    else:
        flats = inner.param_groups[-1]["params"]
    last: Tensor = flats[-1]
    return last
