"""Gradients of fp16 training, which a scaler multiplies, and the steps that it skips.

The loss is multiplied by a large number, so that small gradients do not become 0 in fp16, and the
gradients are divided by it before the step (Micikevicius et al. 2018,
https://arxiv.org/abs/1710.03740). accelerate keeps the scaler with its optimizer.
"""

from typing import Any

from torch.optim import Optimizer

from hf_cyclprune.engines.shard import unwrapped


def unscale_(optimizer: Optimizer | None) -> None:
    """Divide the gradients of this step by the scale, unless that is done, as before clipping."""
    scaler: Any = getattr(optimizer, "scaler", None)
    if scaler is None:
        return
    try:
        scaler.unscale_(unwrapped(optimizer))
    except RuntimeError as error:  # nothing public tells whether it was called
        if "already been called" not in str(error):
            raise


def will_be_skipped(optimizer: Optimizer | None) -> bool:
    """Whether the scaler will skip this step, whose unscaled gradients overflowed.

    Waits for the device. The optimizer does not tell it afterwards: `step_was_skipped` of a fused
    one is always False.
    """
    scaler: Any = getattr(optimizer, "scaler", None)
    if scaler is None:
        return False
    return any(bool(found) for found in scaler._found_inf_per_device(unwrapped(optimizer)).values())
