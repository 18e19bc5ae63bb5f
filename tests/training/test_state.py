import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from hf_cyclprune.files import STATE_NAME
from hf_cyclprune.pruning.masks import pack_mask
from hf_cyclprune.training import state as state_module
from hf_cyclprune.training.state import PruningState, load_state, save_state


def random_mask(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) < 0.5


def new_state(**changes):
    state = PruningState(
        step=12,
        total_steps=40,
        config={"sparsity": 0.9, "targets": None, "ignore": ["a"]},
        plan={"num_cycles": 4, "scope": None},
        masks={"a.weight": pack_mask(random_mask(3, 5)), "b": pack_mask(random_mask(1, 1))},
        pending=["b"],
        history={"cycles": [], "reset_step": 11, "recovered_at_edge": 0.1},
        reference={"a.weight": pack_mask(~random_mask(3, 5)), "b": pack_mask(random_mask(1, 1))},
    )
    return replace(state, **changes)


def assert_same(state, other):
    for name in PruningState.__dataclass_fields__:
        ours, theirs = getattr(state, name), getattr(other, name)
        if name in ("masks", "reference"):
            assert {k: v.tolist() for k, v in ours.items()} == {
                k: v.tolist() for k, v in theirs.items()
            }
        else:
            assert ours == theirs


@pytest.mark.parametrize(
    "changes",
    [{}, {"pending": []}, {"reference": {}}, {"history": {}}, {"config": {}}, {"step": 0}],
)
def test_a_state_survives_its_file(tmp_path, changes):
    state = new_state(**changes)
    folder = tmp_path / "checkpoint-12" / "deep"
    assert save_state(state, folder) == folder / STATE_NAME
    assert_same(load_state(folder), state)
    assert os.listdir(folder) == [STATE_NAME]


def test_a_later_state_replaces_the_earlier_one(tmp_path):
    save_state(new_state(), tmp_path)
    save_state(new_state(step=13, reference={}), tmp_path)
    assert_same(load_state(tmp_path), new_state(step=13, reference={}))


def test_a_target_may_be_named_like_a_prefix(tmp_path):
    mask = pack_mask(random_mask(2, 2))
    tensors = {"mask.mask.x": mask, "reference.x": mask.clone()}
    save_state(new_state(masks=tensors, reference={}), tmp_path)
    loaded = load_state(tmp_path)
    assert loaded.masks.keys() == tensors.keys()
    assert loaded.reference == {}


def test_a_folder_without_a_state_has_none(tmp_path):
    assert load_state(tmp_path) is None
    assert load_state(tmp_path / "missing") is None


def test_the_file_takes_one_bit_per_weight(tmp_path):
    state = new_state(masks={"w": pack_mask(random_mask(800, 1000))}, reference={})
    assert save_state(state, tmp_path).stat().st_size < 800 * 1000 / 8 + 1000


@pytest.mark.parametrize("num_bytes", [0, 1, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, num_bytes):
    path = save_state(new_state(), tmp_path)
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(ValueError, match=r"cannot be read .*Resume from another checkpoint"):
        load_state(tmp_path)


@pytest.mark.parametrize("content", [b"not a tensor", b"\xff" * 200, b"{}" * 100])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / STATE_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read .*Resume from another checkpoint"):
        load_state(tmp_path)


@pytest.mark.parametrize(
    "metadata", [None, {}, {"pruning": "[]"}, {"pruning": "{}"}, {"pruning": "{"}, {"pruning": "1"}]
)
def test_metadata_of_something_else_is_refused(tmp_path, metadata):
    save_file({"mask.a": torch.zeros(1)}, tmp_path / STATE_NAME, metadata=metadata)
    with pytest.raises(ValueError, match=r"cannot be read .*Resume from another checkpoint"):
        load_state(tmp_path)


@pytest.mark.parametrize("version", [1, 3, "2"])
def test_a_state_of_another_format_version_is_refused_with_the_remedy(tmp_path, version):
    values = json.dumps({"format_version": version, "a field of the future": []})
    save_file({}, tmp_path / STATE_NAME, metadata={"pruning": values})
    message = rf"format version 2; got {version} .*version of hf_cyclprune that wrote it"
    with pytest.raises(ValueError, match=message):
        load_state(tmp_path)


@pytest.mark.parametrize("function", ["save_file", "os.replace"])
@pytest.mark.parametrize("has_older", [False, True])
def test_a_write_that_fails_half_way_leaves_the_older_file_or_none(
    tmp_path, monkeypatch, has_older, function
):
    if has_older:
        save_state(new_state(), tmp_path)

    def fail(tensors_or_source, path, **kwargs):
        if function == "save_file":
            path.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(
        state_module if function == "save_file" else os, function.split(".")[-1], fail
    )
    with pytest.raises(OSError, match="disk full"):
        save_state(new_state(step=13), tmp_path)
    monkeypatch.undo()
    if has_older:
        assert_same(load_state(tmp_path), new_state())
    else:
        assert load_state(tmp_path) is None
        assert STATE_NAME not in os.listdir(tmp_path)
    save_state(new_state(step=13), tmp_path)
    assert load_state(tmp_path).step == 13
