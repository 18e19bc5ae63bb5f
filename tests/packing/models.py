"""Tiny pruned models of every architecture, and comparisons of models and folders."""

from pathlib import Path

import torch
import transformers

from hf_cyclprune import PruningConfig, prune_

DENSE, PACKED = "model.safetensors", "model.sparse.safetensors"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"
KEY = "bert.encoder.layer.0.attention.self.key.weight"
BIAS = "bert.encoder.layer.0.attention.self.query.bias"
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
DISTILBERT = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
DEBERTA = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
MOBILEBERT = {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}
MODELS = {
    "Bert": {},
    "Roberta": {"pad_token_id": 1},
    "XLMRoberta": {"pad_token_id": 1},
    "Camembert": {"pad_token_id": 1},
    "DistilBert": {**DISTILBERT, "max_position_embeddings": 16},
    "Albert": {"embedding_size": 8},
    "Electra": {"embedding_size": 16},
    "DebertaV2": {**DEBERTA, "pooler_hidden_size": 16},
    "MPNet": {"pad_token_id": 1},
    "MobileBert": MOBILEBERT,
    "ModernBert": dict.fromkeys(
        ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1
    ),
}


def new_model(name="Bert", head="ForSequenceClassification", pattern="unstructured", **options):
    """Return the same model at every call, pruned to 80 % or to an n:m pattern."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40} if name == "DistilBert" else SIZES
    config = getattr(transformers, f"{name}Config")(**(sizes | MODELS[name] | options))
    model = getattr(transformers, f"{name}{head}")(config)
    sparsity = {"sparsity": 0.8} if pattern == "unstructured" else {}
    prune_(model, PruningConfig(pattern=pattern, **sparsity))
    return model.eval()


def contents(folder):
    """Return the bytes of each file in a folder, by name."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def assert_same_weights(model, other):
    """Assert that the tensors have the same names, dtypes and bits."""
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        bits, expected = (t.view(-1).view(torch.uint8) for t in (tensor, theirs[name]))
        assert torch.equal(bits, expected), name
