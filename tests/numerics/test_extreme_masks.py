"""The largest numbers that a mask can hold: numbers like any other, and never -inf on their way.

Faults 2 and 16.
"""

import numpy as np
import pytest

import selfattn
from support.arrays import one_head, same_bits
from support.compare import check_attention, check_scores
from support.nonfinite import INF, ROWS, attend
from support.option_arrays import bool_mask


@pytest.mark.parametrize("rows", ROWS)
def test_the_least_number_in_a_mask(isa, dtype, rows):
    """Fault 2: finfo.min is a number like any other, and never -inf on its way.

    A row of nothing else attends to all keys evenly, as one of equal scores does; beside other
    numbers it weighs nothing, as -inf does. Each in bits.
    """
    for seqlen_k in (1, 17, 127, 128, 300, 700):
        query, key, value = one_head(rows, seqlen_k, 8, dtype=dtype)
        zeros = np.zeros_like(query)
        for kind in {dtype, np.float32}:
            least = np.finfo(kind).min
            even = attend(zeros, key, value, attn_mask=np.zeros(seqlen_k, kind))
            for more in (
                {},
                {"softcap": 3.0},
                {"alibi_slopes": np.array([0.5], dtype), "query_offset": 9},
            ):
                out, lse = attend(query, key, value, attn_mask=np.full(seqlen_k, least), **more)
                assert same_bits(out, even[0]), (kind, more)
                assert (lse == least).all()
            some = bool_mask(rows, seqlen_k)
            some[:, 0] = True
            zero, minus_infinity = kind(0), kind(-INF)
            hidden = attend(query, key, value, np.where(some, zero, minus_infinity))
            assert same_bits(attend(query, key, value, np.where(some, zero, least)), hidden)
            both = np.where(some, least, minus_infinity)
            want, _ = attend(zeros, key, value, np.where(some, zero, minus_infinity))
            out, lse = attend(query, key, value, both)
            assert same_bits(out, want)
            assert (lse == least).all()


@pytest.mark.parametrize("rows", ROWS)
def test_the_largest_number_in_a_mask(isa, dtype, rows):
    """Fault 16: finfo.max takes all of the weight, also from finfo.min, though that is inf away."""
    for seqlen_k in (2, 17, 128, 300, 700):
        query, key, value = one_head(rows, seqlen_k, 8, dtype=dtype)
        for kind in {dtype, np.float32}:
            info = np.finfo(kind)
            for other in (info.min, kind(-INF), kind(0), kind(-1e30)):
                for j in (0, seqlen_k // 2, seqlen_k - 1):
                    mask = np.full(seqlen_k, other)
                    mask[j] = info.max
                    out, lse = attend(query, key, value, mask)
                    assert np.array_equal(out, np.broadcast_to(value[j], out.shape))
                    assert (lse == info.max).all()


@pytest.mark.parametrize("number", [-1e4, -1e9, -1e30, 1e30])
def test_numbers_that_models_mask_with(isa, dtype, number):
    """Fault 2: rows of nothing but such a number, of some, of all but one key."""
    for rows in ROWS:
        query, key, value = one_head(rows, 300, 8, dtype=dtype)
        for share in (0.0, 0.5, 0.95, 1.0):
            mask = np.where(bool_mask(rows, 300, share=share), dtype(number), dtype(0))
            mask[0] = number
            check_attention(query, key, value, attn_mask=mask)
            check_scores(query, key, attn_mask=mask)


def test_masks_of_a_longer_dtype_are_refused(isa):
    """Fault 16: what float32 cannot hold would overflow in it: a TypeError, never a cast."""
    query, key, value = one_head(3, 9, 4)
    for name, x in (
        ("attn_mask", np.full((3, 9), -1e308)),
        ("alibi_slopes", np.full(1, 1e308)),
        ("sinks", np.full(1, 1e308)),
    ):
        with pytest.raises(TypeError, match=f"^{name}: expected"):
            selfattn.scaled_dot_product_attention(query, key, value, **{name: x})
