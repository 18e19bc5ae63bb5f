"""A run's folder -> the facts of its card."""

from dataclasses import replace
from pathlib import Path

from transformers.utils import logging

from hf_cyclprune.card.facts import Card
from hf_cyclprune.config import CONFIG_NAME, load_config
from hf_cyclprune.hub.dense import read_dense_metrics
from hf_cyclprune.hub.page import find_license
from hf_cyclprune.packing.manifest import dense_files, read_config
from hf_cyclprune.packing.weights import fingerprint
from hf_cyclprune.pictures.runs import STATE_NAME, read_run
from hf_cyclprune.reporting.folder import load_model, report_model
from hf_cyclprune.reporting.report import REPORT_NAME, SparsityReport, load_report
from hf_cyclprune.reporting.run import RECORD_NAME, RunRecord, load_record

logger = logging.get_logger(__name__)


def read_facts(folder: str | Path, dense_run: str | Path | None = None) -> Card:
    """What the card may say of the model in a folder; its zeros are counted now.

    Args:
        folder: the output_dir of a run, or one of its checkpoints.
        dense_run: the output_dir of a dense run of the same task, to compare with.

    Raises:
        ValueError: the folder holds no model that was pruned here, or a packed one; `dense_run`
            is not one.
    """
    folder = Path(folder)
    check_pushable(folder)
    config = load_config(folder)
    model = load_model(folder)
    report = report_model(folder, model)
    record = load_record(folder) or _reconstruct(folder)
    weights = fingerprint(folder)
    if not _is_of_the_weights(folder, record, report, weights):
        logger.warning(
            f"The weights in {folder} are not those that its {RECORD_NAME} or {REPORT_NAME} is "
            "about: the card has the new count of their zeros, and nothing of the run."
        )
        record = RunRecord(0, 0, 0, base_model=record.base_model, card=record.card)
        report = replace(report, cycles=())
    record = replace(record, fingerprint=weights)
    if dense_run is not None:
        dense = read_dense_metrics(dense_run, record.metrics)
        record = replace(record, dense_metrics=dense)
    return Card(
        model_name=folder.resolve().name,
        report=report,
        config=config,
        record=record,
        model_class=type(model).__name__,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        license=find_license(record.base_model),
    )


def _is_of_the_weights(
    folder: Path, record: RunRecord, report: SparsityReport, weights: int
) -> bool:
    """Whether what was saved is about the model with this count and this fingerprint."""
    saved = load_report(folder)
    is_counted = saved is None or saved.num_zeros == report.num_zeros
    return is_counted and record.fingerprint in (None, weights)


def check_pushable(folder: Path) -> None:
    """Raise a ValueError unless the folder holds a dense model and its pruning config."""
    if "quantization_config" in read_config(folder):
        raise ValueError(
            f"DIR must be a dense model; got '{folder}', which is packed or quantized. Unpack it "
            "first; a packed copy is added to the push."
        )
    dense_files(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(
            f"DIR must be the output_dir of a run that pruned; got '{folder}' without a "
            f"{CONFIG_NAME}. Push other models with `hf upload`."
        )


def _reconstruct(folder: Path) -> RunRecord:
    """From the Trainer's state, for a run that kept no record."""
    try:
        run = read_run(folder)
    except ValueError as error:
        raise ValueError(
            f"DIR must be the output_dir of a run, or one of its checkpoints; got '{folder}' "
            f"without a readable {RECORD_NAME} or {STATE_NAME}. Push other models with `hf upload`."
        ) from error
    step = max((entry.get("step", 0) for entry in run.log_history), default=run.total_steps)
    metrics = {name: value for name, value in run.metrics.items() if name.startswith("eval_")}
    return RunRecord(
        step=step,
        weights_step=step,
        total_steps=run.total_steps,
        metrics=metrics,
        log_history=list(run.log_history),
    )
