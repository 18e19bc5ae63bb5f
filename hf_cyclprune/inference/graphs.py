"""A model of transformers as a graph of ONNX or OpenVINO, for any batch and any length.

Files, inputs and outputs are named as optimum's are (https://hf.co/docs/optimum).
"""

import importlib
import importlib.util
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_cyclprune.checks import reason_of

Batch = dict[str, Tensor]
Run = Callable[[Batch], list[NDArray[np.float32]]]

ONNX = "model.onnx"
ONNX_INT8 = "model_quantized.onnx"
OPENVINO = "openvino_model.xml"
_AXES = {0: "batch_size", 1: "sequence_length"}
_OUTPUTS = (("logits",), ("start_logits", "end_logits"), ("last_hidden_state",))
"""The first of these that a model has are the outputs of its graph."""
_MOST_BYTES = 1_900_000_000
"""A file of ONNX holds 2 GB at most; the weights of a larger model lie beside it."""


class Outputs(nn.Module):
    """A model whose outputs are tensors: its logits, or else its last hidden states.

    Raises:
        ValueError: It has neither, or needs more than tokens.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.eval()
        try:
            with torch.inference_mode():
                found = model(**make_batch(model, 2, 4), return_dict=True)
        except Exception as error:  # of any kind: models have their own
            raise ValueError(
                f"a {type(model).__name__} does not run on tokens alone: {root_reason(error)}"
            ) from None
        known = [names for names in _OUTPUTS if all(name in found for name in names)]
        if not known:
            raise ValueError(
                f"the outputs of a {type(model).__name__} are {', '.join(found)}, and not logits "
                "or hidden states"
            )
        self.names = known[0]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the only output, or all of them."""
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            batch["token_type_ids"] = token_type_ids
        found = self.model(**batch, return_dict=True)
        tensors = tuple(found[name] for name in self.names)
        return tensors if len(tensors) > 1 else tensors[0]


def make_batch(model: PreTrainedModel, batch_size: int, seq_length: int, padding: int = 0) -> Batch:
    """Return random tokens under the names of a tokenizer, always the same ones.

    Args:
        padding: how many tokens at the end of the first sentence are masked.
    """
    generator = torch.Generator().manual_seed(0)
    size = (batch_size, seq_length)
    ids = torch.randint(0, model.config.vocab_size, size, generator=generator)
    mask = torch.ones_like(ids)
    mask[0, seq_length - padding :] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    # RoBERTa takes them too, but knows one type only, and its tokenizer does not give them.
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    if takes_types and getattr(model.config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = torch.randint(0, 2, size, generator=generator)
    return batch


def require(*packages: str) -> None:
    """Raise an ImportError with the line for pip unless these packages are installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"For this format '{package}' must be installed. Run "
                '`pip install "hf_cyclprune[export]"`.'
            )


def write_onnx(outputs: Outputs, path: Path) -> None:
    """Write a graph of ONNX with the weights inside, as torch's exporter makes it."""
    require("onnx", "onnxscript")
    batch = make_batch(outputs.model, 2, 8, padding=2)
    num_bytes = sum(parameter.nbytes for parameter in outputs.parameters())
    program: Any = torch.onnx.export(
        outputs,
        kwargs=batch,
        dynamo=True,
        verbose=False,
        dynamic_shapes=dict.fromkeys(batch, _AXES),
        output_names=outputs.names,
    )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the lines of code behind it, with the paths of this machine
    program.save(path, external_data=num_bytes > _MOST_BYTES)


def quantize_onnx(source: Path, target: Path) -> None:
    """Write a graph with weights in int8, whose activations are rounded while it runs."""
    require("onnx", "onnxruntime")
    quantization = importlib.import_module("onnxruntime.quantization")
    graph = importlib.import_module("onnx").load(source)
    graph.graph.ClearField("value_info")  # older versions stumble on shapes of layers they turned
    quantization.quantize_dynamic(graph, target)


def write_openvino(outputs: Outputs, path: Path) -> None:
    """Write a graph of OpenVINO in float32; its weights lie beside it in a file .bin."""
    openvino = _import_openvino()
    batch = make_batch(outputs.model, 2, 8, padding=2)
    shape = openvino.PartialShape([-1, -1])
    inputs = [(name, shape, openvino.Type.i64) for name in batch]
    graph = openvino.convert_model(outputs, example_input=batch, input=inputs)
    for port, name in zip(graph.outputs, outputs.names, strict=True):
        port.get_tensor().set_names({name})
    openvino.save_model(graph, path, compress_to_fp16=False)


def _import_openvino() -> Any:
    """Import OpenVINO without what it would tell its maker of every import and conversion."""
    require("openvino")
    if "openvino" not in sys.modules:
        sys.modules.setdefault(
            "openvino_telemetry", cast("ModuleType", None)
        )  # as if not installed
    return importlib.import_module("openvino")


def open_onnx(path: Path, num_threads: int) -> Run:
    """Return what runs a graph with ONNX Runtime."""
    require("onnxruntime")
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(batch: Batch) -> list[NDArray[np.float32]]:
        return list(session.run(None, {name: tensor.numpy() for name, tensor in batch.items()}))

    return run


def open_openvino(path: Path, num_threads: int) -> Run:
    """Return what runs a graph with OpenVINO; without its hint it might compute in bfloat16."""
    openvino = _import_openvino()
    hints = {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(path, "CPU", hints)

    def run(batch: Batch) -> list[NDArray[np.float32]]:
        found = compiled({name: tensor.numpy() for name, tensor in batch.items()})
        return [found[port] for port in compiled.outputs]

    return run


def max_difference(outputs: Outputs, run: Run, batches: Sequence[Batch]) -> float:
    """Return the largest difference from torch, as a share of torch's largest output."""
    shares = []
    for batch in batches:
        with torch.inference_mode():
            expected = outputs(**batch)
        tensors = expected if isinstance(expected, tuple) else (expected,)
        for wanted, found in zip(tensors, run(batch), strict=True):
            reference = wanted.numpy()
            if found.shape != reference.shape:
                raise ValueError(f"its output has the shape {found.shape}, not {reference.shape}")
            shares.append(np.abs(found - reference).max() / np.abs(reference).max())
    return float(np.max(shares))  # NaN if one of them is


def root_reason(error: BaseException) -> str:
    """Return what the first of a chain of errors says: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(error)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of exporters, which tell a user nothing about the result."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
