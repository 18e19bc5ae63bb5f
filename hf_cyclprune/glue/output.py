"""The output_dir of a GLUE run: which run it belongs to, where to resume, and its predictions."""

from collections.abc import Iterable
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_cyclprune.files import check_writable, read_json, write_json, write_text
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
    """Raise an error unless output_dir is new, empty, or that of the run with this checkpoint.

    Raises:
        ValueError: it holds another run or other files, or cannot be written to; or the checkpoint
            belongs to another run.
        FileNotFoundError: it holds a run that `hf-cyclprune glue` did not start.
    """
    folder = Path(str(args.output_dir))
    check_writable("output_dir", folder)
    if checkpoint is not None:
        check_same_run(Path(checkpoint).parent, args, glue)
    if not _holds_a_run(folder):
        return
    if not _is_resumed(args):
        raise ValueError(
            f"output_dir must be new or empty; got '{folder}', which holds files. Name another "
            "folder, or continue its run with --resume_from_checkpoint True."
        )
    check_same_run(folder, args, glue)
    if checkpoint is None and any((folder / name).exists() for name in _RESULTS):
        raise ValueError(
            f"output_dir must hold a checkpoint to resume; got '{folder}', a finished run without "
            "one. Name another folder."
        )


def _is_resumed(args: PruningArguments) -> bool:
    return str(args.resume_from_checkpoint).lower() not in ("none", "false", "")


def _holds_a_run(folder: Path) -> bool:
    """Return whether a new run would overwrite anything.

    The identity file alone is free: a run that failed before its first checkpoint leaves it.
    """
    prefix = PREFIX_CHECKPOINT_DIR + "-"
    return folder.is_dir() and any(
        (path.is_file() and path.name != RUN_NAME) or path.name.startswith(prefix)
        for path in folder.iterdir()
    )


def check_same_run(folder: Path, args: PruningArguments, glue: GlueArguments) -> None:
    """Raise an error unless a folder holds the run of these arguments.

    Raises:
        ValueError: it holds another one.
        FileNotFoundError: it holds none that `hf-cyclprune glue` started.
    """
    remedy = "Only runs of hf-cyclprune glue can be resumed: name another folder."
    before = read_json(folder / RUN_NAME, remedy)
    for name, value in _identify_run(args, glue).items():
        if before.get(name) != value:
            raise ValueError(
                f"{name} must be {before.get(name)!r} to resume the run in '{folder}'; got "
                f"{value!r}. Name another output_dir for another run."
            )


def _identify_run(args: PruningArguments, glue: GlueArguments) -> dict[str, object]:
    """Return the values that make two runs the same run."""
    values = {name: getattr(glue, name) for name in _IDENTITY}
    return {**values, "seed": args.seed, "is_pruning": args.is_pruning}


def save_identity(args: PruningArguments, glue: GlueArguments) -> None:
    """Write glue_config.json, by which a resumed run is recognized."""
    write_json(Path(str(args.output_dir)) / RUN_NAME, _identify_run(args, glue))


def find_checkpoint(args: PruningArguments) -> str | None:
    """Return the checkpoint to resume: the one named, or for True the newest complete one.

    It is None if nothing is to be resumed, or if the run stopped before its first checkpoint.

    Raises:
        ValueError: the folder that was named is not a checkpoint.
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
            f"{damage}. Pass True for the newest complete one."
        )
    return wanted


def write_predictions(path: Path, predictions: Iterable[str]) -> None:
    """Write a tab-separated table of index and prediction."""
    rows = [f"{index}\t{prediction}\n" for index, prediction in enumerate(predictions)]
    write_text(path, "index\tprediction\n" + "".join(rows))
