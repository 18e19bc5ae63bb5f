import math
from dataclasses import dataclass, field
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cyclprune import CRITERIA, PruningConfig
from hf_cyclprune.pruning.criterion import Criterion
from hf_cyclprune.pruning.patterns import (
    NM,
    SCOPES,
    Unstructured,
    erk_densities,
    is_top_of_group,
    largest_remainder,
    parse_pattern,
)
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.pruning.schedules import Schedule

SHAPES = {"a": (3, 8), "b": (2, 4), "c": (16, 12), "d": (7, 4)}
fractions = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0, 1))
shape_lists = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6)


@dataclass
class Given(Criterion):
    """Scores from a table."""

    table: dict = field(default_factory=dict)

    def score(self, rows):
        return self.table[rows.name]


def masks_of(pattern, table, sparsity):
    targets = {name: torch.ones(scores.shape) for name, scores in table.items()}
    pruner = Pruner(targets, Schedule(sparsity=0.5, total_steps=10), Given(table=table), pattern)
    pruner.prune_to(sparsity)
    return pruner.masks


def random_scores(shapes, *, hostile=False):
    generator = torch.Generator().manual_seed(0)
    table = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if hostile:  # ties, zeros of both signs, NaN, infinity
        pool = torch.tensor([0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 2.0])
        for name, scores in table.items():
            table[name] = pool[torch.randint(0, 8, scores.shape, generator=generator)]
    return table


@pytest.mark.parametrize(
    ("pattern", "sparsity", "counts"),
    [
        (Unstructured("layer"), 0.5, [12, 4, 96, 14]),
        (Unstructured("layer"), 0.9, [22, 7, 173, 25]),
        (Unstructured("layer"), 0.0, [0, 0, 0, 0]),
        (Unstructured("global"), 0.5, [126]),
        (Unstructured("global"), 0.9, [227]),
        (NM(2, 4), 0.5, [12, 4, 96, 14]),
        (NM(2, 4), 0.25, [6, 2, 48, 7]),
        (NM(1, 4), 0.75, [18, 6, 144, 21]),
        (NM(1, 4), 0.0, [0, 0, 0, 0]),
        (NM(1, 4), 0.8, [18, 6, 144, 21]),
    ],
)
def test_counts_by_hand(pattern, sparsity, counts):
    assert pattern.num_pruned(SHAPES, sparsity) == counts


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("is_hostile", [False, True])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.97])
def test_every_scope_prunes_exactly_what_it_counts(scope, is_hostile, sparsity):
    pattern = Unstructured(scope)
    masks = masks_of(pattern, random_scores(SHAPES, hostile=is_hostile), sparsity)
    counts = [sum(int((~masks[name]).sum()) for name in group) for group in pattern.groups(SHAPES)]
    assert counts == pattern.num_pruned(SHAPES, sparsity)
    assert sorted(name for group in pattern.groups(SHAPES) for name in group) == sorted(SHAPES)


@pytest.mark.parametrize("scope", SCOPES)
@given(shape_lists, fractions)
@settings(deadline=None, max_examples=80)
def test_every_scope_counts_the_demanded_total_within_the_sizes(scope, shapes, sparsity):
    named = {str(i): shape for i, shape in enumerate(shapes)}
    counts = Unstructured(scope).num_pruned(named, sparsity)
    sizes = [sum(prod(named[n]) for n in g) for g in Unstructured(scope).groups(named)]
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    if scope == "layer":
        assert counts == [round(sparsity * size) for size in sizes]
    else:
        assert sum(counts) == round(sparsity * sum(sizes))


@pytest.mark.parametrize("scope", SCOPES)
def test_the_mask_of_each_group_is_that_of_the_slow_twin(scope, mask_of_lowest):
    pattern, table = Unstructured(scope), random_scores(SHAPES, hostile=True)
    masks = masks_of(pattern, table, 0.6)
    for group, count in zip(pattern.groups(SHAPES), pattern.num_pruned(SHAPES, 0.6), strict=True):
        for name, expected in zip(
            group, mask_of_lowest([table[name] for name in group], count), strict=True
        ):
            assert torch.equal(masks[name], expected)


@pytest.mark.parametrize(
    ("shapes", "sparsity", "expected"),
    [
        ([(2, 4), (3, 6, 7), (7, 4)], 0.5, [0, 0.64, 0]),
        ([(2, 4), (3, 6, 7)], 0.5, [0, 0.53]),
        ([(2, 4)], 0.5, [0.5]),
        ([(2, 4), (3, 6, 7)], 0.0, [0, 0]),
        ([(5, 5), (5, 5)], 0.9, [0.9, 0.9]),
    ],
)
def test_erk_sparsities_are_the_known_ones(shapes, sparsity, expected):
    found = [1 - density for density in erk_densities(shapes, 1 - sparsity)]
    assert found == pytest.approx(expected, abs=0.005)


@given(shape_lists, fractions)
@settings(deadline=None, max_examples=150)
def test_erk_densities_have_the_demanded_mean_and_one_scale_below_the_dense_layers(shapes, density):
    densities = erk_densities(shapes, density)
    sizes = [prod(shape) for shape in shapes]
    assert all(0 <= d <= 1 for d in densities)
    mean = sum(d * size for d, size in zip(densities, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(density, abs=1e-9)
    scales = [
        d * size / sum(shape) for d, size, shape in zip(densities, sizes, shapes, strict=True)
    ]
    free = [scale for scale, d in zip(scales, densities, strict=True) if d < 1]
    if free:  # a dense layer is one that the common scale would overfill
        assert max(free) == pytest.approx(min(free), abs=1e-9)
        assert all(scale <= max(free) + 1e-9 for scale in scales)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=8), st.data())
@settings(deadline=None, max_examples=150)
def test_largest_remainder_adds_up_within_the_limits(parts, data):
    limits = [math.ceil(part) + data.draw(st.integers(0, 2)) for part in parts]
    total = min(max(round(sum(parts)) + data.draw(st.integers(-2, 2)), 0), sum(limits))
    counts = largest_remainder(parts, total, limits)
    assert sum(counts) == total
    assert all(0 <= count <= limit for count, limit in zip(counts, limits, strict=True))
    if total == round(sum(parts)):
        assert all(abs(count - part) <= 1 for count, part in zip(counts, parts, strict=True))


@pytest.mark.parametrize(
    ("parts", "total", "limits", "counts"),
    [
        ([1.2, 2.7, 3.1], 7, [9, 9, 9], [1, 3, 3]),
        ([1.5, 1.5, 1.5], 4, [9, 9, 9], [2, 1, 1]),
        ([1.9, 1.0], 3, [1, 9], [1, 2]),
        ([2.0, 2.0], 3, [9, 9], [2, 1]),
    ],
)
def test_largest_remainder_by_hand(parts, total, limits, counts):
    assert largest_remainder(parts, total, limits) == counts


@given(
    st.integers(2, 9).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m))),
    st.integers(1, 6),
    st.data(),
)
@settings(deadline=None, max_examples=80)
def test_the_top_of_each_group_is_that_of_a_stable_sort(n_m, num_groups, data):
    n, m = n_m
    values = st.integers(-3, 3)
    rows = [data.draw(st.lists(values, min_size=m, max_size=m)) for _ in range(num_groups)]
    top = is_top_of_group(torch.tensor(rows, dtype=torch.int32), n)
    for row, kept in zip(rows, top.tolist(), strict=True):
        best = sorted(range(m), key=lambda i, row=row: (-row[i], i))[:n]
        assert {i for i in range(m) if kept[i]} == set(best)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(3, 4), NM(4, 8), NM(1, 2)])
@pytest.mark.parametrize("scores", ["random", "hostile", "equal", "nan"])
def test_at_its_sparsity_every_group_of_nm_keeps_exactly_n(pattern, scores):
    shapes = {"a": (3, 16), "b": (5, 8)}
    table = random_scores(shapes, hostile=scores == "hostile")
    if scores in ("equal", "nan"):
        value = 1.0 if scores == "equal" else math.nan
        table = {name: torch.full(shape, value) for name, shape in shapes.items()}
    for mask in masks_of(pattern, table, pattern.sparsity).values():
        assert (mask.view(-1, pattern.m).sum(1) == pattern.n).all()


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(3, 8)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("is_hostile", [False, True])
def test_on_its_way_nm_keeps_the_top_n_and_prunes_the_lowest_of_the_rest(
    pattern, share, is_hostile, mask_of_lowest
):
    shapes = {"a": (4, 16), "b": (3, 8)}
    table = random_scores(shapes, hostile=is_hostile)
    masks = masks_of(pattern, table, share * pattern.sparsity)
    for name, scores in table.items():
        groups = scores.view(-1, pattern.m)
        top = torch.stack([mask_of_lowest([g], pattern.m - pattern.n)[0] for g in groups])
        count = round(share * groups.shape[0] * (pattern.m - pattern.n))
        expected = torch.ones_like(top)
        (expected[~top],) = mask_of_lowest([groups[~top]], count)
        assert torch.equal(masks[name], expected.view(scores.shape))


def test_nm_by_hand():
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.0], [8.0, 7.0, 6.0, 5.0]])
    # candidates beside the top 2 of each group: 1, 2 and 6, 5; half of the way prunes 1 and 2
    kept = masks_of(NM(2, 4), {"a": scores}, 0.25)["a"].int().tolist()
    assert kept == [[1, 0, 1, 0], [1, 1, 1, 1]]
    kept = masks_of(NM(2, 4), {"a": scores}, 0.5)["a"].int().tolist()
    assert kept == [[1, 0, 1, 0], [1, 1, 0, 0]]


def test_groups_of_nm_do_not_run_across_rows():
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert masks_of(NM(1, 2), {"a": scores}, 0.5)["a"].int().tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(("shape", "m"), [((4, 6), 4), ((8, 3), 2), ((2, 4), 8)])
def test_nm_refuses_an_input_dimension_that_m_does_not_divide(shape, m):
    message = rf"pattern '1:{m}' needs input dimensions divisible by {m}; got {shape[1]} in 'b'"
    with pytest.raises(ValueError, match=message + r".*ignore="):
        NM(1, m).check({"a": (3, m), "b": shape})


@pytest.mark.parametrize(
    ("spelling", "scope", "pattern"),
    [
        ("unstructured", None, Unstructured("layer")),
        ("unstructured", "global", Unstructured("global")),
        ("2:4", None, NM(2, 4)),
        ("1:16", None, NM(1, 16)),
    ],
)
def test_spellings_are_parsed(spelling, scope, pattern):
    assert parse_pattern(spelling, scope) == pattern


@pytest.mark.parametrize(
    ("spelling", "scope", "words"),
    [
        ("structured", None, ["pattern", "'structured'", "'2:4'"]),
        ("", None, ["pattern", "''", "'2:4'"]),
        ("2:4:8", None, ["pattern", "'2:4:8'", "'2:4'"]),
        ("-2:4", None, ["pattern", "'-2:4'", "'2:4'"]),
        ("2 : 4", None, ["pattern", "'2 : 4'", "'2:4'"]),
        (None, None, ["pattern", "None", "'2:4'"]),
        (24, None, ["pattern", "24", "'2:4'"]),
        ("0:4", None, ["0 < n < m", "'0:4'", "'2:4'"]),
        ("4:4", None, ["0 < n < m", "'4:4'", "'2:4'"]),
        ("5:4", None, ["0 < n < m", "'5:4'", "'2:4'"]),
        ("unstructured", "local", ["scope", "layer, global, erk", "'local'", "Omit"]),
        ("2:4", "layer", ["scope", "'layer'", "'2:4'", "left out"]),
        ("2:4", "erk", ["scope", "'erk'", "'2:4'", "left out"]),
    ],
)
def test_bad_spellings_are_refused_with_a_remedy(spelling, scope, words):
    with pytest.raises(ValueError, match="must") as error:
        parse_pattern(spelling, scope)
    assert [word for word in words if word not in str(error.value)] == []


def test_a_floor_keeps_the_best_of_every_matrix_and_the_count_of_all():
    table = {"small": torch.arange(1.0, 41.0).view(4, 10) / 1000, "large": torch.ones(4, 10)}
    without = masks_of(Unstructured("global"), table, 0.5)
    assert not without["small"].any()
    masks = masks_of(Unstructured("global", 0.1), table, 0.5)
    assert masks["small"].flatten().nonzero().flatten().tolist() == [36, 37, 38, 39]
    assert int(masks["large"].sum()) == 36


def test_a_floor_counts_whole_matrices_however_many_rows_are_scored_at_a_time(monkeypatch):
    monkeypatch.setattr("hf_cyclprune.pruning.ranking.CHUNK", 10)
    weights = {"a": torch.arange(1.0, 41.0).view(4, 10), "b": 100 * torch.ones(4, 10)}
    magnitude = CRITERIA["magnitude"]()
    pruner = Pruner(weights, Schedule(0.5, 10), magnitude, Unstructured("global", 0.25))
    pruner.prune_to(0.5)
    assert pruner.masks["a"].sum(1).tolist() == [0, 0, 0, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_density": 0.05, "scope": "layer"}, "min_density must come with scope='global'"),
        ({"min_density": 0.2, "scope": "global"}, r"at most 0\.1.*got 0\.2"),
        ({"min_density": -1, "scope": "global"}, r"min_density must be in \[0, 1\]"),
    ],
)
def test_a_floor_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(sparsity=0.9, **options)
