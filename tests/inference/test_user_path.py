"""From a GLUE task to a faster pipeline, as the README has it."""

import re
import time
from pathlib import Path
from statistics import median

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, pipeline

pytest.importorskip("datasets", reason="the extra glue is not installed")

from hf_cyclprune.cli import main
from hf_cyclprune.inference import SparseLinear
from tests.hub.repos import make_tokenizer, write_tiny_glue

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
SHAPE = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 2}
TEXTS = ["a good film , truly", "dull and bad " * 12, "I", "the plot is thin but good " * 8]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model of a size at which zeros pay, fine-tuned and pruned by the command."""
    monkeypatch.chdir(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained("model")
    config = BertConfig(vocab_size=len(tokenizer), num_attention_heads=6, **SHAPE)
    BertForSequenceClassification(config).save_pretrained("model")
    write_tiny_glue("glue")
    flags = "--task_name sst2 --model_name_or_path model --dataset_dir glue --output_dir sst2"
    more = "--sparsity 0.9 --max_steps 4 --learning_rate 1e-3 --report_to none --use_cpu"
    assert main(["glue", *flags.split(), *more.split(), "--cache_dir", "cache"]) == 0
    return tmp_path / "sst2"


def seconds(classify):
    start = time.perf_counter()
    classify(TEXTS)
    return time.perf_counter() - start


def test_a_pruned_model_answers_the_same_faster_and_with_less_memory(folder):
    (code,) = re.findall(r"```python\n([^`]*accelerate_\([^`]*)```", README)
    names = {}
    exec(compile(code, "README", "exec"), names)
    classify, dense = names["classify"], pipeline("text-classification", model="sst2", device="cpu")
    layers = [m for m in classify.model.modules() if isinstance(m, SparseLinear)]
    assert len(layers) == 12
    num_bytes = sum(layer.blocked.num_bytes for layer in layers)
    num_weights = sum(layer.in_features * layer.out_features for layer in layers)
    assert num_bytes < 0.2 * 4 * num_weights
    assert not any(p.shape == (384, 384) for p in classify.model.bert.encoder.parameters())
    with torch.inference_mode():
        for found, wanted in zip(classify(TEXTS), dense(TEXTS), strict=True):
            assert found["label"] == wanted["label"]
            assert found["score"] == pytest.approx(wanted["score"], rel=1e-4)
        times = [(seconds(classify), seconds(dense)) for _ in range(9)]
    sparse_time, dense_time = (median(column) for column in zip(*times, strict=True))
    assert sparse_time < 0.9 * dense_time
