"""Parse the flags of a GLUE run, which may also be written into one JSON or YAML file."""

import dataclasses
import json
from argparse import Action, Namespace
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from hf_cyclprune.checks import nearest_name
from hf_cyclprune.config import PruningConfig
from hf_cyclprune.files import read_json
from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.tasks import get_task
from hf_cyclprune.methods import METHODS
from hf_cyclprune.secrets import redact
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


def parse_flags(argv: Sequence[str]) -> tuple[GlueArguments, PruningArguments]:
    """Parse the arguments of `hf-cyclprune glue`; a flag overrides its value in the file.

    Three defaults depend on the rest: use_cpu is True if there is no accelerator, do_train and
    do_eval are True unless one of do_train, do_eval and do_predict is given, and
    load_best_model_at_end compares models by the task's metric.

    Raises:
        ValueError: a name is unknown, or a value is out of its range.
        SystemExit: a value is missing or has the wrong type, or --help is given (argparse).
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
    given, unknown = parser.parse_known_args([*flags, *argv[int(has_file) :]], empty)
    for flag in unknown:
        raise ValueError(_explain_unknown(flag, hints))
    values = {name: value for name, value in vars(given).items() if value is not _NOT_GIVEN}
    glue, args = parser.parse_dict(_complete({**lists, **values}))
    return glue, args


def _type_hints() -> dict[str, Any]:
    """Return the type of every flag by its name."""
    types = get_type_hints(GlueArguments) | get_type_hints(PruningArguments)
    fields = (*dataclasses.fields(GlueArguments), *dataclasses.fields(PruningArguments))
    return {field.name: types[field.name] for field in fields if field.init}


def _read_file(path: Path) -> dict[str, Any]:
    """Read names and values from a JSON or YAML file; "null" and "~" are None."""
    values: Any = None
    if path.suffix == ".json":
        values = read_json(path, 'Write for example {"task_name": "sst2"}.')
    else:
        with suppress(yaml.YAMLError, ValueError):  # as strings: 2:4 and 3e-4 stay as written
            values = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    if not isinstance(values, dict):
        raise ValueError(
            f"FILE must hold names and values as JSON or YAML; got '{path}'. Write for example "
            "task_name: sst2."
        )
    nothing = ("", "null", "~")
    return {str(name): None if value in nothing else value for name, value in values.items()}


def _check_entry(name: str, value: object, hints: dict[str, Any]) -> None:
    """Check an entry of the file: its name, and whether it may be null or a list."""
    if name not in hints:
        raise ValueError(_explain_unknown(name, hints))
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


def _explain_unknown(flag: str, known: Collection[str]) -> str:
    """Say that a flag is unknown, without the value of a mistyped token."""
    name = flag.lstrip("-").partition("=")[0].replace("-", "_")
    near = nearest_name(name, known)
    shown = flag.partition("=")[0] if "token" in (near or name) else redact([flag])[0]
    hint = f"Did you mean --{near}?" if near else "See hf-cyclprune glue --help."
    return f"Unknown flag '{shown}'. {hint}"


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults that depend on the other values and on the machine."""
    method = METHODS.get(values.get("method", PruningConfig.method))  # the config names an unknown
    defaults: dict[str, Any] = dict(method.training) if method is not None else {}
    if not has_accelerator():
        defaults["use_cpu"] = True
    if not any(name in values for name in _ACTIONS):
        defaults |= {"do_train": True, "do_eval": True}
    if values.get("load_best_model_at_end"):
        defaults["metric_for_best_model"] = get_task(values["task_name"]).best_metric
    return {**defaults, **values}
