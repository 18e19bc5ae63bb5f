"""The criterion that looks at the matrices before and after a weight's own."""

import pytest
import torch
import transformers

from hf_cyclprune import PruningConfig, find_targets
from hf_cyclprune.pruning.criteria import FirstCycle
from hf_cyclprune.pruning.criterion import CRITERIA, Rows
from hf_cyclprune.pruning.lookahead import find_pairs

ATTENTION = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 10,
}
DISTILBERT = {"dim": 8, "n_layers": 3, "n_heads": 2, "hidden_dim": 12, "vocab_size": 10}
BART = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "vocab_size": 10,
}


def attached(**weights):
    """The criterion with the two layers of a feed-forward network, or what is given."""
    criterion = CRITERIA["lookahead"]()
    criterion.attach(weights)
    return criterion


FIRST, SECOND, OTHER = (
    f"layer.0.{kind}.weight"
    for kind in ("intermediate.dense", "output.dense", "attention.self.query")
)


def test_scores_by_hand():
    before = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])  # norms of rows: 5, 2, 1
    after = torch.tensor([[1.0, -1.0, 6.0], [0.0, 2.0, 8.0]])  # norms of columns: 1, sqrt(5), 10
    other = torch.tensor([[-7.0]])
    weights = {FIRST: before, SECOND: after, OTHER: other}
    criterion = attached(**weights)
    scores = {
        name: criterion.score(Rows(name, weight, weight != 0)) for name, weight in weights.items()
    }
    root = 5.0**0.5
    expected = torch.tensor([[3.0, 4.0], [0.0, 2.0 * root], [10.0, 0.0]])
    assert torch.allclose(scores[FIRST], expected)
    assert scores[SECOND].tolist() == [[5.0, 2.0, 6.0], [0.0, 4.0, 8.0]]
    assert scores[OTHER].tolist() == [[7.0]]
    rows = slice(1, 3)
    some = criterion.score(Rows(FIRST, before[rows], before[rows] != 0, place=rows))
    assert torch.equal(some, scores[FIRST][rows])


def test_a_score_is_what_the_product_of_the_matrices_loses_with_the_weight():
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(5, 4, generator=generator), torch.randn(3, 5, generator=generator)
    criterion = attached(**{FIRST: before, SECOND: after})
    scores = criterion.score(Rows(SECOND, after, after != 0))
    for i in range(3):
        for j in range(5):
            without = after.clone()
            without[i, j] = 0
            loss = (after @ before - without @ before).norm()
            assert scores[i, j].item() == pytest.approx(loss.item(), rel=1e-4)


def test_the_weights_are_looked_at_as_they_are_when_scores_are_asked_for():
    before, after = torch.ones(2, 2), torch.ones(1, 2)
    criterion = attached(**{FIRST: before, SECOND: after})
    before[1] = 0
    assert criterion.score(Rows(SECOND, after, after != 0))[0].tolist() == [
        pytest.approx(2.0**0.5),
        0.0,
    ]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Bert", ATTENTION),
        ("Roberta", ATTENTION),
        ("Electra", {**ATTENTION, "embedding_size": 8}),
        ("DebertaV2", ATTENTION),
        ("MPNet", ATTENTION),
        ("DistilBert", DISTILBERT),
        ("Bart", BART),
    ],
)
def test_every_block_of_the_common_models_has_its_pairs(name, options):
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}Model")(config)
    targets = find_targets(model)
    pairs = list(find_pairs(targets))
    num_pairs = 2 * 1 + 2 * 3 if name == "Bart" else 2 * 3  # a decoder attends twice
    assert len(pairs) == len(set(pairs)) == len({fed for _, fed in pairs}) == num_pairs
    for first, fed in pairs:
        assert first.rsplit(".", 4)[0][:12] == fed.rsplit(".", 4)[0][:12]
        assert targets[first].shape[0] == targets[fed].shape[1]


def test_albert_has_one_block_for_all_layers():
    options = {**ATTENTION, "embedding_size": 8}
    model = transformers.AlbertModel(transformers.AlbertConfig(**options))
    assert len(list(find_pairs(find_targets(model)))) == 2


def test_a_model_without_pairs_is_refused_when_its_pruner_is_built():
    options = {**ATTENTION, "pad_token_id": 0, "global_attn_every_n_layers": 1}
    model = transformers.ModernBertModel(transformers.ModernBertConfig(**options))
    config = PruningConfig(sparsity=0.5, criterion="lookahead")
    with pytest.raises(ValueError, match=r"'lookahead' found no pair .*attn\.Wqkv\.weight'"):
        config.build_pruner(find_targets(model), 4)


def test_a_pair_that_is_ignored_counts_as_one(tiny_bert):
    targets = find_targets(tiny_bert(), ignore=[r"intermediate", r"layer\.1.*value"])
    (pair,) = find_pairs(targets)
    assert [name.rpartition("layer.")[2] for name in pair] == [
        "0.attention.self.value.weight",
        "0.attention.output.dense.weight",
    ]


def test_the_criterion_of_the_first_cycle_is_attached_too():
    before, after = 2 * torch.ones(1, 1), torch.ones(1, 1)
    both = FirstCycle(CRITERIA["lookahead"](), CRITERIA["magnitude"]())
    both.attach({FIRST: before, SECOND: after})
    both.begin_cycle(0)
    assert both.score(Rows(SECOND, after, after > 0)).item() == 2.0
