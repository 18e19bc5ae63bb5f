"""The slow twin of every selection, and weights that a real optimizer moves."""

from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from hf_cyclprune.pruning import lookahead

SHAPES = {"a": (8, 8), "b": (4, 16), "c": (12, 4)}


def _mask_of_lowest(scores: list[Tensor], num_pruned: int) -> list[Tensor]:
    """Masks that prune the lowest scores of all tensors together; of equal ones the last go first.

    A NaN is the highest score, and -0.0 equals 0.0, as Python compares them.
    """
    flat = [x for tensor in scores for x in tensor.float().flatten().tolist()]

    def rank(i: int) -> tuple[bool, float, int]:
        is_nan = flat[i] != flat[i]
        return is_nan, 0.0 if is_nan else flat[i], -i

    pruned = set(sorted(range(len(flat)), key=rank)[:num_pruned])
    kept = torch.tensor([i not in pruned for i in range(len(flat))])
    parts = kept.split([tensor.numel() for tensor in scores])
    return [part.view(tensor.shape) for part, tensor in zip(parts, scores, strict=True)]


@pytest.fixture(scope="session")
def mask_of_lowest() -> Callable[[list[Tensor], int], list[Tensor]]:
    return _mask_of_lowest


@pytest.fixture(scope="session")
def pretend_accelerator() -> Callable[[], "mock._patch[property]"]:
    """A context in which no tensor admits to be on the CPU: the other branches run."""
    return lambda: mock.patch.object(torch.Tensor, "is_cpu", property(lambda tensor: False))


@pytest.fixture(autouse=True)
def _toy_pairs(monkeypatch):
    """Of the toy's weights "b" feeds "c"."""
    monkeypatch.setattr(lookahead, "PAIRS", (*lookahead.PAIRS, ("b", "c")))


class Toy:
    """Three weights and an optimizer; every step takes new random gradients for all of them."""

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        optimizer: str = "adamw",
        *,
        is_transposed: bool = False,
    ) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.targets = {
            name: nn.Parameter(self._draw(shape[::-1]).to(dtype).t())
            if is_transposed
            else nn.Parameter(self._draw(shape).to(dtype))
            for name, shape in SHAPES.items()
        }
        weights = list(self.targets.values())
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(weights, lr=0.1, weight_decay=0.1)
            if optimizer == "adamw"
            else torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1)
        )

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def train_step(self, lr: float = 0.1, before_update: Callable[[], None] = lambda: None) -> None:
        for weight in self.targets.values():
            weight.grad = self._draw(tuple(weight.shape)).to(weight.dtype)
        self.optimizer.param_groups[0]["lr"] = lr
        before_update()
        self.optimizer.step()

    def copies(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.targets.items()}

    def run(self, pruner, total_steps: int) -> Iterator[tuple[int, dict[str, Tensor], object]]:
        """After every step: t, the weights before the pruner saw them, what the pruner did.

        The weights themselves are the inputs of their layers.
        """
        for t in range(1, total_steps + 1):
            for name, weight in self.copies().items():
                pruner.observation.observe_input(name, weight)
            self.train_step(before_update=lambda t=t: pruner.before_update(t))
            before = self.copies()
            yield t, before, pruner.step(t)


@pytest.fixture(scope="session")
def new_toy() -> type[Toy]:
    return Toy
