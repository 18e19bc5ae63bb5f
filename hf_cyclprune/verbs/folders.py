"""Verbs that read the folder of a saved model: count, pack, compare and push it."""

import json
from pathlib import Path
from typing import Any

import torch

from hf_cyclprune.files import check_writable
from hf_cyclprune.hub.errors import PushError
from hf_cyclprune.hub.folder import card_of_folder
from hf_cyclprune.hub.push import check_repo, push_folder
from hf_cyclprune.packing.folder import pack, unpack
from hf_cyclprune.packing.verification import verify
from hf_cyclprune.packing.weights import max_sparsity
from hf_cyclprune.reporting.folder import report_folder
from hf_cyclprune.reporting.table import print_table
from hf_cyclprune.reporting.weights import MOST_ZEROS_BY_CHANCE
from hf_cyclprune.verbs.registry import argument, verb


@verb(
    argument("folder", metavar="DIR", help="folder with config.json and weights"),
    argument("--json", action="store_true", dest="as_json", help="print JSON, for programs"),
)
def _report(folder: str, as_json: bool) -> None:
    """Count the zeros of a saved model."""
    report = report_folder(folder)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print_table(report)


@verb(
    argument("source", metavar="IN", help="folder with config.json and safetensors"),
    argument("target", metavar="OUT", help="new folder for the packed model"),
    argument(
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


@verb(
    argument("source", metavar="IN", help="packed folder"),
    argument("target", metavar="OUT", help="new folder for the dense model"),
)
def _unpack(source: str, target: str) -> None:
    """Write a packed model as an ordinary dense one."""
    check_writable("OUT", target)
    unpack(source, target)


@verb(
    argument("a", metavar="A", help="folder with a model, dense or packed"),
    argument("b", metavar="B", help="folder with the model to compare"),
)
def _verify(a: str, b: str) -> None:
    """Compare the weights in two folders bit by bit."""
    difference = verify(a, b)
    if difference is not None:
        raise ValueError(f"The weights are not the same: {difference}.")
    print("The weights are the same, bit by bit.")


@verb(
    argument("folder", metavar="DIR", help="output_dir of a run; it is not changed"),
    argument("repo_id", metavar="REPO", help="user/name; created if it does not exist"),
    argument("--private", action="store_true", help="if REPO is created, make it private"),
    argument("--revision", help="branch to push to, created if missing (default: main)"),
    argument("--no_packed", action="store_true", help="leave out the packed copy in sparse/"),
    argument(
        "--dense_run",
        metavar="DIR",
        help="output_dir of a dense run of the same task; the card then compares the two",
    ),
    argument(
        "--bench",
        action="store_true",
        help="put the times of `hf-cyclprune bench DIR --output_dir DIR` on the card",
    ),
)
def _push(
    folder: str,
    repo_id: str,
    dense_run: str | None,
    bench: bool,
    private: bool,
    no_packed: bool,
    **options: Any,
) -> None:
    """Push a pruned model to the Hub with the token of `hf auth login` or HF_TOKEN."""
    check_repo(repo_id)
    card = card_of_folder(folder, dense_run, has_bench=bench)
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
