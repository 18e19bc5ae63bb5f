"""The command `hf-cyclprune VERB`: each verb is a few lines over the public API.

A verb is a function with its command-line arguments above it: its name, without the underscore, is
the verb's, its docstring is the help text.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hf_cyclprune.files import check_writable
from hf_cyclprune.hub.errors import PushError
from hf_cyclprune.hub.folder import card_of_folder
from hf_cyclprune.hub.push import check_repo, push_folder
from hf_cyclprune.methods import METHODS, Plan
from hf_cyclprune.packing.folder import pack, unpack
from hf_cyclprune.packing.verification import verify
from hf_cyclprune.packing.weights import max_sparsity
from hf_cyclprune.reporting.folder import report_folder
from hf_cyclprune.reporting.table import print_table
from hf_cyclprune.reporting.weights import MOST_ZEROS_BY_CHANCE
from hf_cyclprune.secrets import redact

_Argument = tuple[str, dict[str, Any]]
_VERBS: dict[Callable[..., None], Sequence[_Argument]] = {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return 0, or 1 after one line on stderr about a user's error."""
    parser = argparse.ArgumentParser(
        prog="hf-cyclprune", description="Cyclical pruning for transformers."
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for verb, arguments in _VERBS.items():
        name, text = verb.__name__.removeprefix("_"), verb.__doc__ or ""
        # glue parses its many flags itself, --help included
        added = verbs.add_parser(name, help=text, description=text, add_help=verb is not _glue)
        added.set_defaults(run=verb)
        for argument, settings in arguments:
            added.add_argument(argument, **settings)
    options, flags = parser.parse_known_args(argv)
    values = vars(options)
    run = values.pop("run")
    if run is _glue:
        values["flags"] = flags
    elif flags:
        parser.error(f"unrecognized arguments: {' '.join(redact(flags))}")
    try:
        run(**values)
    except (ValueError, OSError, ImportError) as error:
        print(f"hf-cyclprune: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _verb(*arguments: _Argument) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a verb with these arguments."""

    def register(run: Callable[..., None]) -> Callable[..., None]:
        _VERBS[run] = arguments
        return run

    return register


def _argument(name: str, **options: Any) -> _Argument:
    return name, options


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Explain an import error where packages of an extra are missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f'`hf-cyclprune {name}` needs the packages of the "{name}" extra, but '
            f"'{error.name}' is not installed. Run `pip install \"hf_cyclprune[{name}]\"`."
        ) from error


@_verb()
def _glue(flags: list[str]) -> None:
    """Fine-tune a model on a task of GLUE, pruned or not."""
    with _extra("glue"):
        from hf_cyclprune.glue.flags import parse_flags
        from hf_cyclprune.glue.run import run_glue
    run_glue(*parse_flags(flags))


@_verb()
def _methods() -> None:
    """List the named methods, what they do, and their settings."""
    for name, method in METHODS.items():
        paper = f" ({method.paper.short}, {method.paper.url})" if method.paper is not None else ""
        settings = ", ".join(f"{key}={value!r}" for key, value in method.settings.items())
        print(f"{name}: {method.title}{paper}")
        print(f"  sparsity: {method.formula}")
        print(f"  settings: {settings or 'the defaults'}\n")
    defaults = ", ".join(f"{key}={value!r}" for key, value in vars(Plan()).items())
    print(f"Other settings, in every method: {defaults}")


@_verb(
    _argument("folder", metavar="DIR", help="folder with config.json and weights"),
    _argument("--json", action="store_true", dest="as_json", help="print JSON, for programs"),
)
def _report(folder: str, as_json: bool) -> None:
    """Count the zeros of a saved model."""
    report = report_folder(folder)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print_table(report)


@_verb(
    _argument("source", metavar="IN", help="folder with config.json and safetensors"),
    _argument("target", metavar="OUT", help="new folder for the packed model"),
    _argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="convert the weights first; a 16-bit dtype saves more but rounds them (default: keep)",
    ),
)
def _pack(source: str, target: str, dtype: str | None) -> None:
    """Write a smaller copy of a model, with its sparse weights packed."""
    check_writable("OUT", target)
    pack(source, target, None if dtype is None else getattr(torch, dtype))
    before, after = (
        sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        for folder in (source, target)
    )
    print(f"{before:,} bytes of weights -> {after:,} ({after / before:.1%})")
    if max_sparsity(source) <= MOST_ZEROS_BY_CHANCE:
        print(
            "Nothing in this model is sparse: no weight has more than "
            f"{MOST_ZEROS_BY_CHANCE:.0%} zeros. Prune it before you pack it."
        )
    if dtype is not None:
        print(f"The weights were rounded to {dtype}: they are not those of the model in IN.")


@_verb(
    _argument("source", metavar="IN", help="packed folder"),
    _argument("target", metavar="OUT", help="new folder for the dense model"),
)
def _unpack(source: str, target: str) -> None:
    """Write a packed model as an ordinary dense one."""
    check_writable("OUT", target)
    unpack(source, target)


@_verb(
    _argument("a", metavar="A", help="folder with a model, dense or packed"),
    _argument("b", metavar="B", help="folder with the model to compare"),
)
def _verify(a: str, b: str) -> None:
    """Compare the weights in two folders bit by bit."""
    difference = verify(a, b)
    if difference is not None:
        raise ValueError(f"The weights are not the same: {difference}.")
    print("The weights are the same, bit by bit.")


@_verb(
    _argument("folder", metavar="DIR", help="output_dir of a run; it is not changed"),
    _argument("repo_id", metavar="REPO", help="user/name; created if it does not exist"),
    _argument("--private", action="store_true", help="if REPO is created, make it private"),
    _argument("--revision", help="branch to push to, created if missing (default: main)"),
    _argument("--no_packed", action="store_true", help="leave out the packed copy in sparse/"),
    _argument(
        "--dense_run",
        metavar="DIR",
        help="output_dir of a dense run of the same task; the card then compares the two",
    ),
)
def _push(
    folder: str, repo_id: str, dense_run: str | None, private: bool, no_packed: bool, **options: Any
) -> None:
    """Push a pruned model to the Hub with the token of `hf auth login` or HF_TOKEN."""
    check_repo(repo_id)
    card = card_of_folder(folder, dense_run)
    try:
        url = push_folder(
            folder, repo_id, card, private=private or None, packed=not no_packed, **options
        )
    except KeyboardInterrupt as error:
        raise PushError(
            f"The push to '{repo_id}' was interrupted; the repository holds all of it or nothing "
            "of it. Run the same command again."
        ) from error
    print(url)


@_verb(
    _argument("runs", metavar="RUN", nargs="+", help="output_dir of a run"),
    _argument("--output_dir", default=".", help="folder for the pictures (default: %(default)s)"),
)
def _plot(runs: list[str], output_dir: str) -> None:
    """Draw pictures of one run, or one that compares several."""
    from hf_cyclprune.pictures.plots import plot_runs  # its error names the extra

    check_writable("output_dir", output_dir)
    for path in plot_runs(runs, output_dir):
        print(path)


@_verb(
    _argument("model", metavar="MODEL", help="folder with a model, dense or packed, or a Hub name"),
    _argument("--batch_size", type=int, default=1, help="sentences (default: %(default)s)"),
    _argument("--seq_length", type=int, default=128, help="tokens of each (default: %(default)s)"),
    _argument("--threads", type=int, dest="num_threads", help="(default: as torch chooses)"),
    _argument("--json", action="store_true", dest="as_json", help="print JSON, for programs"),
)
def _bench(model: str, as_json: bool, **options: Any) -> None:
    """Time a model on this CPU: dense, sparse, and in other runtimes that are installed."""
    from hf_cyclprune.inference.bench import bench

    result = bench(model, **options)
    print(json.dumps(result.to_dict(), indent=2) if as_json else result)


@_verb(_argument("--output_dir", help="keep the pruned model here (default: do not keep it)"))
def _demo(output_dir: str | None) -> None:
    """Prune a small BERT on a small task, without a network."""
    with _extra("demo"):
        from hf_cyclprune.demo.run import run_demo
    if output_dir is not None:
        check_writable("output_dir", output_dir)
    run_demo(output_dir)


if __name__ == "__main__":
    sys.exit(main())
