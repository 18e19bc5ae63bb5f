"""A saved model -> its report, counted in its weights."""

from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from hf_cyclprune.config import CONFIG_NAME, load_config
from hf_cyclprune.packing.weights import model_class
from hf_cyclprune.pruning.targets import exact_expressions
from hf_cyclprune.reporting.report import CHECKED_PATTERNS, SparsityReport, load_report


def report_folder(folder: str | Path) -> SparsityReport:
    """The report of a model saved in `folder`, with the cycles of its run where they are known.

    Raises:
        ValueError: the folder holds no model.
    """
    return report_model(folder, load_model(folder))


def report_model(folder: str | Path, model: PreTrainedModel) -> SparsityReport:
    """The same for the model that was loaded from there."""
    config = load_config(folder) if (Path(folder) / CONFIG_NAME).is_file() else None
    saved = load_report(folder)
    names = [weight.name for weight in saved.weights] if saved is not None else None
    return SparsityReport.measure(
        model,
        targets=exact_expressions(names) if names else None,
        patterns=[*CHECKED_PATTERNS, config.pattern] if config else CHECKED_PATTERNS,
        cycles=saved.cycles if saved is not None else (),
        target_sparsity=config.target_sparsity if config else None,
    )


def load_model(folder: str | Path) -> PreTrainedModel:
    """The model of the class that was saved in a folder; never code from the folder.

    Raises:
        ValueError: the folder holds no model, or a damaged one.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"DIR must be a folder with a saved model; got '{folder}' without a config.json. "
            "Pass the output_dir of a run, or one of its checkpoints."
        )
    cls = model_class(AutoConfig.from_pretrained(folder))
    try:
        model: PreTrainedModel = cls.from_pretrained(folder, local_files_only=True)
    except (SafetensorError, RuntimeError) as error:  # torn, or not those of config.json
        raise ValueError(
            f"DIR must hold the weights of the model in its config.json; got '{folder}': {error}. "
            "Save the model again."
        ) from error
    return model
