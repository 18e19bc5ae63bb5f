"""The model at the end of a cycle teaches the next ones, and is in the checkpoints."""

import copy

import pytest
import torch
from transformers import TrainerCallback

from hf_cyclprune import PruningArguments, PruningConfig, PruningTrainer
from hf_cyclprune.files import CYCLE_TEACHER_NAME

PRUNING = {"sparsity": 0.5, "num_cycles": 2, "scope": "layer"}
OPTIONS = {**PRUNING, "teacher": "last_cycle", "teacher_hardness": 0.75}
STEPS = 16  # two cycles of 8


class Watch(TrainerCallback):
    """Keeps the weights of the end of the first cycle, and those of the teacher at every step."""

    def __init__(self, crash_at=None):
        self.crash_at = crash_at
        self.end_of_first, self.teachers = None, []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == STEPS // 2:
            self.end_of_first = copy.deepcopy(model.state_dict())

    def on_step_begin(self, args, state, control, **kwargs):
        teacher = self.trainer.distillation.model
        self.teachers.append(None if teacher is None else copy.deepcopy(teacher.state_dict()))

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.crash_at:
            raise ConnectionAbortedError


@pytest.fixture
def run(tiny_bert, arguments, examples, tmp_path):
    """Trains with a watch; returns both."""

    def start(folder="out", crash_at=None, resume=None, **options):
        values = {"output_dir": str(tmp_path / folder), "save_strategy": "steps", "save_steps": 2}
        args = PruningArguments(**arguments(max_steps=STEPS, **values, **OPTIONS, **options))
        watch = Watch(crash_at)
        trainer = PruningTrainer(tiny_bert(), args, train_dataset=examples, callbacks=[watch])
        watch.trainer = trainer
        trainer.train(resume_from_checkpoint=resume)
        return trainer, watch

    return start


def test_the_end_of_a_cycle_teaches_the_next_one(run, train):
    trainer, watch = run()
    assert watch.teachers[: STEPS // 2] == [None] * (STEPS // 2)
    for teacher in watch.teachers[STEPS // 2 :]:
        for name, weight in watch.end_of_first.items():
            assert torch.equal(teacher[name], weight), name
    plain = train(
        PruningTrainer, args={"max_steps": STEPS}, pruning_config=PruningConfig(**PRUNING)
    )
    names = [n for n, w in plain.model.state_dict().items() if "query.weight" in n]
    for name in names:
        assert not torch.equal(plain.model.state_dict()[name], trainer.model.state_dict()[name])
    assert trainer.model_card().record.hyperparameters["teacher"] == "last_cycle"


@pytest.mark.parametrize("step", [6, 8, 12])
def test_an_interrupted_run_has_the_same_teacher_and_end(run, tmp_path, step):
    whole, _ = run("whole")
    with pytest.raises(ConnectionAbortedError):
        run("cut", crash_at=step)
    checkpoint = tmp_path / "cut" / f"checkpoint-{step}"
    assert (checkpoint / CYCLE_TEACHER_NAME).is_file() is (step >= STEPS // 2)
    resumed, _ = run("cut", resume=True)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_a_checkpoint_without_the_teacher_is_refused(run, tmp_path):
    with pytest.raises(ConnectionAbortedError):
        run(crash_at=12)
    (tmp_path / "out" / "checkpoint-12" / CYCLE_TEACHER_NAME).unlink()
    with pytest.raises(ValueError, match=r"needs the model of the previous cycle .*begin a new"):
        run(resume=True)


def test_it_needs_cycles_and_the_arguments_of_the_run(arguments, tiny_bert):
    with pytest.raises(ValueError, match=r"must come with two cycles or more.*num_cycles=4"):
        PruningArguments(**arguments(teacher="last_cycle"))
    with pytest.raises(ValueError, match=r"must come with two cycles or more"):
        PruningArguments(**arguments(teacher="last_cycle", sparsity=0.5, method="gradual"))
    args = PruningArguments(**arguments(sparsity=0.5))
    with pytest.raises(ValueError, match=r"must be one of the PruningArguments"):
        PruningTrainer(tiny_bert(), args, teacher="last_cycle")
