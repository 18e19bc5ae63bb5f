"""`from_pretrained` for packed folders, once this module is imported.

transformers lets other libraries register a quantizer. This one gives an ordinary dense model: it
names the file with the weights, checks what is in it, decodes each blob where transformers would
convert a weight, and leaves no trace on the model and its config.
"""

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_cyclprune.packing.blob import decode
from hf_cyclprune.packing.entropy import Bytes
from hf_cyclprune.packing.errors import PackedError
from hf_cyclprune.packing.file import SUFFIX, check_file
from hf_cyclprune.packing.manifest import QUANT_METHOD, Manifest


@register_quantization_config(QUANT_METHOD)
class PackedConfig(QuantizationConfigMixin):
    """The entry "quantization_config" of a packed config.json."""

    dequantize = True  # the model that comes out is an ordinary one

    def __init__(self, **values: Any) -> None:
        self.quant_method: Any = QUANT_METHOD
        entry = {"quant_method": QUANT_METHOD, **values}
        self.manifest = Manifest.from_dict(entry, "the folder of the model")

    def to_dict(self) -> dict[str, Any]:
        return self.manifest.to_dict()


@register_quantizer(QUANT_METHOD)
class PackedQuantizer(HfQuantizer):
    """Decodes packed weights while a model loads.

    Raises:
        PackedError: The packed model is damaged; the error names the file or the tensor.
    """

    is_trainable = True

    def __init__(self, quantization_config: PackedConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.manifest = quantization_config.manifest
        self.failure: PackedError | None = None
        self.expected: dict[str, tuple[torch.Size, torch.dtype]] = {}
        """The shape and dtype of every tensor of the model that was asked for."""
        self.decoder: _Decoder | None = None

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    # transformers calls this before it looks for files, and 5.0 calls it update_tp_plan
    def update_attn_implementation(self, config: PretrainedConfig) -> PretrainedConfig:
        config.transformers_weights = self.manifest.weights
        if getattr(config, "dtype", None) is None and self.manifest.dtype is not None:
            config.dtype = getattr(torch, self.manifest.dtype)
        return config

    update_tp_plan = update_attn_implementation

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Iterable[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        files = map(check_file, map(Path, checkpoint_files or []))
        stored = [item for tensors in files for item in tensors.items()]
        names = [name.removesuffix(SUFFIX) for name, _ in stored]
        self.manifest.check_names("The folder of the model", names)
        blobs = {
            name.removesuffix(SUFFIX): t.numpy() for name, t in stored if name.endswith(SUFFIX)
        }
        empty = _tensors(model)
        self.decoder = _Decoder(blobs, sum(tensor.numel() for _, tensor in empty))
        self.expected = {name: (tensor.shape, tensor.dtype) for name, tensor in empty}
        return model

    def get_weight_conversions(self) -> list[WeightConverter]:
        """Return a conversion for each last part of a name, such as "weight"."""
        leaves = sorted({name.rpartition(".")[2] for name in self.manifest.tensors})
        return [
            WeightConverter(
                source_patterns=[leaf + SUFFIX], target_patterns=[leaf], operations=[Unpack(self)]
            )
            for leaf in leaves
        ]

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        assert self.decoder is not None
        self.decoder.stop()
        if self.failure is not None:
            raise self.failure
        for name, tensor in _tensors(model):  # 5.0 compares no shapes, and casts only some
            shape, dtype = self.expected.get(name, (tensor.shape, tensor.dtype))
            if tensor.shape != shape:
                raise PackedError(
                    f"'{name}' has the shape {tuple(tensor.shape)}, and that of the model is "
                    f"{tuple(shape)}. Download the folder again."
                )
            if tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)
        conversions = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [c for c in conversions if not _is_ours(c)]
        if "transformers_weights" in model.config.__dict__:
            del model.config.transformers_weights
        return model


class _Decoder:
    """Decodes blobs in threads, while transformers asks for one at a time.

    What is decoded early takes no memory beyond the model: it becomes the model's weights.
    """

    def __init__(self, blobs: dict[str, Bytes], max_size: int) -> None:
        self._max_size = max_size
        self._pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
        self._futures: dict[bytes, list[Future[Tensor]]] = {}
        for name, blob in sorted(blobs.items(), key=lambda pair: -pair[1].size):
            future = self._pool.submit(decode, blob, name, None, max_size)
            self._futures.setdefault(_key(blob), []).append(future)

    def take(self, blob: Bytes, name: str) -> Tensor:
        """Return the tensor in a blob, and forget it.

        Raises:
            PackedError: The blob is damaged, or larger than the model.
        """
        futures = self._futures.get(_key(blob))
        return futures.pop().result() if futures else decode(blob, name, None, self._max_size)

    def stop(self) -> None:
        """Drop the tensors that nobody asked for, as the head where a headless model is loaded."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._futures.clear()


def _key(blob: Bytes) -> bytes:
    """Return the checksum of a blob and the numbers in its header, for its name may change."""
    return blob[8:64].tobytes()


class Unpack(ConversionOps):
    """Turns a blob into a weight, in the dtype that the model is loaded in."""

    def __init__(self, quantizer: PackedQuantizer) -> None:
        # transformers does not cast the inputs of an operation that has a quantizer
        self.hf_quantizer = quantizer

    def __deepcopy__(self, memo: object) -> "Unpack":
        return self  # one quantizer for all weights: it keeps the first error

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        name: str = kwargs["full_layer_name"]
        (value,) = input_dict.values()
        blob = value[0] if isinstance(value, list) else value
        expected = kwargs["model"].get_parameter_or_buffer(name)
        assert self.hf_quantizer.decoder is not None
        try:
            tensor = self.hf_quantizer.decoder.take(blob.cpu().numpy(), name)
        except PackedError as error:
            # transformers would turn an exception into a report without the reason
            self.hf_quantizer.failure = self.hf_quantizer.failure or error
            tensor = torch.zeros(expected.shape)
        # transformers itself refuses another shape, or ignores it where it may
        return {target_patterns[0]: tensor.to(expected.dtype)}


def _tensors(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _is_ours(conversion: object) -> bool:
    return any(isinstance(op, Unpack) for op in getattr(conversion, "operations", ()))
