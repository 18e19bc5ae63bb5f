"""What test_ranks.py starts as a process of its own: one rank of DDP or FSDP2, with nccl."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from hf_cyclprune import PruningConfig, PruningTrainer, find_targets

CONFIG = PruningConfig(sparsity=0.8, num_cycles=3, scope="global")
NUM_STEPS = 12


def new_model():
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=40, intermediate_size=128, **size))


def examples():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 40, (64, 8), generator=generator)
    return [{"input_ids": row, "labels": int(row[0] < row[1])} for row in ids]


def check_file(folder):
    weights = find_targets(new_model())
    saved = load_file(folder / "model.safetensors")
    found = sum(int((saved[name] == 0).sum()) for name in weights)
    assert found == round(0.8 * sum(weight.numel() for weight in weights.values())), found


def ddp(folder):
    torch.cuda.set_device(0)
    torch.distributed.init_process_group("nccl")
    model = new_model().cuda()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0])
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    pruner = CONFIG.build_pruner(find_targets(model), NUM_STEPS, optimizer)
    batches = torch.utils.data.DataLoader(examples(), batch_size=4)
    for t, batch in zip(range(1, NUM_STEPS + 1), batches, strict=False):
        pruner.begin_step(t)
        wrapped(**{name: value.cuda() for name, value in batch.items()}).loss.backward()
        pruner.before_update(t)
        optimizer.step()
        optimizer.zero_grad()
        pruner.step(t)
    model.save_pretrained(folder)
    check_file(folder)
    torch.distributed.destroy_process_group()


def fsdp2(folder):
    def train(resume=None):
        args = TrainingArguments(
            str(folder),
            fsdp=True,
            fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]},
            max_steps=NUM_STEPS,
            save_steps=6,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = PruningTrainer(new_model(), args, train_dataset=examples(), pruning_config=CONFIG)
        trainer.train(resume_from_checkpoint=resume)
        assert isinstance(trainer.model_wrapped, torch.distributed.fsdp.FSDPModule)
        trainer.save_model()
        check_file(folder)
        return load_file(folder / "model.safetensors")

    whole, resumed = train(), train(resume=str(folder / "checkpoint-6"))
    print("is_bit_identical", all(torch.equal(resumed[name], w) for name, w in whole.items()))
    for name, weight in whole.items():  # sums on a GPU may differ in their last bits
        assert ((resumed[name] == 0) != (weight == 0)).float().mean() < 0.01, name
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    {"ddp": ddp, "fsdp2": fsdp2}[sys.argv[1]](Path(sys.argv[2]))
