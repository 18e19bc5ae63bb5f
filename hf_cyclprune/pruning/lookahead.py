"""The criterion that looks at the matrices before and after a weight's own."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from hf_cyclprune.pruning.criterion import Criterion, Rows, criterion

PAIRS = (
    ("attention.self.value", "attention.output.dense"),  # BERT, RoBERTa, ELECTRA
    ("attention.self.value_proj", "attention.output.dense"),  # DeBERTa
    ("attention.attn.v", "attention.attn.o"),  # MPNet
    ("intermediate.dense", "output.dense"),  # all of these
    ("attention.v_lin", "attention.out_lin"),  # DistilBERT
    ("ffn.lin1", "ffn.lin2"),
    ("attention.value", "attention.dense"),  # ALBERT
    ("ffn", "ffn_output"),
    ("v_proj", "out_proj"),  # BART
    ("fc1", "fc2"),
)
"""How the names of two layers end in one block, the output of the first of which feeds the second:
value -> attention output, and the two layers of the feed-forward network."""


def find_pairs(targets: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield the names of two targets where output j of the first is input j of the second."""
    for name, weight in targets.items():
        for first, second in PAIRS:
            fed = re.sub(rf"(?<![^.]){re.escape(first)}(\.weight)?$", rf"{second}\1", name)
            if fed != name and fed in targets and targets[fed].shape[1] == weight.shape[0]:
                yield name, fed


@criterion("lookahead")
@dataclass
class Lookahead(Criterion):
    """|w_ij| times the norm of row j of the matrix before it and of column i of the one after it.

    Park et al. 2020, https://arxiv.org/abs/2002.04809, equation 3, without batch norm: the norm of
    what the product of the three matrices loses with the weight. In a block of a transformer two
    such matrices are value and attention output, and two are those of the feed-forward network;
    the norm of a matrix that does not exist, or is no target, is 1. So scores of different kinds of
    matrices cannot be compared, and `scope="global"` makes no sense with it.

    Both w and the norms are of the values that pruned weights would come back with: nearly zero
    with `pruned_weights="zero"`.
    """

    targets: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    before: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Name of a target -> that of the layer whose output it gets."""
    after: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Name of a target -> that of the layer that gets its output."""

    is_signed = False

    def attach(self, targets: Mapping[str, Tensor]) -> None:
        pairs = list(find_pairs(targets))
        if not pairs:
            raise ValueError(
                "The criterion 'lookahead' found no pair of target weights of which one feeds the "
                f"other, among names such as '{next(iter(targets))}'. It knows the names of BERT, "
                "RoBERTa, ELECTRA, DeBERTa, MPNet, DistilBERT, ALBERT and BART. Use "
                "criterion='magnitude'."
            )
        self.targets = targets
        self.before = {fed: name for name, fed in pairs}
        self.after = dict(pairs)

    def score(self, rows: Rows) -> Tensor:
        scores = rows.weight.float()
        if rows.name in self.before:
            weight = self.targets[self.before[rows.name]].detach()
            scores = scores * rows.of_whole(weight.float().norm(dim=1))
        if rows.name in self.after:
            weight = self.targets[self.after[rows.name]].detach()
            scores = scores * rows.of_whole(weight.float().norm(dim=0)[:, None])
        return scores.abs()  # last: a NaN may have a sign
