"""A tiny model as folders: dense and packed, whole and in shards."""

import shutil
from pathlib import Path

import pytest

from hf_cyclprune import pack
from tests.packing.models import new_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders `dense` and `packed`, and the same sharded."""
    folder = tmp_path_factory.mktemp("made")
    model = new_model()
    model.save_pretrained(folder / "dense")
    pack(folder / "dense", folder / "packed")
    model.save_pretrained(folder / "dense_shards", max_shard_size="10KB")
    pack(folder / "dense_shards", folder / "packed_shards")
    return folder


@pytest.fixture
def dense(made, tmp_path):
    return Path(shutil.copytree(made / "dense", tmp_path / "dense"))


@pytest.fixture
def packed(made, tmp_path):
    return Path(shutil.copytree(made / "packed", tmp_path / "packed"))


@pytest.fixture
def shards(made, tmp_path):
    return Path(shutil.copytree(made / "packed_shards", tmp_path / "shards"))
