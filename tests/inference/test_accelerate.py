"""`accelerate_` on whole models, on the CPU."""

import copy
import time

import pytest
import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    pipeline,
)

from hf_cyclprune import PruningConfig, find_targets, prune_, save_packed
from hf_cyclprune.inference import SparseLinear, accelerate, accelerate_
from hf_cyclprune.inference.cost import Cost, measure_cpu


@pytest.fixture
def pruned_bert(tiny_bert):
    def build(**config):
        model = tiny_bert().eval()
        prune_(model, PruningConfig(**(config or {"sparsity": 0.9})))
        return model

    return build


def batch(*shape):
    ids = torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "attention_mask": (ids > 3).long()}


def assert_same_logits(model, dense, *shape):
    with torch.inference_mode():
        expected, found = dense(**batch(*shape)).logits, model(**batch(*shape)).logits
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("config", [{"sparsity": 0.9}, {"pattern": "2:4"}], ids=str)
def test_an_accelerated_bert_has_the_logits_of_the_dense_one(pruned_bert, config):
    dense = pruned_bert(**config)
    model = copy.deepcopy(dense)
    report = accelerate_(model, measure=False)
    assert [f"{name}.weight" for name in report.sparse] == list(find_targets(dense))
    assert report.dense == dict.fromkeys(("bert.pooler.dense", "classifier"), "it has no zeros")
    assert str(report).startswith("12 Linear layers are sparse now, 2 stayed dense.\n")
    for shape in ((1, 1), (1, 16), (3, 5), (9, 16)):
        assert_same_logits(model, dense, *shape)


def test_the_dense_weights_are_freed(pruned_bert):
    model = pruned_bert()
    before = sum(p.numel() for p in model.parameters())
    num_pruned_weights = sum(weight.numel() for weight in find_targets(model).values())
    accelerate_(model, measure=False)
    num_biases = sum(m.out_features for m in model.modules() if isinstance(m, SparseLinear))
    assert sum(p.numel() for p in model.parameters()) == before - num_pruned_weights - num_biases


def test_a_packed_folder_is_loaded_and_accelerated_and_saved_as_a_dense_one(pruned_bert, tmp_path):
    dense = pruned_bert()
    save_packed(dense, tmp_path / "packed")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "packed")
    accelerate_(model, measure=False)
    assert_same_logits(model, dense, 3, 8)
    model.save_pretrained(tmp_path / "dense")
    again = BertForSequenceClassification.from_pretrained(tmp_path / "dense")
    for name, weight in dense.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_a_pipeline_gives_the_same_labels(pruned_bert):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    texts = ["a b c", "h", "b d f h a c e g", "c c c"]
    model = pruned_bert()
    expected = pipeline("text-classification", model=model, tokenizer=fast, device="cpu")(texts)
    accelerate_(model, measure=False)
    pipe = pipeline("text-classification", model=model, tokenizer=fast, device="cpu")
    for batch_size in (1, 3):
        for found, wanted in zip(pipe(texts, batch_size=batch_size), expected, strict=True):
            assert found["label"] == wanted["label"]
            assert found["score"] == pytest.approx(wanted["score"], rel=1e-4)


def test_a_layer_in_two_places_stays_one_and_a_shared_weight_stays_dense():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    first.weight.data[:4] = 0.0
    second.weight.data[:4] = 0.0
    tied = nn.Linear(8, 8)
    tied.weight = second.weight
    model = nn.ModuleDict({"a": first, "b": first, "c": second, "d": tied})
    report = accelerate_(model, measure=False)
    assert report.sparse == ["a"]
    assert model["a"] is model["b"]
    assert report.dense == dict.fromkeys("cd", "it shares its weight with another layer")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_a_float32_model_may_be_rounded_to_16_bits(pruned_bert, dtype, tmp_path):
    dense = pruned_bert()
    model = copy.deepcopy(dense)
    accelerate_(model, measure=False, values_dtype=dtype)
    for weight in find_targets(dense).values():
        weight.data.copy_(weight.to(dtype))
    assert_same_logits(model, dense, 3, 8)
    model.save_pretrained(tmp_path)
    again = BertForSequenceClassification.from_pretrained(tmp_path)
    for name, weight in dense.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_values_cannot_be_stored_in_every_dtype(pruned_bert):
    with pytest.raises(
        ValueError, match=r"values_dtype must be one of torch\.float32, .* got torch"
    ):
        accelerate_(pruned_bert(), values_dtype=torch.int8)


def test_the_conv1d_layers_of_gpt_2_are_replaced_and_saved_as_they_were(tmp_path):
    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    dense = GPT2LMHeadModel(config).eval()
    prune_(dense, PruningConfig(sparsity=0.9))
    model = copy.deepcopy(dense)
    report = accelerate_(model, measure=False)
    assert [f"{name}.weight" for name in report.sparse] == list(find_targets(dense))
    assert_same_logits(copy.deepcopy(model), dense, 3, 8)
    model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    for name, weight in dense.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_a_layer_of_an_unknown_class_stays_dense():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(8, 8))
    model[0].weight.data[:7] = 0.0
    report = accelerate_(model, measure=False)
    assert report.dense == {"0": "what a Doubled computes is not known"}


def test_a_model_that_is_one_layer_stays_as_it_is():
    model = nn.Linear(8, 8)
    model.weight.data[:7] = 0.0
    report = accelerate_(model, measure=False)
    assert (report.sparse, report.dense) == ([], {"": "it is the whole model, not a layer of one"})


def test_code_that_reads_the_dtype_of_a_weight_makes_no_dense_copy(monkeypatch):
    """T5 reads that of its `wo` two times in every forward pass."""
    config = T5Config(vocab_size=40, d_model=32, d_ff=64, d_kv=16, num_layers=2, num_heads=2)
    dense = T5EncoderModel(config).eval()
    prune_(dense, PruningConfig(sparsity=0.9))
    model = copy.deepcopy(dense)
    report = accelerate_(model, measure=False)
    assert any(name.endswith(".wo") for name in report.sparse)
    layer = model.get_submodule(report.sparse[0])
    weight = dense.get_submodule(report.sparse[0]).weight
    assert (layer.weight.shape, layer.weight.dtype) == (weight.shape, torch.float32)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.weight @ weight.T, weight @ weight.T)
    assert repr(layer.weight) == repr(weight.detach())
    monkeypatch.setattr(SparseLinear, "to_dense", None)
    with torch.inference_mode():
        found, wanted = (m(**batch(2, 8)).last_hidden_state for m in (model, dense))
    assert torch.allclose(found, wanted, atol=1e-4)


def test_a_layer_in_float64_stays_dense():
    model = nn.Sequential(nn.Linear(8, 8).double())
    model[0].weight.data[:7] = 0.0
    assert accelerate_(model).dense == {"0": "its weights are float64"}


def test_an_input_of_another_size_is_one_sentence():
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight.data[:7] = 0.0
    accelerate_(model, measure=False)
    rule = r"The last dimension of the input must be 8; got the shape \(2, 16\)\."
    with pytest.raises(ValueError, match=rule):
        model(torch.zeros(2, 16))


def test_a_layer_with_a_hook_stays_dense(pruned_bert):
    model = pruned_bert()
    model.bert.encoder.layer[0].output.dense.register_forward_hook(lambda *_: None)
    report = accelerate_(model, measure=False)
    assert report.dense["bert.encoder.layer.0.output.dense"] == "it has hooks"


def test_a_layer_is_replaced_only_where_its_kept_weights_are_faster(monkeypatch):
    monkeypatch.setattr(accelerate, "measure_cpu", lambda *_: Cost(1.0, 0.5, 0.01))
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    for layer, num_kept in zip(model, (39, 40), strict=True):
        layer.weight.data.fill_(1.0).view(-1)[num_kept:] = 0.0
    report = accelerate_(model, num_tokens=5)
    assert report.sparse == ["0"]
    assert report.dense == {"1": "for 5 tokens it would save less than a tenth of its time"}


def test_tiny_and_hardly_pruned_layers_stay_dense():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(256, 256))
    for layer, step in zip(model, (2, 10), strict=True):
        layer.weight.data.view(-1)[::step] = 0.0
    assert accelerate_(model, num_tokens=64).sparse == []


def seconds_of(layers, x):
    """Shortest times of this thread, measured in turns."""
    times = [[] for _ in layers]
    for _ in range(7):
        for layer, found in zip(layers, times, strict=True):
            start = time.thread_time()
            layer(x)
            found.append(time.thread_time() - start)
    return [min(found) for found in times]


@pytest.mark.parametrize("num_tokens", [8, 128, 64 * 128])
@torch.inference_mode()
def test_no_layer_that_is_replaced_takes_longer(num_tokens):
    dense = nn.Sequential(nn.Linear(32, 32), nn.Linear(256, 256), nn.Linear(256, 256))
    for layer, step in zip(dense, (10, 2, 10), strict=True):  # 90, 50 and 90 % of zeros
        weight, kept = layer.weight, layer.weight.view(-1)[::step].clone()
        weight.zero_().view(-1)[::step] = kept
    model = copy.deepcopy(dense)
    accelerate_(model, num_tokens=num_tokens)
    assert isinstance(model[2], SparseLinear) or num_tokens < 128
    for before, after in zip(dense, model, strict=True):
        before_seconds, after_seconds = seconds_of(
            (before, after), torch.ones(num_tokens, before.in_features)
        )
        assert after_seconds < 1.5 * before_seconds + 2e-5


def test_the_measured_time_grows_with_the_kept_weights():
    before = torch.get_rng_state()
    cost = measure_cpu(512, 512, 128, 1, torch.float32, torch.float32)
    assert cost.sparse(0) < cost.sparse(100_000) < cost.sparse(250_000)
    assert torch.equal(torch.get_rng_state(), before)
    assert measure_cpu(512, 512, 128, 1, torch.float32, torch.float32) is cost


def test_the_model_is_put_into_eval_mode_and_cannot_be_trained(pruned_bert):
    model = pruned_bert().train()
    accelerate_(model, measure=False)
    assert not any(module.training for module in model.modules())
    with pytest.raises(RuntimeError, match="An accelerated model cannot be trained"):
        model.train()
    with pytest.raises(RuntimeError, match="cannot be loaded into an accelerated model"):
        model.load_state_dict(model.state_dict())


def test_a_model_elsewhere_or_a_bad_number_of_tokens_is_refused(pruned_bert):
    with pytest.raises(ValueError, match="num_tokens must be an integer >= 1; got 0"):
        accelerate_(pruned_bert(), num_tokens=0)
    with pytest.raises(ValueError, match="must be on a CPU or a CUDA GPU; got meta"):
        accelerate_(pruned_bert().to("meta"))
