"""The state of a pruning run beside a training checkpoint: one bit per weight, and a few facts.

File `pruning_state.safetensors`: for each target the tensors

    mask.NAME        uint8, ceil(numel / 8): bit i % 8 of byte i // 8 is 1 if weight i is kept
    reference.NAME   the same for the end of the previous cycle, where there was one

and in the metadata, under "pruning", a JSON object with the rest of `PruningState`. It is written
to a temporary name and renamed, so that a crash leaves the whole file or none.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_cyclprune.files import STATE_NAME, whole_file
from hf_cyclprune.pruning.masks import pack_mask, unpack_mask
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.reporting.cycles import CycleHistory

FORMAT_VERSION = 1


@dataclass
class PruningState:
    """All that a run needs, besides the weights and the step number, to go on bit for bit."""

    step: int
    """Optimizer steps finished."""
    total_steps: int
    config: dict[str, Any]
    masks: dict[str, Tensor]
    """Name -> packed bits, see `pack_mask`."""
    pending: list[str] = field(default_factory=list)
    """First target of every group whose pruning step is due but waits."""
    history: dict[str, Any] = field(default_factory=dict)
    """JSON: the cycles so far."""
    reference: dict[str, Tensor] = field(default_factory=dict)
    """Name -> packed bits of the masks at the previous cycle's end."""


def save_state(state: PruningState, folder: str | Path) -> Path:
    """Write the state into `folder`, which is made if needed."""
    path = Path(folder) / STATE_NAME
    tensors = {f"mask.{name}": packed for name, packed in state.masks.items()}
    tensors |= {f"reference.{name}": packed for name, packed in state.reference.items()}
    facts = {
        "format_version": FORMAT_VERSION,
        "step": state.step,
        "total_steps": state.total_steps,
        "config": state.config,
        "pending": state.pending,
        "history": state.history,
    }
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"pruning": json.dumps(facts)})
    return path


def load_state(folder: str | Path) -> PruningState | None:
    """The state that `save_state` left in `folder`; None if there is none.

    Raises:
        ValueError: the file is damaged or of a newer format.
    """
    path = Path(folder) / STATE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["pruning"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        version = facts.pop("format_version")
        if version == FORMAT_VERSION:
            masks, reference = _named("mask.", tensors), _named("reference.", tensors)
            return PruningState(masks=masks, reference=reference, **facts)
    except (SafetensorError, KeyError, AttributeError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{STATE_NAME} must be a pruning state; {path} cannot be read ({error}). "
            "Resume from another checkpoint."
        ) from error
    raise ValueError(
        f"{STATE_NAME} must have format version {FORMAT_VERSION}; got {version} in {path}. "
        "Resume with the version of hf_cyclprune that wrote it."
    )


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def capture_state(
    pruner: Pruner, history: CycleHistory, step: int, config: dict[str, Any]
) -> PruningState:
    """The state after optimizer step `step`, for `save_state`."""
    return PruningState(
        step=step,
        total_steps=pruner.schedule.total_steps,
        config=config,
        masks={name: pack_mask(mask) for name, mask in pruner.masks.items()},
        pending=[pruner.groups[g][0] for g in sorted(pruner.pending)],
        history=history.to_dict(),
        reference=history.reference,
    )


def restore_state(pruner: Pruner, saved: PruningState) -> CycleHistory:
    """Put the saved masks and pending resets into the pruner; return the cycles so far.

    Raises:
        ValueError: the state belongs to other targets.
    """
    if saved.masks.keys() != pruner.masks.keys():
        odd = sorted(saved.masks.keys() ^ pruner.masks.keys())[0]
        raise ValueError(
            f"the checkpoint's masks must be of the model's targets; got a difference at '{odd}'. "
            "Resume with the same model, targets and ignore."
        )
    for name, packed in saved.masks.items():
        pruner.masks[name].copy_(unpack_mask(packed, pruner.shapes[name]))
    pruner.count_pruned()
    pending = set(saved.pending)
    pruner.pending = {g for g, names in enumerate(pruner.groups) if pending & set(names)}
    return CycleHistory.from_dict(saved.history, saved.reference)


def is_at_target(pruner: Pruner, saved: PruningState) -> bool:
    """Whether the saved masks are of these targets and as sparse as the schedule's target."""
    if saved.masks.keys() != pruner.masks.keys():
        return False
    zeros = {n: int((~unpack_mask(saved.masks[n], s)).sum()) for n, s in pruner.shapes.items()}
    found = [sum(zeros[name] for name in names) for names in pruner.groups]
    return found == pruner.demand(pruner.schedule.sparsity)


def warn_of_changes(saved: PruningState, config: dict[str, Any], total_steps: int) -> bool:
    """Warn with the differences, and return True, if the run is now set up otherwise."""
    before = {**saved.config, "max_steps": saved.total_steps}
    now = {**config, "max_steps": total_steps}
    changes = [
        f"{key} {before.get(key)!r} -> {value!r}"
        for key, value in now.items()
        if before.get(key) != value
    ]
    if changes:
        warnings.warn(
            "The pruning run is resumed with other settings, and the schedule is the new one from "
            f"here on: {', '.join(changes)}.",
            stacklevel=2,
        )
    return bool(changes)


def masks_from_zeros(pruner: Pruner, step: int) -> None:
    """Rebuild the masks after optimizer step `step`: what is zero was pruned.

    The zeros of every group must be as many as the last pruning step demanded. A reset that is
    still waiting shows as the zeros from before the edge, and waits on.

    Raises:
        ValueError: names the weight, its zeros and the number demanded.
    """
    for name, weight in pruner.targets.items():
        pruner.masks[name].copy_(weight.detach() != 0)
    pruner.count_pruned()
    demands, is_waiting = _possible_demands(pruner, step)
    for g, names in enumerate(pruner.groups):
        found = pruner.num_pruned[g]
        if found not in [demand[g] for demand in demands]:
            raise ValueError(
                f"'{names[0]}' must hold {demands[0][g]} zeros after optimizer step {step}; got "
                f"{found}. Resume with the same schedule, or with PruningTrainer, which saves its "
                "masks."
            )
        if is_waiting and found != demands[0][g] and found == demands[-1][g]:
            pruner.pending.add(g)


def _possible_demands(pruner: Pruner, step: int) -> tuple[list[list[int]], bool]:
    """The zeros a healthy run can have after `step`, likeliest first, and whether the last of them
    stands for a reset that still waits.

    The last pruning step up to `step` is the rule. If it was the edge of a cycle its reset may have
    happened some steps late, or not yet.
    """
    schedule = pruner.schedule
    last = next(t for t in range(step, 0, -1) if schedule.is_pruning_step(t))
    demands = [pruner.demand(schedule.sparsity_at(last))]
    edge = schedule.edges[schedule.cycle(step)] + 1
    if edge == 1:
        return demands, False
    before = pruner.demand(schedule.sparsity_at(edge - 1))
    late = [pruner.demand(schedule.sparsity_at(t)) for t in range(last + 1, step + 1)]
    return [*demands, *late, before], True
