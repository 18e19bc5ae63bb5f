"""The model in a folder, dense or packed, read from safetensors alone."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from hf_cyclprune.checks import reason_of
from hf_cyclprune.packing import loading  # noqa: F401  from_pretrained reads packed folders
from hf_cyclprune.packing.errors import PackedError
from hf_cyclprune.packing.manifest import dense_files, is_packed, read_config
from hf_cyclprune.packing.weights import CONFIG_FAULTS, NO_CODE, model_class, read_model_config

_IN_BLOCK = re.compile(r"\.\d+\.")
"""In the name of a weight of a block; a head or a pooler may be new."""


def read_model(
    folder: str | Path, dtype: torch.dtype | None = None, *, may_lack_weights: bool = False
) -> PreTrainedModel:
    """Return the model in `folder`, of the class that was saved; never of code from the folder.

    Args:
        dtype: by default the one that was saved.
        may_lack_weights: whether the blocks may have weights that the folder has not: random ones.

    Raises:
        ValueError: the folder holds no model, or a damaged one, or one of a class of your own under
            whose names transformers finds no weights.
    """
    config = read_model_config(folder)
    cls = model_class(config)
    if not is_packed(read_config(Path(folder)).get("quantization_config")):
        dense_files(Path(folder))  # transformers would go on to a pickle
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    try:
        model: PreTrainedModel
        model, info = cls.from_pretrained(folder, output_loading_info=True, **options, **NO_CODE)
    except PackedError:
        raise
    except (SafetensorError, RuntimeError, *CONFIG_FAULTS) as error:  # torn, or of another model
        raise ValueError(
            f"The weights in '{folder}' are not those of the model in its config.json: "
            f"{reason_of(error)}. Save the model again."
        ) from error
    missing = sorted(filter(_IN_BLOCK.search, info["missing_keys"]))
    if missing and not may_lack_weights:
        raise ValueError(
            f"The model in '{folder}' cannot be read: there is no '{missing[0]}', which a "
            f"{type(model).__name__} has. It was saved by {config.architectures}; if that is a "
            "class of your own, use what takes the model itself, such as SparsityReport.measure."
        )
    return model
