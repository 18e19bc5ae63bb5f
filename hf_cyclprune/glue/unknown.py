"""What to write in the place of a flag that does not exist."""

import dataclasses
from collections.abc import Collection
from difflib import get_close_matches

from hf_cyclprune.checks import nearest_name
from hf_cyclprune.config import PruningConfig
from hf_cyclprune.secrets import redact
from hf_cyclprune.training.teacher import TeacherOptions

_BACKEND = "Leave it out: --fp16 and --bf16 choose how they work by themselves."
_DATA = "Write --dataset_dir, with a folder that holds TASK/train.parquet and so on."
_NEEDLESS = "Leave it out: it is no longer needed, or does not exist."
_NO_ACCELERATOR = "Leave it out: an accelerator is used where there is one."
_TOKEN = "Run `hf auth login`, or set HF_TOKEN."
_WHOLE = "Leave it out: pruning needs whole weights on every process."
OLD_FLAGS = {
    "adafactor": "Write --optim adafactor.",
    "dataset_config_name": _DATA,
    "dataset_name": _DATA,
    "dispatch_batches": """Write --accelerator_config '{{"dispatch_batches": true}}'.""",
    "evaluate_during_training": "Write --eval_strategy steps.",
    "evaluation_strategy": "Write --eval_strategy {value}.",
    "fp16_backend": _BACKEND,
    "fp16_opt_level": _BACKEND,
    "fsdp_min_num_params": _WHOLE,
    "fsdp_transformer_layer_cls_to_wrap": _WHOLE,
    "group_by_length": "Write --train_sampling_strategy group_by_length.",
    "half_precision_backend": _BACKEND,
    "include_inputs_for_metrics": "Write --include_for_metrics inputs.",
    "include_tokens_per_second": "Write --include_num_input_tokens_seen all.",
    "jit_mode_eval": _NEEDLESS,
    "logging_dir": "Set the environment variable TENSORBOARD_LOGGING_DIR.",
    "mp_parameters": _NEEDLESS,
    "no_cuda": "Write --use_cpu.",
    "overwrite_output_dir": "Name a new output_dir, or go on with --resume_from_checkpoint True.",
    "past_index": _NEEDLESS,
    "per_gpu_eval_batch_size": "Write --per_device_eval_batch_size {value}.",
    "per_gpu_train_batch_size": "Write --per_device_train_batch_size {value}.",
    "push_to_hub_model_id": "Write --hub_model_id {value}.",
    "push_to_hub_organization": "Write --hub_model_id {value}/NAME.",
    "push_to_hub_token": _TOKEN,
    "ray_scope": _NEEDLESS,
    "save_safetensors": "Leave it out: weights are always saved as safetensors.",
    "sharded_ddp": _WHOLE,
    "split_batches": """Write --accelerator_config '{{"split_batches": true}}'.""",
    "test_file": _DATA,
    "token": _TOKEN,
    "torchdynamo": "Write --torch_compile_backend {value}.",
    "tpu_metrics_debug": _NEEDLESS,
    "tpu_num_cores": _NEEDLESS,
    "train_file": _DATA,
    "trust_remote_code": "Leave it out: code that comes with a model is never run.",
    "use_auth_token": _TOKEN,
    "use_fast_tokenizer": _NEEDLESS,
    "use_ipex": _NEEDLESS,
    "use_legacy_prediction_loop": _NEEDLESS,
    "use_mps_device": _NO_ACCELERATOR,
    "validation_file": _DATA,
    "warmup_ratio": "Write --warmup_steps {value}, where a number below 1 is a share of the steps.",
    "xpu_backend": "Write --ddp_backend {value}.",
}
"""Flags of run_glue.py and of transformers 4, and what to write where they are unknown."""
_SURELY = 0.85
"""How similar a name must be to one of these or of pruning: a slip of the pen away."""


def explain_unknown(flag: str, value: str | None, known: Collection[str]) -> str:
    """Say that a flag is unknown and what to write instead, without the value of a token.

    >>> explain_unknown("--warmup_ratio", "0.1", ["warmup_steps", "ramp_ratio"])[:53]
    "Unknown flag '--warmup_ratio'. Write --warmup_steps 0"
    """
    text, is_joined, joined = flag.partition("=")
    name = text.lstrip("-").replace("-", "_")
    near = _nearest(name, known)
    shown = text if name in OLD_FLAGS or "token" in (near or name) else redact([flag])[0]
    hint = f"Did you mean --{near}?" if near else "See hf-cyclprune glue --help."
    if near in OLD_FLAGS and near not in known:
        hint = OLD_FLAGS[near].format(value=(joined if is_joined else value) or "VALUE")
    return f"Unknown flag '{shown}'. {hint}"


def _nearest(name: str, known: Collection[str]) -> str | None:
    """Return the name that was probably meant; one of pruning only if it is nearly the same.

    A wrong name of another kind fails, or changes how long a run takes. A wrong option of pruning
    changes the model.
    """
    options = {f.name for cls in (PruningConfig, TeacherOptions) for f in dataclasses.fields(cls)}
    close = get_close_matches(name, [*(options & {*known}), *OLD_FLAGS], cutoff=_SURELY)
    return nearest_name(name, [*({*known} - options), *close])
