import json

import numpy as np
import pytest
import torch
from torch import nn

from hf_cyclprune.pruning.targets import find_targets
from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.report import REPORT_NAME, SparsityReport, load_report

CYCLES = (
    CycleReport(cycle=1, end_step=10, sparsity=0.5),
    CycleReport(2, 20, 0.5, 11, 0.25, 0.125, 0.0625, {"eval_f1": 0.75, "eval_loss": 0.5}),
)


@pytest.fixture
def sparse_bert(tiny_bert):
    """A BERT of which each target holds another share of zeros of both signs."""
    model = tiny_bert()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for i, weight in enumerate(find_targets(model).values()):
            weight[torch.rand(weight.shape, generator=generator) < i / 12] = -0.0 if i % 2 else 0.0
        model.classifier.weight.zero_()
        model.bert.embeddings.word_embeddings.weight.zero_()
    return model


def test_zeros_of_the_targets_are_counted_as_numpy_counts_them(sparse_bert):
    report = SparsityReport.measure(sparse_bert)
    targets = {n: w.detach().numpy() for n, w in find_targets(sparse_bert).items()}
    assert [w.name for w in report.weights] == list(targets)
    for weight in report.weights:
        array = targets[weight.name]
        assert weight.num_zeros == np.count_nonzero(array == 0)
        assert weight.num_weights == array.size
        assert weight.shape == array.shape
        assert weight.sparsity == weight.num_zeros / array.size
    assert report.num_weights == sum(a.size for a in targets.values()) == 4096
    assert report.num_zeros == sum(np.count_nonzero(a == 0) for a in targets.values())
    assert report.sparsity == report.num_zeros / 4096


def test_layers_and_kinds_are_means_over_their_weights(sparse_bert):
    report = SparsityReport.measure(sparse_bert)
    arrays = {n: w.detach().numpy().ravel() for n, w in find_targets(sparse_bert).items()}
    for i in range(2):
        layer = np.concatenate([a for n, a in arrays.items() if f"layer.{i}." in n])
        assert report.by_layer()[f"layer {i}"].sparsity == pytest.approx(np.mean(layer == 0))
    assert list(report.by_layer()) == ["layer 0", "layer 1"]
    for kind, group in report.by_kind().items():
        both = [arrays[f"bert.encoder.layer.{i}.{kind}.weight"] for i in range(2)]
        assert group.sparsity == pytest.approx(np.mean(np.concatenate(both) == 0))
    assert len(report.by_kind()) == 6


def test_a_nan_is_no_zero_and_a_half_model_is_counted_too(tiny_bert):
    model = tiny_bert().to(torch.bfloat16)
    weight = next(iter(find_targets(model).values()))
    with torch.no_grad():
        weight.fill_(float("nan"))
        weight[0, :3] = 0
    assert SparsityReport.measure(model).num_zeros == 3


def test_frozen_weights_are_counted_without_a_warning(sparse_bert, recwarn):
    report = SparsityReport.measure(sparse_bert)
    sparse_bert.requires_grad_(False)
    assert SparsityReport.measure(sparse_bert) == report
    assert not recwarn.list


def test_weights_given_by_name_are_counted_as_those_of_a_model(sparse_bert):
    weights = dict(list(find_targets(sparse_bert).items())[2:4])
    report = SparsityReport.measure(weights, patterns=["1:4"], parameters=sparse_bert.parameters())
    expressions = [f"^{name}$" for name in weights]
    assert report == SparsityReport.measure(sparse_bert, targets=expressions, patterns=["1:4"])
    assert [weight.name for weight in report.weights] == list(weights)


def test_targets_and_ignore_choose_what_is_counted(sparse_bert):
    report = SparsityReport.measure(sparse_bert, targets=["query", "pooler"], ignore=["layer.0"])
    assert [w.kind for w in report.weights] == ["attention.self.query", "bert.pooler.dense"]
    assert list(report.by_layer()) == ["layer 1", "none"]


def test_the_patterns_of_a_report_are_those_of_all_its_weights(tiny_bert):
    model = tiny_bert()
    targets = find_targets(model)
    with torch.no_grad():
        for weight in targets.values():
            weight.view(-1, 4)[:, :2] = 0
    assert SparsityReport.measure(model).patterns == ("2:4", "4:8")
    assert SparsityReport.measure(model, patterns=["1:4"]).patterns == ()
    wanted = ["2:4", "unstructured", "2:4", "3:4"]
    assert SparsityReport.measure(model, patterns=wanted).patterns == ("2:4", "3:4")
    with torch.no_grad():
        list(targets.values())[5][0, 0] = 1.0
    report = SparsityReport.measure(model)
    assert report.patterns == ()
    assert [w.patterns for w in report.weights].count(("2:4", "4:8")) == 11


@pytest.mark.parametrize(
    ("target", "num_zeros", "is_at_target"),
    [
        (None, 0, True),
        (0.5, 2048, True),
        (0.5, 2048 + 12, True),
        (0.5, 2048 - 12, True),
        (0.5, 2048 - 13, False),
        (0.5, 2048 + 13, False),
        (0.0, 0, True),
    ],
)
def test_at_the_target_means_up_to_the_rounding_of_one_count_in_each_matrix(
    tiny_bert, target, num_zeros, is_at_target
):
    model = tiny_bert()
    with torch.no_grad():
        for weight in find_targets(model).values():
            count = min(num_zeros, weight.numel())
            weight.view(-1)[:count] = 0
            num_zeros -= count
    report = SparsityReport.measure(model, target_sparsity=target)
    assert report.is_at_target == is_at_target
    assert ("not at the target" in str(report)) != is_at_target


def test_a_report_is_saved_as_json_and_its_cycles_are_read_again(sparse_bert, tmp_path):
    report = SparsityReport.measure(sparse_bert, cycles=CYCLES, target_sparsity=0.5)
    path = report.save(tmp_path)
    assert path == tmp_path / REPORT_NAME
    values = json.loads(path.read_text())
    assert values["num_zeros"] == report.num_zeros
    assert values["sparsity"] == report.sparsity
    assert values["target_sparsity"] == 0.5
    assert values["is_at_target"] == report.is_at_target
    assert len(values["weights"]) == 12
    assert values["weights"][0]["shape"] == [16, 16]
    assert load_report(tmp_path) == report


def test_errors_of_outputs_are_saved_and_a_report_without_them_is_read(sparse_bert, tmp_path):
    names = list(find_targets(sparse_bert))
    errors = {names[0]: (0.5, 0.25), names[1]: (0.25, 0.125)}
    report = SparsityReport.measure(sparse_bert, output_errors=errors)
    assert report.mean_output_errors == (0.375, 0.1875)
    assert "the matrices: 37.50% masked, 18.75% after compensation" in str(report)
    path = report.save(tmp_path)
    assert load_report(tmp_path) == report
    values = json.loads(path.read_text())
    for weight in values["weights"]:
        del weight["output_error"], weight["output_error_masked"]
    path.write_text(json.dumps(values))
    assert load_report(tmp_path) == SparsityReport.measure(sparse_bert)


def test_a_folder_without_a_report_has_none(tmp_path):
    assert load_report(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"weights": 3}', '{"weights": [{"x": 1}]}'])
def test_a_report_that_cannot_be_read_is_an_error(tmp_path, text):
    (tmp_path / REPORT_NAME).write_text(text)
    with pytest.raises(ValueError, match=rf"^{REPORT_NAME} in '.*' .*: .*\. Delete the file"):
        load_report(tmp_path)


def test_a_report_is_a_table_for_people():
    layer = nn.TransformerEncoderLayer(4, 1, 4, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    with torch.no_grad():
        for weight in find_targets(model, ["weight"]).values():
            weight.fill_(1.0)
            weight[:, 0] = 0
        for name, parameter in model.named_parameters():
            if "linear" not in name and "out_proj.weight" not in name:
                parameter.fill_(1.0)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert str(SparsityReport.measure(model, patterns=["3:4"], cycles=CYCLES)).splitlines() == [
        "sparsity 25.0000%: 12 zeros in 48 target weights of 3 matrices",
        f"{12 / total:.2%} of all {total} parameters are zero",
        "n:m satisfied by all: 3:4",
        "",
        "matrix                weights  zeros  sparsity  n:m",
        "attention                  16      4    25.00%  3:4",
        "  self_attn.out_proj       16      4    25.00%  3:4",
        "feed-forward               32      8    25.00%  3:4",
        "  linear1                  16      4    25.00%  3:4",
        "  linear2                  16      4    25.00%  3:4",
        "",
        "layer    weights  zeros  sparsity  n:m",
        "layer 0       48     12    25.00%  3:4",
        "",
        "cycle  last step  sparsity      f1  recovered at edge  recovered at end  mask change",
        "    1         10    50.00%       -                  -                 -            -",
        "    2         20    50.00%  0.7500             25.00%            12.50%        6.25%",
    ]
