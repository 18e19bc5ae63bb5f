"""A model as a graph for other runtimes: whole, true, and for any batch and length."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ViTConfig,
    ViTModel,
)

from hf_cyclprune import PruningConfig, pack, prune_
from hf_cyclprune.cli import main
from hf_cyclprune.inference import export as module
from hf_cyclprune.inference.export import FORMATS, export
from tests.hub.repos import make_tokenizer

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"num_hidden_layers": 1, "max_position_embeddings": 32}
SENTENCES = ["a happy cat", "the gloomy train is not warm", "no"]


@pytest.fixture
def needs():
    """Skips a test without the packages of a format."""

    def check(name):
        for package in FORMATS[name]:
            pytest.importorskip(package, reason=f"export to {name} needs {package}")

    return check


@pytest.fixture
def folder(tmp_path):
    """A pruned BERT and its tokenizer, beside files that no graph needs."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **SIZES))
    prune_(model, PruningConfig(sparsity=0.8))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    return tmp_path / "model"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def torch_outputs(cls, folder, batch):
    model = cls.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(**{n: torch.from_numpy(x) for n, x in batch.items()})[0].numpy()


def test_a_graph_of_onnx_answers_what_a_tokenizer_gives_as_torch_does(folder, needs, capsys):
    needs("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    out = folder.parent / "new" / "out"
    assert main(["export", str(folder), str(out), "--format", "onnx"]) == 0
    printed = capsys.readouterr().out
    assert f"{out}/model.onnx\n" in printed
    assert "The outputs are those of torch: they differ by at most " in printed
    assert names(out) == ["config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"]
    session = onnxruntime.InferenceSession(out / "model.onnx")
    axes = ["batch_size", "sequence_length"]
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    assert {i.name: i.shape for i in session.get_inputs()} == dict.fromkeys(inputs, axes)
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch_size", 2])]
    tokenizer = AutoTokenizer.from_pretrained(out)
    for sentences in (SENTENCES, SENTENCES[:1] * 7):
        batch = dict(tokenizer(sentences, padding=True, return_tensors="np"))
        (found,) = session.run(["logits"], batch)
        wanted = torch_outputs(BertForSequenceClassification, folder, batch)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert str(os.getcwd()).encode() not in (out / "model.onnx").read_bytes(), "no path of ours"
    assert AutoConfig.from_pretrained(out).architectures == ["BertForSequenceClassification"]


def test_a_packed_model_without_a_head_becomes_a_graph_of_openvino(tmp_path, needs):
    needs("openvino")
    openvino = pytest.importorskip("openvino")
    model, out = BertModel(BertConfig(vocab_size=40, **SIZES)), tmp_path / "out"
    prune_(model, PruningConfig(sparsity=0.8))
    model.save_pretrained(tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "packed")
    done = export(str(tmp_path / "packed"), out, format="openvino")
    assert done.difference < 1e-4
    assert done.files == ["config.json", "openvino_model.bin", "openvino_model.xml"] == names(out)
    assert "quantization_config" not in (out / "config.json").read_text()
    compiled = openvino.compile_model(out / "openvino_model.xml", "CPU")
    assert [port.get_any_name() for port in compiled.outputs] == ["last_hidden_state"]
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    batch = {name: np.ones((3, 7), np.int64) for name in inputs}
    wanted = torch_outputs(BertModel, tmp_path / "model", batch)
    found = compiled(batch)["last_hidden_state"]
    np.testing.assert_allclose(found, wanted, atol=5e-2)  # perhaps in bfloat16


def test_int8_rounds_the_weights_and_says_by_how_much_the_answers_differ(tmp_path, needs, capsys):
    needs("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    sizes = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}
    config = DistilBertConfig(vocab_size=5000, max_position_embeddings=16, **sizes)
    model = DistilBertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "model"), str(out), "--int8"]) == 0
    assert "The weights were rounded to int8: the outputs differ by " in capsys.readouterr().out
    assert names(out) == ["config.json", "model_quantized.onnx"]
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert (out / "model_quantized.onnx").stat().st_size < 0.4 * size
    session = onnxruntime.InferenceSession(out / "model_quantized.onnx")
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask"]
    batch = {name: np.ones((2, 6), np.int64) for name in ("input_ids", "attention_mask")}
    wanted = torch_outputs(DistilBertForSequenceClassification, tmp_path / "model", batch)
    assert np.abs(session.run(None, batch)[0] - wanted).max() < 0.2 * np.abs(wanted).max()


# Without the packages


@pytest.fixture
def _without_packages(monkeypatch):
    monkeypatch.setattr(module, "FORMATS", dict.fromkeys(FORMATS, ()))


def broken(*_):
    try:
        raise RuntimeError("no such operator\nsee the manual")
    except RuntimeError as error:
        raise ValueError("pages of advice") from error


@pytest.mark.usefixtures("_without_packages")
@pytest.mark.parametrize("verb_format", FORMATS)
def test_a_model_that_cannot_be_exported_is_one_line_and_leaves_nothing(
    folder, verb_format, monkeypatch, capsys
):
    for name in ("write_onnx", "write_openvino"):
        monkeypatch.setattr(module, name, broken)
    out = folder.parent / "out"
    before = names(folder.parent)
    assert main(["export", str(folder), str(out), "--format", verb_format]) == 1
    error = f"'{folder}' cannot be exported to {verb_format}: no such operator."
    assert capsys.readouterr().err.splitlines()[-1] == f"hf-cyclprune: error: {error}"
    assert names(folder.parent) == before


@pytest.mark.usefixtures("_without_packages")
@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_a_graph_that_answers_otherwise_is_an_error(folder, monkeypatch, difference):
    monkeypatch.setattr(module, "_write", lambda *_: difference)
    with pytest.raises(ValueError, match=r"differ from those of torch by .* at most 1e-04"):
        export(str(folder), folder.parent / "out")
    assert names(folder.parent) == ["model"]
    if difference == 0.5:
        assert export(str(folder), folder.parent / "out", int8=True).difference == 0.5
    else:
        with pytest.raises(ValueError, match=r"differ from those of torch by nan"):
            export(str(folder), folder.parent / "out", int8=True)


@pytest.mark.usefixtures("_without_packages")
@pytest.mark.parametrize(
    ("model", "said"),
    [
        (BertForMultipleChoice(BertConfig(vocab_size=40, **SIZES)), "does not run on tokens alone"),
        (ViTModel(ViTConfig(image_size=32, **{**SIZES, "num_hidden_layers": 1})), "read tokens"),
    ],
)
def test_a_model_that_reads_something_else_is_refused(model, said, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert names(tmp_path) == ["model"]


@pytest.mark.usefixtures("_without_packages")
def test_wrong_arguments_are_refused_before_a_model_loads(folder, monkeypatch, capsys):
    monkeypatch.setattr(module, "read_model", lambda *_: pytest.fail("a model was loaded"))
    (folder.parent / "full").mkdir()
    (folder.parent / "full" / "file").touch()
    for argv, said in (
        ([folder, folder.parent / "full"], "is not a new or empty folder. Name another one."),
        ([folder, folder / "notes.txt" / "out"], "OUT must be a folder that can be written to"),
        ([folder.parent / "nowhere", folder.parent / "out"], "MODEL must be a folder with a model"),
        ([folder, folder.parent / "out", "--format", "openvino", "--int8"], "int8 needs format"),
    ):
        assert main(["export", *map(str, argv)]) == 1
        assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"format must be one of onnx, openvino; got 'onx'. Did"):
        export(str(folder), folder.parent / "out", format="onx")
    assert names(folder.parent) == ["full", "model"]


def test_a_missing_package_is_named_with_the_line_for_pip(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["export", "nowhere", str(tmp_path / "out")]) == 1
    line = capsys.readouterr().err.strip()
    assert line == (
        "hf-cyclprune: error: For this format 'onnx' must be installed. Run "
        '`pip install "hf_cyclprune[export]"`.'
    )


def test_openvino_tells_its_maker_nothing(needs):
    needs("openvino")
    code = """
import sys
from hf_cyclprune.inference.graphs import _import_openvino
assert _import_openvino().__name__ == "openvino"
from openvino.tools.ovc import telemetry_utils
assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
