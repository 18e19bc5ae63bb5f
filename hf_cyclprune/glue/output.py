"""The output_dir of a GLUE run: whose it is, where it goes on, and the predictions in it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.training.arguments import PruningArguments
from hf_cyclprune.training.damage import find_damage, newest_checkpoint

RUN_NAME = "glue_config.json"
_IDENTITY = (
    "task_name",
    "model_name_or_path",
    "model_revision",
    "config_name",
    "tokenizer_name",
    "max_seq_length",
    "max_train_samples",
)
_RESULTS = ("config.json", "all_results.json")


def check_output_dir(args: PruningArguments, glue: GlueArguments, checkpoint: str | None) -> None:
    """An output_dir is new, or empty, or that of the same run, which goes on.

    Args:
        args: with output_dir and resume_from_checkpoint.
        glue: model, task and data.
        checkpoint: what `find_checkpoint` found.

    Raises:
        ValueError: it holds another run or other files, or the checkpoint is another run's.
    """
    folder = Path(str(args.output_dir))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir must be a folder; got '{folder}', a file. Name another one.")
    if checkpoint is not None:
        _check_same_run(Path(checkpoint).parent, args, glue)
    if not _holds_a_run(folder):
        return
    if not _is_resumed(args):
        raise ValueError(
            f"output_dir must be new or empty; got '{folder}', which holds files. Name another "
            "folder, or continue its run with --resume_from_checkpoint True."
        )
    _check_same_run(folder, args, glue)
    if checkpoint is None and any((folder / name).exists() for name in _RESULTS):
        raise ValueError(
            f"output_dir must hold a checkpoint to resume; got '{folder}', a finished run without "
            "one. Name another folder."
        )


def _is_resumed(args: PruningArguments) -> bool:
    return str(args.resume_from_checkpoint).lower() not in ("none", "false", "")


def _holds_a_run(folder: Path) -> bool:
    """Whether there is anything that a run would overwrite: files, or checkpoints.

    Not what a run that failed before its first checkpoint leaves.
    """
    prefix = PREFIX_CHECKPOINT_DIR + "-"
    return folder.is_dir() and any(
        (path.is_file() and path.name != RUN_NAME) or path.name.startswith(prefix)
        for path in folder.iterdir()
    )


def _check_same_run(folder: Path, args: PruningArguments, glue: GlueArguments) -> None:
    try:
        before = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise ValueError(
            f"output_dir must hold a run of hf-cyclprune glue to resume; got '{folder}' without a "
            f"readable {RUN_NAME}. Name another folder."
        )
    for name, value in run_identity(args, glue).items():
        if before.get(name) != value:
            raise ValueError(
                f"{name} must be {before.get(name)!r} to resume the run in '{folder}'; got "
                f"{value!r}. Name another output_dir for another run."
            )


def run_identity(args: PruningArguments, glue: GlueArguments) -> dict[str, Any]:
    """What makes two runs the same run, for `RUN_NAME`."""
    values = {name: getattr(glue, name) for name in _IDENTITY}
    return {**values, "seed": args.seed, "is_pruning": args.is_pruning}


def save_identity(args: PruningArguments, glue: GlueArguments) -> None:
    """Write glue_config.json."""
    folder = Path(str(args.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run_identity(args, glue), indent=2) + "\n"
    (folder / RUN_NAME).write_text(text, encoding="utf-8")


def find_checkpoint(args: PruningArguments) -> str | None:
    """The checkpoint to resume: the one that is named, or for True the newest whole one.

    None if nothing is wanted, or if a run was stopped before its first checkpoint.

    Raises:
        ValueError: what is named is not a checkpoint.
    """
    wanted, needs_optimizer = str(args.resume_from_checkpoint), not args.save_only_model
    if not _is_resumed(args):
        return None
    if wanted.lower() == "true":
        return newest_checkpoint(str(args.output_dir), needs_optimizer=needs_optimizer)
    damage = find_damage(Path(wanted), needs_optimizer)
    if damage is not None:
        raise ValueError(
            f"resume_from_checkpoint must be True or a checkpoint's folder; got '{wanted}', but "
            f"{damage}. Pass True for the newest whole one."
        )
    return wanted


def write_predictions(path: Path, predictions: Iterable[str]) -> None:
    """A tab-separated table: index, prediction."""
    rows = [f"{index}\t{prediction}\n" for index, prediction in enumerate(predictions)]
    path.write_text("index\tprediction\n" + "".join(rows), encoding="utf-8")
