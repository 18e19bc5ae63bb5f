"""The state of a pruning run beside a training checkpoint: one bit per weight, and a few facts.

File `pruning_state.safetensors`: for each target the tensors

    mask.NAME        uint8, ceil(numel / 8): bit i % 8 of byte i // 8 is 1 if weight i is kept
    reference.NAME   the same for the end of the previous cycle, where there was one

and in the metadata, under "pruning", a JSON object with the rest of `PruningState`. It is written
to a temporary name and renamed, so that a crash leaves the whole file or none.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

STATE_NAME = "pruning_state.safetensors"
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


def pack_mask(mask: Tensor) -> Tensor:
    """A bool tensor as one bit per element on the CPU.  # (ceil(numel / 8),) uint8

    >>> pack_mask(torch.tensor([[True, False], [False, True]]))
    tensor([9], dtype=torch.uint8)
    """
    bits = mask.detach().reshape(-1).cpu().numpy()
    return torch.from_numpy(np.packbits(bits, bitorder="little"))


def unpack_mask(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bool tensor of this shape that `pack_mask` packed.

    Raises:
        ValueError: the number of bytes does not fit the shape.
    """
    numel = prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != (numel + 7) // 8:
        raise ValueError(
            f"a packed mask of shape {shape} must be {(numel + 7) // 8} bytes; got "
            f"{packed.numel()} of {packed.dtype}. The file belongs to another model."
        )
    bits = np.unpackbits(packed.cpu().numpy(), count=numel, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).reshape(shape)


def save_state(state: PruningState, folder: str | Path) -> Path:
    """Write the state into `folder`, which is made if needed."""
    path = Path(folder) / STATE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
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
    temporary = path.with_name(f"{STATE_NAME}.{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata={"pruning": json.dumps(facts)})
    os.replace(temporary, path)
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
