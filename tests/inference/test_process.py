"""What another process sees: its memory, its imports, and the compiled kernel in the cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from hf_cyclprune import PruningConfig, find_targets, prune_, save_packed
from hf_cyclprune.inference import SparseLinear

CHILD = """
import json, sys, threading, time
from pathlib import Path
import torch
from torch import nn
from transformers import AutoModel
import hf_cyclprune
from hf_cyclprune.inference import SparseLinear, accelerate_

imported = [name for name in ("numba", "llvmlite") if name in sys.modules]
with torch.inference_mode():
    SparseLinear(nn.Linear(8, 8))(torch.ones(1, 8))
from hf_cyclprune.inference.kernel import multiply_tokens

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

peak, is_done, start = [0], threading.Event(), anonymous()
def sample():
    while not is_done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)
sampler = threading.Thread(target=sample)
sampler.start()
model = AutoModel.from_pretrained(sys.argv[1])
loaded = anonymous()
report = accelerate_(model, measure=False)
is_done.set()
sampler.join()
print(json.dumps({
    "imported": imported,
    "hits": sum(multiply_tokens.stats.cache_hits.values()),
    "misses": sum(multiply_tokens.stats.cache_misses.values()),
    "sparse": len(report.sparse),
    "loaded": loaded - start, "peak": peak[0] - start, "after": anonymous() - start,
}))
"""


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    model = BertModel(BertConfig(num_hidden_layers=2, vocab_size=40, **shape))
    prune_(model, PruningConfig(sparsity=0.9))
    return model


@pytest.fixture(scope="module")
def child(dense, tmp_path_factory):
    if not Path("/proc/self/status").exists():
        pytest.skip("its memory is read in /proc")
    with torch.inference_mode():
        SparseLinear(nn.Linear(8, 8))(torch.ones(1, 8))  # the kernel is in the cache now
    folder = tmp_path_factory.mktemp("packed")
    save_packed(dense, folder)
    # The weights were made in several threads, and glibc keeps a little for each of them.
    others = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    environment = others | {"MALLOC_ARENA_MAX": "1"}
    argv = [sys.executable, "-c", CHILD, folder]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_package_does_not_import_numba(child):
    assert child["imported"] == []


def test_another_process_does_not_compile_the_kernel_again(child):
    assert (child["hits"], child["misses"]) == (1, 0)


def test_a_packed_model_is_accelerated_without_a_second_dense_copy(child, dense):
    size = sum(parameter.nbytes for parameter in dense.parameters())
    assert child["loaded"] > 0.8 * size
    assert child["peak"] < 1.9 * size


def test_the_memory_of_the_dense_weights_goes_back_to_the_system(child, dense):
    assert child["sparse"] == 12
    size = sum(weight.nbytes for weight in find_targets(dense).values())
    assert child["after"] < child["loaded"] - 0.75 * size
