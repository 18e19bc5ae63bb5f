from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.rows import cycle_rows, kind_rows, layer_rows
from hf_cyclprune.reporting.weights import WeightGroup, WeightReport

WEIGHTS = WeightGroup(
    (
        WeightReport("x.0.ffn.weight", 0, "ffn", (100, 20), 1000, ("2:4", "4:8")),
        WeightReport("x.1.ffn.weight", 1, "ffn", (100, 20), 1998, ("2:4",)),
        WeightReport("pooler.weight", None, "pooler", (2, 2), 0, ()),
    )
)


def columns(rows):
    return [tuple(row.values()) for row in rows]


def test_kinds_and_layers_have_the_same_columns_and_their_sums():
    assert list(kind_rows(WEIGHTS)[0]) == ["matrix", "weights", "zeros", "sparsity", "n:m"]
    assert columns(kind_rows(WEIGHTS)) == [
        ("ffn", "4,000", "2,998", "74.95%", "2:4"),
        ("pooler", "4", "0", "0.00%", None),
    ]
    assert columns(layer_rows(WEIGHTS)) == [
        ("layer 0", "2,000", "1,000", "50.00%", "2:4, 4:8"),
        ("layer 1", "2,000", "1,998", "99.90%", "2:4"),
        ("outside of the blocks", "4", "0", "0.00%", None),
    ]


def test_cycles_have_a_column_for_every_main_metric_that_one_of_them_has():
    cycles = [
        CycleReport(1, 1000, 0.5, metrics={"eval_loss": 0.5, "eval_f1": 0.25, "eval_runtime": 9.0}),
        CycleReport(2, 2000, 0.5, 1001, 0.25, 0.0, 0.125, {"eval_mse": 123456.7}),
    ]
    first, second = cycle_rows(cycles)
    assert first == {
        "cycle": "1",
        "last step": "1,000",
        "sparsity": "50.00%",
        "f1": "0.2500",
        "mse": None,
        "recovered at edge": None,
        "recovered at end": None,
        "mask change": None,
    }
    assert list(second) == list(first)
    assert list(second.values())[3:] == [None, "1.235e+05", "25.00%", "0.00%", "12.50%"]
    assert cycle_rows([]) == []
