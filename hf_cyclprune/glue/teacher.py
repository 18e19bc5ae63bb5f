"""`--teacher self`: the same model, fine-tuned without pruning, teaches the one that is pruned."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

from transformers.utils import logging

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.output import check_same_run
from hf_cyclprune.reporting.folder import read_results
from hf_cyclprune.training.arguments import OF_DENSE_RUNS, PruningArguments
from hf_cyclprune.training.teacher import TeacherOptions

SELF = "self"
FOLDER = "_teacher"
"""Inside output_dir: the output_dir of the teacher's run. No push uploads a name with "_"."""
_FINISHED = "all_results.json"
logger = logging.get_logger(__name__)


def prepare_teacher(
    glue: GlueArguments,
    args: PruningArguments,
    run: Callable[[GlueArguments, PruningArguments], object],
) -> PruningArguments:
    """Return the arguments with a teacher that can be loaded, fine-tuned first for "self".

    A finished teacher in output_dir is taken as it is, and an interrupted one is resumed. Without
    training there is no teacher.

    Args:
        glue: model, task and data, for the teacher too.
        args: of the run that has the teacher; left as they are.
        run: fine-tunes with such arguments, as `run_glue` does.

    Raises:
        ValueError: the teacher in output_dir is that of another run.
    """
    taught = copy.copy(args)
    if not args.do_train:
        taught.teacher = None
    if taught.teacher != SELF:
        return taught
    folder = Path(str(args.output_dir)) / FOLDER
    taught.teacher = str(folder)
    dense = _without_pruning(args, folder)
    if not (folder / _FINISHED).is_file():
        logger.warning(f"The teacher is fine-tuned first, without pruning, into '{folder}'.")
        run(dataclasses.replace(glue, dense_run=None), dense)
        return taught
    check_same_run(folder, dense, glue)
    read_results(folder)
    logger.warning(f"The teacher in '{folder}' is finished, and is taken as it is.")
    return taught


def _without_pruning(args: PruningArguments, folder: Path) -> PruningArguments:
    """Return the arguments of the teacher's run: the same, but dense, by itself and unpublished.

    A copy, since making them anew would parse what is parsed already.
    """
    dense = copy.copy(args)
    for cls in (PruningConfig, TeacherOptions):
        for option in dataclasses.fields(cls):
            if option.name not in OF_DENSE_RUNS:
                setattr(dense, option.name, option.default)
    dense.output_dir = str(folder)
    dense.resume_from_checkpoint = "True"
    dense.do_predict = dense.push_to_hub = False
    return dense
