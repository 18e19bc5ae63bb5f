import json
import zlib

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from transformers import (
    AutoModelForSequenceClassification,
)

from hf_cyclprune import load_packed, unpack, verify
from hf_cyclprune.packing.errors import PackedError
from hf_cyclprune.packing.file import checksum, make_metadata
from tests.packing.models import (
    BIAS,
    KEY,
    PACKED,
    QUERY,
    assert_same_weights,
    new_model,
)


def change_file(path, change, fixes_checksums=False):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    if fixes_checksums:
        metadata = make_metadata({name: checksum(name, tensor) for name, tensor in tensors.items()})
    save_file(tensors, path, metadata)


def change_entry(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    entry = config["quantization_config"]
    config["quantization_config"] = entry | {k: v(entry.get(k)) for k, v in changes.items()}
    (folder / "config.json").write_text(json.dumps(config))


def truncate(folder):
    content = (folder / PACKED).read_bytes()
    (folder / PACKED).write_bytes(content[:-10])


def flip(name, byte):
    def change(tensors):
        tensors[name].view(torch.uint8)[byte] ^= 16

    return lambda folder: change_file(folder / PACKED, change)


def flip_header(folder):
    content = bytearray((folder / PACKED).read_bytes())
    content[content.index(b'"data_offsets"') + 1] ^= 1
    (folder / PACKED).write_bytes(content)


def swap(fixes_checksums):
    def change(tensors):
        a, b = f"{QUERY}.packed", f"{KEY}.packed"
        tensors[a], tensors[b] = tensors[b], tensors[a]

    return lambda folder: change_file(folder / PACKED, change, fixes_checksums)


def rename(old, new, fixes_checksums=False):
    def change(tensors):
        tensors[new] = tensors.pop(old)

    return lambda folder: change_file(folder / PACKED, change, fixes_checksums)


def drop(name, fixes_checksums=False):
    return lambda folder: change_file(folder / PACKED, lambda t: t.pop(name), fixes_checksums)


def add(name, fixes_checksums=False):
    def change(tensors):
        tensors[name] = torch.ones(2)

    return lambda folder: change_file(folder / PACKED, change, fixes_checksums)


def newer_file(folder):
    with safe_open(folder / PACKED, "pt") as file:
        metadata = file.metadata()
    entry = json.loads(metadata["hf_cyclprune"]) | {"version": 2}
    tensors = load_file(folder / PACKED)
    save_file(tensors, folder / PACKED, metadata | {"hf_cyclprune": json.dumps(entry)})


def reseal(change):
    """Change a blob, and correct its checksums."""

    def change_all(tensors):
        blob = tensors[f"{QUERY}.packed"].numpy()
        change(blob)
        crc = zlib.crc32(blob[12:].tobytes(), zlib.crc32(blob[:8].tobytes()))
        blob[8:12] = list(crc.to_bytes(4, "little"))

    return lambda folder: change_file(folder / PACKED, change_all, fixes_checksums=True)


def newer_blob(blob):
    blob[4] = 2


def other_kept(blob):
    blob[12] += 1


def huge_shape(blob):
    blob[25] = 1  # 2^40 rows


def remove_name(names):
    return [name for name in names if name != BIAS]


def remove_file(folder):
    (folder / PACKED).unlink()


A = r"model\.sparse\.safetensors"


Q = r"self\.query\.weight"


DAMAGES = {
    "truncated": (truncate, A),
    "gone": (remove_file, A),
    "bit in a blob": (flip(f"{QUERY}.packed", -1), Q),
    "bit in the positions": (flip(f"{QUERY}.packed", 60), Q),
    "bit in the head of a blob": (flip(f"{QUERY}.packed", 5), Q),
    "bit in a tensor": (flip(BIAS, 3), r"self\.query\.bias"),
    "bit in the header": (flip_header, A),
    "name in the list": (
        lambda folder: change_entry(folder, tensors=lambda n: [x.replace(BIAS, "b") for x in n]),
        r"'b'",
    ),
    "shorter list": (lambda folder: change_entry(folder, tensors=remove_name), "query.bias"),
    "longer list": (lambda folder: change_entry(folder, tensors=lambda n: [*n, "b"]), "'b'"),
    "no list": (lambda folder: change_entry(folder, tensors=lambda n: None), r"config\.json"),
    "other file": (lambda folder: change_entry(folder, weights=lambda n: "x"), r"config\.json"),
    "swapped": (swap(False), r"self\.(query|key)\.weight"),
    "renamed": (rename(BIAS, "b"), "'b'"),
    "renamed and listed": (rename(BIAS, "b", True), "'b'"),
    "missing": (drop(BIAS), "query.bias"),
    "missing and not listed": (drop(BIAS, True), "query.bias"),
    "missing blob": (drop(f"{QUERY}.packed", True), Q),
    "extra": (add("b"), "'b'"),
    "extra and listed": (add("b", True), "'b'"),
    "packed and not": (add(QUERY, True), Q),
    "newer config": (
        lambda folder: change_entry(folder, version=lambda v: 2),
        "version 2, and this reader",
    ),
    "newer file": (newer_file, "version 2, and this reader"),
    "newer blob": (reseal(newer_blob), rf"{Q}.*version 2"),
    "other blob": (reseal(other_kept), Q),
    "huge blob": (reseal(huge_shape), rf"{Q}.*the whole model has"),
}


def read_from_pretrained(folder, out):
    AutoModelForSequenceClassification.from_pretrained(folder)


READERS = {
    "from_pretrained": read_from_pretrained,
    "load_packed": lambda folder, out: load_packed(folder),
    "unpack": unpack,
    "verify": lambda folder, out: verify(folder, folder),
}


def assert_refused(read, folder, out, match):
    with pytest.raises(Exception, match="(?s)" + match) as caught:
        read(folder, out)
    causes = [caught.value, caught.value.__cause__, caught.value.__context__]
    is_theirs = read is read_from_pretrained and isinstance(caught.value, OSError)
    assert is_theirs or any(isinstance(error, PackedError) for error in causes)
    assert is_theirs or caught.type is PackedError
    assert not out.exists()
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(("damage", "match"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_and_named(packed, tmp_path, damage, match, read):
    damage(packed)
    assert_refused(read, packed, tmp_path / "out", match)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_tensor_in_two_shards_is_refused(shards, tmp_path, read):
    first, second = sorted(shards.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    change_file(second, lambda tensors: tensors.update({name: tensor}), fixes_checksums=True)
    match = rf"'{name.removesuffix('.packed')}' is there twice"
    assert_refused(read, shards, tmp_path / "out", match)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_missing_shard_is_refused(shards, tmp_path, read):
    path = sorted(shards.glob("*.safetensors"))[1]
    path.unlink()
    assert_refused(read, shards, tmp_path / "out", path.name)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"weight_map": {"a": 3}}'])
@pytest.mark.parametrize("name", ["load_packed", "unpack", "verify"])
def test_an_index_of_something_else_is_refused(shards, tmp_path, content, name):
    (shards / f"{PACKED}.index.json").write_text(content)
    assert_refused(
        READERS[name],
        shards,
        tmp_path / "out",
        r"index\.json in .*(cannot be read|is not an index)",
    )


@pytest.mark.parametrize("hidden_size", [8, 24])
def test_weights_of_another_model_are_refused(packed, tmp_path, hidden_size):
    config = json.loads((packed / "config.json").read_text()) | {"hidden_size": hidden_size}
    (packed / "config.json").write_text(json.dumps(config))
    assert_refused(
        READERS["load_packed"], packed, tmp_path / "out", r"does not hold the weights|weight'"
    )
    with pytest.raises((PackedError, RuntimeError), match=r"weight|mismatch"):
        AutoModelForSequenceClassification.from_pretrained(packed)


def test_blobs_swapped_with_checksums_made_to_fit_are_another_intact_model(packed):
    swap(True)(packed)
    assert_same_weights(load_packed(packed).bert.embeddings, new_model().bert.embeddings)
