import runpy
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cyclprune.packing.blob import decode, encode, read_head
from hf_cyclprune.packing.errors import PackedError
from tests.packing.blobs import (
    ALL,
    BITMASK,
    FLOATS,
    GAPS,
    assert_refused,
    build,
    exponents,
    form_of,
    levels,
    normal,
    prune,
    prune_2_of_4,
    raw,
    seal,
    split,
)

FUZZ = Path(__file__).parents[2] / "examples" / "fuzz_packed.py"


@pytest.fixture(scope="module")
def small():
    """A weight and its blob for each form; the encoder would not pack such small weights."""
    dense, pruned, groups = normal(2, 32), prune(normal(2, 32), 0.75), prune_2_of_4(normal(2, 32))
    gaps = raw(np.diff(np.flatnonzero(pruned), prepend=-1).astype(np.uint8) - 1)
    bits = np.packbits(groups != 0, bitorder="little").tobytes()
    return [
        (dense, build((2, 32), 64, b"", *split(dense.flatten()), form=ALL)),
        (pruned, build((2, 32), 16, gaps, *split(pruned[pruned != 0]))),
        (groups, build((2, 32), 32, bits, *split(groups[groups != 0]), form=BITMASK)),
    ]


def test_the_small_blobs_have_all_forms(small):
    assert [form_of(blob) for _, blob in small] == [ALL, GAPS, BITMASK]
    for weight, blob in small:
        assert torch.equal(decode(blob, "w", weight.shape), weight)


@pytest.mark.parametrize("form", [ALL, GAPS, BITMASK])
def test_every_change_of_a_byte_is_refused(small, form):
    _, blob = small[form]
    for place in range(blob.size):
        for flip in (1, 16, 128, 255):
            changed = blob.copy()
            changed[place] ^= flip
            assert_refused(changed)


@pytest.mark.parametrize("form", [ALL, GAPS, BITMASK])
def test_every_truncation_and_anything_appended_is_refused(small, form):
    _, blob = small[form]
    for size in range(blob.size):
        assert_refused(blob[:size])
        assert_refused(seal(blob[:size].tobytes()) if size >= 12 else blob[:size])
    for tail in (b"\0", b"\xff" * 8, blob.tobytes()):
        assert_refused(np.frombuffer(blob.tobytes() + tail, np.uint8), match="bytes of content")
        assert_refused(seal(blob.tobytes() + tail), match="bytes of content")


@pytest.mark.parametrize("form", [ALL, GAPS, BITMASK])
@pytest.mark.parametrize("field", range(5))  # kept, 2 dimensions, positions, exponents
def test_a_header_that_lies_is_refused_without_memory(small, form, field):
    weight, blob = small[form]
    (truth,) = struct.unpack_from("<Q", blob, 12 + 8 * field)
    lies = {0, 1, truth + 1, abs(truth - 1), 2**16, 2**31, 2**32, 2**40, 2**63 - 1, 2**63}
    tracemalloc.start()
    for lie in (lies | {2**64 - 1}) - {truth}:
        changed = bytearray(blob.tobytes())
        struct.pack_into("<Q", changed, 12 + 8 * field, lie)
        assert_refused(seal(changed))
        assert_refused(seal(changed), max_size=weight.numel() - 1)
        try:
            decode(seal(changed), "w", max_size=weight.numel())
        except PackedError:
            continue
        assert lie <= weight.numel()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_lengths_that_only_sum_up_are_refused(small):
    _, blob = small[GAPS]
    changed = bytearray(blob.tobytes())
    num_positions, num_exponents = struct.unpack_from("<2Q", changed, 36)
    for shift in (-3, -1, 1, 3, num_exponents, -num_positions):
        struct.pack_into("<2Q", changed, 36, num_positions + shift, num_exponents - shift)
        assert_refused(seal(changed))


@pytest.fixture(scope="module")
def bomb():
    """A stream of 1 MB that inflates to 1 GB."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(1 << 24)
    return b"".join(coder.compress(zeros) for _ in range(64)) + coder.flush()


@pytest.mark.parametrize("section", ["gap", "bitmask", "exponent"])
def test_a_stream_that_inflates_to_a_gigabyte_is_refused_without_memory(bomb, section):
    parts = {
        "gap": ((2, 32), 1, bomb, exponents([1]), bytes(3)),
        "bitmask": ((2, 32), 1, bomb, exponents([1]), bytes(3)),
        "exponent": ((2, 32), 1, raw(b"\0"), levels([], bomb), bytes(3)),
    }[section]
    blob = build(*parts, form=BITMASK if section == "bitmask" else GAPS)
    tracemalloc.start()
    assert_refused(blob, match=f"its {section} stream is longer")
    assert_refused(blob, max_size=64, match=f"its {section} stream is longer")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20  # the blob, which is copied a few times


@pytest.mark.parametrize("shape", [(2, 64), (64,), (2, 32, 1), (32, 2), (), (0,)])
def test_the_shape_of_another_model_is_refused(small, shape):
    for _, blob in small:
        assert_refused(blob, shape, match=r"shape is \(2, 32\), and the model's is")
        with pytest.raises(PackedError, match="'w'"):
            read_head(blob, "w", shape)


def test_where_the_shape_is_not_known_the_maximum_size_is_respected(small):
    for weight, blob in small:
        assert torch.equal(decode(blob, "w", max_size=64), weight)
        assert read_head(blob, "w", max_size=64).shape == (2, 32)
        assert_refused(blob, max_size=63, match="the whole model has 63 weights")


def test_the_shape_or_the_maximum_size_must_be_known(small):
    with pytest.raises(AssertionError):
        decode(small[0][1], "w")


@pytest.mark.parametrize(
    "dims",
    [(0, 2**63), (2**64 - 1, 0), (2**62, 2**62, 0, 4), (0, 2**40, 2**40), (0, 101)],
)
@pytest.mark.parametrize("form", [ALL, GAPS, BITMASK])
def test_dimensions_too_large_for_a_tensor_are_refused_even_beside_a_zero(dims, form):
    blob = build(dims, form=form, positions=b"" if form == ALL else raw(b""))
    assert_refused(blob, max_size=100)


@pytest.mark.parametrize("dims", [(2**27, 2**27, 2**27, 0), (0, *(2**9,) * 7)])
def test_dimensions_whose_product_beside_a_zero_overflows_are_refused(dims):
    assert_refused(build(dims), max_size=2**28)


def test_dimensions_that_overflow_to_the_right_size_are_refused():
    for dims in [(2**32, 2**32), (2**63, 2), (2**32 + 1, 2**32)]:
        assert_refused(build(dims), max_size=100, match="the whole model has")


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_format_version_is_refused_by_its_number(version):
    assert_refused(build((2, 32), version=version), match=f"version {version}, and this reader")


@pytest.mark.parametrize("code", [0, 4, 255])
def test_an_unknown_dtype_is_refused(code):
    assert_refused(build((2, 32), code=code), match=f"unknown dtype {code}")


@pytest.mark.parametrize("form", [3, 255])
def test_an_unknown_form_is_refused(form):
    assert_refused(build((2, 32), form=form), match=f"unknown form {form}")


@pytest.mark.parametrize("ndim", [9, 255])
def test_too_many_dimensions_are_refused(ndim):
    assert_refused(build((2, 32), ndim=ndim), match="dimensions")
    assert_refused(build((1,) * 9), match="9 dimensions", max_size=100)


@pytest.mark.parametrize("content", [b"", b"HFCP", b"\0" * 100, b"{}" * 50, b"HFCQ" + bytes(60)])
def test_what_is_not_a_blob_is_refused(content):
    assert_refused(np.frombuffer(content, np.uint8))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9])
def test_packing_takes_little_memory_beside_the_weight(sparsity, dtype):
    weight = prune(normal(1 << 21, dtype=dtype), sparsity)
    encode(weight[:5000])  # what is loaded once
    tracemalloc.start()
    encode(weight)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * weight.nbytes


def mutate(blob, changes, fix_crc):
    blob = bytearray(blob.tobytes())
    for kind, place, value in changes:
        place %= len(blob)
        if kind == "set":
            blob[place] = value
        elif kind == "cut" and len(blob) > 40:
            del blob[place:]
        elif kind == "insert":
            blob.insert(place, value)
        if len(blob) < 12:
            blob += bytes(12)
    return seal(blob) if fix_crc else np.frombuffer(bytes(blob), np.uint8)


CHANGE = st.tuples(
    st.sampled_from(["set"] * 4 + ["cut", "insert"]), st.integers(0), st.integers(0, 255)
)


@given(st.sampled_from(range(3)), st.lists(CHANGE, min_size=1, max_size=4), st.booleans())
@settings(deadline=None, max_examples=2000)
def test_a_mutated_blob_is_refused_or_gives_a_tensor_of_the_shape(small, form, changes, fix_crc):
    weight, blob = small[form]
    changed = mutate(blob, changes, fix_crc)
    try:
        back = decode(changed, "w", weight.shape)
    except PackedError:
        return
    assert back.shape == weight.shape
    if not fix_crc:
        assert np.array_equal(changed, blob)


@pytest.mark.parametrize("fix_crc", [False, True])
def test_the_fuzzer_finds_nothing(fix_crc):
    counts = runpy.run_path(str(FUZZ))["fuzz"](num=400, seed=1, fix_crc=fix_crc)
    assert counts.num_rejected + counts.num_same + counts.num_other >= 400
    assert counts.num_rejected > 100
    assert counts.failures == []
    assert fix_crc or counts.num_other == 0
