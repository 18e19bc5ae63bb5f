"""Sparsities of single layers: exact in each and in all together, or refused."""

import pytest

from hf_cyclprune import PruningConfig, PruningTrainer
from hf_cyclprune.pruning.layer_sparsities import LayerSparsities, parse_layer_sparsities

SHAPES = {"a": (10, 10), "b": (10, 10), "c": (20, 10)}


def test_the_others_make_up_the_total_at_every_sparsity():
    pattern = LayerSparsities((("a", 0.5), ("[ab]", 0.95)), total=0.8)
    assert pattern.num_pruned(SHAPES, 0.8) == [50, 95, 175]
    assert pattern.num_pruned(SHAPES, 0.4) == [25, 48, 87]
    assert pattern.num_pruned(SHAPES, 0.0) == [0, 0, 0]


def test_they_may_be_of_all_weights_if_they_make_up_the_total():
    pattern = LayerSparsities((("[ab]", 0.9), ("c", 0.7)), total=0.8)
    pattern.check(SHAPES)
    assert pattern.num_pruned(SHAPES, 0.8) == [90, 90, 140]
    assert pattern.num_pruned(SHAPES, 0.4) == [45, 45, 70]


def test_all_of_them_may_miss_the_total_by_a_little_and_are_scaled_to_it():
    shapes = dict.fromkeys("abcde", (1000, 1000))
    pattern = LayerSparsities((("a", 0.1), ("b", 0.9), (".", 0.5)), total=0.50009)
    pattern.check(shapes)
    assert pattern.num_pruned(shapes, 0.50009) == [100_018, 900_162, 500_090, 500_090, 500_090]


def test_a_run_ends_with_the_given_sparsities_and_the_total(train):
    config = PruningConfig(
        sparsity=0.8, num_cycles=2, layer_sparsities=["query=0.5", r"layer\.1.*dense=0.9"]
    )
    trainer = train(PruningTrainer, pruning_config=config)
    report = trainer.sparsity_report()
    assert report.num_zeros == round(0.8 * report.num_weights)
    assert report.is_at_target
    for weight in report.weights:
        if "query" in weight.name:
            assert weight.sparsity == 0.5
        elif "layer.1" in weight.name and "dense" in weight.name:
            assert weight.sparsity == pytest.approx(0.9, abs=1 / weight.num_weights)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("query", r"'EXPRESSION=SPARSITY'; got 'query'"),
        ("query=high", r"'EXPRESSION=SPARSITY'; got 'query=high'"),
        ("=0.5", r"'EXPRESSION=SPARSITY'; got '=0\.5'"),
        ("query=1.5", r"in \[0, 1\]; got 1\.5"),
        ("qu(ery=0.5", r"regular expressions; got 'qu\(ery'"),
    ],
)
def test_bad_values_are_refused_before_a_model_is_there(value, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(sparsity=0.8, layer_sparsities=[value])


@pytest.mark.parametrize("options", [{"pattern": "2:4"}, {"sparsity": 0.8, "scope": "erk"}])
def test_they_do_not_go_with_a_pattern_or_a_scope(options):
    with pytest.raises(ValueError, match="layer_sparsities must come with pattern 'unstructured'"):
        PruningConfig(layer_sparsities=["query=0.5"], **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mlp=0.5", "'mlp', which matches none.*'bert"),
        (".=0.5", r"add up to the sparsity of 0\.9; got 0\.5 for all"),
        ("query|key|value|dense=0.1", r"got 0\.1 for all"),
        ("query=0", r"leave a sparsity of 1\.029"),
    ],
)
def test_what_the_model_cannot_have_is_refused(train, given, message):
    config = PruningConfig(sparsity=0.9, num_cycles=2, layer_sparsities=[given])
    with pytest.raises(ValueError, match=message):
        train(PruningTrainer, pruning_config=config)


def test_the_last_equals_sign_counts():
    assert parse_layer_sparsities(["a=b=0.5"]) == (("a=b", 0.5),)
