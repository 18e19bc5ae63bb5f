"""Pruned models that run faster: `accelerate_` replaces their Linear layers, for inference only."""

from hf_cyclprune.inference.accelerate import Acceleration, accelerate_
from hf_cyclprune.inference.sparse_linear import SparseLinear

__all__ = ["Acceleration", "SparseLinear", "accelerate_"]
