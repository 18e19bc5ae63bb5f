"""Pruning without training."""

from torch import nn

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.pruning.targets import check_finite, find_targets
from hf_cyclprune.reporting.report import CHECKED_PATTERNS, SparsityReport


def prune_(model: nn.Module, config: PruningConfig) -> SparsityReport:
    """Prune the model in place to the config's sparsity at once; return the zeros counted after.

    Criteria that read gradients need a backward pass before.

    Raises:
        ValueError: as `find_targets`; weights that hold NaN; a missing gradient; a config without
            a target sparsity.
    """
    targets = find_targets(model, config.targets, config.ignore)
    check_finite(targets)
    sparsity = config.target_sparsity
    if sparsity is None:
        raise ValueError(
            f"method must prune, to prune a model at once; got '{config.method}', which keeps the "
            "zeros that are there. Choose another method and a sparsity."
        )
    criterion = config.build_criterion()
    if criterion.is_statistic:
        raise ValueError(
            f"criterion must need no training, to prune a model at once; got "
            f"'{config.plan.criterion}', which averages over optimizer steps. Choose for example "
            "criterion='magnitude'."
        )
    config.build_pruner(targets, total_steps=config.plan.num_cycles).prune_to(sparsity)
    patterns = [*CHECKED_PATTERNS, config.pattern]
    return SparsityReport.measure(targets, patterns=patterns, target_sparsity=sparsity)
