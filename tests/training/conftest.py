"""Runs whose metric is best where the model is dense, and callbacks that stop a run."""

import pytest
from transformers import TrainerCallback

from hf_cyclprune import PruningConfig, PruningTrainer

CONFIG = PruningConfig("cyclical", sparsity=0.8, num_cycles=4)  # cycles of 10 steps, climbs of 8


def density_metric(trainer_of):
    """A metric that favours the dense phases: the share of target weights that is not zero."""

    def compute(prediction):
        return {"density": 1 - trainer_of().pruner.sparsity}

    return compute


@pytest.fixture
def watched(train):
    """Trains with the density metric and every-step evaluation, for best models and stopping."""

    def run(**options):
        box = []
        args = {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 2,
            "metric_for_best_model": "density",
            "load_best_model_at_end": True,
            **options.pop("args", {}),
        }

        class Watched(PruningTrainer):
            def __init__(self, *a, **k):
                super().__init__(*a, **k)
                box.append(self)

        return train(
            Watched,
            args=args,
            pruning_config=options.pop("pruning_config", CONFIG),
            compute_metrics=density_metric(lambda: box[0]),
            **options,
        )

    return run


@pytest.fixture
def stop_at():
    """Builds a callback that asks for a stop in one event of one step."""

    def build(step, event="on_step_end"):
        def stop(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == step
            return control

        return type("Stopper", (TrainerCallback,), {event: stop})()

    return build
