"""The model in a folder, dense or packed, read from safetensors alone."""

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


def read_model(folder: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return the model in `folder`, of the class that was saved; never of code from the folder.

    Args:
        dtype: by default the one that was saved.

    Raises:
        ValueError: the folder holds no model, or a damaged one.
    """
    cls = model_class(read_model_config(folder))
    if not is_packed(read_config(Path(folder)).get("quantization_config")):
        dense_files(Path(folder))  # transformers would go on to a pickle
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    try:
        model: PreTrainedModel = cls.from_pretrained(folder, **options, **NO_CODE)
    except PackedError:
        raise
    except (SafetensorError, RuntimeError, *CONFIG_FAULTS) as error:  # torn, or of another model
        raise ValueError(
            f"The weights in '{folder}' are not those of the model in its config.json: "
            f"{reason_of(error)}. Save the model again."
        ) from error
    return model
