"""`hf-cyclprune VERB ..`: each verb is a few lines over the public API."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_cyclprune.hub.errors import PushError
from hf_cyclprune.hub.folder import card_of_folder, check_pushable
from hf_cyclprune.hub.push import check_repo_id, push_folder
from hf_cyclprune.packing.folder import pack, unpack
from hf_cyclprune.packing.weights import verify
from hf_cyclprune.reporting.folder import report_folder
from hf_cyclprune.reporting.table import print_table
from hf_cyclprune.secrets import redact

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 on success, 1 with one line on stderr for a user's error."""
    parser = _parser()
    options, flags = parser.parse_known_args(argv)
    if flags and options.run is not _glue:
        parser.error(f"unrecognized arguments: {' '.join(redact(flags))}")
    options.flags = flags
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"hf-cyclprune: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-cyclprune", description="Cyclical pruning for transformers."
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    glue = verbs.add_parser(
        "glue", help="fine-tune on a task of GLUE, pruned or not", add_help=False
    )
    glue.set_defaults(run=_glue)

    report = verbs.add_parser("report", help="count the zeros of a saved model")
    report.add_argument("folder", metavar="DIR", help="a folder with config.json and weights")
    report.add_argument("--json", action="store_true", help="print JSON instead of a table")
    report.set_defaults(run=_report)

    pack = verbs.add_parser("pack", help="write a model smaller, its sparse weights packed")
    pack.add_argument("source", metavar="IN", help="a folder with config.json and safetensors")
    pack.add_argument("target", metavar="OUT", help="a new folder")
    pack.add_argument(
        "--dtype", choices=DTYPES, help="convert first, which changes the weights (default: keep)"
    )
    pack.set_defaults(run=_pack)

    unpack = verbs.add_parser("unpack", help="write a packed model as an ordinary dense one")
    unpack.add_argument("source", metavar="IN", help="a packed folder")
    unpack.add_argument("target", metavar="OUT", help="a new folder")
    unpack.set_defaults(run=_unpack)

    verify = verbs.add_parser("verify", help="compare the weights of two folders bit by bit")
    verify.add_argument("a", metavar="A", help="a folder with a model, dense or packed")
    verify.add_argument("b", metavar="B", help="another one")
    verify.set_defaults(run=_verify)

    push = verbs.add_parser(
        "push",
        help="push a pruned model to the Hub, with card and pictures",
        epilog="The token is that of `hf auth login`, or HF_TOKEN.",
    )
    push.add_argument("folder", metavar="DIR", help="the output_dir of a run; it is not changed")
    push.add_argument("repo_id", metavar="REPO", help="user/name; made if it is not there")
    push.add_argument("--private", action="store_true", help="if the repository is new")
    push.add_argument("--revision", help="a branch; made if it is not there (default: main)")
    push.add_argument("--no-packed", action="store_true", help="without a packed copy in sparse/")
    push.add_argument(
        "--dense_run", metavar="DIR", help="a dense run of the same task, to compare with"
    )
    push.set_defaults(run=_push)

    plot = verbs.add_parser("plot", help="draw one run, or compare several")
    plot.add_argument("runs", metavar="RUN", nargs="+", help="the output_dir of a run")
    plot.add_argument("--output_dir", default=".", help="where to write (default: %(default)s)")
    plot.set_defaults(run=_plot)

    demo = verbs.add_parser("demo", help="prune a small BERT on a small task, without a network")
    demo.add_argument("--output_dir", help="keep the pruned model there (default: do not keep it)")
    demo.set_defaults(run=_demo)
    return parser


def _glue(options: argparse.Namespace) -> None:
    try:
        from hf_cyclprune.glue.flags import parse_flags
        from hf_cyclprune.glue.run import run_glue
    except ModuleNotFoundError as error:
        raise ValueError(
            f"glue must have the packages of its extra; got no '{error.name}'. Run "
            '`pip install "hf_cyclprune[glue]"`.'
        ) from error
    glue, args = parse_flags(options.flags)
    run_glue(glue, args)


def _report(options: argparse.Namespace) -> None:
    report = report_folder(options.folder)
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print_table(report)


def _demo(options: argparse.Namespace) -> None:
    from hf_cyclprune.demo.run import run_demo  # needs the packages of the extra

    run_demo(options.output_dir)


def _pack(options: argparse.Namespace) -> None:
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    pack(options.source, options.target, dtype)
    before, after = (_weight_bytes(folder) for folder in (options.source, options.target))
    print(f"{before:,} bytes of weights -> {after:,} ({after / before:.1%})")
    if dtype is not None:
        print(
            f"The weights were rounded to {options.dtype}: they are not those of the model in IN."
        )


def _weight_bytes(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def _unpack(options: argparse.Namespace) -> None:
    unpack(options.source, options.target)


def _verify(options: argparse.Namespace) -> None:
    difference = verify(options.a, options.b)
    if difference is not None:
        raise ValueError(f"the weights must be the same; got: {difference}.")
    print("The same tensors, bit by bit.")


def _push(options: argparse.Namespace) -> None:
    check_repo_id(options.repo_id)
    check_pushable(Path(options.folder))
    facts = card_of_folder(options.folder, options.dense_run)
    try:
        url = push_folder(
            options.folder,
            options.repo_id,
            facts,
            private=options.private or None,
            revision=options.revision,
            packed=not options.no_packed,
        )
    except KeyboardInterrupt as error:
        raise PushError(
            f"the push to '{options.repo_id}' must run to its end; got Ctrl-C. Nothing is lost: "
            "run the same command again."
        ) from error
    print(url)


def _plot(options: argparse.Namespace) -> None:
    from hf_cyclprune.pictures.plots import plot_runs  # needs the packages of the extra

    for path in plot_runs(options.runs, options.output_dir):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
