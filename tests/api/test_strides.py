"""Arrays as they lie in memory: any stride, offset and order, read in place and never written.

Faults 10, 11, 12, 19 and 20. Every result must have the bits of the call on contiguous copies.
"""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import selfattn
from support.arrays import normal, qkv, same_bits
from support.layouts import LAYOUTS, SHAPES, bits_at


def calls(query, key, value):
    """Every function that takes arrays, on these."""
    weights = np.abs(value).swapaxes(-1, -2)  # strided too
    return (
        *selfattn.scaled_dot_product_attention(query, key, value, return_lse=True),
        *selfattn.scaled_dot_product_attention(query, key, value, return_lse=True, is_causal=True),
        selfattn.scaled_dot_product(query, key),
        selfattn.attention_weights(query, key),
        selfattn.weighted_sum(weights, value),
        *(selfattn.softmax(value, axis) for axis in range(value.ndim)),
    )


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=["decode", "prefill"])
def test_layouts(isa, dtype, name, shape):
    """Faults 10 and 19: one array at a time, then all."""
    arrays = qkv(shape, seqlen_k=141, head_dim_v=19, dtype=dtype)
    want = calls(*arrays)
    for which in ((0,), (1,), (2,), (0, 1, 2)):
        moved = [LAYOUTS[name](x) if i in which else x for i, x in enumerate(arrays)]
        assert all(map(np.array_equal, moved, arrays))
        assert same_bits(calls(*moved), want), which


@pytest.mark.parametrize("shape", SHAPES, ids=["decode", "prefill"])
def test_unaligned(isa, dtype, shape):
    """Fault 19: every offset from an aligned address, of bytes and not of elements."""
    arrays = qkv(shape, seqlen_k=35, dtype=dtype)
    want = calls(*arrays)
    for offset in range(1, 64):
        assert same_bits(calls(*(bits_at(offset, x) for x in arrays)), want), offset


def test_packed_by_nine_bytes(isa):
    """Fault 19: float64 and one byte more, along rows and along columns."""
    fields = np.dtype([("x", np.float64), ("more", "u1")])
    arrays = []
    for x in qkv((1, 2, 9, 20), seqlen_k=131, dtype=np.float64):
        for axis in (-1, -2):
            structs = np.zeros(x.swapaxes(-1, axis).shape, fields)
            structs["x"] = x.swapaxes(-1, axis)
            y = structs["x"].swapaxes(-1, axis)
            assert y.strides[axis] == 9
            arrays.append(y)
    want = calls(*(x.copy() for x in arrays[::2]))
    for first in (0, 1):
        assert same_bits(calls(*arrays[first::2]), want)


@pytest.mark.parametrize("seqlen_k", [1, 2, 31, 32, 33, 64, 65, 127, 129, 257])
def test_broadcast_by_stride_zero(isa, dtype, seqlen_k):
    """Fault 11: stride 0 along batch, heads, rows or columns of K and V, at each tail of S."""
    if isa == "portable" and seqlen_k in (127, 257):
        pytest.skip("its vectors are short: the other lengths have all of their tails")
    for shape in SHAPES:
        query, key, value = qkv(shape, seqlen_k=seqlen_k, dtype=dtype)
        for part in (np.s_[:1], np.s_[:, :1], np.s_[:1, :1], np.s_[:, :, :1], np.s_[..., :1]):
            for which in ((1,), (2,), (1, 2), (0, 1, 2)):
                moved = [
                    np.broadcast_to(x[part], x.shape) if i in which else x
                    for i, x in enumerate((query, key, value))
                ]
                want = calls(*(np.ascontiguousarray(x) for x in moved))
                assert same_bits(calls(*moved), want), (shape, part, which)


def test_rows_that_overlap(isa, dtype):
    """Windows that slide over one buffer: rows share elements."""
    buffer = normal(200, dtype=dtype)
    step = buffer.itemsize
    windows = as_strided(buffer, (90, 24), (step, step), writeable=False)
    for rows in (2, 40):
        want = calls(windows[:rows].copy(), windows.copy(), windows.copy())
        assert same_bits(calls(windows[:rows], windows, windows), want)


def test_one_array_as_query_key_and_value(isa, dtype):
    x = normal(2, 33, 16, dtype=dtype)
    assert same_bits(calls(x, x, x), calls(x.copy(), x.copy(), x.copy()))


@pytest.mark.parametrize("stride", [2**62, -(2**62), 2**40])
def test_strides_of_axes_that_do_not_move(isa, dtype, stride):
    """Fault 15: an axis of length 1 may have any stride; nothing is computed from it."""
    for shape in ((2, 3, 1, 13), (2, 3, 20, 1), (1, 3, 20, 13), (2, 1, 20, 13)):
        arrays = qkv(shape, seqlen_k=shape[2], dtype=dtype)
        moved = [
            as_strided(
                x, strides=[stride if n == 1 else s for s, n in zip(x.strides, shape, strict=True)]
            )
            for x in arrays
        ]
        assert same_bits(calls(*moved), calls(*arrays)), shape


def test_inputs_are_read_only(isa, dtype):
    """Fault 20: a read-only array is accepted, and no input is ever written."""
    arrays = qkv((2, 3, 20, 13), seqlen_k=141, dtype=dtype)
    want, before = calls(*arrays), [x.copy() for x in arrays]
    assert same_bits(tuple(before), tuple(arrays))
    for x in arrays:
        x.flags.writeable = False
    assert same_bits(calls(*arrays), want)
    frozen = tuple(np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape) for x in arrays)
    assert same_bits(calls(*frozen), want)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (0, 1, 3, 2)])
def test_layout_of_the_output_follows_query(isa, dtype, order):
    """A query held as BSHD gives an output held as BSHD, which a model takes without a copy."""
    back = np.argsort(order)
    query, key, value = qkv((2, 3, 20, 12), seqlen_k=9, head_dim_v=5, dtype=dtype)
    query = np.ascontiguousarray(query.transpose(order)).transpose(back)
    out = selfattn.scaled_dot_product_attention(query, key, value)
    assert out.shape == (2, 3, 20, 5)
    assert out.transpose(order).flags.c_contiguous
