"""torch.compile traces a model once, whatever pruning does to its weights meanwhile."""

import torch
from transformers import TrainerCallback, TrainingArguments

from hf_cyclprune import PruningConfig, PruningTrainer


class SeeMasks(TrainerCallback):
    """Keeps the masks after every step."""

    def __init__(self):
        self.masks, self.trainer = [], None

    def on_step_end(self, args, state, control, **kwargs):
        masks = self.trainer.pruner.masks.values()
        self.masks.append(torch.cat([mask.flatten() for mask in masks]).clone())


def test_pruning_causes_no_recompilation_and_no_graph_break(tiny_bert, examples, arguments):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    args = arguments(max_steps=8, torch_compile=True, torch_compile_backend="eager")
    see = SeeMasks()
    see.trainer = PruningTrainer(
        tiny_bert(),
        TrainingArguments(**args),
        train_dataset=examples,
        pruning_config=PruningConfig(sparsity=0.8, num_cycles=2, interval_steps=1),
        callbacks=[see],
    )
    see.trainer.train()
    num_changes = sum(not torch.equal(a, b) for a, b in zip(see.masks, see.masks[1:], strict=False))
    assert num_changes >= 4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert see.trainer.sparsity_report().sparsity == see.trainer.pruner.sparsity
