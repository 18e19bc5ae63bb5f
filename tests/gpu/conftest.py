"""What needs a GPU, and is skipped without one: `pytest -m gpu tests/gpu` runs it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from hf_cyclprune import PruningTrainer


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="torch finds no CUDA GPU"))


@pytest.fixture
def device():
    return torch.device("cuda")


class Watch(TrainerCallback):
    """After every step every pruned weight is +0.0 to the bit; notes what the masks are."""

    def __init__(self, trainer):
        self.trainer, self.steps = trainer, [None]

    def on_step_end(self, args, state, control, **kwargs):
        pruner, model = self.trainer.pruner, self.trainer.model
        for name, weight in pruner.targets.items():
            assert not weight.detach().view(torch.int32)[~pruner.masks[name]].any(), name
        num_pruned = [sum(int((~pruner.masks[n]).sum()) for n in group) for group in pruner.groups]
        assert num_pruned == pruner.num_pruned
        self.steps.append(
            {
                "num_pruned": num_pruned,
                "pending": set(pruner.pending),
                "scale": scaler.get_scale() if (scaler := self.trainer.accelerator.scaler) else 1.0,
                "classifier": model.classifier.weight.detach().clone(),
            }
        )


@pytest.fixture
def new_trainer(tiny_bert, examples, arguments, device):
    """Builds a PruningTrainer for 12 steps on the GPU; `watch.steps[t]` is what was seen."""

    def build(config, *, model=None, **args):
        args = {"use_cpu": False, "max_steps": 12, "logging_strategy": "no", **args}
        trainer = PruningTrainer(
            model if model is not None else tiny_bert(hidden_size=64, intermediate_size=128),
            TrainingArguments(**arguments(**args)),
            train_dataset=examples,
            pruning_config=config,
        )
        assert trainer.args.device.type == device.type
        trainer.watch = Watch(trainer)
        trainer.add_callback(trainer.watch)
        return trainer

    return build


@pytest.fixture
def assert_exact_in_file(tmp_path):
    """Counts the zeros in the file that a Trainer saves."""

    def check(trainer):
        trainer.save_model(str(tmp_path / "saved"))
        weights, pruner = load_file(tmp_path / "saved" / "model.safetensors"), trainer.pruner
        found = [sum(int((weights[n] == 0).sum()) for n in group) for group in pruner.groups]
        assert found == pruner.demand(pruner.schedule.sparsity)
        assert pruner.is_at_target

    return check
