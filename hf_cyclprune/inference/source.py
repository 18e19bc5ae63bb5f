"""Where a model comes from: a folder, or a name on the Hub."""

from pathlib import Path

from huggingface_hub import snapshot_download

from hf_cyclprune.checks import reason_of
from hf_cyclprune.packing.manifest import CONFIG, DENSE, INDEX, PACKED
from hf_cyclprune.packing.others import TOKENIZER_FILES
from hf_cyclprune.packing.weights import read_model_config

_STEMS = tuple(name.removesuffix(".safetensors") for name in (DENSE, PACKED))
_FILES = [
    *(CONFIG, DENSE, PACKED, DENSE + INDEX, PACKED + INDEX),
    *(f"{stem}-*-of-*.safetensors" for stem in _STEMS),
    *TOKENIZER_FILES,
]
"""What is downloaded: safetensors only, and no code."""


def find_folder(model: str) -> Path:
    """Return the folder of a model that reads tokens, from the Hub if there is no such folder.

    Raises:
        ValueError: There is neither, or the model reads something else.
    """
    folder = Path(model)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(model, allow_patterns=_FILES))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"MODEL must be a folder with a model, or its name on the Hub; got '{model}': "
                f"{reason_of(error)}. Name another one, or a folder into which you downloaded it."
            ) from error
    if getattr(read_model_config(folder), "vocab_size", None) is None:
        raise ValueError(
            f"MODEL must read tokens; got '{model}', which has no vocabulary. Name another one."
        )
    return folder
