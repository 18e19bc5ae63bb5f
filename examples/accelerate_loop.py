"""Add pruning, by any method, to a training loop with accelerate: on any number of devices.

    python examples/accelerate_loop.py
    accelerate launch examples/accelerate_loop.py

`accelerate config` asks for the engine of the second: DDP, FSDP2 or DeepSpeed's ZeRO.

Replace the model, a small untrained BERT, and the random data by your own.
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, get_scheduler

from hf_cyclprune import Pruner, PruningConfig, find_targets

TOTAL_STEPS = 120


def main(accelerator: Accelerator | None = None) -> Pruner:
    accelerator = accelerator or Accelerator(gradient_accumulation_steps=2)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    model = BertForSequenceClassification(BertConfig(num_attention_heads=2, **shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(0, 30000, (2048, 16))
    rows = [{"input_ids": row, "labels": int(row[0]) % 2} for row in ids]
    loader = DataLoader(rows, batch_size=8, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    config = PruningConfig(sparsity=0.9, num_cycles=3)
    inner = accelerator.unwrap_model(model)  # the engine has prepared its weights
    pruner = config.build_pruner(find_targets(inner), TOTAL_STEPS, optimizer, model=inner)
    # get_restarting_scheduler of hf_cyclprune serves methods whose learning rate restarts
    scheduler = get_scheduler("linear", optimizer, 0, TOTAL_STEPS)

    t = 1  # the optimizer step that is being prepared
    while t <= TOTAL_STEPS:
        for batch in loader:
            with accelerator.accumulate(model):
                pruner.begin_step(t)
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    pruner.before_update(t)
                optimizer.step()
                if accelerator.sync_gradients:
                    pruner.step(t)
                    scheduler.step()
                    t += 1
                optimizer.zero_grad()
            if t > TOTAL_STEPS:
                break
    accelerator.print(f"loss {loss.item():.3f}  sparsity {pruner.sparsity:.3f}")
    pruner.release()
    return pruner


if __name__ == "__main__":
    main()
