"""Solving the kept weights again after pruning, so that the outputs of the layers change least.

With the inputs X of a layer on calibration data, its dense weight W and its mask M, this finds

    the W' that minimises  ||X W'^T - X W^T||^2 + lambda ||W' - W||^2,  zero where M prunes

exactly, one row of W' at a time: a least-squares problem with the matrix X^T X + lambda I, without
the rows and columns of the pruned weights. (SparseGPT, Frantar & Alistarh 2023,
https://arxiv.org/abs/2301.00774, solves it approximately, for matrices too large for this.)
lambda is `DAMPING` times the mean of the diagonal of X^T X, whatever the number of tokens. A row
with k kept weights costs k^3 / 3 multiplications: minutes for BERT-base on a CPU at 50 %.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from hf_cyclprune.pruning.activations import Batch, show_inputs

DAMPING = 0.01  # as in SparseGPT
MAX_NUMBERS = 2**24  # fp64 numbers of the systems that are solved at a time: 128 MiB

OutputErrors = dict[str, tuple[float, float]]
"""Name of a target -> ||X W'^T - X W^T|| / ||X W^T|| with masked weights, and with solved ones."""


@torch.no_grad()
def compensate_(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    masks: Mapping[str, Tensor],
    batches: Sequence[Batch],
    damping: float = DAMPING,
) -> OutputErrors:
    """Prune a dense model by these masks and solve the kept weights again, block after block.

    As in SparseGPT, the inputs of a block's layers are those that the blocks before it give after
    they were pruned and solved, while the block itself is still dense. So the batches run through
    the model once for each block. A row whose error would not fall keeps its dense values.

    Args:
        model: changed in place.
        layers: name of a target -> the layer that it belongs to, in the order of the model.
        masks: name of a target -> True = kept.
        batches: keyword arguments of the model.
        damping: 0 solves for the outputs alone.

    Returns:
        The errors of the targets whose layers got an input; the others are only masked.

    Raises:
        ValueError: inputs hold NaN or infinity.
    """
    errors: OutputErrors = {}
    for _, names in groupby(layers, _block_of):
        block = {name: layers[name] for name in names}
        grams = _collect_grams(model, block, batches)
        for name, layer in block.items():
            if name in grams:
                errors[name] = _replace_(layer.weight, masks[name], grams[name], damping)
            else:
                layer.weight.masked_fill_(~masks[name], 0.0)
    return errors


def _block_of(name: str) -> str:
    """Return the part of a name up to the index of its block; all of it outside of the blocks."""
    match = re.match(r".*?\.\d+\.", name)
    return match[0] if match else name


def _collect_grams(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """Return X^T X of every layer that gets an input.  # name -> fp64 (I, I)"""
    grams: dict[str, Tensor] = {}

    def add(name: str, inputs: Tensor) -> None:
        exact = inputs.flatten(0, -2).double()
        grams[name] = exact.t() @ exact + grams.get(name, 0.0)

    show_inputs(model, layers, batches, add)
    for name, gram in grams.items():
        if not gram.isfinite().all():
            raise ValueError(
                f"calibration must give finite inputs to every layer; that of '{name}' gets NaN or "
                "infinity. Use other batches, or run the model in fp32."
            )
    return grams


def _replace_(weight: Tensor, kept: Tensor, gram: Tensor, damping: float) -> tuple[float, float]:
    """Prune a dense weight, put in the solved values where they are better; return its errors."""
    dense = weight.double()
    masked = weight.masked_fill(~kept, 0.0)
    solved = solve_rows(dense, kept, gram, damping).to(weight.dtype)
    before, after = (_row_errors(values.double() - dense, gram) for values in (masked, solved))
    is_better = after < before  # False where the solution is not finite in this dtype
    weight.copy_(torch.where(is_better[:, None], solved, masked))
    sums = before.sum(), torch.where(is_better, after, before).sum()
    size = _row_errors(dense, gram).sum()
    masked_error, error = ((total / size).sqrt().item() if size > 0 else 0.0 for total in sums)
    return masked_error, error


def _row_errors(change: Tensor, gram: Tensor) -> Tensor:
    """Return the squared norm of what a change of the weights adds to each output.  # (O,)"""
    return ((change @ gram) * change).sum(1).clamp(min=0.0)


def solve_rows(weight: Tensor, kept: Tensor, gram: Tensor, damping: float = DAMPING) -> Tensor:
    """Return the weight with zeros where it is pruned, and the other values solved anew.

    Args:
        weight: dense.  # fp64 (O, I)
        kept: which entries to solve for.  # bool (O, I)
        gram: X^T X of the layer's inputs.  # fp64 (I, I)
        damping: how much a change of a weight costs, as a share of the mean of the diagonal. If
            the inputs leave something open, 0 takes the smallest change.
    """
    damped = gram + damping * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    missing = weight.masked_fill(kept, 0.0) @ gram  # what the kept weights must make up for
    solved = weight.masked_fill(~kept, 0.0)
    num_kept, order = kept.sum(1).sort(descending=True)
    start = 0
    while start < len(order) and num_kept[start] > 0:
        width = int(num_kept[start])
        rows = order[start : start + max(1, MAX_NUMBERS // width**2)]
        # The kept columns of each row come first; shorter rows are filled up with pruned ones.
        columns = kept[rows].int().argsort(dim=1, descending=True, stable=True)[:, :width]
        is_real = kept[rows].gather(1, columns)
        systems = damped[columns[:, :, None], columns[:, None, :]]  # (R, K, K)
        systems.masked_fill_(~(is_real[:, :, None] & is_real[:, None, :]), 0.0)
        systems.diagonal(dim1=1, dim2=2).masked_fill_(~is_real, 1.0)
        goals = missing[rows].gather(1, columns).masked_fill(~is_real, 0.0)
        solved[rows] = solved[rows].scatter_add(1, columns, _solve(systems, goals))
        start += len(rows)
    return solved


def _solve(systems: Tensor, goals: Tensor) -> Tensor:
    """Solve symmetric systems, of a singular one in the least-squares sense.  # (R, K)"""
    factors, failures = torch.linalg.cholesky_ex(systems)
    solved = torch.cholesky_solve(goals[:, :, None], factors)[:, :, 0]
    is_singular = failures > 0
    if is_singular.any():
        inverses = torch.linalg.pinv(systems[is_singular], hermitian=True)
        solved[is_singular] = (inverses @ goals[is_singular][:, :, None])[:, :, 0]
    return solved
