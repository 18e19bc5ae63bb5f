"""Flags, or one JSON or YAML file of the same names, or both -> the arguments of a run."""

import dataclasses
import difflib
import json
from argparse import Action, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.tasks import get_task
from hf_cyclprune.secrets import redact
from hf_cyclprune.training.arguments import PruningArguments
from hf_cyclprune.training.device import has_accelerator

_USAGE = (
    "hf-cyclprune glue [FILE.json | FILE.yaml] --task_name TASK --model_name_or_path MODEL "
    "[--sparsity S | --pattern N:M] [--output_dir DIR] ..\n"
    "       hf-cyclprune glue --help shows every flag"
)
_ACTIONS = ("do_train", "do_eval", "do_predict")
_NOT_GIVEN = object()


class _Parser(HfArgumentParser):
    def format_help(self) -> str:
        """With the flags of pruning above the many of transformers."""
        sections: dict[str, list[Action]] = {"task and model": [], "pruning": [], "training": []}
        glue, pruning = (
            {f.name for f in dataclasses.fields(cls)} for cls in (GlueArguments, PruningConfig)
        )
        for action in self._actions:
            name = action.dest.removeprefix("no_")
            if name in pruning:
                title = "pruning"
            else:
                title = "task and model" if name in {*glue, "help"} else "training"
            sections[title].append(action)
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, actions in sections.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()


def parse_flags(argv: Sequence[str]) -> tuple[GlueArguments, PruningArguments]:
    """The arguments of `hf-cyclprune glue argv`; a flag overrides the file's value.

    What is not given is completed: the CPU where there is nothing else, training and evaluation
    where neither do_train, do_eval nor do_predict is named, the task's metric for the best model.

    Raises:
        ValueError: an unknown name, or a value out of its range.
        SystemExit: a value of the wrong type, a missing one, or --help (argparse).
    """
    parser = _Parser(
        (GlueArguments, PruningArguments),  # type: ignore[arg-type]
        prog="hf-cyclprune glue",
        usage=_USAGE,
        description="Fine-tune on one task of GLUE, pruned or not; the flags of run_glue.",
        allow_abbrev=False,
    )
    hints = _type_hints()
    has_file = bool(argv) and not argv[0].startswith("-")
    file = _read_file(argv[0]) if has_file else {}
    for name, value in file.items():
        _check_entry(name, value, hints)
    lists = {
        name: value for name, value in file.items() if value is None or isinstance(value, list)
    }
    flags = [_to_flag(name, value) for name, value in file.items() if name not in lists]
    empty = Namespace(**dict.fromkeys(hints, _NOT_GIVEN))
    given, unknown = parser.parse_known_args([*flags, *argv[int(has_file) :]], empty)
    for flag in unknown:
        raise ValueError(_unknown(flag, hints))
    values = {name: value for name, value in vars(given).items() if value is not _NOT_GIVEN}
    glue, args = parser.parse_dict(_complete({**lists, **values}))
    return glue, args


def _type_hints() -> dict[str, Any]:
    """Every name and its type."""
    classes: tuple[Any, ...] = (GlueArguments, PruningArguments)
    return {
        f.name: get_type_hints(cls)[f.name]
        for cls in classes
        for f in dataclasses.fields(cls)
        if f.init
    }


def _read_file(path: str) -> dict[str, Any]:
    """Names and values; those of YAML are all strings, so that 2:4 and 3e-4 stay what they are."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        is_json = path.endswith(".json")
        values = json.loads(text) if is_json else yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError) as error:
        values = error
    if not isinstance(values, dict):
        raise ValueError(
            f"FILE must hold names and values as JSON or YAML; got '{path}', which does not. "
            "Write for example task_name: sst2."
        )
    nothing = ("", "null", "~")
    return {str(name): None if value in nothing else value for name, value in values.items()}


def _check_entry(name: str, value: Any, hints: dict[str, Any]) -> None:
    """A name of the file, and that null and lists are where they may be."""
    if name not in hints:
        raise ValueError(_unknown(name, hints))
    kinds = {getattr(kind, "__origin__", kind) for kind in (hints[name], *get_args(hints[name]))}
    if (value is None and type(None) not in kinds) or (
        isinstance(value, list) and list not in kinds
    ):
        raise ValueError(
            f"{name} must be one value; got {json.dumps(value)}. Leave it out, or give it."
        )


def _to_flag(name: str, value: Any) -> str:
    return f"--{name}={json.dumps(_to_numbers(value)) if isinstance(value, dict) else value}"


def _to_numbers(value: Any) -> Any:
    """The strings of YAML inside a mapping as JSON would read them."""
    if isinstance(value, dict):
        return {name: _to_numbers(inner) for name, inner in value.items()}
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _unknown(flag: str, known: Iterable[str]) -> str:
    name = flag.lstrip("-").partition("=")[0].replace("-", "_")
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"Did you mean --{near[0]}?" if near else "See hf-cyclprune glue --help."
    shown = flag.partition("=")[0] if "token" in (near or [name])[0] else redact([flag])[0]
    return f"flags must be known; got '{shown}'. {hint}"


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    if not has_accelerator():
        defaults["use_cpu"] = True
    if not any(name in values for name in _ACTIONS):
        defaults |= {"do_train": True, "do_eval": True}
    if values.get("load_best_model_at_end"):
        defaults["metric_for_best_model"] = get_task(values["task_name"]).best_metric
    return {**defaults, **values}
