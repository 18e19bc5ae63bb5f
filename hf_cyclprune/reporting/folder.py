"""An output_dir, or one of its checkpoints -> the run in it, and the report of its model.

Files are JSON or safetensors; nothing is unpickled, and no code from the folder runs.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.config_file import CONFIG_NAME, load_config
from hf_cyclprune.files import read_json
from hf_cyclprune.packing.model import read_model
from hf_cyclprune.reporting.metrics import evaluated, is_number
from hf_cyclprune.reporting.numbers import percent
from hf_cyclprune.reporting.report import (
    CHECKED_PATTERNS,
    REMEDY,
    REPORT_NAME,
    SparsityReport,
    load_report,
)
from hf_cyclprune.reporting.run import RECORD_NAME, Run, RunRecord, load_record
from hf_cyclprune.reporting.weights import MOST_ZEROS_BY_CHANCE

logger = logging.get_logger(__name__)
_TRAINER_STATE = "trainer_state.json"
_ALL_RESULTS, _EVAL_RESULTS = "all_results.json", "eval_results.json"  # of Trainer.save_metrics


def read_run(folder: str | Path) -> Run:
    """Return the run in an output_dir, or in one of its checkpoints.

    pruning_run.json comes first; without one, the Trainer's state in the folder or in its newest
    checkpoint is read. The results of an evaluation that came later are taken if it has none.

    Raises:
        ValueError: there are no logs and no report, or a file cannot be read.
    """
    folder = Path(folder)
    record, places = load_record(folder), [folder]
    if record is None:
        places += list_checkpoints(folder)
        record = _reconstruct(places)
    if not record.metrics:
        record = replace(record, metrics=_read_optional(folder / _EVAL_RESULTS))
    report = next(filter(None, map(load_report, places)), None)
    if not record.log_history and report is None:
        raise ValueError(
            f"'{folder}' holds no run: it has no logs in {RECORD_NAME} or {_TRAINER_STATE}, "
            f"and no {REPORT_NAME}. Pass the output_dir of a run, or one of its checkpoints."
        )
    config = next(filter(None, map(_read_config, places)), None)
    return Run(distinct_names([folder])[0], config, report, record)


def _reconstruct(places: Iterable[Path]) -> RunRecord:
    """Return the record of a run that kept none, from the first state of the Trainer."""
    state = next(filter(None, (_read_optional(p / _TRAINER_STATE) for p in places)), {})
    history, total_steps = state.get("log_history", []), state.get("max_steps") or None
    step = max((entry.get("step", 0) for entry in history), default=total_steps)
    return RunRecord(step, step, total_steps, log_history=history)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    numbered = [(path.name.rpartition("-")[2], path) for path in folder.glob("checkpoint-*")]
    found = [(int(n), path) for n, path in numbered if n.isdecimal() and path.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def _read_config(folder: Path) -> PruningConfig | None:
    """Return the config of a folder; None where there is none, or none that is known here."""
    if not (folder / CONFIG_NAME).is_file():
        return None
    try:
        return load_config(folder)
    except ValueError as error:
        logger.warning(f"The settings of the run are left out: {error}")
        return None


def _read_optional(path: Path) -> dict[str, Any]:
    """Return a JSON object of transformers; {} without the file."""
    return read_json(path, REMEDY) if path.is_file() else {}


def distinct_names(folders: Sequence[str | Path]) -> list[str]:
    """Return the last parts of the folders' paths, as many as it takes to tell them apart.

    >>> distinct_names(["/runs/a/out", "/runs/b/out"])
    ['a/out', 'b/out']
    >>> distinct_names(["/runs/a/checkpoint-500"])
    ['a/checkpoint-500']

    Raises:
        ValueError: a folder is given twice.
    """
    paths = [Path(folder).resolve() for folder in folders]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"The run '{twice}' is given twice. Drop one of the two.")
    shown = 2 if any(re.fullmatch(r"checkpoint-\d+", path.name) for path in paths) else 1
    while len({path.parts[-shown:] for path in paths}) < len(paths):
        shown += 1
    return ["/".join(path.parts[-shown:]) for path in paths]


def read_dense_metrics(folder: str | Path, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the results in the output_dir of a dense run that are among those of a pruned one.

    Raises:
        ValueError: there are no results, or they are of a pruned run, or on other data.
    """
    values = read_results(folder)
    common = {name: x for name, x in evaluated(values).items() if name in metrics}
    counts = {values.get("eval_samples"), metrics.get("eval_samples")} - {None}
    if not common or len(counts) > 1:
        raise ValueError(
            f"The dense_run '{folder}' was evaluated on other data than the pruned run, or by "
            "other metrics. Pass a run of the same task."
        )
    return common


def read_results(folder: str | Path) -> dict[str, float]:
    """Return all results of a dense run.

    Raises:
        ValueError: there are no results, or they are of a pruned run.
    """
    remedy = "Pass the output_dir of hf-cyclprune glue without pruning."
    paths = [Path(folder) / name for name in (_ALL_RESULTS, _EVAL_RESULTS)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(f"The dense_run '{folder}' has no {_ALL_RESULTS}. {remedy}")
    values = read_json(path, remedy)
    sparsity = values.get("sparsity", 0.0)
    if not is_number(sparsity) or sparsity > MOST_ZEROS_BY_CHANCE:
        shown = percent(sparsity) if is_number(sparsity) else repr(sparsity)
        raise ValueError(
            f"The dense_run '{folder}' is pruned: it has a sparsity of {shown}. {remedy}"
        )
    return values


def report_folder(folder: str | Path, model: PreTrainedModel | None = None) -> SparsityReport:
    """Count the zeros of the model in `folder`; add the cycles of its run where they are known.

    Pass `model` if it was read from the folder already.

    Raises:
        ValueError: the folder holds no model.
    """
    model = model if model is not None else read_model(folder)
    config, saved = _read_config(Path(folder)), load_report(folder)
    known = config if config is not None else saved
    weights: PreTrainedModel | dict[str, Tensor] = model
    if saved is not None and saved.weights:  # a run may have had targets of its own
        named = dict(model.named_parameters(remove_duplicate=False))
        prefix = f"{model.base_model_prefix}."  # of a class of one's own only the base is here
        named |= {prefix + name: p for name, p in named.items() if prefix + name not in named}
        missing = [weight.name for weight in saved.weights if weight.name not in named]
        if missing:
            raise ValueError(
                f"{REPORT_NAME} in '{folder}' is not about the model there, which has no "
                f"'{missing[0]}'. {REMEDY}"
            )
        weights = {weight.name: named[weight.name] for weight in saved.weights}
    return SparsityReport.measure(
        weights,
        patterns=[*CHECKED_PATTERNS, config.pattern] if config else CHECKED_PATTERNS,
        cycles=saved.cycles if saved is not None else (),
        target_sparsity=known.target_sparsity if known is not None else None,
        parameters=model.parameters(),
    )
