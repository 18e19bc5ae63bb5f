"""Files that are whole or absent, and JSON objects read with one error for every fault."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STATE_NAME = "pruning_state.safetensors"
"""Beside a training checkpoint: the masks, one bit per weight."""
AVERAGE_NAME = "pruning_average.safetensors"
"""Beside a training checkpoint: the average of the weights of the last steps."""
CYCLE_TEACHER_NAME = "cycle_teacher.safetensors"
"""Beside a training checkpoint: the model at the end of the previous cycle, where it teaches."""
TRAINING_FILES = (STATE_NAME, AVERAGE_NAME, CYCLE_TEACHER_NAME)
"""Files of this library from which only a Trainer resumes: never part of a model's folder."""
BENCH_NAME = "inference_times.json"
BENCH_PICTURE = "inference_times.png"
TIMES_FILES = (BENCH_NAME, BENCH_PICTURE)
"""What `hf-cyclprune bench` measured on this machine: never part of a model's folder."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; the file written there takes the place of `path` at the end.

    After an exception, or if the process is killed, `path` is what it was before. The folder is
    made if it is not there. The temporary name begins with "_", which no push uploads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"_{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """Yields an empty folder with a temporary name, which becomes `target` if all goes well.

    Raises:
        ValueError: `target` holds files, or is one.
    """
    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"'{target}' is not a new or empty folder. Name another one.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        yield folder
        os.replace(folder, target)


def check_writable(argument: str, folder: str | Path) -> None:
    """Raise a ValueError unless the folder can be written to, or made; leaves nothing behind."""
    place = Path(folder).absolute()
    try:
        parent = next(path for path in (place, *place.parents) if path.exists())
        with tempfile.TemporaryDirectory(dir=parent, prefix="_"):
            pass
    except OSError as error:
        raise ValueError(
            f"{argument} must be a folder that can be written to; got '{folder}': "
            f"{error.strerror}. Name another one."
        ) from error


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text as a whole file; returns `path`."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, values: Any, *, indent: int = 2, sort_keys: bool = False) -> Path:
    """Write indented JSON with a final line break as a whole file; returns `path`."""
    return write_text(path, json.dumps(values, indent=indent, sort_keys=sort_keys) + "\n")


def read_json(path: Path, remedy: str = "Write it again, or delete it.") -> dict[str, Any]:
    """Return the JSON object in a file; `remedy` is the last sentence of every error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or holds something else than an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path.name} in '{path.parent}'. {remedy}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        reason = f"it holds {type(values).__name__}, not an object"
    except (ValueError, RecursionError) as error:
        values, reason = None, str(error)
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} in '{path.parent}' cannot be read: {reason}. {remedy}")
    return values
