"""The output_dir of a GLUE run: whose it is, where it goes on, and the predictions in it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_cyclprune.glue.arguments import GlueArguments

RUN_NAME = "glue_config.json"
_TRAINER_STATE_NAME = "trainer_state.json"
_IDENTITY = (
    "task_name",
    "model_name_or_path",
    "model_revision",
    "config_name",
    "tokenizer_name",
    "max_seq_length",
    "max_train_samples",
)


def check_output_dir(folder: str | Path, glue: GlueArguments, is_resumed: bool) -> None:
    """An output_dir is new, or empty, or that of the same run, which goes on.

    Raises:
        ValueError: it holds another run or other files.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir must be a folder; got '{folder}', a file. Name another one.")
    if not is_resumed and _holds_a_run(folder):
        raise ValueError(
            f"output_dir must be new or empty; got '{folder}', which holds files. Name another "
            "folder, or continue its run with --resume_from_checkpoint True."
        )
    if is_resumed and (folder / RUN_NAME).is_file():
        before = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
        for name, value in run_identity(glue).items():
            if before.get(name) != value:
                raise ValueError(
                    f"{name} must be {before.get(name)!r} to resume the run in '{folder}'; got "
                    f"{value!r}. Name another output_dir for another run."
                )
    elif is_resumed and _holds_a_run(folder):
        raise ValueError(
            f"output_dir must hold a run of hf-cyclprune glue to resume; got '{folder}' without "
            f"{RUN_NAME}. Name another folder."
        )


def _holds_a_run(folder: Path) -> bool:
    """Whether there is anything that a run would overwrite: files, or checkpoints."""
    is_checkpoint = PREFIX_CHECKPOINT_DIR + "-"
    return folder.is_dir() and any(
        path.is_file() or path.name.startswith(is_checkpoint) for path in folder.iterdir()
    )


def run_identity(glue: GlueArguments) -> dict[str, Any]:
    """What makes two runs the same run, for `RUN_NAME`."""
    return {name: getattr(glue, name) for name in _IDENTITY}


def save_identity(folder: str | Path, glue: GlueArguments) -> None:
    """Write glue_config.json."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps(run_identity(glue), indent=2) + "\n"
    (Path(folder) / RUN_NAME).write_text(text, encoding="utf-8")


def find_checkpoint(folder: str | Path, wanted: str | bool | None) -> str | None:
    """The checkpoint to resume: `wanted`, or for True the newest complete one in `folder`.

    None if nothing is wanted, or if a run was stopped before its first checkpoint.

    Raises:
        ValueError: `wanted` is not a checkpoint.
    """
    choice = str(wanted).lower()
    if choice in ("none", "false", ""):
        return None
    if choice != "true":
        if not _is_complete(Path(str(wanted))):
            raise ValueError(
                f"resume_from_checkpoint must be True or a checkpoint's folder; got '{wanted}', "
                f"which holds no readable {_TRAINER_STATE_NAME}. Pass True for the newest one."
            )
        return str(wanted)
    folders = [p for p in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_complete(p)]
    steps = {int(p.name.rpartition("-")[2]): p for p in folders}
    return str(steps[max(steps)]) if steps else None


def _is_complete(folder: Path) -> bool:
    """Whether the file that transformers writes last can be read."""
    try:
        TrainerState.load_from_json(str(folder / _TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError):
        return False
    return True


def write_predictions(path: Path, predictions: Iterable[str]) -> None:
    """A tab-separated table: index, prediction."""
    rows = [f"{index}\t{prediction}\n" for index, prediction in enumerate(predictions)]
    path.write_text("index\tprediction\n" + "".join(rows), encoding="utf-8")
