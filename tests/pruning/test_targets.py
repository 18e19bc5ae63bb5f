import re
import warnings

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from hf_cyclprune.engines.shards import Shards
from hf_cyclprune.pruning.targets import check_finite, find_targets

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}
HEADS = ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model"]

BERT_LIKE = {
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
}
# Architecture -> (options, path of the stack, names inside a block); two blocks, but for ALBERT.
MODELS = {
    "Bert": (SMALL, "encoder.layer", BERT_LIKE),
    "Roberta": (SMALL, "encoder.layer", BERT_LIKE),
    "XLMRoberta": (SMALL, "encoder.layer", BERT_LIKE),
    "Electra": ({**SMALL, "embedding_size": 8}, "encoder.layer", BERT_LIKE),
    "DistilBert": (
        {
            "vocab_size": 40,
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 32,
            "max_position_embeddings": 20,
        },
        "transformer.layer",
        {
            *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
            *("ffn.lin1", "ffn.lin2"),
        },
    ),
    "Albert": (
        {**SMALL, "embedding_size": 8},
        "encoder.albert_layer_groups",
        {
            f"albert_layers.0.{name}"
            for name in (
                *("attention.query", "attention.key", "attention.value", "attention.dense"),
                *("ffn", "ffn_output"),
            )
        },
    ),
    "MPNet": (
        SMALL,
        "encoder.layer",
        {
            *("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
            *("intermediate.dense", "output.dense"),
        },
    ),
    "DebertaV2": (
        {
            **SMALL,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 4,
            "conv_kernel_size": 3,
        },
        "encoder.layer",
        {
            *("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
            *("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
            *("attention.output.dense", "intermediate.dense", "output.dense"),
        },
    ),
    "ModernBert": (
        {
            **SMALL,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        "layers",
        {"attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"},
    ),
    "MobileBert": (
        {**SMALL, "embedding_size": 8, "intra_bottleneck_size": 8, "num_feedforward_networks": 2},
        "encoder.layer",
        {
            *BERT_LIKE,
            *("bottleneck.input.dense", "bottleneck.attention.dense", "output.bottleneck.dense"),
            *("ffn.0.intermediate.dense", "ffn.0.output.dense"),
        },
    ),
}


def build(cls, config):
    with torch.device("meta"):
        return cls(config)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", MODELS)
def test_the_targets_are_the_linears_of_the_blocks_and_nothing_else(name, head):
    options, stack, kinds = MODELS[name]
    config = getattr(transformers, f"{name}Config")(**options)
    model = build(getattr(transformers, f"{name}{head}"), config)
    targets = find_targets(model)
    prefix = "" if head == "Model" else f"{model.base_model_prefix}."
    num_blocks = 1 if name == "Albert" else 2
    expected = {f"{prefix}{stack}.{i}.{kind}.weight" for i in range(num_blocks) for kind in kinds}
    assert set(targets) == expected
    parameters = dict(model.named_parameters())
    assert all(weight is parameters[key] for key, weight in targets.items())
    assert list(targets) == [key for key in parameters if key in expected]


@pytest.mark.parametrize(("num_layers", "hidden_size", "count"), [(12, 768, 72), (24, 1024, 144)])
def test_bert_base_has_72_targets_and_bert_large_144(num_layers, hidden_size, count):
    config = BertConfig(
        num_hidden_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
    )
    targets = find_targets(build(BertForSequenceClassification, config))
    assert len(targets) == count
    per_layer = 12 * hidden_size**2
    assert sum(weight.numel() for weight in targets.values()) == num_layers * per_layer


def test_looking_for_targets_changes_nothing(tiny_bert):
    model = tiny_bert()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    find_targets(model)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


class Encoder(nn.Module):
    """Embeddings, two blocks, a second stack, and a head of several Linears."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)}) for _ in range(2)
        )
        self.heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 2)])
        self.out = nn.Linear(4, 10)


ENCODER_TARGETS = [f"blocks.{i}.{name}.weight" for i in range(2) for name in ("up", "down")]


def test_a_list_of_plain_linears_is_not_a_stack_of_blocks():
    assert list(find_targets(Encoder())) == ENCODER_TARGETS


def test_blocks_of_a_head_are_not_those_of_the_base_model():
    model = nn.Module()
    model.base_model = Encoder()
    model.head = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU())])
    assert list(find_targets(model)) == [f"base_model.{name}" for name in ENCODER_TARGETS]


def test_heads_in_a_list_of_the_users_own_are_no_blocks(tiny_bert):
    model = nn.Module()
    model.encoder = tiny_bert().bert
    model.heads = nn.ModuleList([nn.Sequential(nn.Linear(16, 3), nn.ReLU()) for _ in range(2)])
    expected = [f"encoder.{name}" for name in find_targets(model.encoder)]
    assert list(find_targets(model)) == expected
    assert len(expected) == 12


def test_a_weight_tied_to_one_outside_the_blocks_is_never_a_target():
    model = Encoder()
    model.blocks[1]["down"].weight = nn.Parameter(torch.ones(4, 4))
    model.blocks[1]["down"].weight = model.out.weight
    assert list(find_targets(model)) == ENCODER_TARGETS[:3]


def test_a_weight_that_two_blocks_share_is_one_target_under_its_first_name():
    model = Encoder()
    model.blocks[1]["up"].weight = model.blocks[0]["up"].weight
    assert list(find_targets(model)) == [ENCODER_TARGETS[0], ENCODER_TARGETS[1], ENCODER_TARGETS[3]]


def test_a_block_that_is_used_twice_has_one_set_of_targets():
    model = Encoder()
    model.blocks.append(model.blocks[0])
    assert list(find_targets(model)) == ENCODER_TARGETS


def test_the_tied_decoder_of_a_masked_language_model_is_not_a_target():
    model = BertForMaskedLM(BertConfig(**SMALL))
    assert len(find_targets(model)) == 12
    assert list(find_targets(model, targets=["embeddings.word|decoder"])) == [
        "bert.embeddings.word_embeddings.weight"
    ]


def test_torchs_own_encoder_has_the_linears_of_its_layers():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Embedding(10, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 2))
    kinds = ("self_attn.out_proj", "linear1", "linear2")
    with pytest.warns(UserWarning, match=r"62.5% of the weights .*0.self_attn.in_proj_weight'"):
        targets = find_targets(model)
    assert list(targets) == [f"1.layers.{i}.{k}.weight" for i in range(2) for k in kinds]


def test_a_parametrized_head_is_passed_over():
    model = Encoder()
    parametrizations.weight_norm(model.out)
    assert list(find_targets(model)) == ENCODER_TARGETS


def test_a_model_without_blocks_says_what_to_do():
    with pytest.raises(ValueError, match=r"stack of .* blocks .*; got Sequential.*targets="):
        find_targets(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)))


def test_a_model_without_blocks_is_pruned_where_targets_say():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    assert list(find_targets(model, targets=[r"^2\."])) == ["2.weight"]
    assert list(find_targets(nn.Linear(3, 2), targets=["weight"])) == ["weight"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"targets": ["query"]}, {"query": 2}),
        ({"targets": ["query", r"layer\.1\.output"]}, {"query": 2, "output.dense": 1}),
        ({"targets": ["pooler", "classifier", "word_emb"]}, {"": 3}),
        ({"ignore": ["query", "key", "value"]}, {"dense": 6}),
        ({"ignore": [r"layer\.0\."]}, {"layer.1": 6}),
        ({"ignore": []}, {"": 12}),
        ({"targets": ["attention"], "ignore": ["output"]}, {"attention.self": 6}),
    ],
)
def test_targets_replaces_the_default_and_ignore_takes_away(tiny_bert, options, expected):
    found = find_targets(tiny_bert(), **options)
    assert len(found) == sum(expected.values())
    for part, count in expected.items():
        assert sum(part in name for name in found) == count


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": ["querry"]}, ["targets", "'querry'", "none of 17", "Names look like 'bert."]),
        ({"ignore": ["pooler"]}, ["ignore", "'pooler'", "none of 12", "Names look like 'bert."]),
        ({"ignore": ["weight"]}, ["targets", "got none"]),
        ({"targets": []}, ["targets", "got none"]),
        ({"targets": "query"}, ["targets", "list", "'query'", "targets=['query'"]),
        ({"ignore": "query"}, ["ignore", "list", "'query'", "ignore=['query'"]),
        ({"targets": [re.compile("query")]}, ["targets", "list", "re.compile"]),
        ({"targets": ["("]}, ["targets", "'('", "backslash"]),
        ({"ignore": ["*"]}, ["ignore", "'*'", "backslash"]),
    ],
)
def test_expressions_that_make_no_sense_are_refused(tiny_bert, options, words):
    with pytest.raises(ValueError, match="must") as error:
        find_targets(tiny_bert(), **options)
    assert [word for word in words if word not in str(error.value)] == []


def test_frozen_weights_are_left_out_with_one_warning(tiny_bert):
    model = tiny_bert()
    model.bert.encoder.layer[0].requires_grad_(False)
    model.bert.embeddings.requires_grad_(False)
    with pytest.warns(
        UserWarning, match=r"6 target weights are frozen.*layer\.0.*ignore="
    ) as caught:
        targets = find_targets(model)
    assert len(caught) == 1
    assert len(targets) == 6
    assert all("layer.1" in name for name in targets)


def test_frozen_weights_can_be_looked_at_or_ignored_without_a_warning(tiny_bert):
    model = tiny_bert()
    model.bert.encoder.layer[0].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find_targets(model, keep_frozen=True)) == 12
        assert len(find_targets(model, ignore=[r"layer\.0\."])) == 6


def test_a_model_that_is_frozen_altogether_is_refused(tiny_bert):
    model = tiny_bert().requires_grad_(False)
    with pytest.warns(UserWarning, match="frozen"), pytest.raises(ValueError, match="frozen"):
        find_targets(model)


def test_a_base_model_has_the_targets_of_the_whole_under_its_own_names():
    model = build(BertModel, BertConfig(**SMALL))
    assert all(name.startswith("encoder.layer.") for name in find_targets(model))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_target_that_is_not_finite_is_named(tiny_bert, value):
    targets = find_targets(tiny_bert())
    check_finite(Shards(targets))
    name = list(targets)[7]
    with torch.no_grad():
        targets[name][3, 3] = value
    with pytest.raises(ValueError, match=rf"'{re.escape(name)}' holds NaN or infinity.*ignore="):
        check_finite(Shards(targets))
