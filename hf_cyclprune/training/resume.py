"""The rules for resuming a run: which masks fit the model, the weights and the new settings."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import TrainerState

from hf_cyclprune.config import PruningConfig, config_to_dict
from hf_cyclprune.pruning.masks import unpack_mask
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.pruning.schedules import Schedule
from hf_cyclprune.pruning.snapshot import restore_snapshot, take_snapshot
from hf_cyclprune.training.state import PruningState, load_state, place_in

_BESIDE_MASKS = {
    "reset_momentum",
    "eval_cycle_ends",
    "save_cycle_ends",
    "fix_loss_scaling",
    "ema_decay",
}
"""Options that neither choose masks nor the steps at which they are chosen."""


def find_state(
    pruner: Pruner, checkpoint: Path | None, number: int, is_guess: bool
) -> tuple[Path | None, PruningState | None]:
    """Return where the files of a run are in a checkpoint, and its state; None without them.

    The plain callback does not know from where the weights were loaded, but guesses the folder in
    output_dir that has the checkpoint's name. Another run may have left that: its files are not
    those of a run in whose model a pruned weight is not zero.
    """
    if checkpoint is None:
        return None, None
    place = place_in(checkpoint, number)
    if not is_guess:
        return place, load_state(place)
    try:
        saved = load_state(place)
    except ValueError:  # damaged
        saved = None
    return (place, saved) if saved is not None and _is_of_weights(pruner, saved) else (None, None)


def _is_of_weights(pruner: Pruner, saved: PruningState) -> bool:
    sizes = {name: -(-math.prod(shape) // 8) for name, shape in pruner.shapes.items()}
    if {name: mask.numel() for name, mask in saved.masks.items()} != sizes:
        return False
    is_other = torch.zeros((), dtype=torch.bool)
    for name, packed in saved.masks.items():
        shard = pruner.shards[name]
        is_kept = shard.part_of(unpack_mask(packed, pruner.shapes[name])).to(shard.weight.device)
        is_other |= ((shard.weight != 0) & ~is_kept).any().cpu()
    return not pruner.shards.ranks.any(is_other)


def restore_masks(pruner: Pruner, saved: PruningState) -> None:
    """Put the saved masks and pending resets into the pruner.

    Raises:
        ValueError: the state belongs to other targets.
    """
    if saved.masks.keys() != pruner.masks.keys():
        odd = sorted(saved.masks.keys() ^ pruner.masks.keys())[0]
        raise ValueError(
            f"The checkpoint's masks are not those of the model's targets: they differ at '{odd}'. "
            "Resume with the same model, targets and ignore."
        )
    for name, packed in saved.masks.items():
        whole = unpack_mask(packed, pruner.shapes[name])
        pruner.masks[name].copy_(pruner.shards[name].part_of(whole))
    pruner.count_pruned()
    restore_snapshot(pruner, saved.snapshot)
    pending = set(saved.pending)
    pruner.pending = {g for g, names in enumerate(pruner.groups) if pending & set(names)}


def check_all_loaded(model: nn.Module, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Raise a ValueError unless a checkpoint held every tensor of the model, and no other.

    Tensors that share their memory with one that was there, or that the model never saves, may be
    missing.
    """
    tensors = model.state_dict()
    present = {tensor.data_ptr() for name, tensor in tensors.items() if name not in missing}
    unsaved = getattr(model, "_keys_to_ignore_on_save", None) or ()
    lost = [n for n in missing if n not in unsaved and tensors[n].data_ptr() not in present]
    if lost or unexpected:
        problem = f"lacks '{lost[0]}'" if lost else f"also holds '{unexpected[0]}'"
        raise ValueError(
            f"The checkpoint does not hold the tensors of this {type(model).__name__}: it {problem}"
            f" ({len(lost)} are missing, {len(unexpected)} are others). Resume with the model and "
            "the versions that wrote it, or begin a new run with from_pretrained(checkpoint)."
        )


def is_at_target(pruner: Pruner, saved: PruningState) -> bool:
    """Whether the saved masks are of these targets and have the zeros that the run aims at."""
    if saved.masks.keys() != pruner.masks.keys():
        return False
    zeros = {n: int((~unpack_mask(saved.masks[n], s)).sum()) for n, s in pruner.shapes.items()}
    found = [sum(zeros[name] for name in names) for names in pruner.groups]
    schedule = pruner.schedule
    wanted = pruner.num_pruned if schedule.keeps_zeros else pruner.demand(schedule.sparsity)
    return found == wanted


def forget_best_off_target(pruner: Pruner, state: TrainerState) -> None:
    """Make the Trainer choose its best model anew if the old one is below this run's target.

    It may be one of other settings, or of another Trainer.
    """
    if state.best_metric is None:
        return
    folder = state.best_model_checkpoint
    saved = load_state(folder) if folder is not None else None
    if saved is None or not is_at_target(pruner, saved):
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None


def warn_of_changes(saved: PruningState, config: PruningConfig, schedule: Schedule) -> bool:
    """Warn if the run now has other settings than when it was saved; return whether masks change.

    They do where the schedule, or what is pruned by it, is another one. A method may also have
    other settings than in the version of this library that saved the run.
    """
    before = {**saved.config, "max_steps": saved.total_steps}
    now = {**config_to_dict(config), "max_steps": schedule.total_steps}
    if before.get("method") == now["method"]:
        before |= saved.plan
        now |= {k: v for k, v in config.choices(schedule).items() if k in saved.plan}
    changes = {k: f"{k} {before.get(k)!r} -> {v!r}" for k, v in now.items() if before.get(k) != v}
    if changes:
        warnings.warn(
            "The pruning run is resumed with other settings, which are in force from here on: "
            f"{', '.join(changes.values())}.",
            stacklevel=2,
        )
    return not changes.keys() <= _BESIDE_MASKS


def check_rebuildable(pruner: Pruner) -> None:
    """Raise a ValueError if zeros do not tell all that a run needs to go on."""
    if pruner.observation.keeps_memory or take_snapshot(pruner).keys() - {"num_returned"}:
        raise ValueError(
            "The run cannot be resumed from the zeros of its model alone, since its method also "
            "remembers values of pruned weights, or gradients or inputs of earlier steps. "
            "PruningTrainer saves them with each checkpoint, and PruningCallback with those in "
            "output_dir: resume from one of these."
        )


def masks_from_zeros(pruner: Pruner, step: int) -> None:
    """Rebuild the masks of optimizer step `step` from the weights: every zero was pruned.

    Each group must have as many zeros as the last pruning step demanded. If a reset was still
    waiting, there are the zeros from before the edge, and the reset waits on.

    Raises:
        ValueError: names the weight, its zeros and the number demanded.
    """
    pruner.take_zeros()
    demands, is_waiting = _possible_demands(pruner, step)
    for g, names in enumerate(pruner.groups):
        found = pruner.num_pruned[g]
        if found not in [demand[g] for demand in demands]:
            raise ValueError(
                f"'{names[0]}' must hold {demands[0][g]} zeros after optimizer step {step}; got "
                f"{found}. Resume with the same schedule, or use PruningTrainer, which saves its "
                "masks."
            )
        if is_waiting and found != demands[0][g] and found == demands[-1][g]:
            pruner.pending.add(g)


def _possible_demands(pruner: Pruner, step: int) -> tuple[list[list[int]], bool]:
    """Return the zeros per group that a healthy run can have after `step`, the likeliest first.

    They are those of the last pruning step. In a later cycle the reset at the edge may also have
    happened some steps late, or not yet: then the second value is True, and the last demand is the
    one from before the edge.
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
