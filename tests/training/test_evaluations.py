import torch
from transformers import Trainer

from hf_cyclprune import PruningConfig, PruningTrainer

CONFIG = PruningConfig("cyclical", sparsity=0.8, num_cycles=4)  # cycles of 10 steps, climbs of 8


def test_an_evaluation_again_counts_and_one_of_other_data_does_not_replace_it(train, examples):
    trainer = train(PruningTrainer, pruning_config=PruningConfig(sparsity=0.8))
    first = trainer.evaluate()["eval_loss"]
    trainer.evaluate(examples[:3])
    assert trainer.model_card().record.metrics["eval_loss"] == first
    with torch.no_grad():
        trainer.model.classifier.bias[0].add_(1.0)
    again = trainer.evaluate()["eval_loss"]
    assert again != first
    assert trainer.model_card().record.metrics["eval_loss"] == again


def test_evaluate_returns_what_trainer_returns(train):
    ours = train(PruningTrainer, pruning_config=CONFIG).evaluate()
    assert set(ours) == set(train(Trainer).evaluate())


def test_the_metrics_are_those_of_the_best_model_if_training_ends_with_it(watched):
    trainer = watched()
    best = trainer.state.best_global_step
    (logged,) = (e for e in trainer.state.log_history if e["step"] == best and "eval_loss" in e)
    record = trainer.model_card().record
    assert best < record.step == 40
    assert record.weights_step == best
    assert record.metrics["eval_loss"] == logged["eval_loss"]
