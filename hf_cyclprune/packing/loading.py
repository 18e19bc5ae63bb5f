"""`from_pretrained` for packed folders, once this module is imported.

transformers lets other libraries register a quantizer. Ours gives an ordinary dense model: it names
the file of the weights, checks what is in it, decodes each blob where transformers would convert a
weight, and leaves no trace on model and config.
"""

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_cyclprune.packing.blob import decode
from hf_cyclprune.packing.chunks import Bytes
from hf_cyclprune.packing.errors import PackedError
from hf_cyclprune.packing.file import SUFFIX, check_file
from hf_cyclprune.packing.manifest import METHOD, Manifest


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """The entry "quantization_config" of a packed config.json."""

    dequantize = True  # the model that comes out is an ordinary one

    def __init__(self, **values: Any) -> None:
        self.quant_method: Any = METHOD
        self.facts = Manifest.from_dict({"quant_method": METHOD, **values}, "the packed model")

    def to_dict(self) -> dict[str, Any]:
        return self.facts.to_dict()


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Decodes packed weights while a model loads.

    Raises:
        PackedError: the packed model is damaged; names the file or the tensor.
    """

    def __init__(self, quantization_config: PackedConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.facts = quantization_config.facts
        self.failure: PackedError | None = None
        self.wanted: dict[str, tuple[torch.Size, torch.dtype]] = {}
        """Of every tensor of the model as it was asked for."""
        self.decoder: _Decoder | None = None

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    # Called with the config before the files are looked for: 5.0 has the one, 5.23 the other.

    def update_tp_plan(self, config: Any) -> Any:
        return self.update_attn_implementation(config)

    def update_ep_plan(self, config: Any) -> Any:
        return config

    def update_attn_implementation(self, config: Any) -> Any:
        config.transformers_weights = self.facts.weights
        if getattr(config, "dtype", None) is None and self.facts.dtype is not None:
            config.dtype = getattr(torch, self.facts.dtype)
        return config

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Any = None, **kwargs: Any
    ) -> Any:
        files = [check_file(Path(file)) for file in checkpoint_files or []]
        found = [name.removesuffix(SUFFIX) for tensors in files for name in tensors]
        self.facts.check_names("the packed model", found)
        blobs = {
            name.removesuffix(SUFFIX): tensor.numpy()
            for tensors in files
            for name, tensor in tensors.items()
            if name.endswith(SUFFIX)
        }
        empty = _tensors(model)
        self.decoder = _Decoder(blobs, most=sum(tensor.numel() for _, tensor in empty))
        self.wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in empty}
        return model

    def get_weight_conversions(self) -> list[Any]:
        """One for each last part of a name, such as "weight"."""
        leaves = sorted({name.rpartition(".")[2] for name in self.facts.tensors})
        return [
            WeightConverter(
                source_patterns=[leaf + SUFFIX],
                target_patterns=[leaf],
                operations=[Unpack(self)],
            )
            for leaf in leaves
        ]

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        assert self.decoder is not None
        self.decoder.stop()
        if self.failure is not None:
            raise self.failure
        for name, tensor in _tensors(model):  # 5.0 compares no shapes, and does not cast them all
            shape, dtype = self.wanted.get(name, (tensor.shape, tensor.dtype))
            if tensor.shape != shape:
                raise PackedError(
                    f"'{name}' must have the shape {tuple(shape)} of the model; got "
                    f"{tuple(tensor.shape)}. Get the folder again."
                )
            if tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)
        conversions = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [c for c in conversions if not _is_ours(c)]
        if "transformers_weights" in model.config.__dict__:
            del model.config.transformers_weights
        return model


class _Decoder:
    """Decodes the blobs of some files in threads, while transformers asks for one at a time.

    What is decoded early takes no memory beyond the model: it becomes the model's weights.
    """

    def __init__(self, blobs: Mapping[str, Bytes], most: int) -> None:
        self._most = most
        self._pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
        self._futures: dict[bytes, list[Future[Tensor]]] = {}
        for name, blob in sorted(blobs.items(), key=lambda pair: -pair[1].size):
            future = self._pool.submit(decode, blob, name, None, most)
            self._futures.setdefault(_key(blob), []).append(future)

    def take(self, blob: Bytes, name: str) -> Tensor:
        """The tensor in a blob, once.

        Raises:
            PackedError: the blob is damaged, or larger than the model.
        """
        futures = self._futures.get(_key(blob))
        return futures.pop().result() if futures else decode(blob, name, most=self._most)

    def stop(self) -> None:
        """Leave what nobody asked for, as the head where a headless model is loaded."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._futures.clear()


def _key(blob: Bytes) -> bytes:
    """Begins with the checksum of all of it."""
    return blob[8:64].tobytes()


class Unpack(ConversionOps):
    """Blob -> weight, in the dtype that the model is loaded in."""

    def __init__(self, quantizer: PackedQuantizer) -> None:
        # transformers does not cast the inputs of an operation that has a quantizer
        self.hf_quantizer = quantizer

    def __deepcopy__(self, memo: Any) -> "Unpack":
        return self  # one quantizer for all weights: it collects the failure

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
        expected = _find(kwargs["model"], name)
        assert self.hf_quantizer.decoder is not None
        try:
            tensor = self.hf_quantizer.decoder.take(blob.cpu().numpy(), name)
        except PackedError as error:
            # transformers would turn an exception into a report without the reason
            self.hf_quantizer.failure = self.hf_quantizer.failure or error
            tensor = torch.zeros(expected.shape)
        # transformers itself refuses another shape, or ignores it where it may
        return {target_patterns[0]: tensor.to(expected.dtype)}


def _tensors(model: Any) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _find(model: Any, name: str) -> Tensor:
    """A parameter or buffer, which may still be empty."""
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), leaf)
    return tensor


def _is_ours(conversion: Any) -> bool:
    return any(isinstance(op, Unpack) for op in getattr(conversion, "operations", ()))
