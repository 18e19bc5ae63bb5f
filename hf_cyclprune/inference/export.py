"""A model in a folder that ONNX Runtime or OpenVINO reads, checked against torch."""

import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel

from hf_cyclprune.checks import check_known
from hf_cyclprune.files import new_folder
from hf_cyclprune.inference.graphs import (
    ONNX,
    ONNX_INT8,
    OPENVINO,
    Outputs,
    make_batch,
    max_difference,
    open_onnx,
    open_openvino,
    quantize_onnx,
    quiet,
    require,
    root_reason,
    write_onnx,
    write_openvino,
)
from hf_cyclprune.inference.source import find_folder
from hf_cyclprune.packing.model import read_model
from hf_cyclprune.packing.others import TOKENIZER_FILES, copy_files, other_files

_MOST_DIFFERENCE = 1e-4
FORMATS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
}
"""Format -> the packages that it needs."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its outputs were from those of torch."""

    files: list[str]
    difference: float
    """The largest one, as a share of torch's largest output."""


def export(
    model: str,
    out: str | Path,
    *,
    format: str = "onnx",  # noqa: A002
    int8: bool = False,
) -> Exported:
    """Write a model as a graph for any batch and length, with its config and its tokenizer.

    The graph is run on two batches of random tokens, of other shapes than the one that it was made
    with, and must answer as torch does. If anything fails, `out` stays as it is.

    Args:
        model: a folder, dense or packed, or a name on the Hub.
        out: a new or empty folder.
        format: "onnx" or "openvino".
        int8: round the weights to int8, for "onnx" only; the difference is then measured, and must
            only be finite.

    Raises:
        ValueError: An argument is wrong, the model cannot be exported, or it answers otherwise.
        ImportError: A package is not installed.
    """
    check_known("format", format, FORMATS)
    if int8 and format != "onnx":
        raise ValueError(f"int8 needs format 'onnx'; got '{format}'. Leave out one of the two.")
    require(*FORMATS[format])
    with new_folder(out) as place:
        folder = find_folder(model)
        network = read_model(folder, torch.float32)
        difference = _write_checked(model, network, place, format, int8)
        network.config.save_pretrained(place)
        beside = [p for p in other_files(folder) if any(fnmatch(p, t) for t in TOKENIZER_FILES)]
        copy_files([path for path in beside if "/" not in path], folder, place, ())
        files = sorted(path.name for path in place.iterdir())
    return Exported(files, difference)


def _write_checked(
    model: str, network: PreTrainedModel, folder: Path, name: str, int8: bool
) -> float:
    """Write the graph; return its largest difference from torch, or raise a ValueError."""
    failed = f"'{model}' cannot be exported to {name}"
    try:
        with quiet():
            difference = _write(network, folder, name, int8)
    except Exception as error:  # of any kind: these are other people's compilers
        raise ValueError(f"{failed}: {root_reason(error)}.") from error
    limit = sys.float_info.max if int8 else _MOST_DIFFERENCE
    if not difference <= limit:  # it may be NaN
        raise ValueError(
            f"{failed}: the outputs of what was written differ from those of torch by "
            f"{difference:.2g} of the largest, and at most {limit:.0e} is allowed."
        )
    return difference


def _write(model: PreTrainedModel, folder: Path, name: str, int8: bool) -> float:
    """Write the graph; return the largest difference from torch."""
    outputs, num_threads = Outputs(model), torch.get_num_threads()
    if name == "openvino":
        write_openvino(outputs, folder / OPENVINO)
        run = open_openvino(folder / OPENVINO, num_threads)
    elif int8:
        with TemporaryDirectory() as temporary:
            write_onnx(outputs, Path(temporary) / ONNX)
            quantize_onnx(Path(temporary) / ONNX, folder / ONNX_INT8)
        run = open_onnx(folder / ONNX_INT8, num_threads)
    else:
        write_onnx(outputs, folder / ONNX)
        run = open_onnx(folder / ONNX, num_threads)
    return max_difference(outputs, run, [make_batch(model, 1, 5), make_batch(model, 3, 11, 4)])
