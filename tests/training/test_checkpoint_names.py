"""A checkpoint holds every tensor under the name that it is read by, whatever save_pretrained does.

For many architectures transformers writes files with other names, or merges and splits tensors. Its
Trainer reads a checkpoint without undoing that.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    EarlyStoppingCallback,
    MixtralConfig,
    MixtralForSequenceClassification,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

from hf_cyclprune import PruningConfig, PruningTrainer

pytestmark = pytest.mark.filterwarnings("ignore:The targets are:UserWarning")  # experts

CONFIG = PruningConfig("cyclical", sparsity=0.5, num_cycles=2, lr_restarts=False)
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 2,
}
MIXTRAL = {"num_key_value_heads": 2, "num_local_experts": 2, "vocab_size": 40, "pad_token_id": 0}
BUILD = {
    "ViT": lambda: ViTForImageClassification(ViTConfig(**SIZES, image_size=8, patch_size=4)),
    "Mixtral": lambda: MixtralForSequenceClassification(MixtralConfig(**SIZES, **MIXTRAL)),
}


@pytest.fixture(params=BUILD)
def new_run(request, train):
    """Trains a tiny model of one architecture for 8 steps in two cycles."""
    torch.manual_seed(7)
    rows = [{"labels": i % 2} for i in range(32)]
    for row in rows:
        image, ids = torch.randn(3, 8, 8) + row["labels"], torch.randint(1, 40, (6,))
        row |= {"pixel_values": image} if request.param == "ViT" else {"input_ids": ids}

    def run(args=None, **options):
        torch.manual_seed(0)
        options = {"train_dataset": rows, "eval_dataset": rows, **options}
        return train(
            PruningTrainer,
            args={"max_steps": 8, "save_strategy": "steps", "save_steps": 2, **(args or {})},
            model=BUILD[request.param](),
            pruning_config=CONFIG,
            **options,
        )

    return run


def test_a_resumed_run_ends_as_the_whole_one(new_run, tmp_path):
    whole = new_run()
    resumed = new_run(resume=str(tmp_path / "out" / "checkpoint-6"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_the_best_model_is_that_of_its_checkpoint(new_run):
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": True,  # the first model at the target, so that a later one is not it
        "learning_rate": 1e-3,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    at_step = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model=None, **kwargs):
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            at_step[state.global_step] = weights

    trainer = new_run(args=best, callbacks=[Keep(), EarlyStoppingCallback(5)])
    assert trainer.state.best_global_step < 8
    expected = at_step[trainer.state.best_global_step]
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_saved_model_is_the_trained_one_for_from_pretrained(new_run, tmp_path):
    trainer = new_run()
    trainer.save_model(tmp_path / "saved")
    loaded = type(trainer.model).from_pretrained(tmp_path / "saved")
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_checkpoint_with_other_names_is_refused(new_run, tmp_path, change):
    new_run()
    folder = tmp_path / "out" / "checkpoint-4"
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[f"other.{name}"] = tensors.pop(name) if change == "missing" else tensors[name].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"'{name if change == 'missing' else f'other.{name}'}'"):
        new_run(resume=str(folder))
