"""A hyperparameter search over pruning options: every trial begins with the arguments as given."""

import gc

import pytest
from transformers import TrainerCallback

from hf_cyclprune import PruningArguments, PruningTrainer

optuna = pytest.importorskip("optuna", reason="the search is tested with the real optuna")


class Watch(TrainerCallback):
    """Remembers the config of every trial."""

    def __init__(self):
        self.configs = []

    def on_train_end(self, args, state, control, **kwargs):
        self.configs.append(args.pruning_config())


@pytest.fixture
def search(tiny_bert, arguments, examples):
    """Runs `n_trials` trials of a space; returns the Trainer and (pattern, sparsity) of each."""

    gc.freeze()  # every trial collects garbage, of which there is little

    def run(space, n_trials, sampler=None, **options):
        args = {"max_steps": 4, "eval_strategy": "epoch", **options}
        watch = Watch()
        trainer = PruningTrainer(
            model_init=lambda trial: tiny_bert(),
            args=PruningArguments(**arguments(**args)),
            train_dataset=examples,
            eval_dataset=examples,
            callbacks=[watch],
        )
        trainer.hyperparameter_search(
            hp_space=space,
            n_trials=n_trials,
            backend="optuna",
            direction="minimize",
            sampler=sampler,
        )
        return trainer, [c and (c.pattern, c.sparsity) for c in watch.configs]

    yield run
    gc.unfreeze()


def test_a_trial_does_not_keep_what_the_one_before_it_chose(search):
    trials = [{"pattern": "unstructured", "sparsity": 0.8}, {"pattern": "2:4"}, {}]
    trainer, seen = search(lambda trial: trials[trial.number], 3)
    assert seen == [("unstructured", 0.8), ("2:4", None), None]
    assert (trainer.args.pattern, trainer.args.sparsity) == ("unstructured", None)


def test_a_trial_begins_with_the_options_as_given_and_none_leaves_one_out(search):
    trials = [{"pattern": "2:4", "sparsity": None, "num_cycles": 2}, {"sparsity": 0.7}, {}]
    trainer, seen = search(lambda trial: trials[trial.number], 3, sparsity=0.6, num_cycles=1)
    assert seen == [("2:4", None), ("unstructured", 0.7), ("unstructured", 0.6)]
    assert (trainer.args.sparsity, trainer.args.num_cycles) == (0.6, 1)


def test_none_can_be_among_the_choices_of_a_search(search):
    def space(trial):
        return {
            "sparsity": trial.suggest_categorical("sparsity", [None, 0.5]),
            "pattern": trial.suggest_categorical("pattern", ["2:4"]),
        }

    choices = {"sparsity": [None, 0.5], "pattern": ["2:4"]}
    _, seen = search(space, 2, optuna.samplers.GridSampler(choices), sparsity=0.9)
    assert set(seen) == {("2:4", None), ("2:4", 0.5)}


def test_a_trial_that_contradicts_the_options_as_given_says_so(search):
    with pytest.raises(ValueError, match=r"sparsity must be 0\.75 .* be left out; got 0\.5"):
        search(lambda trial: {"pattern": "1:4"}, 1, sparsity=0.5)


def test_a_second_search_begins_with_what_was_set_after_the_first(search, examples):
    trainer, _ = search(lambda trial: {"sparsity": 0.8}, 1, sparsity=0.6)
    trainer.args.sparsity = 0.7
    trainer.hyperparameter_search(
        hp_space=lambda trial: {}, n_trials=1, backend="optuna", direction="minimize"
    )
    assert trainer.pruner.schedule.sparsity == 0.7


def test_a_trial_outside_of_a_search_changes_nothing(tiny_bert, arguments, examples):
    args = PruningArguments(**arguments(sparsity=0.5, max_steps=4))
    trainer = PruningTrainer(
        model_init=lambda trial: tiny_bert(), args=args, train_dataset=examples
    )
    trainer.train(trial=optuna.trial.FixedTrial({"sparsity": 0.8}))
    assert trainer.pruner.schedule.sparsity == 0.5
