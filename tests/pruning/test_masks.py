import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cyclprune.pruning.masks import pack_mask, unpack_mask


def random_mask(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) < 0.5


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32))
@settings(deadline=None, max_examples=80)
def test_a_mask_of_any_size_survives_packing_to_one_bit_per_weight(rows, columns, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((rows * columns + 7) // 8,)
    assert torch.equal(unpack_mask(packed, (rows, columns)), mask)


def test_bit_i_mod_8_of_byte_i_div_8_is_weight_i():
    mask = random_mask(3, 7)
    packed = pack_mask(mask).tolist()
    for i, is_kept in enumerate(mask.flatten().tolist()):
        assert bool(packed[i // 8] >> (i % 8) & 1) == is_kept


def test_the_unused_bits_of_the_last_byte_are_zero():
    assert pack_mask(torch.ones(3, 3, dtype=torch.bool)).tolist() == [255, 1]


def test_a_transposed_mask_is_packed_in_its_logical_order():
    mask = random_mask(4, 6)
    assert torch.equal(unpack_mask(pack_mask(mask.t()), (6, 4)), mask.t())


def test_an_unpacked_mask_can_be_written_to():
    packed = pack_mask(random_mask(2, 8))
    before = packed.tolist()
    unpack_mask(packed, (2, 8)).fill_(True)
    assert packed.tolist() == before


@pytest.mark.parametrize("shape", [(3, 2), (4, 5), (17, 1), (0, 0)])
def test_a_packed_mask_of_another_size_is_refused(shape):
    message = rf"{(shape[0] * shape[1] + 7) // 8} bytes; got 2 of torch.uint8.*another model"
    with pytest.raises(ValueError, match=message):
        unpack_mask(pack_mask(random_mask(3, 5)), shape)


def test_a_packed_mask_of_another_dtype_is_refused():
    with pytest.raises(ValueError, match=r"got 2 of torch\.int64"):
        unpack_mask(torch.zeros(2, dtype=torch.int64), (3, 5))


def test_packing_agrees_with_numpy():
    mask = random_mask(13, 11)
    assert (
        pack_mask(mask).numpy().tobytes() == np.packbits(mask.numpy(), bitorder="little").tobytes()
    )
