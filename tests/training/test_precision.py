"""The invariants of pruning in every precision, with every optimizer and split of a batch."""

import contextlib
from itertools import combinations, product

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_cyclprune import PruningCallback, PruningConfig, PruningTrainer
from hf_cyclprune.pruning.pruned_weights import bits

PRECISIONS = ("fp32", "bf16", "fp16", "pure bf16")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adafactor")
PATTERNS = {
    "layer": {"sparsity": 0.8},
    "global": {"sparsity": 0.8, "scope": "global"},
    "2:4": {"pattern": "2:4"},
}
SPLITS = (1, 3)
NUM_STEPS = 8  # two cycles of four steps
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

CASES = [
    (precision, optimizer, [*PATTERNS][(i + j) % 3], SPLITS[(i // 2 + j) % 2])
    for (i, precision), (j, optimizer) in product(enumerate(PRECISIONS), enumerate(OPTIMIZERS))
]


def test_every_two_of_the_choices_meet_in_a_case():
    choices = (PRECISIONS, OPTIMIZERS, tuple(PATTERNS), SPLITS)
    for one, other in combinations(range(4), 2):
        met = {(case[one], case[other]) for case in CASES}
        assert met == set(product(choices[one], choices[other]))


class Scaled(PruningTrainer):
    """With what accelerate does in fp16 on a GPU: autocast, and a real GradScaler."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.accelerator.native_amp = True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)


class Moves(TrainerCallback):
    """In front of the one that prunes: keeps the weights of a step before they are masked."""

    def __init__(self):
        self.weights, self.step = {}, 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = state.global_step + 1

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        self.weights[self.step] = {
            name: weight.detach().clone() for name, weight in model.named_parameters()
        }


class Watch(TrainerCallback):
    """Behind it: checks the zeros after every step, and keeps what was there."""

    def __init__(self, callback, moves):
        self.callback, self.moved = callback, moves.weights
        self.masks, self.num_pruned, self.pending, self.weights = {}, {}, {}, {}

    def on_step_end(self, args, state, control, **kwargs):
        t, pruner = state.global_step, self.callback.pruner
        for name, weight in pruner.targets.items():
            assert not bits(weight)[~pruner.masks[name]].any(), f"{name} at step {t}"
        counts = [
            sum(int((~pruner.masks[name]).sum()) for name in names) for names in pruner.groups
        ]
        assert counts == pruner.num_pruned
        if not pruner.pending:
            assert counts == pruner.demand(pruner.schedule.sparsity_at(t)), f"step {t}"
        self.num_pruned[t], self.pending[t] = counts, set(pruner.pending)
        self.masks[t] = {name: mask.clone() for name, mask in pruner.masks.items()}
        self.weights[t] = {name: w.detach().clone() for name, w in pruner.targets.items()}


@pytest.fixture
def prune(train, tiny_bert):
    """Train with all invariants checked at every step, and return the Trainer and its watch."""

    def run(config, precision="fp32", split=1, overflows=(), **args):
        callback = PruningCallback(config)
        moves = Moves()
        watch = Watch(callback, moves)
        model = tiny_bert(**NO_DROPOUT)
        if precision == "pure bf16":
            model = model.to(torch.bfloat16)
        args = {
            "max_steps": NUM_STEPS,
            "per_device_train_batch_size": 12 // split,
            "gradient_accumulation_steps": split,
            "bf16": precision == "bf16",
            "fp16": precision == "fp16",
            "logging_strategy": "no",
            **args,
        }
        if args.get("optim") == "sgd":
            args["optim_args"] = "momentum=0.9"

        def overflow(gradient):
            return gradient * float("inf") if moves.step in overflows else gradient

        model.classifier.weight.register_hook(overflow)
        warned = pytest.warns(UserWarning, match="are bfloat16: small updates are lost")
        with warned if precision == "pure bf16" else contextlib.nullcontext():
            trainer = train(
                Scaled if precision == "fp16" else PruningTrainer,
                model=model,
                args=args,
                callbacks=[moves, callback, watch],
            )
        return trainer, callback.pruner, watch

    return run


@pytest.mark.parametrize(("precision", "optimizer", "pattern", "split"), CASES)
def test_pruned_weights_are_zero_and_as_many_as_due_after_every_step(
    prune, precision, optimizer, pattern, split
):
    number = CASES.index((precision, optimizer, pattern, split))
    args = {
        "optim": optimizer,
        "max_grad_norm": 1.0 if number % 2 else 0.0,
        "label_smoothing_factor": 0.1 if number % 3 else 0.0,
    }
    config = PruningConfig("cyclical", num_cycles=2, lr_restarts=False, **PATTERNS[pattern])
    _, pruner, watch = prune(config, precision, split, **args)
    assert pruner.is_at_target
    assert sorted(watch.num_pruned) == [*range(1, NUM_STEPS + 1)]
    assert not any(watch.pending.values())
    assert watch.num_pruned[5] < watch.num_pruned[4] == watch.num_pruned[8], "the reset"
    for name, weight in pruner.targets.items():
        moved = watch.moved[NUM_STEPS][name] - watch.weights[NUM_STEPS - 1][name]
        assert moved.any(), f"the optimizer does not move {name}"
        assert weight.dtype == (torch.bfloat16 if precision == "pure bf16" else torch.float32)


@pytest.mark.parametrize(("precision", "optimizer"), zip(PRECISIONS, OPTIMIZERS, strict=True))
@pytest.mark.parametrize("split", SPLITS)
def test_the_default_method_is_exact_after_every_step_too(prune, precision, optimizer, split):
    config = PruningConfig(sparsity=0.8, num_cycles=2)
    _, pruner, watch = prune(config, precision, split, optim=optimizer)
    assert pruner.is_at_target
    assert not any(watch.pending.values())
    assert watch.num_pruned[NUM_STEPS] == [
        round(0.8 * sum(w.numel() for w in pruner.targets.values()))
    ]


def test_the_saved_file_of_fp16_training_holds_the_zeros(train, tmp_path):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2)
    args = {"max_steps": NUM_STEPS, "fp16": True}
    trainer = train(Scaled, args=args, pruning_config=config)
    trainer.save_model(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert sum(int((saved[name] == 0).sum()) for name in trainer.pruner.targets) == 3280
    assert trainer.sparsity_report().is_at_target


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_masks_do_not_depend_on_how_a_batch_is_split(prune, pattern):
    config = PruningConfig("cyclical", num_cycles=2, lr_restarts=False, **PATTERNS[pattern])
    (_, _, whole), (_, _, split) = (prune(config, split=n, optim="sgd") for n in SPLITS)
    assert whole.num_pruned == split.num_pruned
    num_equal = 0
    for t, weights in whole.moved.items():  # rounding may part them, and with it the ranking
        if all(torch.allclose(w, split.moved[t][name], atol=1e-6) for name, w in weights.items()):
            assert all(torch.equal(m, split.masks[t][name]) for name, m in whole.masks[t].items())
            num_equal += 1
    assert num_equal > 0


OVERFLOWS = {
    "in a climb": {2},
    "in the first step": {1},
    "at the edge": {5},
    "twice at the edge": {5, 6},
    "in the last step": {8},
}


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused", "sgd"])
@pytest.mark.parametrize("place", OVERFLOWS)
def test_a_skipped_step_keeps_the_zeros_and_defers_a_reset(prune, place, optimizer):
    skipped = OVERFLOWS[place]
    clip = 1.0 if optimizer == "adamw_torch" else 0.0
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2, lr_restarts=False)
    args = {"optim": optimizer, "max_grad_norm": clip, "lr_scheduler_type": "constant"}
    _, pruner, watch = prune(config, "fp16", 3, skipped, **args)
    assert pruner.is_at_target
    for t in skipped - {1}:  # it was skipped indeed
        for name, weight in watch.weights[t - 1].items():
            assert torch.equal(watch.moved[t][name], weight), (t, name)
    everything = set(range(len(pruner.groups)))
    waits = {t for t, pending in watch.pending.items() if pending}
    assert waits == skipped & {5, 6}
    for t in waits:
        assert watch.pending[t] == everything
        assert watch.num_pruned[t] == watch.num_pruned[4]
    check_returned(watch, max(waits, default=4) + 1)


def check_returned(watch, t):
    """What returned at the late reset are the weights that the optimizer moved furthest."""
    for name, mask in watch.masks[t].items():
        pruned = ~watch.masks[t - 1][name]
        moved = watch.moved[t][name].abs()
        assert (pruned & mask).any()
        assert moved[pruned & mask].min() >= moved[pruned & ~mask].max(), name
        assert moved[pruned].unique().numel() > 10


SEEN = {
    "movement": {"criterion": "movement"},
    "snip": {"criterion": "snip"},
    "platon": {"criterion": "platon", "pruned_weights": "stored"},
    "fisher": {"criterion": "fisher"},
    "benefit": {"criterion": "fisher", "regrowth": "benefit", "regrowth_at": "edges"},
    "taylor": {"criterion": "taylor", "pruned_weights": "stored"},
    "decay of latent weights": {"pruned_weights": "latent", "pruned_decay": 0.5},
}


def memory(pruner):
    """What was observed, and what it led to: second moments, values of pruned weights, masks."""
    regrowth = pruner.recovery.regrowth
    criteria = [pruner.criterion, *([regrowth.criterion] if regrowth is not None else [])]
    found = {
        (i, quantity, name): tensor
        for i, criterion in enumerate(criteria)
        for quantity, known in criterion.memory.items()
        for name, tensor in known.items()
    }
    sources = (pruner.observation.moments.own, pruner.policy.values, pruner.masks)
    return found | {(i, name): t for i, known in enumerate(sources) for name, t in known.items()}


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "sgd"])
@pytest.mark.parametrize("what", SEEN)
def test_what_is_observed_is_not_scaled_where_nothing_clips(prune, what, optimizer):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2, lr_restarts=False, **SEEN[what])
    clipped, free = (
        memory(prune(config, "fp16", optim=optimizer, max_grad_norm=norm)[1]) for norm in (1e9, 0.0)
    )
    assert clipped.keys() == free.keys()
    for key, tensor in clipped.items():
        assert torch.equal(tensor, free[key]), key


@pytest.mark.parametrize("clip", [1.0, 0.0])
@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "sgd"])
def test_a_skipped_step_is_not_observed(prune, optimizer, clip):
    """Of one run of eight steps, the averages hold the five that were taken."""
    criteria = {"criterion": "fisher", "regrowth": "benefit", "regrowth_at": "edges"}
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=1, **criteria)
    args = {"optim": optimizer, "max_grad_norm": clip, "lr_scheduler_type": "constant"}
    _, pruner, watch = prune(config, "fp16", 1, {1, 2, 4}, **args)
    assert {t for t, pending in watch.pending.items() if pending} == {1, 2}, "nothing is known yet"
    assert pruner.is_at_target
    assert {int(n) for n in pruner.recovery.regrowth.criterion.memory["num_steps"].values()} == {5}
    if optimizer == "sgd":
        assert {*pruner.observation.moments.num_steps.values()} == {5}
    else:
        assert not pruner.observation.moments.own
    name = next(iter(pruner.targets))
    assert pruner.observation.moments.of(name, slice(None)).isfinite().all()
