"""The file beside a training checkpoint from which a pruning run resumes: one bit per weight.

`pruning_state.safetensors` holds for each target the tensors

    mask.NAME        uint8, ceil(numel / 8): bit i % 8 of byte i // 8 is 1 if weight i is kept
    reference.NAME   the same for the end of the previous cycle, where there was one
    snapshot.KEY     what the method remembers of weights and gradients: see pruning/snapshot.py

and in its metadata, under "pruning", a JSON object with the other fields of `PruningState`. A crash
leaves the whole file or none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_cyclprune.files import STATE_NAME, whole_file

FORMAT_VERSION = 2
_PREFIXES = {"mask": "masks", "reference": "reference", "snapshot": "snapshot"}


@dataclass
class PruningState:
    """All that a run needs, besides the Trainer's checkpoint, to go on bit for bit."""

    step: int
    """Optimizer steps finished."""
    total_steps: int
    config: dict[str, Any]
    plan: dict[str, Any]
    """What the options, the method and the schedule chose together: `PruningConfig.choices`."""
    masks: dict[str, Tensor]
    """Name -> packed bits (`pack_mask`)."""
    pending: list[str] = field(default_factory=list)
    """First target of every group whose pruning step is due but waits."""
    history: dict[str, Any] = field(default_factory=dict)
    """The cycles so far, as JSON."""
    reference: dict[str, Tensor] = field(default_factory=dict)
    """Name -> packed bits of the masks at the previous cycle's end."""
    snapshot: dict[str, Tensor] = field(default_factory=dict)
    """What `take_snapshot` returned."""


def place_in(checkpoint: Path, number: int) -> Path:
    """Return where in a checkpoint a run keeps its files, before which `number` others began."""
    return checkpoint / f"pruning-{number + 1}" if number else checkpoint


def save_state(state: PruningState, folder: str | Path) -> Path:
    """Write the state into `folder`, which is created if needed; return the file's path."""
    path = Path(folder) / STATE_NAME
    others = {"format_version": FORMAT_VERSION, **vars(state)}
    tensors: dict[str, Tensor] = {}
    for prefix, kept in _PREFIXES.items():
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in others.pop(kept).items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"pruning": json.dumps(others)})
    return path


def load_state(folder: str | Path) -> PruningState | None:
    """Read the state that `save_state` wrote into `folder`; None if there is no such file.

    Raises:
        ValueError: the file is damaged, or of another version of the format.
    """
    path = Path(folder) / STATE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            others = json.loads((file.metadata() or {})["pruning"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        version = others.pop("format_version")
        if version == FORMAT_VERSION:
            parts: Any = {kept: _strip(f"{prefix}.", tensors) for prefix, kept in _PREFIXES.items()}
            return PruningState(**parts, **others)
    except (SafetensorError, KeyError, AttributeError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"The pruning state {path} cannot be read ({error}). Resume from another checkpoint."
        ) from error
    raise ValueError(
        f"The pruning state must have format version {FORMAT_VERSION}; got {version} in {path}. "
        "Resume with the version of hf_cyclprune that wrote it."
    )


def _strip(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
