"""A sparse layer gives what the dense one gives, whatever its zeros and inputs."""

import ast
import copy
import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hf_cyclprune
from hf_cyclprune.inference import SparseLinear, threads
from hf_cyclprune.inference.blocked import BlockedWeight
from hf_cyclprune.inference.sparse_linear import load_kernel
from hf_cyclprune.inference.threads import split_work

SHAPES = [(1, 1), (3, 5), (8, 8), (33, 70), (16, 256), (24, 257), (40, 600), (600, 40)]
SPARSITIES = [0.0, 0.5, 0.9, 0.999, 1.0]


def pruned(out_features, in_features, sparsity, bias=True):
    generator = torch.Generator().manual_seed(out_features + in_features)
    linear = nn.Linear(in_features, out_features, bias=bias)
    linear.weight.data.normal_(generator=generator)
    is_pruned = torch.rand(linear.weight.shape, generator=generator) < sparsity
    linear.weight.data[is_pruned] = 0.0
    return linear.requires_grad_(False)


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def assert_same(linear, x):
    expected, found = linear(x), SparseLinear(linear)(x)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    scale = max(1e-6, (x.double().abs() @ linear.weight.double().abs().T).max().item())
    assert (found - expected).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_it_equals_the_dense_layer(shape, sparsity):
    linear = pruned(*shape, sparsity)
    for num_tokens in (1, 7, 8, 9, 16, 31, 32, 33, 48, 49, 64, 70, 100):
        assert_same(linear, inputs(num_tokens, shape[1]))


def test_inputs_may_have_any_dimensions_and_strides():
    linear = pruned(20, 30, 0.8)
    assert_same(linear, inputs(30))
    assert_same(linear, inputs(2, 3, 4, 30))
    assert_same(linear, inputs(5, 4, 30).transpose(0, 1))
    assert_same(linear, inputs(6, 60)[:, ::2])
    assert_same(linear, inputs(30, 9).T)
    assert_same(linear, inputs(1, 30).expand(6, 30))
    assert SparseLinear(linear)(inputs(0, 30)).shape == (0, 20)


def test_a_layer_may_have_no_bias():
    assert_same(pruned(20, 30, 0.8, bias=False), inputs(9, 30))


def test_rows_may_be_empty_or_full():
    linear = pruned(300, 300, 0.9)
    linear.weight[::3] = 0.0
    linear.weight[1::3] = 1.0
    assert_same(linear, inputs(40, 300))
    linear.weight[:, 256:] = 0.0
    assert_same(linear, inputs(40, 300))


def test_2_4_weights_are_like_others():
    linear = pruned(64, 64, 0.0)
    linear.weight.view(64, -1, 4)[:, :, 1:3] = 0.0
    assert_same(linear, inputs(40, 64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_layers_are_computed_in_float32(dtype):
    linear, x = pruned(40, 600, 0.9).to(dtype), inputs(40, 600).to(dtype)
    exact = nn.functional.linear(x.float(), linear.weight.float(), linear.bias.float())
    found = SparseLinear(linear)(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_of_16_bits_are_widened_exactly(shape, dtype):
    linear = pruned(*shape, 0.7)
    linear.weight.mul_(torch.logspace(-7, 3, shape[1]))  # float16 is subnormal below 6e-5
    rounded = SparseLinear(linear, dtype)
    linear.weight.copy_(linear.weight.to(dtype))
    for num_tokens in (1, 9, 33, 70):
        x = inputs(num_tokens, shape[1])
        assert torch.equal(rounded(x), SparseLinear(linear)(x))
    assert torch.equal(rounded.weight, linear.weight)
    assert rounded.weight.dtype == torch.float32
    assert rounded.blocked.dtype == dtype


def test_weights_too_large_for_float16_are_stored_in_float32():
    linear = pruned(20, 30, 0.8)
    linear.weight[3, 5] = 1e5
    layer = SparseLinear(linear, torch.float16)
    assert layer.blocked.dtype == torch.float32
    assert torch.equal(layer.weight, linear.weight)


@pytest.mark.parametrize("has_openmp", [True, False])
def test_the_result_does_not_depend_on_the_threads_or_the_batch(has_openmp, monkeypatch):
    if not has_openmp:
        monkeypatch.setattr(threads, "_find_openmp", lambda: None)
    layer, x = SparseLinear(pruned(600, 520, 0.5)), inputs(120, 520)
    one = layer(x)
    for num_threads in (2, 3):
        torch.set_num_threads(num_threads)
        assert torch.equal(layer(x), one)
        assert torch.equal(layer(x[:20]), one[:20])
    torch.set_num_threads(1)
    assert torch.equal(torch.cat([layer(row) for row in x.split(1)]), one)


@pytest.mark.parametrize("has_openmp", [True, False])
def test_an_error_in_a_thread_is_not_lost(has_openmp, monkeypatch):
    if not has_openmp:
        monkeypatch.setattr(threads, "_find_openmp", lambda: None)

    def fail():
        raise MemoryError("of this thread")

    done = []
    with pytest.raises(MemoryError, match="of this thread"):
        threads.run_all([lambda: done.append(1), fail, fail])
    assert done == [1]


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("num_tokens", [1, 32, 33, 128, 4096])
def test_the_work_of_threads_is_all_of_it_once(num_tokens, num_threads):
    num_kept = torch.randint(0, 9000, (50,), generator=torch.Generator().manual_seed(0))
    done = np.zeros((num_tokens, 50), int)
    tasks = split_work(num_tokens, num_kept, num_threads)
    for tokens, rows in tasks:
        done[slice(*tokens), slice(*rows)] += 1
    assert (done == 1).all()
    assert len(tasks) <= num_threads


@pytest.mark.parametrize(
    ("dtype", "num_bytes"), [(torch.float32, 5), (torch.bfloat16, 3), (torch.float16, 3)], ids=str
)
def test_it_holds_so_many_bytes_for_each_kept_weight(dtype, num_bytes):
    weight = pruned(300, 600, 0.9).weight.to(dtype)
    blocked = BlockedWeight.from_dense(weight)
    assert blocked.num_bytes == num_bytes * blocked.num_kept + 4 * (3 * 300 + 1)
    assert torch.equal(blocked.to_dense(), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_its_state_dict_is_that_of_the_dense_layer(shape, dtype):
    linear = pruned(*shape, 0.7).to(dtype)
    found = SparseLinear(linear).state_dict()
    assert list(found) == ["weight", "bias"]
    assert all(torch.equal(found[name], linear.state_dict()[name]) for name in found)


def test_copies_and_saved_modules_work():
    layer, x = SparseLinear(pruned(20, 30, 0.8)), inputs(9, 30)
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), expected)
        assert other._operands[0] is other.blocked.values  # they are held once


def test_it_runs_in_a_forked_process():
    torch.set_num_threads(2)
    layer, x = SparseLinear(pruned(600, 600, 0.5)), inputs(128, 600)
    layer(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if layer.multiply(x).shape == (128, 600) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_training_it_is_an_error_that_says_what_to_do():
    layer, x = SparseLinear(pruned(20, 30, 0.8)), inputs(9, 30).requires_grad_()
    out = layer(x)  # without no_grad, as many people do
    with pytest.raises(RuntimeError, match="load it again with from_pretrained, train"):
        out.sum().backward()
    with pytest.raises(RuntimeError, match="An accelerated model cannot be trained"):
        layer.train()
    with pytest.raises(RuntimeError, match="'weight' cannot be loaded into an accelerated model"):
        layer.load_state_dict(pruned(20, 30, 0.8).state_dict())


def test_its_weight_cannot_be_changed():
    layer = SparseLinear(pruned(20, 30, 0.8))
    other = torch.zeros(20, 30)
    changes = (
        lambda w: w.mul_(3),
        torch.nn.init.zeros_,
        lambda w: torch.mul(other, other, out=w),
        lambda w: torch._foreach_mul_([w], 2.0),
    )
    for change in changes:
        with torch.no_grad(), pytest.raises(RuntimeError, match="hold no dense weights"):
            change(layer.weight)
    assert torch.equal(torch.tensor(layer.weight.detach().tolist()), layer.to_dense())


def test_it_cannot_be_moved_or_converted():
    layer = SparseLinear(pruned(20, 30, 0.8))
    for move in (lambda: layer.to("meta"), layer.half):
        with pytest.raises(ValueError, match=r"stays on 'cpu' and in torch\.float32; some .* Load"):
            move()
    assert layer.to("cpu") is layer
    with pytest.raises(ValueError, match="accelerated for 'cpu'; its input is on 'meta'"):
        layer(torch.empty(3, 30, device="meta"))


def test_without_numba_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "hf_cyclprune.inference.kernel", raising=False)
    load_kernel.cache_clear()
    with pytest.raises(ImportError, match=r'pip install "hf_cyclprune\[inference\]"'):
        load_kernel()


def test_numba_is_imported_only_when_it_is_used():
    package = Path(hf_cyclprune.__file__).parent
    for path in package.rglob("*.py"):
        top = ast.parse(path.read_text(encoding="utf-8")).body
        imports = [ast.unparse(n) for n in top if isinstance(n, ast.Import | ast.ImportFrom)]
        if path.name != "kernel.py":
            found = [
                line for line in imports if re.search(r"numba|llvmlite|inference\.kernel", line)
            ]
            assert not found, path


def test_without_a_folder_for_the_cache_it_compiles_in_memory(monkeypatch):
    from numba.core import caching

    from hf_cyclprune.inference.kernel import _compile

    def double(x):
        return 2 * x

    monkeypatch.setattr(caching.FunctionCache._impl_class, "_locator_classes", [])
    with pytest.warns(UserWarning, match="Set NUMBA_CACHE_DIR to a folder of yours"):
        compiled = _compile(double)
    assert compiled(4) == 8
