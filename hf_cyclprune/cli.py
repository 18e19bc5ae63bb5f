"""`hf-cyclprune VERB ..`: each verb is a few lines over the public API."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from hf_cyclprune.checkpoints.packed import pack, unpack
from hf_cyclprune.checkpoints.weights import model_class, verify
from hf_cyclprune.config import CONFIG_NAME, load_config
from hf_cyclprune.pruning.targets import exact_expressions
from hf_cyclprune.reporting.report import CHECKED_PATTERNS, SparsityReport, load_report

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 on success, 1 with one line on stderr for a user's error."""
    parser = _parser()
    options, flags = parser.parse_known_args(argv)
    if flags and options.run is not _glue:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
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
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)


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


def report_folder(folder: str | Path) -> SparsityReport:
    """The report of a model saved in `folder`, with the cycles of its run where they are known.

    Raises:
        ValueError: the folder holds no model.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"DIR must be a folder with a saved model; got '{folder}' without a config.json. "
            "Pass the output_dir of a run, or one of its checkpoints."
        )
    config = load_config(folder) if (folder / CONFIG_NAME).is_file() else None
    saved = load_report(folder)
    names = [weight.name for weight in saved.weights] if saved is not None else None
    return SparsityReport.measure(
        _load_model(folder),
        targets=exact_expressions(names) if names else None,
        patterns=[*CHECKED_PATTERNS, config.pattern] if config else CHECKED_PATTERNS,
        cycles=saved.cycles if saved is not None else (),
        target_sparsity=config.target_sparsity if config else None,
    )


def _load_model(folder: Path) -> PreTrainedModel:
    """The model of the class that was saved; never code from the folder."""
    cls = model_class(AutoConfig.from_pretrained(folder))
    model: PreTrainedModel = cls.from_pretrained(folder, local_files_only=True)
    return model


if __name__ == "__main__":
    sys.exit(main())
