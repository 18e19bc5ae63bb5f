import pytest
import torch
from transformers import get_scheduler

from hf_cyclprune import PruningConfig, PruningTrainer, Schedule, get_restarting_scheduler
from hf_cyclprune.card.rendering import make_card


def rates(scheduler, optimizer, num_steps):
    """The learning rate of every optimizer step."""
    values = []
    for _ in range(num_steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def new_optimizer(lr=0.1):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def plain_rates(name, length, warmup, kwargs=None):
    optimizer = new_optimizer()
    return rates(get_scheduler(name, optimizer, warmup, length, kwargs), optimizer, length)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("linear", None),
        ("cosine", None),
        ("polynomial", {"power": 2.0}),
        ("constant_with_warmup", None),
        ("cosine_with_min_lr", {"min_lr": 0.01}),
        ("inverse_sqrt", None),
    ],
)
def test_every_cycle_runs_the_whole_schedule_of_its_own_length(name, kwargs):
    schedule = Schedule(sparsity=0.9, total_steps=50, num_cycles=4)  # lengths 12 and 13
    optimizer = new_optimizer()
    scheduler = get_restarting_scheduler(name, optimizer, schedule, 3, kwargs)
    expected = []
    for cycle in range(4):
        expected += plain_rates(name, schedule.cycle_length(cycle), 3, kwargs)
    assert rates(scheduler, optimizer, 50) == pytest.approx(expected)


def test_the_edge_is_taken_with_the_full_rate_of_the_restart():
    schedule = Schedule(sparsity=0.9, total_steps=20, num_cycles=2)
    optimizer = new_optimizer()
    values = rates(get_restarting_scheduler("linear", optimizer, schedule), optimizer, 20)
    assert values[10] == 0.1
    assert values[9] == pytest.approx(0.01)


def test_the_state_resumes():
    schedule = Schedule(sparsity=0.9, total_steps=20, num_cycles=2)
    optimizer = new_optimizer()
    scheduler = get_restarting_scheduler("cosine", optimizer, schedule)
    whole = rates(scheduler, optimizer, 20)
    first_optimizer = new_optimizer()
    first = get_restarting_scheduler("cosine", first_optimizer, schedule)
    begun = rates(first, first_optimizer, 7)
    second_optimizer = new_optimizer()
    second = get_restarting_scheduler("cosine", second_optimizer, schedule)
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    assert begun + rates(second, second_optimizer, 13) == whole


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "cosine_with_restarts"])
def test_a_schedule_that_cannot_restart_is_refused(name):
    with pytest.raises(ValueError, match=f"got '{name}'.*lr_restarts=False"):
        get_restarting_scheduler(name, new_optimizer(), Schedule(0.9, 20, 2))


def test_a_warmup_longer_than_the_climb_is_refused():
    schedule = Schedule(sparsity=0.9, total_steps=20, num_cycles=2)  # climbs of 8 steps
    get_restarting_scheduler("linear", new_optimizer(), schedule, num_warmup_steps=8)
    with pytest.raises(ValueError, match=r"warmup_steps must not outlast .* 8 .*got 9"):
        get_restarting_scheduler("linear", new_optimizer(), schedule, num_warmup_steps=9)


def test_the_peak_of_the_restarts_can_shrink():
    schedule = Schedule(0.8, 20, num_cycles=2)
    optimizer = new_optimizer(lr=1.0)
    scheduler = get_restarting_scheduler("linear", optimizer, schedule, restart_decay=0.5)
    falling = [1 - u / 10 for u in range(10)]
    expected = [*falling, *(rate / 2 for rate in falling)]
    assert rates(scheduler, optimizer, 20) == pytest.approx(expected)


def test_a_trainer_with_another_schedule_warns_and_its_card_does_not_claim_restarts(train):
    class Constant(PruningTrainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            self.lr_scheduler = get_scheduler("constant", optimizer or self.optimizer)
            self._created_lr_scheduler = True
            return self.lr_scheduler

    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2)
    with pytest.warns(UserWarning, match="does not restart with every pruning cycle"):
        card = make_card(train(Constant, pruning_config=config).model_card())
    assert "The learning rate had a schedule of its own" in card
    card = make_card(train(PruningTrainer, pruning_config=config).model_card())
    assert "The learning rate runs its whole schedule once in each of the 2 cycles." in card


def test_the_option_for_shrinking_peaks_reaches_the_trainers_schedule(train):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=4, restart_decay=0.5)
    trainer = train(PruningTrainer, args={"logging_steps": 1}, pruning_config=config)
    used = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert used[10:20] == pytest.approx([rate / 2 for rate in used[:10]])
    assert used[30:39] == pytest.approx([rate / 8 for rate in used[:9]])
