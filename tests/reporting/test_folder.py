import json

import pytest
import torch
from transformers import BertForSequenceClassification, BertModel, BertPreTrainedModel
from transformers.utils import logging

from hf_cyclprune import CRITERIA, PruningConfig, SparsityReport, prune_, save_config
from hf_cyclprune.reporting.folder import (
    distinct_names,
    read_dense_metrics,
    read_results,
    read_run,
    report_folder,
)
from hf_cyclprune.reporting.run import RunRecord
from tests.reporting.runs import CYCLICAL, make_report, make_run, save_run


def test_a_record_comes_before_the_trainers_state(tmp_path):
    save_run(tmp_path, make_run(config=CYCLICAL))
    record = RunRecord(8, 4, 16, {"eval_f1": 0.5}, [{"step": 4, "loss": 1.0}])
    record.save(tmp_path)
    run = read_run(tmp_path)
    assert (run.record.total_steps, run.record.weights_step) == (16, 4)
    assert run.record.log_history == record.log_history
    assert run.record.metrics == record.metrics
    assert run.config == CYCLICAL


def test_a_run_that_was_killed_is_read_from_its_newest_checkpoint(tmp_path):
    run = make_run(config=CYCLICAL, total_steps=80)
    save_run(tmp_path / "checkpoint-9", make_run(total_steps=10))
    save_run(tmp_path / "checkpoint-10", run)
    (tmp_path / "checkpoint-11").mkdir()
    found = read_run(tmp_path)
    assert found.record.log_history == run.record.log_history
    assert found.schedule == CYCLICAL.build_schedule(80)
    assert found.name == tmp_path.name
    assert read_run(tmp_path / "checkpoint-10").name == f"{tmp_path.name}/checkpoint-10"


def test_a_report_alone_is_a_run_of_which_no_step_is_known(tmp_path):
    make_report().save(tmp_path)
    run = read_run(tmp_path)
    assert (run.report, run.record, run.schedule) == (make_report(), RunRecord(), None)


def test_the_results_of_an_evaluation_are_read_where_no_record_has_them(tmp_path):
    save_run(tmp_path, make_run(evaluate=1000))
    (tmp_path / "eval_results.json").write_text('{"eval_accuracy": 0.5, "sparsity": 0.0}')
    assert read_run(tmp_path).outcome("eval_accuracy") == (0.0, 0.5)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_state_that_cannot_be_read_is_an_error(tmp_path, text):
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ValueError, match=r"trainer_state.json in .* cannot be read: .*Delete"):
        read_run(tmp_path)


def test_names_are_told_apart_by_their_parents():
    assert distinct_names(["/x/a/out", "/x/b/out", "/x/c"]) == ["a/out", "b/out", "x/c"]
    assert distinct_names(["/x/a"]) == ["a"]


def write_results(folder, **values):
    folder.mkdir(exist_ok=True)
    (folder / "all_results.json").write_text(json.dumps(values))
    return folder


def test_a_dense_run_is_one_of_the_same_task(tmp_path):
    pruned = {"eval_accuracy": 0.8, "eval_samples": 10}
    dense = write_results(tmp_path / "a", eval_accuracy=0.9, eval_f1=0.1, eval_samples=10, epoch=1)
    assert read_dense_metrics(dense, pruned) == {"eval_accuracy": 0.9, "eval_samples": 10}
    for values, reason in (
        ({"eval_accuracy": 0.9, "eval_samples": 11}, "other data"),
        ({"eval_f1": 0.9}, "other data"),
        ({"eval_accuracy": 0.9, "sparsity": 0.8}, "a sparsity of 80.00%"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_dense_metrics(write_results(tmp_path / "b", **values), pruned)
    with pytest.raises(ValueError, match=r"has no all_results\.json\. Pass the output_dir"):
        read_results(tmp_path / "c")
    bad = dict.fromkeys(("{", "[]", "null"), r"all_results\.json in .* cannot be read: .*Pass")
    bad['{"eval_accuracy": 1, "sparsity": "much"}'] = "a sparsity of 'much'"
    for text, reason in bad.items():
        (tmp_path / "b" / "all_results.json").write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_results(tmp_path / "b")


@pytest.mark.parametrize("model_type", ["bert", "own"])
def test_no_code_from_a_folder_runs(tiny_bert, tmp_path, model_type, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail("a person is asked"))
    tiny_bert().save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    path = tmp_path / "config.json"
    values = {**json.loads(path.read_text()), "model_type": model_type}
    values["auto_map"] = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    path.write_text(json.dumps(values))
    if model_type == "bert":
        assert report_folder(tmp_path).num_weights == 4096
    else:
        with pytest.raises(ValueError, match="custom code"):
            report_folder(tmp_path)


def test_a_report_of_another_model_is_an_error(tiny_bert, tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    make_report().save(tmp_path)
    with pytest.raises(ValueError, match=r"not about the model there, .* 'x\.0\.attention.*Delete"):
        report_folder(tmp_path)


@pytest.fixture
def saved(tiny_bert, tmp_path):
    tiny_bert().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("has_pickle", [False, True])
def test_a_model_without_safetensors_is_refused_and_no_pickle_is_read(saved, has_pickle):
    (saved / "model.safetensors").unlink()
    if has_pickle:
        torch.save({}, saved / "pytorch_model.bin")
    rule = rf"^There is no model\.safetensors in '{saved}'\. Pass a folder with a model saved as "
    with pytest.raises(ValueError, match=rule):
        report_folder(saved)


@pytest.mark.parametrize(
    "entry",
    [
        {"hidden_size": "wide"},
        {"hidden_size": 17},
        {"model_type": None},
        {"model_type": "unheard_of"},
        {"id2label": 5},
        {"num_hidden_layers": -1.5},
    ],
)
def test_a_config_of_no_model_is_one_sentence_with_the_folder_and_a_remedy(saved, entry):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | entry))
    with pytest.raises(
        ValueError, match=rf"'{saved}'.* Save the model (again|with a class)"
    ) as caught:
        report_folder(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 5, "BertModel", [5], ["NoSuchModel"]])
def test_a_class_that_is_none_gives_way_to_that_of_the_type(saved, value):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"architectures": value}))
    assert report_folder(saved).num_weights == 4096


class Mine(BertForSequenceClassification):
    """A class of one's own, with the names of one of transformers."""


class Head(BertPreTrainedModel):
    """Another one, under whose names AutoModel finds nothing."""

    def __init__(self, config):
        super().__init__(config)
        self.encoder_of_mine = BertModel(config)
        self.post_init()


def test_the_model_of_a_class_of_ones_own_is_counted_or_refused_but_never_drawn(
    tiny_bert, tmp_path
):
    config = PruningConfig(sparsity=0.8, scope="layer")
    for cls in (Mine, Head):
        model = cls(tiny_bert().config)
        counted = prune_(model, config)
        model.save_pretrained(tmp_path / cls.__name__)
        counted.save(tmp_path / cls.__name__)
    assert report_folder(tmp_path / "Mine").num_zeros == counted.num_zeros
    with pytest.raises(ValueError, match=r"no 'encoder\.layer\.0.*\['Head'\]; .* SparsityReport"):
        report_folder(tmp_path / "Head")


def test_a_run_with_a_criterion_of_ones_own_is_reported_without_its_code(
    tiny_bert, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(CRITERIA, "mine", CRITERIA["magnitude"])
    model, config = tiny_bert(), PruningConfig(sparsity=0.8, criterion="mine", scope="layer")
    model.save_pretrained(tmp_path)
    save_config(config, tmp_path)
    SparsityReport.measure(model, target_sparsity=0.8).save(tmp_path)
    monkeypatch.delitem(CRITERIA, "mine")
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    report = report_folder(tmp_path)
    assert "settings of the run are left out" in caplog.text
    assert (report.num_zeros, report.target_sparsity, report.is_at_target) == (0, 0.8, False)
    assert read_run(tmp_path).config is None
