"""Return a share of the weights of a pruned model by several scores; for mask_probes.py."""

import copy
from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from typing import Any

import torch
from experiment import Run
from torch import Tensor

from hf_cyclprune import CRITERIA, Pruner
from hf_cyclprune.pruning.criterion import Criterion, Rows

SHARE = 0.01  # of all target weights
NUM_ROWS = 1600
Scores = dict[str, Tensor]
"""Name of a target -> a score for each of its weights."""


class Given(Criterion):
    """Scores that are known already."""

    is_elementwise = True

    def __init__(self, scores: Scores) -> None:
        super().__init__()
        self.scores = scores

    def score(self, rows: Rows) -> Tensor:
        return self.scores[rows.name][rows.place]


class Probe:
    """A pruned model, which every trial starts from."""

    def __init__(self, trainer: Any, run: Run, tokenized: str) -> None:
        import datasets

        self.trainer, self.run, self.model = trainer, run, trainer.model
        self.pruner: Pruner = trainer.pruner
        self.targets = dict(self.pruner.targets)
        self.values = {name: v.clone() for name, v in self.pruner.policy.values.items()}
        self.weights = copy.deepcopy(self.model.state_dict())
        self.optimizer_state = copy.deepcopy(trainer.optimizer.state_dict())
        held_out = datasets.load_from_disk(tokenized)["held_out"]
        rows = held_out.select(range(min(NUM_ROWS, len(held_out))))
        self.evaluated = list(trainer.get_eval_dataloader(rows))
        endless = chain.from_iterable(repeat(trainer.get_train_dataloader()))
        num = 2 * run["num_batches"] + run["regrowth_steps"]
        batches = list(islice(endless, num))
        self.training = batches[: run["regrowth_steps"]]
        rest = batches[run["regrowth_steps"] :]
        self.evidence = rest[: len(rest) // 2], rest[len(rest) // 2 :]

    def reset(self) -> None:
        """Go back to the end of the run."""
        self.model.load_state_dict(self.weights)
        self.trainer.optimizer.load_state_dict(copy.deepcopy(self.optimizer_state))

    def loss_of(self, batch: Any) -> Tensor:
        batch = {name: tensor.to(self.trainer.args.device) for name, tensor in batch.items()}
        kind = self.trainer.args.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.run["bf16"]):
            return self.model(**batch).loss

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the mean loss on the held-out rows."""
        self.model.eval()
        sizes = [len(batch["labels"]) for batch in self.evaluated]
        losses = [self.loss_of(b) * n for b, n in zip(self.evaluated, sizes, strict=True)]
        return float(torch.stack(losses).sum()) / sum(sizes)

    def gradients(self, batches: Iterable[Any]) -> Iterator[None]:
        """Compute the gradients of one batch after another, as in training."""
        self.model.train()
        torch.manual_seed(self.run["seed"])
        for batch in batches:
            self.model.zero_grad()
            self.loss_of(batch).backward()
            yield

    def update(self, batches: Iterable[Any]) -> Scores:
        """Return the size of the one update by which each weight would move."""
        self.reset()
        for _ in self.gradients(list(batches)[:1]):
            self.step(self.run["learning_rate"])
        moved = {n: (w.detach() - self.weights[n]).abs() for n, w in self.targets.items()}
        self.reset()
        return moved

    def step(self, learning_rate: float) -> None:
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = learning_rate
        self.trainer.optimizer.step()

    def scores(self, batches: list[Any]) -> dict[str, Scores]:
        """Return the scores of all pruned weights by these batches, with their stored values."""
        benefit = CRITERIA["benefit"]()
        for _ in self.gradients(batches):
            for name, weight in self.targets.items():
                benefit.observe(name, self.pruner.policy.value(name), weight.grad)
        without_errors = copy.copy(benefit)
        without_errors.num_errors = 0.0
        found = {
            "-gW - 5 v W^2": without_errors,
            "the same - 2 errors": benefit,
            "size of W": CRITERIA["magnitude"](),
            "random": CRITERIA["random"](self.run["seed"]),
        }
        moments = self.pruner.observation.moments
        rows = [
            Rows(n, self.values[n], m, None, moments.of(n, slice(None)))
            for n, m in self.pruner.masks.items()
        ]
        sums = benefit.memory["gradient_sum"]
        return {
            "one update": self.update(batches),
            "accumulated gradient": {name: total.abs() for name, total in sums.items()},
            "-gW": {r.name: -sums[r.name] * r.weight for r in rows},
        } | {name: {r.name: c.score(r) for r in rows} for name, c in found.items()}

    @torch.no_grad()
    def choose(self, scores: Scores) -> Pruner:
        """Return a pruner with more weights kept, the highest of the pruned ones."""
        chosen = Pruner(self.targets, self.pruner.schedule, Given(scores), self.pruner.pattern)
        for name, mask in self.pruner.masks.items():
            chosen.masks[name].copy_(mask)
        chosen.count_pruned()
        chosen.prune_to(self.run["sparsity"] - self.run.get("regrowth_share", SHARE))
        return chosen

    def train(self, pruner: Pruner) -> float:
        """Train with these masks, and return the loss."""
        num = len(self.training)
        for i, _ in enumerate(self.gradients(self.training)):
            self.step(self.run["learning_rate"] / 3 * (1 - i / num))
            pruner.apply_masks_()
        return self.evaluate()

    def try_out(self, scores: Scores, with_values: bool) -> tuple[float, float]:
        """Return the loss at once and after training."""
        self.reset()
        chosen = self.choose(scores)
        if with_values:
            with torch.no_grad():
                for name, weight in self.targets.items():
                    weight.add_(self.values[name] * chosen.masks[name])  # 0 for the kept ones
        return self.evaluate(), self.train(chosen)


def correlation(first: Scores, second: Scores, pruned: Scores) -> float:
    """Return Spearman's correlation of the scores of 200,000 pruned weights."""
    pairs = [torch.cat([s[n][pruned[n]] for n in pruned]) for s in (first, second)]
    some = torch.randperm(len(pairs[0]), generator=torch.Generator().manual_seed(0))[:200_000]
    ranks = [pair.cpu()[some].argsort().argsort().double() for pair in pairs]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def probe(trainer: Any, run: Run, tokenized: str) -> dict[str, Any]:
    """Return the losses with the returned weights of every score, and how reliable scores are."""
    here = Probe(trainer, run, tokenized)
    first, second = (here.scores(batches) for batches in here.evidence)
    result: dict[str, Any] = {"losses": {}, "correlation": {}, "overlap": {}}
    pruned = {name: ~mask for name, mask in here.pruner.masks.items()}
    here.reset()
    result["before"], result["after"] = here.evaluate(), here.train(here.pruner)
    here.reset()
    for name, scores in first.items():
        result["losses"][name] = {
            "stored": here.try_out(scores, True),
            "zero": here.try_out(scores, False),
        }
        if name not in ("size of W", "random"):  # these look at no batches
            result["correlation"][name] = correlation(scores, second[name], pruned)
            choices = [here.choose(s).masks for s in (scores, second[name])]
            back = [{n: m & pruned[n] for n, m in masks.items()} for masks in choices]
            both = sum(int((back[0][n] & back[1][n]).sum()) for n in pruned)
            result["overlap"][name] = both / sum(int(m.sum()) for m in back[0].values())
    return result
