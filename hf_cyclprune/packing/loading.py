"""`from_pretrained` for packed folders, once this module is imported.

transformers lets other libraries register a quantizer. This one gives an ordinary dense model: it
names the file with the weights, checks what is in it, decodes each blob before transformers merges
or splits the weights of a file, and leaves no trace on the model and its config.
"""

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    rename_source_key,
)
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hf_cyclprune.packing.decoder import Decoder
from hf_cyclprune.packing.errors import PackedError
from hf_cyclprune.packing.file import SUFFIX, check_file
from hf_cyclprune.packing.manifest import QUANT_METHOD, Manifest

Conversion = WeightConverter | WeightRenaming


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
        self.decoder: Decoder | None = None
        self._changed: list[tuple[Conversion, Conversion]] | None = None
        """The conversions of the architecture, and what they are while the model loads."""

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
        self.decoder = Decoder(blobs, sum(tensor.numel() for _, tensor in empty))
        kept_dtype = _kept_dtypes(model)
        self.expected = {name: (t.shape, kept_dtype(name) or t.dtype) for name, t in empty}
        return model

    # transformers before 5.8 adds these to its own, of which only one applies to each tensor: a
    # model whose packed weights it merges is refused there
    def get_weight_conversions(self) -> list[Conversion]:
        """Return a conversion for each last part of a name, such as "weight"."""
        return self._by_last_part(SUFFIX)

    def update_weight_conversions(
        self, weight_conversions: Sequence[Conversion], model: Any = None
    ) -> list[Conversion]:
        """Return the conversions of the architecture, such as merging experts, after decoding."""
        rename = WeightRenaming(source_patterns=re.escape(SUFFIX) + "$", target_patterns="")
        self._changed = [(c, self._decoding_first(c)) for c in weight_conversions]
        return [rename, *(changed for _, changed in self._changed), *self._by_last_part("")]

    def _by_last_part(self, ending: str) -> list[Conversion]:
        names = {*self.manifest.tensors, *self.expected}  # in the files, and in the model
        leaves = sorted({name.rpartition(".")[2] for name in names})
        unpack = Unpack(self)
        return [WeightConverter([leaf + ending], [leaf], operations=[unpack]) for leaf in leaves]

    def _decoding_first(self, conversion: Conversion) -> Conversion:
        if isinstance(conversion, WeightConverter):
            conversion = copy.copy(conversion)
            conversion.operations = [Unpack(self), *conversion.operations]
        return conversion

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        assert self.decoder is not None
        left = self.decoder.stop()
        if self.failure is not None:
            raise self.failure
        _check_not_needed(left, model)
        for name, tensor in _tensors(model):  # 5.0 compares no shapes, and casts only some
            shape, dtype = self.expected.get(name, (tensor.shape, tensor.dtype))
            if tensor.shape != shape:
                raise PackedError(
                    f"'{name}' has the shape {tuple(tensor.shape)}, and that of the model is "
                    f"{tuple(shape)}. Download the folder again."
                )
            if tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)
        model._weight_conversions = self._find_used(model)
        if "transformers_weights" in model.config.__dict__:
            del model.config.transformers_weights
        return model

    def _find_used(self, model: PreTrainedModel) -> list[Conversion]:
        """Return what save_pretrained is to undo: the conversions that a dense file would have."""
        if self._changed is None:
            conversions = getattr(model, "_weight_conversions", None) or []
            return [c for c in conversions if not _is_ours(c)]
        return [
            theirs
            for theirs, changed in self._changed
            if not hasattr(changed, "was_used") or changed.was_used()
        ]


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
        return {
            pattern.removesuffix(SUFFIX): [self._to_dense(tensor, name) for tensor in tensors]
            if isinstance(tensors, list)
            else self._to_dense(tensors, name)
            for pattern, tensors in input_dict.items()
        }

    def _to_dense(self, tensor: Tensor, name: str) -> Tensor:
        """Decode a tensor, if it is a blob, and cast it; `name` is that of the model's weight."""
        quantizer = self.hf_quantizer
        shape, dtype = quantizer.expected[name]
        assert quantizer.decoder is not None
        if quantizer.decoder.is_blob(tensor):
            try:
                tensor = quantizer.decoder.take(tensor.cpu().numpy(), name)
            except PackedError as error:
                # transformers would turn an exception into a report without the reason
                quantizer.failure = quantizer.failure or error
                tensor = torch.zeros(shape)
        # transformers itself refuses another shape, or ignores it where it may
        return tensor.to(dtype)


def _check_not_needed(names: Iterable[str], model: PreTrainedModel) -> None:
    """Raise a PackedError if one of these tensors, which were not decoded, is part of the model."""
    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    expected = model.state_dict()
    for name in sorted(names):
        place, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, expected)
        if place in expected:
            raise PackedError(
                f"'{name}' is packed, and transformers {transformers.__version__} merges it with "
                "other tensors before it can be decoded. Use hf_cyclprune.load_packed(folder), or "
                "transformers 5.8 or newer if this one is older."
            )


def _kept_dtypes(model: Any) -> Callable[[str], torch.dtype | None]:
    """Return what tells the dtype that a tensor has whatever the model's: T5 keeps some in fp32."""
    if hasattr(model, "_get_dtype_plan"):
        plan = model._get_dtype_plan(model.dtype)
    else:  # transformers 5.0
        plan = model.dtype_plan
    pattern, globs, _ = build_glob_alternation(list(plan))

    def find(name: str) -> torch.dtype | None:
        found = pattern.search(name) if plan else None
        return plan[globs[str(found.lastgroup)]] if found is not None else None

    return find


def _tensors(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _is_ours(conversion: object) -> bool:
    return any(isinstance(op, Unpack) for op in getattr(conversion, "operations", ()))
