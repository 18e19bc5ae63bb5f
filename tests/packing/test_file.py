import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_cyclprune.packing.blob import encode
from hf_cyclprune.packing.errors import PackedError
from hf_cyclprune.packing.file import (
    FORMAT_VERSION,
    Entry,
    check_file,
    checksum,
    list_names,
    make_metadata,
    read_tensor,
    to_bytes,
    write_file,
)
from tests.packing.reader import read_file

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def pruned(*shape, keep=10):
    weight = torch.zeros(shape)
    weight.view(-1)[::keep] = torch.arange(1.0, weight.view(-1)[::keep].numel() + 1)
    return weight


def entry(name, tensor):
    return Entry(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def write_packed(path, tensors, version=FORMAT_VERSION):
    """Write a packed file with the 2-D tensors as blobs; return its tensors."""
    stored = {}
    for name, tensor in tensors.items():
        blob = encode(tensor) if tensor.ndim > 1 else None
        if blob is None:
            stored[name] = tensor
        else:
            stored[f"{name}.packed"] = torch.tensor(blob)
    metadata = make_metadata({name: checksum(name, tensor) for name, tensor in stored.items()})
    header = json.loads(metadata["hf_cyclprune"]) | {"version": version}
    metadata["hf_cyclprune"] = json.dumps(header)
    write_file(path, [entry(name, tensor) for name, tensor in stored.items()], metadata)
    return stored


def rewrite(path, tensors=None, **changes):
    """Write the file again with other tensors or a changed entry "hf_cyclprune"."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header["__metadata__"]
    metadata["hf_cyclprune"] = json.dumps(json.loads(metadata["hf_cyclprune"]) | changes)
    save_file(load_file(path) if tensors is None else tensors, path, metadata)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.sparse.safetensors"
    write_packed(path, {"a.weight": pruned(20, 30), "b": torch.ones(3), "c": pruned(20, 30) * 2})
    return path


@pytest.mark.parametrize(
    "dtypes",
    [
        [torch.float32, torch.int64, torch.bool],
        [torch.bfloat16, torch.float32, torch.uint8],
        DTYPES,
    ],
)
def test_a_written_file_has_the_bytes_that_safetensors_writes(tmp_path, dtypes):
    tensors = {
        f"{i}.{dtype}": (torch.arange(i + 3) % 2).to(dtype) for i, dtype in enumerate(dtypes)
    }
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), "grid": pruned(3, 5)}
    write_file(tmp_path / "ours", [entry(*item) for item in tensors.items()], {"format": "pt"})
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_order_of_the_entries_does_not_matter(tmp_path):
    entries = [entry(name, torch.full((2,), ord(name))) for name in "cab"]
    write_file(tmp_path / "one", entries, {"format": "pt"})
    write_file(tmp_path / "two", entries[::-1], {"format": "pt"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tensors_are_read_one_after_the_other(tmp_path):
    read = []
    entries = [
        Entry(name, torch.float32, (2,), lambda name=name: (read.append(name), torch.zeros(2))[1])
        for name in "ba"
    ]
    assert read == []
    write_file(tmp_path / "file", entries, {})
    assert read == ["a", "b"]


@pytest.mark.parametrize("has_older", [False, True])
def test_a_write_that_fails_leaves_the_older_file_or_none(tmp_path, has_older):
    path = tmp_path / "file"
    if has_older:
        write_file(path, [entry("a", torch.ones(2))], {})
    before = path.read_bytes() if has_older else None

    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_file(path, [entry("a", torch.zeros(2)), Entry("b", torch.uint8, (2,), fail)], {})
    assert os.listdir(tmp_path) == (["file"] if has_older else [])
    assert not has_older or path.read_bytes() == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bytes_of_a_tensor_are_those_of_its_elements_in_order(dtype):
    tensor = (torch.arange(12).reshape(3, 4) % 2).to(dtype)
    for view in (tensor, tensor.t(), tensor[1:, ::2], tensor[0, 0], tensor[:0]):
        expected = view.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert bytes(to_bytes(view)) == expected


def test_the_second_reader_agrees(path):
    tensors = read_file(path)
    assert tensors["a.weight"] == ("F32", (20, 30), pruned(20, 30).numpy().tobytes())
    assert tensors["b"] == ("F32", (3,), torch.ones(3).numpy().tobytes())
    assert tensors.keys() == {"a.weight", "b", "c"}


def test_an_intact_file_passes_and_lists_its_names(path):
    assert sorted(check_file(path)) == ["a.weight.packed", "b", "c.packed"]
    assert sorted(list_names(path)) == sorted(check_file(path))
    assert torch.equal(read_tensor(path, "b"), torch.ones(3))


def test_every_change_of_a_byte_is_refused_or_changes_no_tensor(path):
    content = path.read_bytes()
    tensors = load_file(path)
    metadata = content.index(b'"format":"pt"')
    blobs = 8 + int.from_bytes(content[:8], "little")
    num_passed, messages = 0, []
    for place in range(blobs + 200):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            names = check_file(path)
        except PackedError as error:
            messages.append(str(error))
            continue
        assert metadata <= place < metadata + 13 or place >= blobs or content[place] == ord(" ")
        num_passed += 1
        if place < blobs:
            assert all(torch.equal(read_tensor(path, name), tensors[name]) for name in names)
    assert num_passed < 200 + 13 + 8
    assert all(str(path) in message for message in messages)


def test_every_truncation_and_anything_appended_is_refused(path):
    content = path.read_bytes()
    for size in [*range(40), *range(40, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(PackedError, match="cannot be read as a safetensors file"):
            check_file(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(PackedError, match="cannot be read as a safetensors file"):
        check_file(path)


@pytest.mark.parametrize("name", ["a.weight.packed", "b"])
def test_a_flipped_bit_of_a_header_of_a_blob_or_of_a_tensor_names_it(path, name):
    for byte in range(12):
        tensors = load_file(path)
        tensors[name].view(torch.uint8)[byte] ^= 64
        damaged = path.with_name("damaged")
        damaged.write_bytes(path.read_bytes())
        rewrite(damaged, tensors)
        with pytest.raises(PackedError, match=rf"'{name}' in .*damaged is damaged"):
            check_file(damaged)


def test_swapped_tensors_of_one_shape_are_refused(path):
    tensors = load_file(path)
    assert tensors["a.weight.packed"].shape == tensors["c.packed"].shape
    tensors |= {"a.weight.packed": tensors["c.packed"], "c.packed": tensors["a.weight.packed"]}
    rewrite(path, {name: tensor.clone() for name, tensor in tensors.items()})
    with pytest.raises(PackedError, match=r"'(a\.weight|c)\.packed' in .* is damaged"):
        check_file(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"b": t["b"].reshape(3, 1)},
        lambda t: t | {"b": t["b"].view(torch.int32)},
        lambda t: t | {"b": t["b"].view(torch.uint8)},
        lambda t: t | {"c.packed": t["c.packed"].view(torch.int8)},
        lambda t: t | {"c.packed": t["c.packed"].reshape(1, -1)},
        lambda t: t | {"b": torch.ones(3, dtype=torch.complex64)},
        lambda t: t | {"b": torch.ones(2)},
    ],
)
def test_another_dtype_or_shape_with_the_same_bytes_is_refused(path, change):
    rewrite(path, change(load_file(path)))
    with pytest.raises(PackedError, match=r"'(b|c\.packed)' in .* is damaged"):
        check_file(path)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "b"}, "b"),
        (lambda t: t | {"d": torch.ones(1)}, "d"),
        (lambda t: {f"{k}.e" if k == "b" else k: v for k, v in t.items()}, "b"),
        (lambda t: {k.replace(".packed", ""): v for k, v in t.items()}, r"a\.weight"),
        (lambda t: {}, r"a\.weight\.packed"),
    ],
)
def test_tensors_that_are_missing_renamed_or_added_are_refused(path, change, name):
    rewrite(path, change(load_file(path)))
    with pytest.raises(PackedError, match=f"its header lists: '{name}"):
        check_file(path)


@pytest.mark.parametrize("version", [0, 2, "1", None, [], 1.5])
def test_another_format_version_is_refused_with_the_remedy(path, version):
    rewrite(path, version=version)
    with pytest.raises(PackedError, match=r"format version .* knows 1\. Install a newer"):
        check_file(path)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "{",
        "[]",
        "{}",
        "1",
        "null",
        '"x"',
        '{"version": 1}',
        '{"version": 1, "crc32": 3}',
        '{"version": 1, "crc32": [1]}',
        '{"version": 1, "crc32": null}',
        '{"version": 1, "crc32": ""}',
    ],
)
def test_metadata_of_something_else_is_refused(path, entry):
    save_file(load_file(path), path, {"hf_cyclprune": entry})
    with pytest.raises(PackedError, match=r"is not a packed file|does not hold the tensors"):
        check_file(path)


@pytest.mark.parametrize("checksums", [None, "x", -1, 2**40, [], 0.5])
def test_a_checksum_of_another_type_or_value_is_refused(path, checksums):
    names = list_names(path)
    rewrite(path, crc32=dict.fromkeys(names, checksums))
    with pytest.raises(PackedError, match="is damaged: its checksum"):
        check_file(path)


def test_a_type_that_torch_cannot_read_is_refused(path):
    header = {
        "__metadata__": make_metadata({"a": 0}),
        "a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(3))
    with pytest.raises(PackedError, match="'a' cannot be read from"):
        check_file(path)


def test_metadata_nested_without_end_is_refused(path):
    save_file(load_file(path), path, {"hf_cyclprune": "[" * 200_000})
    with pytest.raises(PackedError, match="is not a packed file"):
        check_file(path)


def test_a_plain_safetensors_file_is_not_a_packed_one(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "plain")
    with pytest.raises(PackedError, match="is not a packed file of hf_cyclprune"):
        check_file(tmp_path / "plain")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        for read in (check_file, list_names, lambda path: read_tensor(path, "a")):
            with pytest.raises(PackedError, match="cannot be read as a safetensors file"):
                read(path)


def test_a_tensor_that_is_not_there_is_refused_by_name(path):
    with pytest.raises(PackedError, match="'nothing' cannot be read"):
        read_tensor(path, "nothing")


def test_a_checksum_depends_on_name_dtype_shape_and_bytes():
    tensor = torch.arange(6.0)
    others = [
        checksum("a", tensor),
        checksum("b", tensor),
        checksum("a", tensor.reshape(2, 3)),
        checksum("a", tensor.reshape(3, 2)),
        checksum("a", tensor.view(torch.int32)),
        checksum("a", tensor + 1),
        checksum("a", torch.tensor(0.0)),
        checksum("a", torch.zeros(0)),
        checksum("a", torch.zeros(0, 1)),
    ]
    assert len(set(others)) == len(others)


def test_the_checksum_of_a_blob_is_that_of_its_first_12_bytes():
    blob = torch.from_numpy(np.arange(40, dtype=np.uint8))
    start = blob.clone()
    start[20] = 0
    assert checksum("a.packed", blob) == checksum("a.packed", start)
    assert checksum("a", blob) != checksum("a", start)
    start[11] = 0
    assert checksum("a.packed", blob) != checksum("a.packed", start)
