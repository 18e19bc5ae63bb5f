# ruff: noqa: E402
"""What runs on each of two ranks: trainings of a tiny BERT under one engine, one after another.

    torchrun --nproc-per-node 2 job.py ENGINE[+ENGINE...] FOLDER CASES.json

FOLDER/ENGINE-CASE.safetensors gets the whole masks and weights that each training ended with. With
several engines each case says under which it runs.
"""

import contextlib
import gc
import json
import os
import runpy
import sys
import warnings
from pathlib import Path

ENGINE = sys.argv[1]
if "zero" in ENGINE:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # needs no C++ compiler

import pytest
import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForSequenceClassification,
    TrainerCallback,
    TrainingArguments,
)

from hf_cyclprune import PruningConfig, PruningTrainer

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(Path(__file__).parent))
from parts import check_parts
from shadow import watch

GENERATOR = torch.Generator().manual_seed(1)
END = torch.full((64, 1), 39)  # T5 classifies by it
ROWS = [
    {"input_ids": row, "labels": int(row[0] < row[1])}
    for row in torch.cat([torch.randint(1, 39, (64, 7), generator=GENERATOR), END], dim=1)
]


def engine_arguments(options, kind):
    """The training arguments of the engine."""
    if ENGINE == "fsdp2":
        wrapped = ("FSDP" if kind == "t5" else "") + BLOCKS[kind]
        config = {"version": 2, "transformer_layer_cls_to_wrap": [wrapped]}
        config |= {"state_dict_type": "FULL_STATE_DICT"} | options.pop("fsdp_config", {})
        os.environ["FSDP_STATE_DICT_TYPE"] = config["state_dict_type"]  # for transformers 5.0
        return {"fsdp": True, "fsdp_config": config}
    if ENGINE.startswith("zero"):
        zero = {"stage": int(ENGINE[4]), "stage3_gather_16bit_weights_on_model_save": True}
        zero |= options.pop("zero", {})
        config = {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
            "zero_optimization": zero,
        }
        if options.get("bf16"):
            config["bf16"] = {"enabled": True}
        return {"deepspeed": config}
    return {}


def prepare_state():
    """Let accelerate take FSDP2 on a CPU, where it would quietly train with DDP."""
    for name in ("FSDP", "DEEPSPEED"):  # of the training before
        os.environ.pop(f"ACCELERATE_USE_{name}", None)
    AcceleratorState._reset_state(False)
    GradientState._reset_state()
    if ENGINE == "fsdp2":
        state = PartialState(cpu=True, backend="gloo")
        state.distributed_type = DistributedType.MULTI_GPU
        return {"accelerator_config": {"use_configured_state": True}}
    return {}


def divided(model):
    """Divide T5 for FSDP2: accelerate would divide its shared embedding twice."""
    if ENGINE == "fsdp2":
        mesh = init_device_mesh("cpu", (2,))
        for module in [m for m in model.modules() if type(m).__name__ == "T5Block"]:
            fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def build(kind):
    """A model of one layer whose weights do not divide evenly."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "pad_token_id": 0}
    if kind == "gpt2":  # its layers are Conv1D, which have the inputs first
        sizes |= {"n_embd": 20, "n_layer": 1, "n_head": 2, "n_positions": 16}
        return GPT2ForSequenceClassification(GPT2Config(**sizes))
    if kind == "t5":
        sizes |= {"d_model": 20, "d_kv": 10, "num_heads": 2, "num_layers": 1, "d_ff": 36}
        special = {"eos_token_id": 39, "decoder_start_token_id": 0}
        return divided(T5ForSequenceClassification(T5Config(**sizes, **special)))
    common = {"hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    common |= {"intermediate_size": 36, "max_position_embeddings": 16}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, **common, tie_word_embeddings=True))
    kinds = {"problem_type": "single_label_classification"}
    kinds |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**sizes, **common, **kinds))


WRAPPERS = {"ddp": "DistributedDataParallel", "fsdp": "FSDP", "zero": "DeepSpeedEngine"}
BLOCKS = {"bert": "BertLayer", "gpt2": "GPT2Block", "t5": "T5Block", "llama": "LlamaDecoderLayer"}


class ZerosStay(TrainerCallback):
    """What a forward pass reads is what the optimizer moves, and after a step zero where pruned."""

    trainer = None
    is_watched = True

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 and not args.bf16 and self.is_watched:
            watch(self.trainer.pruner, self.trainer.pruning_run.config)

    def on_step_begin(self, args, state, control, **kwargs):
        pruner = self.trainer.pruner
        for name, shard in pruner.shards.items() if pruner.policy.is_open else ():
            read, moved = read_by_forward(shard), shard.weight
            moved = moved if read.shape == moved.shape else shard.gather(moved)
            assert torch.equal(read, moved.to(read.dtype)), (name, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        pruner = self.trainer.pruner
        assert pruner.policy.find_unmasked() is None, state.global_step
        num_pruned = 0
        for name, shard in pruner.shards.items():
            mask, read = pruner.masks[name], read_by_forward(shard)
            if read.shape != mask.shape:
                mask = shard.gather(mask)
            num_pruned += int((~mask).sum())
            assert not read[~mask].any(), (name, state.global_step)
        if not hasattr(shard.parameter, "to_local"):
            assert num_pruned == sum(pruner.num_pruned), state.global_step


class Misfortune(TrainerCallback):
    """Fails on one rank, gives its weights other values, or stops all of them, at a step."""

    def __init__(self, case):
        self.case = case

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.case.get("fails_at") == state.global_step and args.process_index == 1:
            raise RuntimeError("rank 1 fails")

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if self.case.get("diverges_at") == state.global_step and args.process_index == 1:
            with torch.no_grad():
                for weight in model.parameters():
                    weight += torch.randn_like(weight)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= self.case.get("stop_at") == state.global_step


def read_by_forward(shard):
    """The weight that the forward pass reads; the local part of it if it is gathered from those."""
    parameter = shard.parameter
    if hasattr(parameter, "to_local"):
        return parameter.to_local().detach()
    if hasattr(parameter, "ds_id") and parameter.numel() == 0:  # what is gathered before it
        pad = [torch.empty_like(parameter.ds_tensor) for _ in shard.sizes]
        distributed.all_gather(pad, parameter.ds_tensor.detach(), group=shard.group)
        return torch.cat(pad).view(-1)[: shard.numel].view(shard.shape)
    return parameter.detach()


def train(case, folder):
    """Train one case; return what the caller compares."""
    kind = case.get("model", "bert")
    options = {"max_steps": 6, "save_strategy": "no", **case.get("args", {})}
    args = TrainingArguments(
        output_dir=str(folder / case.get("output_dir", f"{ENGINE}-{case['name']}")),
        use_cpu=True,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_grad_norm=0.0,
        optim="adamw_torch",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **prepare_state(),
        **engine_arguments(options, kind),
        **options,
    )
    watcher = ZerosStay()
    rows = [{**r, "labels": r["input_ids"]} for r in ROWS] if kind == "llama" else ROWS
    config = {"method": "cyclical", "num_cycles": 2, **case.get("config", {})}
    if "pattern" not in config:
        config["sparsity"] = 0.8
    trainer = PruningTrainer(
        build(kind),
        args,
        train_dataset=rows,
        eval_dataset=rows[:8],
        pruning_config=PruningConfig(**config),
        callbacks=[watcher, Misfortune(case)],
    )
    watcher.trainer, watcher.is_watched = trainer, "diverges_at" not in case
    resume = case.get("resume")
    error = case.get("raises")
    with pytest.raises(ValueError, match=error) if error else contextlib.nullcontext():
        trainer.train(resume_from_checkpoint=str(folder / resume) if resume else None)
    if error:
        return
    if ENGINE != "one":
        assert trainer.accelerator.num_processes == 2
        wrapped = type(trainer.model_wrapped).__name__
        assert wrapped.startswith(WRAPPERS[ENGINE.rstrip("123")]), wrapped
    check_saved(trainer, folder / f"{ENGINE}-{case['name']}.safetensors")


def check_loop():
    """Run the example of a loop with accelerate, under this engine."""
    prepare_state()
    engine = {}
    if ENGINE == "fsdp2":
        wrapped = {"transformer_cls_names_to_wrap": ["BertLayer"]}
        policy = {"auto_wrap_policy": "transformer_based_wrap", **wrapped}
        engine = {"fsdp_plugin": FullyShardedDataParallelPlugin(fsdp_version=2, **policy)}
    elif ENGINE.startswith("zero"):
        zero = {"stage": int(ENGINE[4])}
        config = {"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 2}
        config |= {"zero_allow_untested_optimizer": True, "zero_optimization": zero}
        engine = {"deepspeed_plugin": DeepSpeedPlugin(config)}
    loop = runpy.run_path(str(ROOT / "examples" / "accelerate_loop.py"))
    loop["main"].__globals__["TOTAL_STEPS"] = 12
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, **engine)
    pruner = loop["main"](accelerator)
    assert accelerator.num_processes == 2
    assert pruner.is_at_target
    for name, shard in pruner.shards.items():
        mask, read = pruner.masks[name], read_by_forward(shard)
        mask = mask if read.shape == mask.shape else shard.gather(mask)
        assert not read[~mask].any(), name
        assert read[mask].any() or not mask.any(), name  # all of a matrix may be pruned


def check_saved(trainer, path):
    """Save the model, compare the file with the masks, and keep both for the caller."""
    place = path.with_suffix("")
    plugin = trainer.accelerator.state.fsdp_plugin if ENGINE == "fsdp2" else None
    if plugin is not None:  # a run whose checkpoints are in parts ends with a whole file
        plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(place))
    pruner, report = trainer.pruner, trainer.sparsity_report()
    masks = {name: pruner.shards[name].gather(mask) for name, mask in pruner.masks.items()}
    assert pruner.is_at_target or trainer.state.global_step < trainer.state.max_steps
    if trainer.is_world_process_zero():
        saved = load_file(place / "model.safetensors")
        for name, mask in masks.items():
            assert not saved[name][~mask].any(), name
        num_zeros = sum(int((saved[name] == 0).sum()) for name in masks)
        told = json.loads((place / "sparsity_report.json").read_text())
        assert num_zeros == report.num_zeros == told["num_zeros"] == sum(pruner.num_pruned)
        tensors = {f"mask.{name}": mask.contiguous() for name, mask in masks.items()}
        tensors |= {f"weight.{name}": saved[name] for name in masks}
        tensors["num_returned"] = pruner.num_returned.clone()
        save_file(tensors, path)
    distributed.is_initialized() and distributed.barrier()


def main():
    folder, cases = Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    global ENGINE
    engines = ENGINE
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for i, case in enumerate(cases):
        if i < 4:  # until all is imported
            gc.freeze()  # accelerate collects garbage before every training, over all of torch
        ENGINE = case.get("engine", engines)
        print(f"begin {case['name']}", flush=True)
        if case.get("kind") == "parts":
            check_parts()
        elif case.get("kind") == "loop":
            check_loop()
        else:
            train(case, folder)
    (folder / f"{engines}-{os.environ.get('RANK', '0')}.done").touch()
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
