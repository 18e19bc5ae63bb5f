import math

import pytest
import torch

from hf_cyclprune import PruningConfig, find_targets, prune_
from hf_cyclprune.pruning.criterion import CRITERIA
from hf_cyclprune.pruning.patterns import SCOPES


def backward(model):
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=torch.tensor([1])).loss.backward()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_the_model_has_the_demanded_zeros_and_the_report_counts_them(tiny_bert, scope, sparsity):
    model, dense = tiny_bert(), tiny_bert()
    report = prune_(model, PruningConfig(sparsity=sparsity, scope=scope))
    targets = find_targets(model)
    num_zeros = sum(int((weight == 0).sum()) for weight in targets.values())
    assert report.num_zeros == num_zeros
    assert num_zeros == pytest.approx(sparsity * 4096, abs=0.5 if scope != "layer" else 6)
    assert report.is_at_target
    assert report.target_sparsity == sparsity
    for name, parameter in dense.named_parameters():
        pruned = model.get_parameter(name)
        if name in targets:
            assert torch.equal(pruned[pruned != 0], parameter[pruned != 0])
        else:
            assert torch.equal(pruned, parameter)


def test_the_default_method_stands_for_one_shot_pruning(tiny_bert):
    """Its own criterion averages over a training, and says so where it is asked for."""
    default, one_shot = tiny_bert(), tiny_bert()
    prune_(default, PruningConfig(sparsity=0.5))
    prune_(one_shot, PruningConfig("one_shot", sparsity=0.5))
    for name, weight in default.state_dict().items():
        assert torch.equal(weight, one_shot.state_dict()[name])
    floor = prune_(tiny_bert(), PruningConfig(sparsity=0.5, min_density=0.45))
    assert floor.num_zeros == 2048
    assert max(weight.sparsity for weight in floor.weights) < 0.56
    for asked in ({"method": "fisher"}, {"criterion": "fisher"}):
        with pytest.raises(ValueError, match="'fisher', which averages over optimizer steps"):
            prune_(tiny_bert(), PruningConfig(sparsity=0.5, **asked))


def test_the_smallest_magnitudes_of_each_matrix_are_gone(tiny_bert):
    model, dense = tiny_bert(), tiny_bert()
    prune_(model, PruningConfig(sparsity=0.75))
    for name, weight in find_targets(model).items():
        kept, old = weight != 0, dense.get_parameter(name)
        assert old[kept].abs().min() >= old[~kept].abs().max()
        assert not weight.detach().view(torch.int32)[~kept].any()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "3:16"])
def test_nm_holds_in_every_group_and_is_reported(tiny_bert, pattern):
    model = tiny_bert()
    report = prune_(model, PruningConfig(pattern=pattern))
    n, m = map(int, pattern.split(":"))
    for weight in find_targets(model).values():
        assert ((weight.view(-1, m) != 0).sum(1) == n).all()
    assert pattern in report.patterns
    assert report.sparsity == (m - n) / m
    assert report.is_at_target


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_after_a_backward_pass(tiny_bert, criterion):
    model = tiny_bert()
    backward(model)
    config = PruningConfig(sparsity=0.5, criterion=criterion)
    if CRITERIA[criterion].looks_at_inputs:
        with pytest.raises(ValueError, match=f"'{criterion}' looks at the inputs.*calibration="):
            prune_(model, config)
        return
    if CRITERIA[criterion]().is_statistic:
        with pytest.raises(ValueError, match=f"'{criterion}', which averages over optimizer steps"):
            prune_(model, config)
        return
    assert prune_(model, config).num_zeros == 2048


def test_a_criterion_of_gradients_without_a_backward_pass_is_refused(tiny_bert):
    with pytest.raises(ValueError, match="gradient of every target weight, but 'bert"):
        prune_(tiny_bert(), PruningConfig(sparsity=0.5, criterion="taylor"))


def test_targets_and_ignore_are_respected_and_reported(tiny_bert):
    config = PruningConfig(sparsity=0.5, targets=["query", "key"], ignore=[r"layer\.0"])
    report = prune_(tiny_bert(), config)
    assert [w.kind for w in report.weights] == ["attention.self.query", "attention.self.key"]
    assert report.sparsity == 0.5


def test_a_model_that_holds_nan_is_refused_before_anything_is_changed(tiny_bert):
    model = tiny_bert()
    weights = list(find_targets(model).values())
    with torch.no_grad():
        weights[-1][0, 0] = math.nan
    with pytest.raises(ValueError, match=r"target weight .* holds NaN or infinity"):
        prune_(model, PruningConfig(sparsity=0.5))
    assert all((weight != 0).all() for weight in weights)


def test_pruning_again_at_a_higher_sparsity_keeps_the_zeros_and_adds_to_them(tiny_bert):
    model = tiny_bert()
    prune_(model, PruningConfig(sparsity=0.5))
    first = {name: weight == 0 for name, weight in find_targets(model).items()}
    assert prune_(model, PruningConfig(sparsity=0.75)).sparsity == 0.75  # not compounded
    assert all((weight[first[name]] == 0).all() for name, weight in find_targets(model).items())


def test_identities_and_keys_of_the_model_stay(tiny_bert):
    model = tiny_bert()
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    keys = list(model.state_dict())
    prune_(model, PruningConfig(sparsity=0.5))
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == before
    assert list(model.state_dict()) == keys


def calibration(num_batches=6):
    """Batches as a DataLoader gives them, some tokens of which are padding."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(num_batches):
        ids = torch.randint(0, 40, (4, 12), generator=generator)
        lengths = torch.randint(6, 13, (4, 1), generator=generator)
        yield {"input_ids": ids, "attention_mask": (torch.arange(12) < lengths).long()}


def logits(model):
    """Of the calibration data."""
    with torch.no_grad():
        return torch.cat([model.eval()(**batch).logits for batch in calibration()])


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "random"])
@pytest.mark.parametrize(
    "wanted",
    [*({"sparsity": 0.5, "scope": scope} for scope in SCOPES), {"pattern": "2:4"}],
    ids=str,
)
def test_with_calibration_the_model_is_nearer_to_the_dense_one(tiny_bert, criterion, wanted):
    config = PruningConfig(criterion=criterion, **wanted)
    scaled = {"initializer_range": 0.3}  # so that a layer does something
    dense, masked, solved = (tiny_bert(**scaled) for _ in range(3))
    report = prune_(solved, config, calibration())
    for name, weight in find_targets(masked).items():
        weight.data *= solved.get_parameter(name) != 0
    truth = logits(dense)
    assert (logits(solved) - truth).norm() < (logits(masked) - truth).norm()
    assert report.num_zeros == 2048
    assert report.is_at_target
    assert wanted.get("pattern", "unstructured") in (*report.patterns, "unstructured")
    assert all(w.output_error < w.output_error_masked for w in report.weights)
    assert "after compensation" in str(report)


def test_without_calibration_nothing_is_said_of_errors(tiny_bert):
    report = prune_(tiny_bert(), PruningConfig(sparsity=0.5))
    assert {(w.output_error_masked, w.output_error) for w in report.weights} == {(None, None)}
    assert "compensation" not in str(report)


def test_wandas_masks_are_those_of_the_dense_models_inputs(tiny_bert):
    model, dense = tiny_bert(), tiny_bert()
    name, inputs = "bert.encoder.layer.1.intermediate.dense.weight", []
    layer = dense.get_submodule(name.removesuffix(".weight"))
    layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    logits(dense)
    real = [batch["attention_mask"].bool() for batch in calibration()]
    norms = torch.cat([x[mask] for x, mask in zip(inputs, real, strict=True)]).norm(dim=0)
    prune_(model, PruningConfig(sparsity=0.75, criterion="wanda"), calibration())
    kept, scores = model.get_parameter(name) != 0, layer.weight.abs() * norms
    assert scores[kept].min() >= scores[~kept].max()


def test_what_is_not_pruned_stays_as_it_was_with_calibration(tiny_bert):
    model, dense = tiny_bert(), tiny_bert()
    model.train()
    prune_(model, PruningConfig(sparsity=0.5), calibration())
    targets = find_targets(model)
    for name, parameter in dense.named_parameters():
        assert name in targets or torch.equal(model.get_parameter(name), parameter)
    assert all(module.training for module in model.modules())
    assert all(weight.grad is None and weight.requires_grad for weight in targets.values())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "calibration must hold a batch"),
        ([torch.ones(2)], "calibration must give dicts of tensors.*got Tensor"),
        ([{"input_ids": [1, 2]}], "calibration must give dicts of tensors"),
        ([{"unknown": torch.ones(2)}], "exactly one of input_ids"),
        ([{"inputs_embeds": torch.full((1, 4, 16), math.nan)}], "NaN or infinity"),
    ],
)
@pytest.mark.parametrize("criterion", ["magnitude", "wanda"])
def test_calibration_that_fails_leaves_the_model_as_it_was(tiny_bert, batches, message, criterion):
    model, dense = tiny_bert(), tiny_bert()
    with pytest.raises(ValueError, match=message):
        prune_(model, PruningConfig(sparsity=0.5, criterion=criterion), batches)
    assert all(torch.equal(model.get_parameter(name), p) for name, p in dense.named_parameters())


def test_a_dict_in_the_place_of_a_config_is_refused_before_anything_changes(tiny_bert):
    with pytest.raises(ValueError, match=r"config must be a PruningConfig; got .* Write Pruning"):
        prune_(tiny_bert(), {"sparsity": 0.8})
