"""2:4 weights on the GPU's sparse tensor cores give what the dense ones give."""

import copy
import time

import pytest
import torch
from torch import nn

from hf_cyclprune import PruningConfig, find_targets, prune_
from hf_cyclprune.inference import accelerate_

TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 6e-2}


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def pruned_bert(tiny_bert, device):
    def build(dtype, **options):
        model = tiny_bert(**{"hidden_size": 64, "intermediate_size": 128, **options})
        prune_(model, PruningConfig(pattern="2:4"))
        return model.to(device, dtype).eval()

    return build


def batch(shape, device):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 40, shape, generator=generator)
    return {"input_ids": ids.to(device), "attention_mask": (ids > 3).long().to(device)}


@pytest.mark.parametrize("shape", [(1, 5), (3, 7), (8, 16)])
def test_an_accelerated_bert_has_the_logits_of_the_dense_one(pruned_bert, dtype, device, shape):
    dense = pruned_bert(dtype)
    model = copy.deepcopy(dense)
    report = accelerate_(model, measure=False)
    assert [f"{name}.weight" for name in report.sparse] == list(find_targets(dense))
    assert set(report.dense) == {"bert.pooler.dense", "classifier"}
    inputs = batch(shape, device)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            expected, found = dense(**inputs).logits, model(**inputs).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])


def test_its_state_dict_holds_the_dense_weights_to_the_bit(pruned_bert, dtype):
    dense = pruned_bert(dtype)
    model = copy.deepcopy(dense)
    accelerate_(model, measure=False)
    found = model.state_dict()
    assert list(found) == list(dense.state_dict())
    for name, weight in dense.state_dict().items():
        assert torch.equal(found[name], weight), name


def test_a_copy_of_it_has_the_same_logits(pruned_bert, device):
    model = pruned_bert(torch.float16)
    accelerate_(model, measure=False)
    inputs = batch((2, 8), device)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(model)(**inputs).logits, model(**inputs).logits)


def test_training_it_is_an_error_that_says_what_to_do(pruned_bert, device):
    model = pruned_bert(torch.float16)
    accelerate_(model, measure=False)
    with pytest.raises(RuntimeError, match="load it again with from_pretrained, train"):
        model(**batch((2, 8), device)).logits.sum().backward()
    with pytest.raises(RuntimeError, match="An accelerated model cannot be trained"):
        model.train()


def test_what_the_gpu_cannot_use_stays_dense_and_the_report_says_why(
    pruned_bert, tiny_bert, device
):
    report = accelerate_(pruned_bert(torch.float32), measure=False)
    assert report.sparse == []
    assert "not float16 or bfloat16" in report.dense["bert.encoder.layer.0.output.dense"]
    small = pruned_bert(torch.float16, hidden_size=24, intermediate_size=40)
    report = accelerate_(small, measure=False)
    assert report.sparse == []
    assert "torch cannot" in report.dense["bert.encoder.layer.0.output.dense"]
    unpruned = tiny_bert(hidden_size=64, intermediate_size=128).to(device, torch.float16)
    assert accelerate_(unpruned, measure=False).sparse == []


def test_a_layer_is_replaced_only_where_that_is_faster(device):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(4096, 4096)).to(device, torch.float16)
    for layer in model:
        layer.weight.data.mul_(
            torch.tensor([1, 0, 1, 0], device=device).repeat(len(layer.weight) // 4)
        )
    report = accelerate_(model, num_tokens=8192)
    assert "0" in report.dense, "64 x 64 is not worth it"
    print(report)


@pytest.mark.parametrize(
    "shape", [(768, 768), (3072, 768), (768, 3072), (4096, 1024), (4096, 4096)]
)
@pytest.mark.parametrize("num_tokens", [1024, 8192, 32768])
def test_time_of_a_layer(shape, num_tokens, device, record_property):
    dense = nn.Linear(shape[1], shape[0]).to(device, torch.float16)
    dense.weight.data.mul_(torch.tensor([1, 0, 1, 0], device=device).repeat(shape[1] // 4))
    model = nn.Sequential(copy.deepcopy(dense))
    assert accelerate_(model, measure=False).sparse == ["0"]
    x = torch.randn(num_tokens, shape[1], device=device, dtype=torch.float16)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-2, atol=1e-2)
        times = {"dense": [], "sparse": []}
        for _ in range(20):
            for kind, layer in (("dense", dense), ("sparse", model)):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(10):
                    layer(x)
                torch.cuda.synchronize()
                times[kind].append((time.perf_counter() - start) * 100)  # ms each
    medians = {kind: sorted(values)[len(values) // 2] for kind, values in times.items()}
    record_property("ms", medians)
    print(shape, num_tokens, medians, f"{medians['dense'] / medians['sparse']:.2f} times")
