"""Add pruning, by any method, to a training loop of your own.

    python examples/plain_loop.py

Replace the model, a small untrained BERT, and the random data by your own.
"""

import torch
from transformers import BertConfig, BertForSequenceClassification, get_scheduler

from hf_cyclprune import PruningConfig, SparsityReport, find_targets

TOTAL_STEPS = 120


def main() -> SparsityReport:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    model = BertForSequenceClassification(BertConfig(num_attention_heads=2, **shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    config = PruningConfig(sparsity=0.9, num_cycles=3)
    pruner = config.build_pruner(find_targets(model), TOTAL_STEPS, optimizer, model=model)
    # get_restarting_scheduler of hf_cyclprune serves methods whose learning rate restarts
    scheduler = get_scheduler("linear", optimizer, 0, TOTAL_STEPS)

    for t in range(1, TOTAL_STEPS + 1):  # t counts finished optimizer steps
        ids = torch.randint(0, 30000, (8, 16))
        pruner.begin_step(t)
        loss = model(input_ids=ids, labels=ids[:, 0] % 2).loss
        loss.backward()
        pruner.before_update(t)  # after clipping, if you clip gradients
        optimizer.step()
        pruner.step(t)  # right after the optimizer, while the gradients are still there
        scheduler.step()
        optimizer.zero_grad()
        if t % 20 == 0:
            print(f"step {t:3d}  loss {loss.item():.3f}  sparsity {pruner.sparsity:.3f}")

    report = SparsityReport.measure(model, target_sparsity=config.target_sparsity)
    print(report)
    return report


if __name__ == "__main__":
    main()
