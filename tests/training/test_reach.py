"""How far a returning weight can travel is known before training, and on the card after it."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from hf_cyclprune import PruningConfig, PruningTrainer, Schedule, get_restarting_scheduler
from hf_cyclprune.card.rendering import make_card
from hf_cyclprune.engines.shards import Shards
from hf_cyclprune.training.reach import find_reach

MATRICES = {
    "a": torch.arange(1.0, 101.0).view(10, 10),
    "b": torch.arange(1.0, 101.0).view(10, 10) / -10,
    "c": torch.arange(1.0, 101.0).view(10, 10) * 10,
}


def optimizer_of(kind=torch.optim.AdamW, lr=0.5):
    return kind([torch.nn.Parameter(torch.ones(1))], lr=lr)


def test_reach_is_the_sum_of_the_learning_rates_over_the_smallest_kept_weight():
    schedule = Schedule(0.8, 20, num_cycles=2)
    optimizer = optimizer_of()
    scheduler = get_restarting_scheduler("linear", optimizer, schedule)
    # The last cycle has 10 steps with 0.5 * (1, 0.9, ..., 0.1), a sum of 2.75. At 80 % the smallest
    # kept weights are 81, 8.1 and 810: the median is that of the first matrix.
    assert find_reach(Shards(MATRICES), schedule, optimizer, scheduler) == pytest.approx(2.75 / 81)


def test_reach_is_unknown_for_optimizers_and_learning_rates_that_do_not_tell():
    schedule = Schedule(0.8, 20, num_cycles=2)
    sgd = optimizer_of(torch.optim.SGD)
    assert find_reach(Shards(MATRICES), schedule, sgd, LambdaLR(sgd, lambda step: 1.0)) is None
    adam = optimizer_of()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam)
    assert find_reach(Shards(MATRICES), schedule, adam, plateau) is None
    assert find_reach(Shards(MATRICES), schedule, None, None) is None


def test_a_run_in_which_nothing_can_recover_says_so_before_it_starts_and_on_its_card(train):
    args = {"learning_rate": 1e-5}
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=4)
    with pytest.warns(UserWarning, match=r"can travel .* of the way to the smallest kept weight"):
        trainer = train(PruningTrainer, args=args, pruning_config=config)
    reach = trainer.pruning_run.history.reach
    assert 0 < reach < 1
    assert f"could travel about {reach:.4f} times the size" in make_card(trainer.model_card())


@pytest.mark.parametrize(
    "options",
    [
        {"method": "gradual"},
        {"pruned_weights": "stored", "criterion": "fisher"},
        {"method": "swap"},
        {"method": "rigl"},
    ],
    ids=str,
)
def test_methods_that_do_not_depend_on_it_do_not_warn(train, options, recwarn):
    config = PruningConfig(sparsity=0.8, **options)
    train(PruningTrainer, args={"learning_rate": 1e-5}, pruning_config=config)
    assert not [w for w in recwarn if "Hardly any" in str(w.message)]


def test_what_an_exchange_was_worth_is_logged_and_in_the_console_and_the_card(train, capsys):
    trainer = train(PruningTrainer, pruning_config=PruningConfig(method="swap", sparsity=0.8))
    cycles = [cycle for cycle in trainer.sparsity_report().cycles if cycle.benefit is not None]
    assert [cycle.cycle for cycle in cycles] == [2, 3, 4]  # edges in the first 0.7 of the run
    logged = [entry for entry in trainer.state.log_history if "benefit" in entry]
    assert [entry["benefit"] for entry in logged] == [cycle.benefit for cycle in cycles]
    assert "exchanged for a mean benefit of" in capsys.readouterr().out
    assert "| benefit" in make_card(trainer.model_card())
