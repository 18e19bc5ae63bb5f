"""The criteria that accumulate what they see at every optimizer step.

Each keeps one to three fp32 numbers per target weight, in memory and in every checkpoint. The
gradient of a pruned weight is that of the loss at the sparse point. So a score can grow while its
weight is pruned, if the weight's value is kept meanwhile (`pruned_weights="stored"`, "pretrained"
or "latent").
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_cyclprune.pruning.criterion import Criterion, Rows, criterion


@criterion("movement")
@dataclass
class Movement(Criterion):
    """Scores that Adam trains with the gradient g w (Sanh et al. 2020, equation 3).

    https://arxiv.org/abs/2005.07683: high where the optimizer has moved a weight away from zero.
    The paper's equation is a plain sum of -g w; its experiments used Adam, with a learning rate of
    0.01. Here a score starts at |w| / mean |w|, the mean over its matrix, where the paper has 0:
    then the first masks would be noise, and a short run would never recover from them.

    For a pruned weight w is the value that it would come back with; with `pruned_weights="zero"`
    its score stays what it was, but for the momentum.
    """

    learning_rate = 0.01
    beta1 = 0.9
    beta2 = 0.999
    epsilon = 1e-8
    means: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Name of a target -> mean of its |w| at the start."""
    observes = True
    is_elementwise = True

    def attach(self, targets: Mapping[str, Tensor]) -> None:
        for name, weight in targets.items():
            whole = weight.detach().cpu().double()  # whose mean is the same for every layout
            self.means[name] = whole.abs().mean().clamp(min=1e-12).to(weight.device, torch.float32)

    def observe(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        is_first = name not in self.memory.get("movement", {})
        score = self.remember("movement", name, weight)
        if is_first:
            score.copy_(weight.abs() / self.means[name])
        steps = self.remember("num_steps", name, weight.new_zeros(())).add_(1)
        now = gradient.float() * weight.float()
        mean = self.remember("mean", name, weight).lerp_(now, 1.0 - self.beta1)
        square = self.remember("square", name, weight).lerp_(now.square_(), 1.0 - self.beta2)
        size = (square / (1.0 - self.beta2**steps)).sqrt_().add_(self.epsilon)
        update = mean / (1.0 - self.beta1**steps)
        score.addcdiv_(update, size, value=-self.learning_rate)

    def score(self, rows: Rows) -> Tensor:
        return self.remember("movement", rows.name, rows.weight)[rows.place]


@criterion("snip")
@dataclass
class Snip(Criterion):
    """|w| times the size of the sum of g over all steps so far: the connection sensitivity.

    With the gradient of one large batch, made of the batches so far (Lee et al. 2019,
    https://arxiv.org/abs/1810.02340, equation 5; the common divisor does not change the ranking).
    """

    observes = True
    is_signed = False
    is_elementwise = True

    def observe(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        self.remember("gradient_sum", name, weight).add_(gradient)

    def score(self, rows: Rows) -> Tensor:
        total = self.remember("gradient_sum", rows.name, rows.weight)[rows.place]
        return (rows.weight * total).abs()


@criterion("platon")
@dataclass
class Platon(Criterion):
    """Smoothed |w g| times its smoothed uncertainty (Zhang et al. 2022, PLATON,
    https://arxiv.org/abs/2206.12562, equations 6 to 8).

    I <- b1 I + (1 - b1) |w g|, U <- b2 U + (1 - b2) ||w g| - I|, and the score is I U. For a pruned
    weight w is the value that it would come back with.
    """

    beta1 = 0.85
    beta2 = 0.95
    observes = True
    is_signed = False
    is_elementwise = True

    def observe(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        importance = self.remember("importance", name, weight)
        now = (weight * gradient).abs().float()
        importance.lerp_(now, 1.0 - self.beta1)
        uncertainty = self.remember("uncertainty", name, weight)
        uncertainty.lerp_(now.sub_(importance).abs_(), 1.0 - self.beta2)

    def score(self, rows: Rows) -> Tensor:
        importance = self.remember("importance", rows.name, rows.weight)[rows.place]
        uncertainty = self.remember("uncertainty", rows.name, rows.weight)[rows.place]
        return (importance * uncertainty).abs()  # abs: a NaN may have a sign


@criterion("benefit")
@dataclass
class Benefit(Criterion):
    """What the loss loses without a weight, or would gain with it, in the same units.

    For a kept weight the rise of the loss when it is pruned, to the second order: c v w^2 / 2.
    For a pruned one the fall of the loss when it comes back with its value w:

        -g w - z |w| sqrt(v / n) - c v w^2 / 2

    g is the mean gradient over the n steps since weights were exchanged last, v the mean squared
    gradient, and c turns v into a curvature. The second term is z standard errors of the first:
    among many pruned weights some have a mean gradient of the right sign by chance.
    """

    curvature = 10.0
    """c; about the batch size if the gradients of single examples are independent."""
    num_errors = 2.0
    """z."""
    observes = True
    reads = frozenset({"second_moment"})
    is_elementwise = True

    def observe(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        self.remember("gradient_sum", name, weight).add_(gradient)
        self.remember("num_steps", name, weight.new_zeros(())).add_(1)

    def forget(self) -> None:
        for quantity in self.memory.values():
            for tensor in quantity.values():
                tensor.zero_()

    def score(self, rows: Rows) -> Tensor:
        assert rows.second_moment is not None, "it is in `reads`"
        total = self.remember("gradient_sum", rows.name, rows.weight)[rows.place]
        num_steps = self.remember("num_steps", rows.name, rows.weight.new_zeros(()))
        num_steps = num_steps.clamp(min=1)
        weight, moment = rows.weight.float(), rows.second_moment
        cost = weight.square() * moment * (self.curvature / 2)
        error = weight.abs() * (moment / num_steps).sqrt()
        gain = total * weight / -num_steps - self.num_errors * error - cost
        return torch.where(rows.kept, cost, gain)
