"""Masks as they lie in memory: any stride, offset and order, read in place and never written.

Faults 10, 11, 15 and 19, for attn_mask. Every result must have the bits of a contiguous mask's.
"""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import selfattn
from support.arrays import qkv, same_bits
from support.layouts import LAYOUTS, SHAPES, bits_at
from support.option_arrays import bool_mask, float_mask

SEQLEN_K = 141


def kinds(*shape, dtype):
    """Of bools, of the dtype, and of float32, which goes with every dtype."""
    yield bool_mask(*shape)
    yield float_mask(*shape, dtype=dtype)
    if dtype != np.float32:
        yield float_mask(*shape, dtype=np.float32)


def calls(query, key, value, mask):
    """Every function that takes a mask, on these."""
    return (
        *selfattn.scaled_dot_product_attention(query, key, value, mask, return_lse=True),
        selfattn.scaled_dot_product(query, key, mask),
        selfattn.attention_weights(query, key, mask, is_causal=True, query_offset=99),
    )


def packed_bools(x):
    """A copy of x as a field of packed structs of 3 bytes."""
    structs = np.zeros(x.shape, [("before", "u1"), ("x", bool), ("after", "u1")])
    structs["x"], structs["before"], structs["after"] = x, 1, ~x
    return structs["x"]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=["decode", "prefill"])
def test_layouts(isa, dtype, name, shape):
    """Faults 10 and 19: a mask with every axis; transposed, reversed, with gaps, in structs."""
    arrays = qkv(shape, seqlen_k=SEQLEN_K, dtype=dtype)
    for mask in kinds(*shape[:3], SEQLEN_K, dtype=dtype):
        layout = packed_bools if name == "packed structs" and mask.dtype == bool else LAYOUTS[name]
        moved = layout(mask)
        assert np.array_equal(moved, mask)
        assert same_bits(calls(*arrays, moved), calls(*arrays, mask))


@pytest.mark.parametrize("shape", SHAPES, ids=["decode", "prefill"])
def test_unaligned(isa, dtype, shape):
    """Fault 19: every offset from an aligned address, of bytes and not of elements."""
    arrays = qkv(shape, seqlen_k=35, dtype=dtype)
    for mask in kinds(*shape[:3], 35, dtype=dtype):
        want = calls(*arrays, mask)
        for offset in range(1, 64):
            assert same_bits(calls(*arrays, bits_at(offset, mask)), want), offset


@pytest.mark.parametrize("seqlen_k", [1, 2, 15, 16, 33, 64, 129])
def test_broadcast_by_stride_zero(isa, dtype, seqlen_k):
    """Fault 11: stride 0 along each axis and along several, at each tail of S."""
    for shape in SHAPES:
        arrays = qkv(shape, seqlen_k=seqlen_k, dtype=dtype)
        for part in (
            np.s_[:1], np.s_[:, :1], np.s_[:1, :1], np.s_[:, :, :1], np.s_[..., :1],
            np.s_[:1, :1, :1], np.s_[:1, :1, :, :1], np.s_[:1, :1, :1, :1],
        ):  # fmt: skip
            for mask in kinds(*shape[:3], seqlen_k, dtype=dtype):
                moved = np.broadcast_to(mask[part], mask.shape)
                want = calls(*arrays, moved.copy())
                assert same_bits(calls(*arrays, moved), want), (shape, part)
                assert same_bits(calls(*arrays, mask[part]), want), (shape, part)


def test_rows_that_overlap(isa, dtype):
    """A bias by distance, as T5 has it: rows slide backwards over one buffer and share elements."""
    for rows in (2, 40):
        query, key, value = qkv((1, 1, rows, 8), seqlen_k=90, dtype=dtype)
        for buffer in kinds(rows + 90, dtype=dtype):
            step = buffer.itemsize
            shape, start = (rows, 90), buffer[rows - 1 :]
            mask = as_strided(start, shape, (-step, step), writeable=False)
            assert np.array_equal(mask[1, 1:], mask[0, :-1])
            assert same_bits(calls(query, key, value, mask), calls(query, key, value, mask.copy()))


@pytest.mark.parametrize("stride", [2**62, -(2**62), 2**40])
def test_strides_of_axes_that_do_not_move(isa, dtype, stride):
    """Fault 15: an axis of length 1 may have any stride; nothing is computed from it."""
    for shape in ((2, 3, 1, 13), (1, 1, 20, 13), (2, 1, 20, 1), (1, 1, 1, 1)):
        query, key, value = qkv((2, 3, 20, 4), seqlen_k=13, dtype=dtype)
        query = query[:, :, : 1 if shape[2] == 1 else 20]
        for mask in kinds(*shape, dtype=dtype):
            moved = as_strided(
                mask,
                strides=[stride if n == 1 else s for s, n in zip(mask.strides, shape, strict=True)],
            )
            assert same_bits(calls(query, key, value, moved), calls(query, key, value, mask))


def test_a_mask_larger_than_32_bits_count(isa):
    """Fault 15: rows that lie so far from each other that the last is past 2^32 bytes."""
    rows, seqlen_k = 20, 9
    query, key, value = qkv((1, 1, rows, 4), seqlen_k=seqlen_k)
    stride = (2**32 + 100) // (rows - 1)
    memory = np.zeros(rows * stride, bool)  # only the pages that are touched exist
    mask = as_strided(memory, (rows, seqlen_k), (stride, 1))
    mask[...] = bool_mask(rows, seqlen_k)
    assert same_bits(calls(query, key, value, mask), calls(query, key, value, mask.copy()))
