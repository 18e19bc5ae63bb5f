"""A pruner of whole weights beside one of parts of them: it must come to the same masks."""

from types import SimpleNamespace

import torch
from torch import nn

from hf_cyclprune import Pruner
from hf_cyclprune.engines.shard import unwrapped


class Shadow:
    """What one process with all weights, gradients and second moments would have done.

    Args:
        pruner: of parts; asked for them in every step, on all ranks.
        config: of both.
    """

    def __init__(self, pruner, config):
        self.pruner = pruner
        self.wholes = {}
        for name, shard in pruner.shards.items():
            self.wholes[name] = nn.Parameter(shard.gather(shard.weight).clone())
            if hasattr(shard.parameter, "input_dim"):
                self.wholes[name].input_dim = shard.parameter.input_dim
        inner = unwrapped(pruner.optimizer)
        # not a torch.optim.Optimizer: the engine's own state is shown to it
        self.optimizer = SimpleNamespace(state={}, param_groups=inner.param_groups)
        total_steps = pruner.schedule.total_steps
        self.alone = config.build_pruner(self.wholes, total_steps, self.optimizer)
        if self.alone.criterion.shared:
            self.alone.criterion.memory = pruner.criterion.memory
        self.gradients = {}

    def see_gradients(self, names):
        """Keep the gradients that are there before the optimizer's step."""
        for name in names if self.looks_at_gradients else ():
            gradient = self.pruner.shards[name].gradient
            self.gradients[name] = None if gradient is None else gradient.clone()

    @property
    def looks_at_gradients(self):
        """Whether they, or what the optimizer makes of them, matter for the masks."""
        seen = self.pruner.observation
        return bool(seen.reads or seen.keeps_memory or self.pruner.policy.opens_before)

    @torch.no_grad()
    def follow(self, t):
        """Take the whole of everything after the optimizer's step t, before the masks."""
        for name, whole in self.wholes.items() if self.looks_at_gradients else ():
            whole.grad = self.pruner.shards[name].gather(self.gradients[name]).to(whole.dtype)
        self.alone.begin_step(t)
        self.alone.before_update(t)
        for name, shard in self.pruner.shards.items():
            self.wholes[name].copy_(shard.gather(shard.weight))
            state = shard.state_of(self.pruner.optimizer) if self.looks_at_gradients else {}
            if "exp_avg_sq" in state and state["exp_avg_sq"].shape == shard.weight.shape:
                moment = shard.gather(state["exp_avg_sq"])
                known = {"exp_avg_sq": moment, "step": state["step"]}
                self.optimizer.state[self.wholes[name]] = known

    def check(self, t):
        """Prune the whole weights and compare."""
        self.alone.step(t)
        assert self.alone.num_pruned == self.pruner.num_pruned, t
        assert int(self.alone.num_returned) == int(self.pruner.num_returned), t
        for name, mask in self.alone.masks.items():
            shard = self.pruner.shards[name]
            assert torch.equal(shard.gather(self.pruner.masks[name]), mask), (name, t)
            for values, others in [(self.alone.policy.values, self.pruner.policy.values)]:
                assert not values or torch.equal(shard.gather(others[name]), values[name]), name


def watch(pruner, config):
    """Let a shadow follow this pruner from now on."""
    shadow = Shadow(pruner, config)
    before_update, step = pruner._before_update, pruner._step

    def observed(t, names):
        shadow.see_gradients(names)
        before_update(t, names)

    def followed(t):
        shadow.follow(t)
        done = step(t)
        shadow.check(t)
        return done

    pruner._before_update, pruner._step = observed, followed
    assert isinstance(pruner, Pruner)
