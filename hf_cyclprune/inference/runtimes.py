"""A model in other runtimes, each where it is installed, to compare times with."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_cyclprune.inference.csr import replace_by_csr
from hf_cyclprune.inference.graphs import (
    ONNX,
    ONNX_INT8,
    OPENVINO,
    Batch,
    Outputs,
    open_onnx,
    open_openvino,
    quantize_onnx,
    quiet,
    root_reason,
    write_onnx,
    write_openvino,
)

Runtime = Callable[[Batch], object]


def multiply_csr(outputs: Outputs, num_threads: int, folder: Path) -> Runtime:
    """Multiply with the kept weights alone, as torch itself can."""
    model = replace_by_csr(outputs)
    return lambda batch: model(**batch)


def compile_torch(outputs: Outputs, num_threads: int, folder: Path) -> Runtime:
    """Compile with torch.compile, which needs a C++ compiler on the machine."""
    compiled = torch.compile(outputs)
    return lambda batch: compiled(**batch)


def run_onnx(outputs: Outputs, num_threads: int, folder: Path) -> Runtime:
    """Export to `folder`, and open it with ONNX Runtime."""
    write_onnx(outputs, folder / ONNX)
    return open_onnx(folder / ONNX, num_threads)


def run_onnx_int8(outputs: Outputs, num_threads: int, folder: Path) -> Runtime:
    """Quantize what `run_onnx` exported to `folder`."""
    if not (folder / ONNX).exists():
        raise RuntimeError("it needs the model in ONNX")
    quantize_onnx(folder / ONNX, folder / ONNX_INT8)
    return open_onnx(folder / ONNX_INT8, num_threads)


def run_openvino(outputs: Outputs, num_threads: int, folder: Path) -> Runtime:
    """Export to `folder`, and open it with OpenVINO."""
    write_openvino(outputs, folder / OPENVINO)
    return open_openvino(folder / OPENVINO, num_threads)


RUNTIMES: dict[str, Callable[[Outputs, int, Path], Runtime]] = {
    "torch CSR": multiply_csr,
    "torch.compile": compile_torch,
    "ONNX Runtime": run_onnx,
    "ONNX Runtime int8": run_onnx_int8,
    "OpenVINO": run_openvino,
}
"""Every runtime under its name; a later one may use the files of an earlier one."""


def build_runtime(
    name: str, model: PreTrainedModel, batch: Batch, num_threads: int, folder: Path
) -> Callable[[], object] | str:
    """Return what runs the model on a batch, or in words why this runtime cannot.

    Args:
        batch: of `make_batch`, whose inputs are those of an exported graph.
        folder: where exported graphs are kept, for one model.
    """
    try:
        with quiet(), torch.inference_mode():
            run = RUNTIMES[name](Outputs(model), num_threads, folder)
            run(batch)
    except Exception as error:  # of any kind: these are other people's compilers
        return root_reason(error)
    return partial(run, batch)
