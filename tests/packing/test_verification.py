import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_cyclprune import verify
from hf_cyclprune.packing.decoder import Decoder
from tests.packing.models import BIAS, DENSE, KEY


def test_verify_finds_no_difference_between_a_folder_and_its_packed_ones(made):
    folders = [made / name for name in ("dense", "packed", "dense_shards", "packed_shards")]
    for a in folders:
        for b in folders:
            assert verify(a, str(b)) is None


@pytest.mark.parametrize("value", [1.5, -0.0, float("nan")])
def test_verify_names_the_first_difference_and_counts(made, dense, value):
    tensors = load_file(dense / DENSE)
    assert tensors[KEY][3, 5] == 0 or value != 0
    place = (tensors[KEY] == 0).nonzero()[:2]
    for row, column in place.tolist():
        tensors[KEY][row, column] = value
    save_file(tensors, dense / DENSE, {"format": "pt"})
    row, column = place[0].tolist()
    expected = f"'{KEY}' differs in 2 elements, first at [{row}, {column}]: 0.0 and {value!r}"
    assert verify(made / "packed", dense) == expected
    assert verify(made / "dense", dense) == expected


def test_verify_tells_names_shapes_and_dtypes_apart(made, dense, tmp_path):
    tensors = load_file(dense / DENSE)
    bias = tensors.pop(BIAS)
    save_file(tensors, dense / DENSE)
    assert verify(made / "packed", dense) == f"'{BIAS}' is only in {made / 'packed'}"
    assert verify(dense, made / "packed") == f"'{BIAS}' is only in {made / 'packed'}"
    save_file(tensors | {BIAS: bias.half()}, dense / DENSE)
    message = f"'{BIAS}' is float16 (16,) in {dense} and float32 (16,) in {made / 'packed'}"
    assert verify(dense, made / "packed") == message
    save_file(tensors | {BIAS: bias[None]}, dense / DENSE)
    assert "float32 (1, 16) in" in verify(dense, made / "packed")


def test_verify_reads_scalars_and_empty_tensors(dense, tmp_path):
    tensors = load_file(dense / DENSE) | {"none": torch.zeros(0, 3), "one": torch.tensor(2)}
    other = Path(shutil.copytree(dense, tmp_path / "other"))
    save_file(tensors, dense / DENSE)
    save_file(tensors | {"one": torch.tensor(3)}, other / DENSE)
    assert verify(dense, dense) is None
    assert verify(dense, other) == "'one' differs in 1 elements, first at []: 2 and 3"


def test_verify_compares_what_from_pretrained_loads(made, monkeypatch):
    take = Decoder.take
    monkeypatch.setattr(Decoder, "take", lambda self, blob, name: take(self, blob, name) * 2)
    difference = verify(made / "dense", made / "packed")
    assert "differs in the models that from_pretrained loads from" in difference
