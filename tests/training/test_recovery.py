"""At an edge the weights with the largest update return, never those of the lowest indices."""

import pytest
import torch
from transformers import TrainingArguments

from hf_cyclprune import PruningCallback, PruningConfig, PruningTrainer, find_targets

EDGE = 21  # two cycles of 20 steps


class Watch(PruningCallback):
    """Remembers the weights and masks before every reset, and the masks after it."""

    def __init__(self, config):
        super().__init__(config)
        self.resets = []
        self.after = None

    def on_optimizer_step(self, args, state, control, **kwargs):
        weights = {n: w.detach().clone() for n, w in self.pruner.targets.items()}
        masks = {n: m.clone() for n, m in self.pruner.masks.items()}
        before = sum(self.pruner.num_pruned)
        super().on_optimizer_step(args, state, control, **kwargs)
        if sum(self.pruner.num_pruned) < before:
            self.resets.append((state.global_step + 1, weights, masks))
            self.after = {n: m.clone() for n, m in self.pruner.masks.items()}


def watched_config(**options):
    return PruningConfig("cyclical", sparsity=0.8, num_cycles=2, **options)


def trainer_for(tiny_bert, arguments, examples, callback, **args):
    return PruningTrainer(
        model=tiny_bert(),
        args=TrainingArguments(**arguments(**args)),
        train_dataset=examples,
        callbacks=[callback],
    )


def assert_top_returned(callback, pruner, step):
    """After the reset at `step`: all kept stayed, and the top of the pruned by |value| returned."""
    ((t, weights, before),) = callback.resets
    assert t == step
    demanded = dict(
        zip(pruner.masks, pruner.demand(pruner.schedule.sparsity_at(step)), strict=True)
    )
    for name, mask in callback.after.items():
        assert mask[before[name]].all(), "every survivor stays"
        revived = mask & ~before[name]
        assert int((~mask).sum()) == demanded[name], "exactly the demanded number returns"
        values = weights[name].abs().masked_fill(before[name], -1).flatten()
        top = torch.zeros_like(values, dtype=torch.bool)
        top[values.argsort(descending=True, stable=True)[: int(revived.sum())]] = True
        assert torch.equal(revived.flatten(), top)
        by_index = (~before[name]).flatten().nonzero()[: int(revived.sum()), 0]
        assert not torch.equal(revived.flatten().nonzero()[:, 0], by_index)


@pytest.mark.parametrize("reset_ratio", [0.5, 0.8])
def test_the_report_shows_the_exact_recovered_share(tiny_bert, arguments, examples, reset_ratio):
    callback = Watch(watched_config(reset_ratio=reset_ratio))
    trainer = trainer_for(tiny_bert, arguments, examples, callback)
    trainer.train()
    first, second = trainer.sparsity_report().cycles
    assert first.recovered_share_at_edge is None
    sizes = [mask.numel() for mask in trainer.pruner.masks.values()]
    pruned, left = (sum(round(s * size) for size in sizes) for s in (0.8, 0.8 * reset_ratio))
    assert second.recovered_share_at_edge == (pruned - left) / sum(sizes)
    assert second.recovered_share_at_edge == pytest.approx((1 - reset_ratio) * 0.8, abs=2e-3)
    assert 0 < second.recovered_share_at_end < second.recovered_share_at_edge
    assert second.reset_step == EDGE
    assert_top_returned(callback, trainer.pruner, EDGE)


def test_with_warmup_the_reset_waits_for_the_first_step_that_moves(tiny_bert, arguments, examples):
    callback = Watch(watched_config())
    trainer = trainer_for(tiny_bert, arguments, examples, callback, warmup_steps=4)
    trainer.train()
    assert_top_returned(callback, trainer.pruner, EDGE + 1)
    (_, second) = trainer.sparsity_report().cycles
    demanded = trainer.pruner.demand(trainer.pruner.schedule.sparsity_at(EDGE + 1))
    expected = (sum(trainer.pruner.num_pruned) - sum(demanded)) / 4096
    assert second.recovered_share_at_edge == expected
    assert second.reset_step == EDGE + 1


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_with_a_step_skipped_for_an_overflow_the_reset_waits(tiny_bert, arguments, examples, optim):
    """Real fp16 autocast with a GradScaler on the CPU; the gradient overflows in the edge's step.

    With fused AdamW the skip is not even reported.
    """
    callback = Watch(watched_config())
    trainer = trainer_for(tiny_bert, arguments, examples, callback, fp16=True, optim=optim)
    trainer.accelerator.native_amp = True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.model.classifier.weight.register_hook(
        lambda g: g * float("inf") if trainer.state.global_step == EDGE - 1 else g
    )
    trainer.train()
    assert trainer.accelerator.scaler.get_scale() < 2.0**10, "one step was skipped"
    assert_top_returned(callback, trainer.pruner, EDGE + 1)
    assert trainer.sparsity_report().is_at_target


@pytest.mark.parametrize("method", [PruningConfig.method, "fisher", "swap", "cyclical_stored"])
def test_a_weight_that_never_has_a_gradient_goes_first(train, tiny_bert, method):
    """As an expert that no token reaches, or a layer that is dropped in every step."""
    model = tiny_bert()
    spare = torch.nn.Linear(16, 16)
    model.bert.encoder.layer[0].output.spare = spare
    config = PruningConfig(method, sparsity=0.8)
    trainer = train(PruningTrainer, model=model, pruning_config=config)
    assert trainer.sparsity_report().is_at_target
    assert not spare.weight.any()


def test_a_criterion_of_gradients_without_any_gradient_is_refused(tiny_bert):
    model = tiny_bert()
    pruner = PruningConfig(sparsity=0.8).build_pruner(find_targets(model), total_steps=1)
    with pytest.raises(ValueError, match=r"no step was taken.*before_update"):
        pruner.step(1)
