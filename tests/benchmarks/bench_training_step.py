"""What pruning adds to training: a six-layer MiniLM shape, batches of 32 x 32 tokens.

    python tests/benchmarks/bench_training_step.py [--steps 1500] [--bf16]

Trains once with `PruningTrainer` and times, inside each optimizer step of the run, what the
pruning callback spends. Prints its share on plain steps (median) and over the whole run (mean),
each as a fraction of the step without it.
"""

import argparse
import statistics
import tempfile
import time

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    TrainerCallback,
    TrainingArguments,
)

from hf_cyclprune import PruningCallback, PruningConfig, PruningTrainer


class TimedPruning(PruningCallback):
    """Seconds of every call, by whether it was a pruning step."""

    def __init__(self, config):
        super().__init__(config)
        self.plain, self.pruning = [], []

    def on_optimizer_step(self, args, state, control, **kwargs):
        start = time.perf_counter()
        super().on_optimizer_step(args, state, control, **kwargs)
        seconds = time.perf_counter() - start
        is_pruning = self.pruner.schedule.is_pruning_step(state.global_step + 1)
        (self.pruning if is_pruning else self.plain).append(seconds)


class StepTimes(TrainerCallback):
    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--scope", default="layer")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    model = BertForSequenceClassification(BertConfig(num_attention_heads=12, **shape))
    ids = torch.randint(0, 30000, (2048, 32))
    data = [{"input_ids": row, "labels": int(row[0]) % 2} for row in ids]
    pruning = TimedPruning(PruningConfig("cyclical", sparsity=0.9, scope=options.scope))
    steps = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            use_cpu=True,
            bf16=options.bf16,
            max_steps=options.steps,
            per_device_train_batch_size=32,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
        )
        PruningTrainer(model, args, train_dataset=data, callbacks=[pruning, steps]).train()
    total = [b - a for a, b in zip(steps.times, steps.times[1:], strict=False)]
    spent = sum(pruning.plain) + sum(pruning.pruning)
    rest = sum(total) - spent
    without = statistics.median(total) - statistics.median(pruning.plain)
    print(f"step without pruning, median     {without * 1e3:8.1f} ms")
    print(f"plain step adds, median          {statistics.median(pruning.plain) * 1e3:8.2f} ms")
    print(f"pruning step adds, median        {statistics.median(pruning.pruning) * 1e3:8.1f} ms")
    print(f"pruning steps                    {len(pruning.pruning):8d} of {options.steps}")
    print(f"plain step costs more by         {statistics.median(pruning.plain) / without:8.2%}")
    print(f"averaged over the run            {spent / rest:8.2%}")


if __name__ == "__main__":
    main()
