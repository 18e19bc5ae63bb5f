"""Pruning without training."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from hf_cyclprune.checks import check_instance
from hf_cyclprune.config import PruningConfig
from hf_cyclprune.engines.shards import Shards
from hf_cyclprune.packing.manifest import forget_packed_
from hf_cyclprune.pruning.activations import Batch, show_inputs
from hf_cyclprune.pruning.compensation import OutputErrors, compensate_
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.pruning.targets import check_finite, find_layers, find_targets
from hf_cyclprune.reporting.report import CHECKED_PATTERNS, SparsityReport


def prune_(
    model: nn.Module, config: PruningConfig, calibration: Iterable[Batch] | None = None
) -> SparsityReport:
    """Prune the model in place to the config's sparsity at once; return the zeros counted after.

    Criteria that read gradients need a backward pass before. With calibration data the kept weights
    are solved again, so that the output of each layer changes least, and the report says by how
    much (see `compensate_`). The criterion "wanda" then scores by the dense model's inputs.

    Args:
        model: stays as it was if this fails.
        config: what to prune; of its method only criterion, scope and target matter. The default
            method needs training, and stands for "one_shot" here: by magnitude and each matrix
            alike, unless criterion, scope or min_density say otherwise.
        calibration: batches of the model's keyword arguments, as a DataLoader gives them; some
            hundred sentences. They run through the model once for each of its blocks.

    Raises:
        ValueError: as `find_targets`; weights or inputs that hold NaN; a missing gradient; a config
            without a target sparsity; a criterion that needs training or calibration data.
    """
    check_instance("config", config, PruningConfig, "sparsity=0.9")
    targets = find_targets(model, config.targets, config.ignore)
    forget_packed_(model)
    check_finite(Shards(targets))
    sparsity, config = _check_target(config), _without_training(config)
    pruner = config.build_pruner(targets, total_steps=config.plan.num_cycles)
    _check_criterion(pruner, config.plan.criterion, has_inputs=calibration is not None)
    errors: OutputErrors = {}
    if calibration is None:
        pruner.prune_to(sparsity)
    else:
        errors = _prune_with_inputs(model, pruner, sparsity, _check_batches(calibration))
    return SparsityReport.measure(
        targets,
        patterns=[*CHECKED_PATTERNS, config.pattern],
        target_sparsity=sparsity,
        output_errors=errors,
        parameters=model.parameters(),
    )


def _without_training(config: PruningConfig) -> PruningConfig:
    """Return what the default method, which needs training, stands for here."""
    if config.method != PruningConfig.method:
        return config
    scope = config.scope or ("global" if config.min_density is not None else None)
    return replace(config, method="one_shot", scope=scope)


def _check_target(config: PruningConfig) -> float:
    if config.target_sparsity is None:
        raise ValueError(
            f"method must prune, to prune a model at once; got '{config.method}', which keeps the "
            "zeros that are there. Choose another method and a sparsity."
        )
    return config.target_sparsity


def _check_criterion(pruner: Pruner, name: str, *, has_inputs: bool) -> None:
    criterion = pruner.criterion
    if criterion.observes or "second_moment" in criterion.reads:
        raise ValueError(
            f"criterion must need no training, to prune a model at once; got '{name}', which "
            "averages over optimizer steps. Choose for example criterion='magnitude'."
        )
    if criterion.looks_at_inputs and not has_inputs:
        raise ValueError(
            f"criterion '{name}' looks at the inputs of the layers; got none. Pass batches of the "
            "model's inputs with calibration=, or choose for example criterion='magnitude'."
        )


def _check_batches(calibration: Iterable[Batch]) -> list[Batch]:
    batches = list(calibration)
    if not batches:
        raise ValueError("calibration must hold a batch; got none. Pass it some, or leave it out.")
    for batch in batches:
        is_mapping = isinstance(batch, Mapping)
        if not is_mapping or not all(isinstance(value, Tensor) for value in batch.values()):
            raise ValueError(
                "calibration must give dicts of tensors, the model's keyword arguments; got "
                f"{type(batch).__name__}. Pass for example a DataLoader of tokenized sentences."
            )
    return batches


@torch.no_grad()
def _prune_with_inputs(
    model: nn.Module, pruner: Pruner, sparsity: float, batches: list[Batch]
) -> OutputErrors:
    """Choose the masks, and solve the kept weights again; return the errors of the outputs."""
    layers = find_layers(model, pruner.targets)
    dense = {name: weight.detach().clone() for name, weight in pruner.targets.items()}

    def restore() -> None:
        for name, weight in pruner.targets.items():
            weight.copy_(dense[name])

    try:
        if pruner.observation.looks_at_inputs:
            show_inputs(model, layers, batches, pruner.observation.observe_input)
        pruner.prune_to(sparsity)
        restore()
        return compensate_(model, layers, pruner.masks, batches)
    except BaseException:
        restore()
        raise
