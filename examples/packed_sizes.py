"""Sizes of packed checkpoints beside their entropy, and the times to pack and load them.

    pip install "hf_cyclprune[demo]" zstandard
    python examples/packed_sizes.py [--no_base] [--repeats 5]

Bits per pruned weight of MiniLM's 36 target weights, after one-shot magnitude pruning in each
layer:

- reference: H(p) for the positions (n:m: log2 of the number of patterns of a group, over m), the
  order-0 entropy of the kept exponents of each weight, and the raw bits of sign and mantissa;
- packed: what `pack` writes for them; bitmask: one bit a weight and the kept values; zstd: the
  dense weights through zstandard, level 3 (left out where it is not installed).

Then the whole files, also of a randomly initialised model of BERT-base's shape, and the seconds to
pack, to load packed and to load dense with every page touched: medians of interleaved repeats.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging

from hf_cyclprune import PruningConfig, find_targets, pack, prune_
from hf_cyclprune.demo.model import find_model
from hf_cyclprune.packing.blob import encode

try:
    import zstandard
except ImportError:
    zstandard = None

CONFIGS = {f"{s:.0%}": PruningConfig(sparsity=s) for s in (0.5, 0.8, 0.9, 0.95, 0.97)}
CONFIGS["2:4"] = PruningConfig(pattern="2:4")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


def bits_of(weight: torch.Tensor) -> np.ndarray:
    is_wide = weight.element_size() == 4
    signed = weight.detach().reshape(-1).view(torch.int32 if is_wide else torch.int16).numpy()
    return signed.view(np.uint32 if is_wide else np.uint16)


def reference_bits(weight: torch.Tensor, is_2_of_4: bool) -> float:
    """Return the entropy of a weight in the format's model, in bits."""
    bits = bits_of(weight)
    kept = bits[bits != 0]
    width = 8 * weight.element_size()
    mantissa = width - 9  # both types have 8 bits of exponent
    exponents = (kept >> mantissa).astype(np.int64) & 0xFF
    positions = entropy(np.array([kept.size, bits.size - kept.size]))
    if is_2_of_4:
        positions = math.log2(6) / 4
    values = entropy(np.bincount(exponents)) + width - 8
    return positions * bits.size + values * kept.size


def bits_table(name: str) -> None:
    columns = ("reference", "packed", "ratio", "bitmask", "zstd")
    print(f"\nbits per weight, {name}" + "".join(f"{column:>11}" for column in columns))
    for label, config in CONFIGS.items():
        model = load_pruned(find_model(), config, DTYPES[name])
        weights = list(find_targets(model).values())
        total = sum(weight.numel() for weight in weights)
        reference = sum(reference_bits(weight, label == "2:4") for weight in weights) / total
        packed = sum(8 * encode(weight).size for weight in weights) / total
        kept = sum(int((weight != 0).sum()) for weight in weights) / total
        bitmask = 1 + kept * 8 * weights[0].element_size()
        dense = b"".join(bits_of(weight).tobytes() for weight in weights)
        small = 8 * len(zstandard.compress(dense, 3)) / total if zstandard else math.nan
        row = (
            f"{reference:11.3f}{packed:11.3f}{packed / reference:11.4f}{bitmask:11.3f}{small:11.3f}"
        )
        print(f"{label:>{len(name) + 17}}{row}")


def load_pruned(source: Path, config: PruningConfig, dtype: torch.dtype) -> torch.nn.Module:
    """Return the model pruned in fp32 and then rounded, as after training in fp32."""
    model = AutoModel.from_pretrained(source, dtype=torch.float32)
    prune_(model, config)
    return model.to(dtype)


def touch(load: Callable[[], torch.nn.Module]) -> float:
    start = time.perf_counter()
    model = load()
    for parameter in model.parameters():
        parameter.detach().reshape(-1)[::512].sum()
    return time.perf_counter() - start


def files_table(name: str, source: Path, folder: Path, repeats: int) -> None:
    columns = f"{'dense MB':>10}{'packed MB':>11}{'pack s':>9}{'load s':>9}{'dense s':>9}"
    print(f"\n{name:<20}{columns}")
    for kind, dtype in DTYPES.items():
        for label in ("80%", "90%", "2:4"):
            dense, packed = (folder / f"{name}-{kind}-{label}-{end}" for end in ("dense", "packed"))
            load_pruned(source, CONFIGS[label], dtype).save_pretrained(dense)
            start = time.perf_counter()
            pack(dense, packed)
            seconds = time.perf_counter() - start
            times = [
                [
                    touch(lambda path=path: AutoModel.from_pretrained(path))
                    for path in (packed, dense)
                ]
                for _ in range(repeats)
            ]
            sizes = [
                sum(file.stat().st_size for file in path.glob("*.safetensors")) / 1e6
                for path in (dense, packed)
            ]
            load, plain = (statistics.median(column) for column in zip(*times, strict=True))
            print(
                f"{kind:<14}{label:>6}{sizes[0]:>10.1f}{sizes[1]:>11.1f}{seconds:>9.2f}{load:>9.3f}"
                f"{plain:>9.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--no_base", action="store_true", help="leave the large model out")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in DTYPES:
        bits_table(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files_table("MiniLM", find_model(), folder, options.repeats)
        if not options.no_base:
            torch.manual_seed(0)
            BertModel(BertConfig()).save_pretrained(folder / "base")
            files_table("BERT-base", folder / "base", folder, options.repeats)


if __name__ == "__main__":
    main()
