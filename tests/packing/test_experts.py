"""transformers merges the experts of a saved mixture into one tensor, packed or not."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.quantizers.base import HfQuantizer

from hf_cyclprune import load_packed, pack, unpack, verify
from hf_cyclprune.packing.errors import PackedError
from hf_cyclprune.packing.loading import PackedQuantizer
from tests.packing.models import assert_same_weights, contents

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "num_experts_per_tok": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
MIXTURES = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "shared_expert_intermediate_size": 64},
    "Qwen3Moe": {"num_experts": 4},
    "Olmoe": {"num_experts": 4},
    "GptOss": {"num_local_experts": 4},
    "AriaText": {"moe_num_experts": 4, "moe_num_shared_experts": 2},  # renamed, not merged
}
NEVER_MERGED = ("GptOss", "AriaText")
IS_MERGED_AFTER = hasattr(HfQuantizer, "update_weight_conversions")
"""Whether this transformers lets us decode before it merges."""


def new_mixture(name, dense_expert=None):
    """A tiny mixture of experts with 90 % zeros in the experts, but for one that may be dense."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **MIXTURES[name])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 3:
                zeros = torch.rand_like(parameter) < 0.9
                if dense_expert is not None:
                    zeros[dense_expert] = False
                parameter.normal_().masked_fill_(zeros, 0.0)
    return model.eval()


@pytest.mark.parametrize("dense_expert", [None, 2])
@pytest.mark.parametrize("name", MIXTURES)
def test_packed_experts_are_those_that_were_packed(tmp_path, name, dense_expert):
    model = new_mixture(name, dense_expert)
    model.save_pretrained(tmp_path / "dense")
    pack(tmp_path / "dense", tmp_path / "packed")
    assert_same_weights(load_packed(tmp_path / "packed"), model)
    unpack(tmp_path / "packed", tmp_path / "unpacked")
    assert contents(tmp_path / "unpacked") == contents(tmp_path / "dense")
    if not IS_MERGED_AFTER and name not in NEVER_MERGED:
        with pytest.raises(PackedError, match=r"is packed, and transformers .*load_packed"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
        return
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert_same_weights(loaded, model)
    loaded.save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "dense")


@pytest.mark.skipif(not IS_MERGED_AFTER, reason="this transformers merges before we can decode")
def test_merged_experts_take_the_dtype_that_is_asked_for(tmp_path):
    model = new_mixture("Mixtral")
    model.save_pretrained(tmp_path / "dense")
    pack(tmp_path / "dense", tmp_path / "packed")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.bfloat16)
    assert_same_weights(loaded, model.to(torch.bfloat16))


@pytest.mark.skipif(not IS_MERGED_AFTER, reason="this transformers never decodes first")
def test_verify_reports_experts_that_from_pretrained_does_not_decode(tmp_path, monkeypatch):
    model = new_mixture("Mixtral")
    model.save_pretrained(tmp_path / "dense")
    pack(tmp_path / "dense", tmp_path / "packed")
    assert verify(tmp_path / "dense", tmp_path / "packed") is None
    monkeypatch.setattr(
        PackedQuantizer,
        "update_weight_conversions",
        lambda self, conversions, model=None: [*conversions, *self.get_weight_conversions()],
    )
    with pytest.raises(PackedError, match=r"experts.0.w1.weight' is packed.*load_packed"):
        verify(tmp_path / "dense", tmp_path / "packed")
