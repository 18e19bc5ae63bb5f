"""Cyclical pruning of BERT-style models while Hugging Face transformers fine-tunes them."""

import hf_cyclprune.packing.loading  # noqa: F401, lets from_pretrained read packed folders
from hf_cyclprune.config import PruningConfig
from hf_cyclprune.config_file import load_config, save_config
from hf_cyclprune.methods import METHODS
from hf_cyclprune.one_shot import prune_
from hf_cyclprune.packing.folder import load_packed, pack, save_packed, unpack
from hf_cyclprune.packing.verification import verify
from hf_cyclprune.pruning.criterion import CRITERIA, criterion
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.pruning.ramps import RAMPS, ramp
from hf_cyclprune.pruning.schedules import Schedule
from hf_cyclprune.pruning.targets import find_targets
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.training.arguments import PruningArguments
from hf_cyclprune.training.callback import PruningCallback
from hf_cyclprune.training.lr import get_restarting_scheduler
from hf_cyclprune.training.trainer import PruningTrainer

__all__ = [
    "CRITERIA",
    "METHODS",
    "RAMPS",
    "Pruner",
    "PruningArguments",
    "PruningCallback",
    "PruningConfig",
    "PruningTrainer",
    "Schedule",
    "SparsityReport",
    "criterion",
    "find_targets",
    "get_restarting_scheduler",
    "load_config",
    "load_packed",
    "pack",
    "prune_",
    "ramp",
    "save_config",
    "save_packed",
    "unpack",
    "verify",
]
