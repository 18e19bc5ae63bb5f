"""Parse the flags of a GLUE run, which may also be written into one JSON or YAML file."""

import dataclasses
import json
import os
import re
from argparse import Action, Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.tasks import get_task
from hf_cyclprune.glue.unknown import explain_unknown
from hf_cyclprune.methods import METHODS
from hf_cyclprune.training.arguments import PruningArguments
from hf_cyclprune.training.device import has_accelerator
from hf_cyclprune.training.teacher import TeacherOptions

_USAGE = (
    "hf-cyclprune glue [FILE.json | FILE.yaml] --task_name TASK --model_name_or_path MODEL "
    "[--sparsity S | --pattern N:M] [--output_dir DIR] ...\n"
    "       hf-cyclprune glue --help shows every flag"
)
_SECTIONS = {"task and model": GlueArguments, "pruning": PruningConfig, "teacher": TeacherOptions}
_ACTIONS = ("do_train", "do_eval", "do_predict")
_PATHS = (
    *("model_name_or_path", "config_name", "tokenizer_name", "cache_dir", "dataset_dir"),
    *("teacher", "dense_run", "resume_from_checkpoint"),
)
"""Where a "~" is the home folder, also in a file, which no shell has read."""
_NOT_GIVEN = object()


class _Parser(HfArgumentParser):
    def format_help(self) -> str:
        """Return the help text with the flags of pruning above the many of transformers."""
        sections: dict[str, list[Action]] = {title: [] for title in (*_SECTIONS, "training")}
        title_of = {f.name: t for t, cls in _SECTIONS.items() for f in dataclasses.fields(cls)}
        title_of["help"] = "task and model"
        for action in self._actions:
            name = action.dest.removeprefix("no_")
            sections[title_of.get(name, "training")].append(action)
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, actions in sections.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong with a number; else end as argparse does."""
        found = re.fullmatch(r"argument --(\w+)\S*: invalid (float|int) value: '(.*)'", message)
        if found is None:
            super().error(message)
        raise ValueError(_explain_number(*found.groups()))


def _explain_number(name: str, kind: str, value: str) -> str:
    """Say what a number must look like.

    >>> _explain_number("sparsity", "float", "80%")
    "sparsity must be a number; got '80%'. Write 0.8 for 80%."
    """
    remedy = "Write it in digits, such as 3."
    if kind == "float":
        remedy = "Write it in digits, such as 0.1 or 1e-4."
        with suppress(ValueError):
            remedy = f"Write {float(value.replace(',', '.')):g}, with a point."
        with suppress(ValueError):
            remedy = f"Write {float(value.strip().removesuffix('%')) / 100:g} for {value}."
    rule = "a number" if kind == "float" else "an integer"
    return f"{name} must be {rule}; got {value!r}. {remedy}"


def parse_flags(argv: Sequence[str]) -> tuple[GlueArguments, PruningArguments]:
    """Parse the arguments of `hf-cyclprune glue`; a flag overrides its value in the file.

    Three defaults depend on the rest: use_cpu is True if there is no accelerator, do_train and
    do_eval are True unless one of do_train, do_eval and do_predict is given, and
    load_best_model_at_end compares models by the task's metric.

    Raises:
        ValueError: a name is unknown, or a value is no number or out of its range.
        SystemExit: a value is missing or none of the choices, or --help is given (argparse).
    """
    parser = _Parser(
        (GlueArguments, PruningArguments),  # type: ignore[arg-type]
        prog="hf-cyclprune glue",
        usage=_USAGE,
        description="Fine-tune on one task of GLUE, pruned or not, with the flags of run_glue.",
        allow_abbrev=False,
    )
    hints = _type_hints()
    has_file = bool(argv) and not argv[0].startswith("-")
    file = _read_file(Path(argv[0])) if has_file else {}
    for name, value in file.items():
        _check_entry(name, value, hints)
    lists = {k: v for k, v in file.items() if v is None or isinstance(v, list)}
    flags = [_to_flag(name, value) for name, value in file.items() if name not in lists]
    empty = Namespace(**dict.fromkeys(hints, _NOT_GIVEN))
    flags += _join_negative_numbers(argv[int(has_file) :])
    given, unknown = parser.parse_known_args(flags, empty)
    if unknown:
        following = [value for value in unknown[1:2] if not value.startswith("-")]
        raise ValueError(explain_unknown(unknown[0], next(iter(following), None), hints))
    values = {name: value for name, value in vars(given).items() if value is not _NOT_GIVEN}
    glue, args = parser.parse_dict(_complete({**lists, **values}))
    return glue, args


def _join_negative_numbers(flags: Sequence[str]) -> list[str]:
    """Write "--name=-1e-3" for "--name -1e-3", which argparse takes for two flags.

    >>> _join_negative_numbers(["--learning_rate", "-1e-3", "--max_steps", "-1", "--bf16"])
    ['--learning_rate=-1e-3', '--max_steps=-1', '--bf16']
    """
    joined: list[str] = []
    for flag in flags:
        is_number = re.fullmatch(r"-\.?\d.*", flag) is not None
        if is_number and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={flag}"
        else:
            joined.append(flag)
    return joined


def _type_hints() -> dict[str, Any]:
    """Return the type of every flag by its name."""
    types = get_type_hints(GlueArguments) | get_type_hints(PruningArguments)
    fields = (*dataclasses.fields(GlueArguments), *dataclasses.fields(PruningArguments))
    return {field.name: types[field.name] for field in fields if field.init}


def _without_twins(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return the pairs as a mapping; a name that comes twice is a ValueError."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twice}' is given twice")
    return values


class _Loader(yaml.BaseLoader):  # type: ignore[misc]  # yaml has no types
    """Reads every value as a string, and no mapping that has a name twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        make = self.construct_object
        parts = [(str(make(key, True)), make(value, deep)) for key, value in node.value]
        return _without_twins(parts)


def _read_file(path: Path) -> dict[str, Any]:
    """Read names and values from a JSON or YAML file; "null" and "~" are None."""
    values, reason = None, ""
    try:
        text = path.read_text(encoding="utf-8")
        # as strings: 2:4 and 3e-4 stay as written
        if path.suffix == ".json":
            values = json.loads(text, object_pairs_hook=_without_twins)
        else:
            values = yaml.load(text, _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = f": {getattr(error, 'strerror', None) or ' '.join(str(error).split())}"
    if not isinstance(values, dict):
        raise ValueError(
            f"FILE must hold names and values as JSON or YAML; got '{path}'{reason}. Name a "
            "file in UTF-8 with lines such as task_name: sst2."
        )
    nothing = ("", "null", "~")
    return {str(name): None if value in nothing else value for name, value in values.items()}


def _check_entry(name: str, value: object, hints: dict[str, Any]) -> None:
    """Check an entry of the file: its name, and whether it may be null or a list."""
    if name not in hints:
        shown = None if isinstance(value, dict | list) else value
        raise ValueError(explain_unknown(name, str(shown), hints))
    kinds = {getattr(kind, "__origin__", kind) for kind in (hints[name], *get_args(hints[name]))}
    kind = type(value)
    if kind in (type(None), list) and kind not in kinds:
        raise ValueError(
            f"{name} must be a single value; got {json.dumps(value)}. Give one, or leave it out."
        )


def _to_flag(name: str, value: object) -> str:
    return f"--{name}={json.dumps(_to_numbers(value)) if isinstance(value, dict) else value}"


def _to_numbers(value: Any) -> Any:
    """Turn the strings inside a mapping of YAML into what JSON reads them as."""
    if isinstance(value, dict):
        return {name: _to_numbers(inner) for name, inner in value.items()}
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults that depend on the other values and on the machine."""
    method = METHODS.get(values.get("method", PruningConfig.method))  # the config names an unknown
    defaults: dict[str, Any] = dict(method.training) if method is not None else {}
    paths = {k: values[k] for k in _PATHS if isinstance(values.get(k), str)}
    values |= {name: os.path.expanduser(path) for name, path in paths.items()}
    if not has_accelerator():
        defaults["use_cpu"] = True
    if not any(name in values for name in _ACTIONS):
        defaults |= {"do_train": True, "do_eval": True}
    if values.get("load_best_model_at_end"):
        defaults["metric_for_best_model"] = get_task(values["task_name"]).best_metric
    return {**defaults, **values}
