import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cyclprune.pruning.patterns import NM
from hf_cyclprune.reporting.weights import WeightReport, satisfies, split_name


@pytest.mark.parametrize(
    ("rows", "satisfied"),
    [
        ([[1, 0, 1, 0], [0, 0, 1, 1]], {"2:4", "3:4"}),
        ([[1, 0, 1, 1], [0, 0, 0, 0]], {"3:4"}),
        ([[0, 0, 0, 0], [0, 0, 0, 1]], {"1:4", "2:4", "3:4", "1:2"}),
        ([[0, 1, 1, 0], [1, 0, 0, 1]], {"2:4", "3:4", "1:2"}),
        ([[1, 1, 1, 1], [0, 0, 0, 0]], set()),  # groups do not run across rows
    ],
)
def test_nm_is_satisfied_by_at_most_n_of_every_m(rows, satisfied):
    kept = torch.tensor(rows).bool()
    patterns = {f"{n}:{m}": NM(n, m) for n, m in [(1, 4), (2, 4), (3, 4), (1, 2)]}
    assert {name for name, pattern in patterns.items() if satisfies(kept, pattern)} == satisfied


@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), st.data())
@settings(deadline=None, max_examples=60)
def test_nm_is_checked_group_by_group(rows, num_groups, m, data):
    n = data.draw(st.integers(1, m - 1))
    bits = st.lists(st.booleans(), min_size=m, max_size=m)
    table = [[data.draw(bits) for _ in range(num_groups)] for _ in range(rows)]
    expected = all(sum(group) <= n for row in table for group in row)
    assert satisfies(torch.tensor(table).view(rows, num_groups * m), NM(n, m)) == expected


def test_nm_is_not_satisfied_where_m_does_not_divide_the_rows():
    assert not satisfies(torch.zeros(4, 6, dtype=torch.bool), NM(2, 4))


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("bert.encoder.layer.3.attention.self.query.weight", 3, "attention.self.query"),
        ("encoder.layer.11.output.dense.weight", 11, "output.dense"),
        (
            "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",
            0,
            "albert_layers.0.ffn",
        ),
        ("model.layers.2.mlp.Wi.weight", 2, "mlp.Wi"),
        ("bert.pooler.dense.weight", None, "bert.pooler.dense"),
        ("weight", None, "weight"),
    ],
)
def test_names_are_split_at_the_blocks_index(name, layer, kind):
    assert split_name(name) == (layer, kind)


@pytest.mark.parametrize(
    ("group", "kinds"),
    [
        (
            "attention",
            "attention.self.query_proj attention.output.dense attention.q_lin attn.Wqkv attn.Wo "
            "albert_layers.0.attention.dense attention.attn.q self_attn.out_proj",
        ),
        (
            "feed-forward",
            "intermediate.dense output.dense ffn.lin1 ffn.lin2 mlp.Wi mlp.Wo fc1 linear2 "
            "albert_layers.0.ffn albert_layers.0.ffn_output",
        ),
        ("other", "bottleneck.input.dense"),
    ],
)
def test_matrices_of_many_architectures_are_grouped(group, kinds):
    weights = [WeightReport(kind, 0, kind, (1, 1), 0, ()) for kind in kinds.split()]
    assert {weight.part for weight in weights} == {group}
