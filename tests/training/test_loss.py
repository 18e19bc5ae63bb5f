import pytest
import torch
import transformers

from hf_cyclprune import PruningConfig, PruningTrainer
from hf_cyclprune.training.loss import is_loss_inflated

HEADS = ["Bert", "Roberta", "DistilBert", "Electra", "Albert", "DebertaV2", "ModernBert", "MPNet"]


@pytest.mark.parametrize("name", HEADS)
def test_classification_heads_ignore_the_number_of_items(name):
    head = getattr(transformers, f"{name}ForSequenceClassification")
    assert is_loss_inflated(object.__new__(head))


def test_causal_language_models_count_items_themselves():
    assert not is_loss_inflated(object.__new__(transformers.LlamaForCausalLM))


@pytest.mark.parametrize("is_fixed", [True, False])
def test_accumulation_does_not_change_the_gradient_while_pruning(train, is_fixed):
    config = PruningConfig(sparsity=0.5, num_cycles=1, fix_loss_scaling=is_fixed)
    norms = []
    for batch_size, accumulation in [(16, 1), (4, 4)]:
        args = {
            "max_steps": 1,
            "logging_steps": 1,
            "per_device_train_batch_size": batch_size,
            "gradient_accumulation_steps": accumulation,
        }
        trainer = train(PruningTrainer, args=args, pruning_config=config)
        norms.append(trainer.state.log_history[0]["grad_norm"])
    is_same = norms[1] == pytest.approx(norms[0], rel=0.5)  # dropout differs
    assert is_same == is_fixed


def test_without_a_config_the_loss_is_that_of_trainer(tiny_bert, arguments):
    args = transformers.TrainingArguments(**arguments())
    ours = PruningTrainer(model=tiny_bert(), args=args)
    theirs = transformers.Trainer(model=tiny_bert(), args=args)
    assert ours.model_accepts_loss_kwargs == theirs.model_accepts_loss_kwargs


class Counts(torch.nn.Module):
    def forward(self, labels=None, num_items_in_batch=None, **kwargs):
        return labels.sum() / num_items_in_batch


class Delegates(transformers.LlamaForCausalLM):
    def forward(self, input_ids=None, **kwargs):
        return super().forward(input_ids, **kwargs)


class Says(transformers.BertForSequenceClassification):
    accepts_loss_kwargs = True


@pytest.mark.parametrize("cls", [Counts, Delegates, Says])
def test_a_model_that_counts_items_in_its_own_way_is_left_alone(cls):
    assert not is_loss_inflated(object.__new__(cls))
