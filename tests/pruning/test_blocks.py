"""What the blocks hold besides the weights of Linear layers: said, or pruned too."""

import warnings

import pytest
import torch
import transformers
from transformers import AutoModel

from hf_cyclprune import PruningConfig, SparsityReport, find_targets, prune_
from tests.packing import models

SIZES = {**models.SIZES, "pad_token_id": 0}
XLNET = {"vocab_size": 40, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}
MIXTRAL = {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
SPECIAL = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}


def build(name, options):
    torch.manual_seed(0)
    return AutoModel.from_config(getattr(transformers, f"{name}Config")(**options))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "XLNet",
            XLNET,
            r"43.0% of the weights in .* XLNetModel, and 36.3% of .*rel_attn",
        ),
        ("Mixtral", MIXTRAL, r"14.2% of the weights in .*'layers.0.mlp.experts.gate_up_proj'"),
    ],
)
def test_a_warning_says_how_little_is_covered(name, options, words):
    model = build(name, options)
    with pytest.warns(UserWarning, match=words) as caught:
        prune_(model, PruningConfig(sparsity=0.5))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_targets(model, targets=["layer"])  # a choice of the user's own
        SparsityReport.measure(model)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Bert", SIZES),
        ("Roberta", SIZES),
        ("ModernBert", {**SIZES, **SPECIAL}),
        ("T5", T5),
        ("GPT2", GPT2),
    ],
)
def test_no_warning_where_the_blocks_are_covered(name, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        prune_(build(name, options), PruningConfig(sparsity=0.5))


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "unstructured"])
def test_the_layers_of_gpt2_are_pruned_along_their_inputs(pattern):
    model = build("GPT2", GPT2)
    dense = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    sparsity = {"sparsity": 0.5} if pattern == "unstructured" else {}
    report = prune_(model, PruningConfig(pattern=pattern, **sparsity))
    assert len(report.weights) == 8
    assert report.sparsity == {"2:4": 0.5, "1:4": 0.75, "unstructured": 0.5}[pattern]
    if pattern == "unstructured":
        return
    num_kept = int(pattern[0])
    assert report.patterns == (("2:4", "4:8") if num_kept == 2 else ("2:4", "4:8", "1:4"))
    for name in find_targets(model):
        inputs_last, before = model.get_parameter(name).t(), dense[name].t()
        groups, magnitudes = inputs_last.reshape(-1, 4), before.reshape(-1, 4).abs()
        kept = magnitudes.topk(num_kept, dim=1).indices.sort(1).values
        assert torch.equal(groups.nonzero()[:, 1].view(-1, num_kept), kept), name
        assert torch.equal(groups.gather(1, kept), before.reshape(-1, 4).gather(1, kept)), name


def test_n_m_that_does_not_fit_the_inputs_of_gpt2_is_refused():
    model = build("GPT2", {**GPT2, "n_embd": 18})
    with pytest.raises(ValueError, match=r"divisible by 4; got 18 in 'h.0.attn.c_attn.weight'"):
        prune_(model, PruningConfig(pattern="2:4"))
