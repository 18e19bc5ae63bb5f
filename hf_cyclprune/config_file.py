"""pruning_config.json: the pruning options of a run, beside the model that it saved."""

from pathlib import Path

from hf_cyclprune.config import PruningConfig, config_from_dict, config_to_dict
from hf_cyclprune.files import read_json, write_json

CONFIG_NAME = "pruning_config.json"


def save_config(config: PruningConfig, folder: str | Path) -> Path:
    """Write pruning_config.json into `folder`."""
    return write_json(Path(folder) / CONFIG_NAME, config_to_dict(config))


def load_config(folder: str | Path) -> PruningConfig:
    """Read pruning_config.json from `folder`.

    Raises:
        FileNotFoundError, ValueError: it is not there, or not a valid config here: it may name a
            method, criterion or ramp that no code in this process has added.
    """
    path = Path(folder) / CONFIG_NAME
    values = read_json(path, "Write it with save_config.")
    try:
        return config_from_dict(values)
    except ValueError as error:
        raise ValueError(
            f"'{path}' cannot be read here: {error} If it is a name of your own, import the code "
            "that adds it first."
        ) from error
