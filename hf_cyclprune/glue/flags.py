"""Flags, or one JSON or YAML file of the same names, or both -> the arguments of a run."""

import dataclasses
import difflib
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.tasks import get_task
from hf_cyclprune.training.arguments import PruningArguments
from hf_cyclprune.training.device import has_accelerator

_USAGE = (
    "hf-cyclprune glue [FILE.json | FILE.yaml] --task_name TASK --model_name_or_path MODEL "
    "[--sparsity S | --pattern N:M] [--output_dir DIR] ..\n"
    "       hf-cyclprune glue --help shows every flag"
)
_ACTIONS = ("do_train", "do_eval", "do_predict")
_NOT_GIVEN = object()


def parse_flags(argv: Sequence[str]) -> tuple[GlueArguments, PruningArguments]:
    """The arguments of `hf-cyclprune glue argv`; a flag overrides the file's value.

    What is not given is completed: the CPU where there is nothing else, training and evaluation
    where neither do_train, do_eval nor do_predict is named, the task's metric for the best model.

    Raises:
        ValueError: an unknown name, or a value out of its range.
        SystemExit: a value of the wrong type, a missing one, or --help (argparse).
    """
    parser = HfArgumentParser(
        (GlueArguments, PruningArguments),  # type: ignore[arg-type]
        prog="hf-cyclprune glue",
        usage=_USAGE,
        description="Fine-tune on one task of GLUE, pruned or not; the flags of run_glue.",
        allow_abbrev=False,
    )
    classes: tuple[Any, ...] = (GlueArguments, PruningArguments)
    names = [f.name for cls in classes for f in dataclasses.fields(cls) if f.init]
    has_file = bool(argv) and not argv[0].startswith("-")
    file = _read_file(argv[0]) if has_file else {}
    _check_names(file, names)
    scalars = {k: v for k, v in file.items() if isinstance(v, str | int | float)}
    flags = [f"--{name}={value}" for name, value in scalars.items()] + [*argv[has_file:]]
    given, unknown = parser.parse_known_args(flags, Namespace(**dict.fromkeys(names, _NOT_GIVEN)))
    _check_names([flag.lstrip("-").partition("=")[0] for flag in unknown], names)
    values = {k: v for k, v in vars(given).items() if v is not _NOT_GIVEN}
    glue, args = parser.parse_dict(_complete({**file, **values}))
    return glue, args


def _read_file(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        values = type(error)
    if not isinstance(values, dict):
        raise ValueError(
            f"FILE must hold names and values as JSON or YAML; got '{path}', which does not. "
            "Write for example task_name: sst2."
        )
    return {str(name): value for name, value in values.items()}


def _check_names(given: Any, known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f"Did you mean --{near[0]}?" if near else "See hf-cyclprune glue --help."
            raise ValueError(f"flags must be known; got '{name}'. {hint}")


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    if not has_accelerator():
        defaults["use_cpu"] = True
    if not any(name in values for name in _ACTIONS):
        defaults |= {"do_train": True, "do_eval": True}
    if values.get("load_best_model_at_end"):
        defaults["metric_for_best_model"] = get_task(values["task_name"]).best_metric
    return {**defaults, **values}
