"""Finds the newest checkpoint that is whole, and what is wrong with the others.

A process that is killed while it saves leaves a folder without trainer_state.json, which
transformers writes last; a full disk may leave any file cut short.
"""

import shutil
import warnings
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_cyclprune.packing.manifest import INDEX, list_files
from hf_cyclprune.reporting.folder import list_checkpoints
from hf_cyclprune.training.state import load_state

_RESUMED = (
    ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*"),  # FSDP, sharded; DeepSpeed
    ("scheduler.pt",),
    ("rng_state*.pth",),
)
"""What a run resumes from besides weights and state; one of each is needed."""
_TOGETHER = (
    ("optimizer.bin", "pytorch_model_fsdp.bin"),  # FSDP, whole
    ("optimizer_0", "optimizer_0/.metadata"),  # FSDP, in parts: written last
    ("optimizer_0", "pytorch_model_fsdp_0/.metadata"),
    ("global_step*", "latest"),  # DeepSpeed
)
"""What one engine writes: where the first is, the second is needed."""
_WRITTEN_BY_TORCH = ("*.pt", "*.pth", "*.bin", "global_step*/*.pt")


def newest_checkpoint(
    folder: str | Path, *, remove: bool = False, needs_optimizer: bool = True
) -> str | None:
    """Return the newest whole checkpoint in an output_dir; None if there is none.

    Warns of newer ones that are damaged. With `remove`, and if there is a whole one, deletes those
    that were interrupted while they were saved: save_total_limit, which goes by the number in the
    name, would keep them in the place of good ones. Other damaged ones stay: they may be of use.
    """
    interrupted: list[Path] = []
    for path in list_checkpoints(Path(folder)):
        problem = find_damage(path, needs_optimizer)
        if problem is None:
            for other in interrupted if remove else []:
                shutil.rmtree(other, ignore_errors=True)
            return str(path)
        warnings.warn(f"{path} is not resumed from: {problem}.", stacklevel=2)
        if _state_problem(path) is not None:
            interrupted.append(path)
    return None


def checkpoint_folder(output_dir: object, state: TrainerState) -> Path:
    """Return the folder of the checkpoint that a Trainer saves after its last optimizer step."""
    return Path(str(output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def checkpoint_to_resume(args: TrainingArguments, wanted: str | bool | None) -> str | bool | None:
    """Return the newest whole checkpoint of a run for True; what else is wanted stays.

    What a crash left beside it is deleted. Without one, True stays, which `Trainer` refuses.
    """
    if wanted is not True:
        return wanted
    is_writer, needs_optimizer = args.should_save, not args.save_only_model
    folder = str(args.output_dir)
    return newest_checkpoint(folder, remove=is_writer, needs_optimizer=needs_optimizer) or True


def find_damage(folder: Path, needs_optimizer: bool = True) -> str | None:
    """Return what is wrong with a checkpoint; None if it can be resumed from.

    Looks at headers and lengths, not at every byte. With `needs_optimizer`, a checkpoint that was
    saved with save_only_model counts as damaged.
    """
    problem = _state_problem(folder)
    if problem is not None:
        return problem
    for index in folder.glob(f"*.safetensors{INDEX}"):
        try:
            missing = [file for file in list_files(folder, index.name) if not file.is_file()]
        except ValueError:
            return f"its {index.name} cannot be read"
        if missing:
            return f"it has no {missing[0].name}"
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError):
            return f"its {file.name} is cut short or damaged"
    try:
        load_state(folder)
    except ValueError:
        return "its pruning state is damaged"
    for patterns in _RESUMED if needs_optimizer else ():
        if not any(path for pattern in patterns for path in folder.glob(pattern)):
            return f"it has no {patterns[0]}"
    for known, needed in _TOGETHER:
        if any(folder.glob(known)) and not (folder / needed).is_file():
            return f"it has no {needed}"
    for path in (path for pattern in _WRITTEN_BY_TORCH for path in folder.glob(pattern)):
        if not zipfile.is_zipfile(path):
            return f"its {path.relative_to(folder)} is cut short"
    return None


def _state_problem(folder: Path) -> str | None:
    """Return what is wrong with the file that is written last."""
    try:
        TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    except FileNotFoundError:
        return f"it has no {TRAINER_STATE_NAME}"
    except (OSError, ValueError, TypeError):
        return f"its {TRAINER_STATE_NAME} cannot be read"
    return None
