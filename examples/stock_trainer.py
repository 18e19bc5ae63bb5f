"""Prune in transformers' own Trainer by adding a callback.

    python examples/stock_trainer.py

Replace the model, a small untrained BERT, and the random data by your own.
"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_cyclprune import PruningCallback, PruningConfig, SparsityReport


def main(max_steps: int = 120) -> SparsityReport:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    model = BertForSequenceClassification(BertConfig(num_attention_heads=2, **shape))
    ids = torch.randint(0, 30000, (256, 16))
    examples = [{"input_ids": row, "labels": int(row[0]) % 2} for row in ids]
    config = PruningConfig(pattern="2:4", num_cycles=3)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(folder, max_steps=max_steps, save_strategy="no", report_to=[]),
            train_dataset=examples,
            callbacks=[PruningCallback(config)],
        )
        trainer.train()
    report = SparsityReport.measure(model)
    print(report)
    return report


if __name__ == "__main__":
    main()
