"""Whole trainings of a tiny BERT on a GPU: zeros are exact after every step and in the file."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from hf_cyclprune import METHODS, PruningConfig, find_targets, prune_
from hf_cyclprune.reporting.report import load_report

PATTERNS = {
    "layer": {"sparsity": 0.8},
    "global": {"sparsity": 0.8, "scope": "global"},
    "2:4": {"pattern": "2:4"},
}
PRECISIONS = {"fp32": {}, "bf16": {"bf16": True}, "fp16": {"fp16": True}}
OPTIMIZERS = {
    "fused AdamW": {},
    "AdamW": {"optim": "adamw_torch"},
    "SGD": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "Adafactor": {"optim": "adafactor"},
}
SKIPPED, EDGE = 3, 5  # of 12 steps in three cycles


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_zeros_are_exact_in_every_precision_with_every_optimizer(
    pattern, precision, optimizer, accumulation, new_trainer, assert_exact_in_file
):
    args = {**PRECISIONS[precision], **OPTIMIZERS[optimizer]}
    config = PruningConfig("cyclical", num_cycles=3, **PATTERNS[pattern])
    trainer = new_trainer(config, gradient_accumulation_steps=accumulation, **args)
    before = trainer.model.classifier.weight.detach().clone()
    trainer.train()
    assert len(trainer.watch.steps) == 13
    assert not torch.equal(trainer.watch.steps[12]["classifier"], before.to(trainer.args.device))
    assert_exact_in_file(trainer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_step_that_overflows_keeps_the_zeros_and_at_an_edge_the_reset_waits(
    pattern, optimizer, new_trainer, assert_exact_in_file, device
):
    config = PruningConfig("cyclical", num_cycles=3, **PATTERNS[pattern])
    trainer = new_trainer(config, fp16=True, **OPTIMIZERS[optimizer])
    trainer.accelerator.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    trainer.model.classifier.weight.register_hook(
        lambda g: g * float("inf") if trainer.state.global_step + 1 in (SKIPPED, EDGE) else g
    )
    trainer.train()
    steps, pruner = trainer.watch.steps, trainer.pruner
    demand = {t: pruner.demand(pruner.schedule.sparsity_at(t)) for t in range(1, 13)}
    assert sum(demand[EDGE]) < sum(demand[EDGE - 1]), "it is an edge"
    for t in range(2, 13):
        is_skipped = t in (SKIPPED, EDGE)
        assert torch.equal(steps[t]["classifier"], steps[t - 1]["classifier"]) == is_skipped, t
        assert (steps[t]["scale"] < steps[t - 1]["scale"]) == is_skipped, t
        assert bool(steps[t]["pending"]) == (t == EDGE), t
        assert steps[t]["num_pruned"] == demand[t - 1 if t == EDGE else t], t
    assert_exact_in_file(trainer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_scale_that_is_too_high_at_first_skips_the_first_step_only(
    optimizer, new_trainer, assert_exact_in_file, device
):
    trainer = new_trainer(PruningConfig(sparsity=0.8), fp16=True, **OPTIMIZERS[optimizer])
    before = trainer.model.classifier.weight.detach().clone()
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**60, backoff_factor=2.0**-50)
    trainer.accelerator.scaler = scaler
    trainer.train()
    assert torch.equal(trainer.watch.steps[1]["classifier"], before.to(trainer.args.device))
    assert [step["scale"] for step in trainer.watch.steps[1:]] == [2.0**10] * 12
    assert_exact_in_file(trainer)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_ends_at_its_exact_sparsity(name, new_trainer, tiny_bert):
    model = tiny_bert(hidden_size=64, intermediate_size=128)
    keeps_zeros = METHODS[name].settings.get("recompute") == "never"
    if keeps_zeros:
        prune_(model, PruningConfig(sparsity=0.8))
    config = PruningConfig(method=name, **({} if keeps_zeros else {"sparsity": 0.8}))
    trainer = new_trainer(config, model=model, **METHODS[name].training)
    trainer.train()
    found = {n: int((weight == 0).sum()) for n, weight in find_targets(model).items()}
    pruner = trainer.pruner
    demand = pruner.demand(0.8)
    assert [sum(found[n] for n in group) for group in pruner.groups] == demand
    assert pruner.is_at_target


def test_pruning_does_not_recompile_the_model(new_trainer, assert_exact_in_file, tiny_bert):
    torch._dynamo.reset()
    counters.clear()
    model = tiny_bert(hidden_size=64, num_hidden_layers=1)
    trainer = new_trainer(
        PruningConfig(sparsity=0.8, num_cycles=3), model=model, torch_compile=True
    )
    trainer.train()
    assert counters["stats"]["unique_graphs"] == 1
    assert_exact_in_file(trainer)


class Interrupt(TrainerCallback):
    """Stops after the checkpoint of step 6, as a crash does."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise ConnectionAbortedError


@pytest.fixture
def _deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # What our own modules are warned of is an error here, by the settings of pytest.
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    pattern, precision, new_trainer, assert_exact_in_file, record_property, tmp_path, tiny_bert
):
    def run(folder, resume=None, interrupt=None):
        trainer = new_trainer(
            PruningConfig("cyclical", num_cycles=3, **PATTERNS[pattern]),
            model=tiny_bert(hidden_size=64, attn_implementation="eager"),
            output_dir=str(tmp_path / folder),
            save_strategy="steps",
            save_steps=3,
            **PRECISIONS[precision],
        )
        if interrupt is not None:
            trainer.add_callback(interrupt)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole")
    with pytest.raises(ConnectionAbortedError):
        run("interrupted", interrupt=Interrupt())
    resumed = run("interrupted", resume=True)
    assert resumed.state.global_step == 12
    assert_exact_in_file(resumed)
    weights = whole.model.state_dict()
    is_same = all(torch.equal(w, weights[n]) for n, w in resumed.model.state_dict().items())
    record_property("is_bit_identical", is_same)
    for name, mask in whole.pruner.masks.items():
        assert torch.equal(mask, resumed.pruner.masks[name]), name
    for name, weight in resumed.model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-5)


def test_a_glue_run_ends_pruned(tmp_path):
    pytest.importorskip("datasets", reason="the extra glue is not installed")
    from hf_cyclprune.cli import main
    from tests.hub.repos import save_tiny_bert, write_tiny_glue

    save_tiny_bert(tmp_path / "model")
    write_tiny_glue(tmp_path / "glue", num_rows=24)
    flags = {
        "task_name": "mrpc",
        "model_name_or_path": tmp_path / "model",
        "dataset_dir": tmp_path / "glue",
        "cache_dir": tmp_path / "cache",
        "output_dir": tmp_path / "out",
        "max_seq_length": 32,
        "max_steps": 12,
        "learning_rate": 1e-3,
        "report_to": "none",
        "pattern": "2:4",
        "num_cycles": 2,
    }
    given = [str(x) for name, value in flags.items() for x in (f"--{name}", value)]
    assert main(["glue", *given, "--fp16"]) == 0
    report = load_report(tmp_path / "out")
    assert report.num_zeros * 2 == report.num_weights
