"""The reference where rows are wholly masked, where NaN and inf stand, with finfo.min, with sinks.

By plain statements of what must come out, and by scalars.py.
"""

import numpy as np
import pytest

from selfattn import reference
from support.arrays import normal, one_head, qkv
from support.nonfinite import hidings
from support.scalars import attention


def test_dtype_and_masked_rows():
    query, key, value = one_head(3, 4, 5)
    out, lse = reference.scaled_dot_product_attention(
        query, key, value, is_causal=True, query_offset=-2, return_lse=True
    )
    assert out.dtype == lse.dtype == np.float32
    assert (out[:2] == 0).all()
    assert (lse[:2] == -np.inf).all()
    assert np.isfinite(out[2]).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison(poison):
    """Masked, it adds nothing; attended, it reaches its own column; no row of -inf is ever NaN."""
    query, key, value = one_head(4, 6, 3, dtype=np.float64)
    want = reference.scaled_dot_product_attention(query, key, value, is_causal=True)
    value[2, 1] = poison
    out = reference.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert np.array_equal(out[:2], want[:2])
    assert np.array_equal(out[:, [0, 2]], want[:, [0, 2]])
    np.testing.assert_array_equal(out[2:, 1], poison)
    key[3] = np.nan
    out = reference.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert np.array_equal(out[:2], want[:2])
    assert np.isnan(out[3]).all()
    ones, none = np.ones((2, 1)), np.full((6, 1), -np.inf)
    assert (reference.scaled_dot_product_attention(ones, none, value) == 0).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("more", [{}, {"softcap": 2.0}, {"sinks": np.array([0.5])}], ids=str)
def test_poison_under_each_rule(poison, more):
    """Fault 5: NaN or inf in a masked key or value changes no bit, capped or not.

    docs/semantics.md, NaN and infinity: what is masked reaches no row, what is attended its rows.
    """
    call = reference.scaled_dot_product_attention
    for options, rows in hidings(5, 6, 3, 2):
        query, key, value = one_head(5, 6, 3, dtype=np.float64)
        want = call(query, key, value, return_lse=True, **options, **more)
        poisoned = key.copy()
        poisoned[3, 1] = poison
        value[3] = poison
        got = call(query, poisoned, value, return_lse=True, **options, **more)
        for x, wanted in zip(got, want, strict=True):
            assert np.array_equal(x[rows], wanted[rows]), options
        attending = np.ones(5, bool)
        attending[rows] = False
        assert not np.isfinite(got[0][attending]).any(), options
        scores = reference.scaled_dot_product(query, poisoned, **options, softcap=2.0)
        assert (scores[rows, 3] == -np.inf).all(), options


def test_fully_masked_rows():
    """Fault 1, rows that see no key: output 0 and lse -inf, or the sink; never NaN."""
    query, key, value = one_head(4, 6, 3, dtype=np.float64)
    value[:, 1], query[1] = np.nan, np.inf
    for options in (
        {"attn_mask": np.zeros((4, 6), bool)},
        {"attn_mask": np.full((4, 6), -np.inf)},
        {"kv_lengths": 0},
        {"is_causal": True, "query_offset": -4},
        {"window_size": (0, 0), "query_offset": 6},
        {"segment_ids": (np.zeros(4, int), np.ones(6, int))},
    ):
        for sinks, lse in ((None, -np.inf), (np.array([-np.inf]), -np.inf), (np.array([2.5]), 2.5)):
            got = reference.scaled_dot_product_attention(
                query, key, value, sinks=sinks, return_lse=True, softcap=3.0, **options
            )
            assert (got[0] == 0).all(), options
            assert (got[1] == lse).all(), options
            weights = reference.attention_weights(query, key, sinks=sinks, **options)
            assert (weights == 0).all(), options


def test_minus_infinity_by_arithmetic():
    """A row of it is as masked, and a NaN in value stays out; a cap makes it a number (order)."""
    query, key = np.ones((2, 1)), np.full((3, 1), -np.inf)
    value = np.array([[1.0, np.nan], [2.0, 0.0], [3.0, np.inf]])
    for sinks, lse in ((None, -np.inf), (np.array([2.5]), 2.5)):
        got = reference.scaled_dot_product_attention(
            query, key, value, sinks=sinks, return_lse=True
        )  # fmt: skip
        assert (got[0] == 0).all()
        assert (got[1] == lse).all()
    out = reference.scaled_dot_product_attention(query, key, value[:, :1], softcap=5.0)
    np.testing.assert_allclose(out, 2.0, rtol=1e-15)
    capped = reference.scaled_dot_product(query, key, np.array([0.5, -np.inf, 0.0]), softcap=5.0)
    assert np.array_equal(capped, [[-4.5, -np.inf, -5.0]] * 2)


@pytest.mark.parametrize("mask_dtype", [np.float32, np.float64])
def test_finite_minimum(mask_dtype):
    """Fault 2: finfo.min is a number. Alone in a row it means all keys evenly, else none of it."""
    query, key, value = one_head(3, 5, 4, dtype=np.float64)
    attn_mask = np.zeros((3, 5), mask_dtype)
    attn_mask[0] = attn_mask[1, 2:] = np.finfo(mask_dtype).min
    out, lse = reference.scaled_dot_product_attention(
        query, key, value, attn_mask, return_lse=True
    )  # fmt: skip
    np.testing.assert_allclose(out[0], value.mean(0), rtol=1e-14)
    assert lse[0] == np.finfo(mask_dtype).min
    for i, keys in ((1, 2), (2, 5)):
        want = attention(query[i : i + 1], key[:keys], value[:keys])
        np.testing.assert_allclose(out[i], want[0][0], rtol=1e-14)


def test_sinks_are_a_key_without_a_value():
    """One more key whose score is the sink and whose value is 0: the same out and lse."""
    query, key, value = qkv((3, 4, 2), 3, 5, dtype=np.float64)
    sinks = normal(3, dtype=np.float64) * 3
    more = [np.concatenate([x, np.zeros((3, 1, 2))], 1) for x in (key, value)]
    column = np.broadcast_to(sinks[:, None, None], (3, 4, 1))
    attn_mask = np.concatenate([np.zeros((3, 4, 5)), column], 2)
    want = reference.scaled_dot_product_attention(query, *more, attn_mask, return_lse=True)
    got = reference.scaled_dot_product_attention(query, key, value, sinks=sinks, return_lse=True)
    for x, wanted in zip(got, want, strict=True):
        np.testing.assert_allclose(x, wanted, rtol=1e-14, atol=1e-15)
    weights = reference.attention_weights(query, key, sinks=sinks)
    share = np.exp(sinks[:, None] - got[1])
    np.testing.assert_allclose(weights.sum(-1), 1 - share, rtol=1e-13)
