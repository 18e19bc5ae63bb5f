"""The folder of a run: whether it can be pushed, and what its model card says."""

from dataclasses import replace
from pathlib import Path

from transformers import AutoModel
from transformers.utils import logging

from hf_cyclprune.card.card import Card
from hf_cyclprune.config_file import CONFIG_NAME, load_config
from hf_cyclprune.files import BENCH_NAME
from hf_cyclprune.inference.timings import Bench, bench_remedy, load_bench
from hf_cyclprune.packing.manifest import dense_files, read_config
from hf_cyclprune.packing.model import read_model
from hf_cyclprune.packing.weights import fingerprint, model_class, read_model_config
from hf_cyclprune.reporting.folder import read_dense_metrics, read_run, report_folder
from hf_cyclprune.reporting.report import REPORT_NAME, load_report
from hf_cyclprune.reporting.run import RECORD_NAME, RunRecord, load_record

logger = logging.get_logger(__name__)


def card_of_folder(
    folder: str | Path, dense_run: str | Path | None = None, *, has_bench: bool = False
) -> Card:
    """Return the card of the model in a run's output_dir, or in one of its checkpoints.

    Its zeros are counted now. `dense_run` is the output_dir of a dense run to compare with; with
    `has_bench` the card has the times in inference_times.json.

    Raises:
        ValueError: the folder holds no model that was pruned here, or a packed one; `dense_run`
            is not the folder of a dense run; the times are damaged, or of other weights.
        FileNotFoundError: there is no inference_times.json.
    """
    folder = Path(folder)
    check_pushable(folder)
    bench = _read_bench(folder) if has_bench else None
    config, model = load_config(folder), read_model(folder)
    report, saved = report_folder(folder, model), load_report(folder)
    record = load_record(folder) or read_run(folder).record
    weights = fingerprint(folder)
    is_counted = saved is None or saved.num_zeros == report.num_zeros
    if not is_counted or record.fingerprint not in (None, weights):
        logger.warning(
            f"The weights in '{folder}' are not the ones that its {RECORD_NAME} or {REPORT_NAME} "
            "describes. The card has a new count of their zeros, and leaves out the run."
        )
        record = RunRecord(base_model=record.base_model, card=record.card)
        report = replace(report, cycles=())
    record = replace(record, fingerprint=weights)
    if dense_run is not None:
        record = replace(record, dense_metrics=read_dense_metrics(dense_run, record.metrics))
    return Card(
        model_name=folder.resolve().name,
        report=report,
        config=config,
        record=record,
        model_class=type(model).__name__,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        bench=bench,
    )


def _read_bench(folder: Path) -> Bench:
    """Return the times in inference_times.json if they are of the weights in `folder`."""
    bench = load_bench(folder)
    if bench.fingerprint != fingerprint(folder):
        raise ValueError(
            f"{BENCH_NAME} in '{folder}' is about other weights than those there. "
            f"{bench_remedy(folder)}"
        )
    return bench


def check_pushable(folder: Path) -> None:
    """Raise a ValueError unless there is a dense model of transformers and its pruning config."""
    if "quantization_config" in read_config(folder):
        raise ValueError(
            f"DIR must hold a dense model, but '{folder}' holds one which is packed or quantized. "
            "Unpack it first; the push adds a packed copy by itself."
        )
    dense_files(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(
            f"DIR must be the output_dir of a run that pruned; '{folder}' has no {CONFIG_NAME}. "
            "Push other models with `hf upload`."
        )
    model_config = read_model_config(folder)
    if model_config.architectures and model_class(model_config) is AutoModel:
        raise ValueError(
            f"DIR must hold a model of transformers; '{folder}' holds one of "
            f"{model_config.architectures}, of which only the base could be read here. Push it "
            "from your own code, with push_to_hub() of the PruningTrainer."
        )
