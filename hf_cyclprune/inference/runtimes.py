"""A model in other runtimes, each where it is installed, to compare times with."""

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
Run = Callable[[], object]


class FirstOutput(nn.Module):
    """A model of input ids and a mask whose output is a tensor: its logits or hidden states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the first output."""
        output: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        return output


def compile_torch(model: nn.Module, batch: Batch, num_threads: int, folder: Path) -> Run:
    """Compile with torch.compile, which needs a C++ compiler on the machine."""
    compiled = torch.compile(FirstOutput(model))
    return lambda: compiled(**batch)


def build_onnx(model: nn.Module, batch: Batch, num_threads: int, folder: Path) -> Run:
    """Export to `folder`/model.onnx, and open it with ONNX Runtime."""
    _require("onnxruntime", "onnxscript")
    path = folder / "model.onnx"
    torch.onnx.export(FirstOutput(model), kwargs=batch, f=path, dynamo=True, verbose=False)
    return _open_onnx(path, batch, num_threads)


def quantize_onnx(model: nn.Module, batch: Batch, num_threads: int, folder: Path) -> Run:
    """Quantize what `build_onnx` exported to int8 weights, with int8 activations on the fly."""
    _require("onnxruntime", "onnx")
    if not (folder / "model.onnx").exists():
        raise RuntimeError("it needs the model in ONNX")
    quantization = importlib.import_module("onnxruntime.quantization")
    quantization.quantize_dynamic(folder / "model.onnx", folder / "int8.onnx")
    return _open_onnx(folder / "int8.onnx", batch, num_threads)


def _open_onnx(path: Path, batch: Batch, num_threads: int) -> Run:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in batch.items()}
    return lambda: session.run(None, feed)


def build_openvino(model: nn.Module, batch: Batch, num_threads: int, folder: Path) -> Run:
    """Convert for OpenVINO; without its hint it would compute in bfloat16 where it can."""
    _require("openvino")
    openvino = importlib.import_module("openvino")
    converted = openvino.convert_model(FirstOutput(model), example_input=batch)
    hints = {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(converted, "CPU", hints)
    feed = {name: tensor.numpy() for name, tensor in batch.items()}
    return lambda: compiled(feed)


RUNTIMES: dict[str, Callable[[nn.Module, Batch, int, Path], Run]] = {
    "torch.compile": compile_torch,
    "ONNX Runtime": build_onnx,
    "ONNX Runtime int8": quantize_onnx,
    "OpenVINO": build_openvino,
}
"""Every runtime under its name; a later one may use the files of an earlier one."""


def build_runtime(
    name: str, model: nn.Module, batch: Batch, num_threads: int, folder: Path
) -> Run | str:
    """Return what runs the model once, or in words why this runtime cannot."""
    try:
        with _quiet():
            run = RUNTIMES[name](model, batch, num_threads, folder)
            run()
    except Exception as error:  # of any kind: these are other people's compilers
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return run


def _require(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise RuntimeError(f"{package} is not installed")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings of exporters, which tell a user nothing about times."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
