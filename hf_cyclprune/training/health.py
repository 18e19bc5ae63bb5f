"""What may have gone wrong with the weights while a run trained them."""

import warnings

from torch import nn
from transformers import TrainerState

from hf_cyclprune.pruning.targets import find_not_finite, find_targets
from hf_cyclprune.reporting.numbers import percent
from hf_cyclprune.training.run import PruningRun


def check_weights(run: PruningRun, state: TrainerState, t: int) -> None:
    """Raise if a target weight is not finite after optimizer step t; waits for the device.

    A trial of a search is left alone: its result says how bad it is, and other trials follow.

    Raises:
        ValueError: names the weight, the step and what helps.
    """
    name = None if state.is_hyper_param_search else find_not_finite(run.pruner.shards)
    if name is not None:
        raise ValueError(
            f"The weights must stay finite; '{name}' holds NaN or infinity after optimizer step "
            f"{t} of {state.max_steps}. Lower learning_rate; if the weights are fp16, load the "
            "model with dtype=torch.float32, and train it with bf16=True or fp16=True."
        )


def warn_if_off_target(run: PruningRun, state: TrainerState) -> None:
    """Warn if the run has ended where the model is not at its target sparsity."""
    pruner = run.pruner
    if not pruner.is_at_target:
        warnings.warn(
            f"Training ended after optimizer step {state.global_step} of {state.max_steps} at a "
            f"sparsity of {percent(pruner.sparsity)}, not at the target of "
            f"{percent(pruner.schedule.sparsity)}. Resume from a checkpoint to finish it.",
            stacklevel=2,
        )


def warn_of_unfrozen(run: PruningRun, model: nn.Module) -> None:
    """Warn of weights that were frozen when the run began, and so not pruned, and are not now."""
    targets, ignore = run.config.targets, run.config.ignore
    found = find_targets(model, targets, ignore, keep_frozen=True)
    trained = [name for name, weight in found.items() if weight.requires_grad]
    dense = [name for name in trained if name not in run.pruner.shards]
    if dense:
        warnings.warn(
            f"{len(dense)} target weights, which were frozen at the start of training and are not "
            f"any more, are dense; the first is '{dense[0]}'. Unfreeze them before training "
            "starts, or leave them out with ignore=.",
            stacklevel=2,
        )
