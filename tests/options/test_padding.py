"""Padding on the left of keys and on the right of queries: kv_starts, query_lengths.

docs/semantics.md, ranges of keys. Against the reference they are among the options that
test_properties.py and its like draw; here, against a mask that says the same, and against garbage.
"""

import numpy as np
import pytest

import selfattn
from support.arrays import normal, qkv, same_bits
from support.compare import check_each
from support.gradients import assert_same, backward, grad_of
from support.option_arrays import without_sinks

S = 300
STARTS, ENDS = np.array([0, 5, 130, 299, 300]), np.array([300, 131, 290, 300, 300])


def attend(*arrays, **options):
    return selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)


def steps(query, key, **options):
    return (
        selfattn.scaled_dot_product(query, key, **without_sinks(options)),
        selfattn.attention_weights(query, key, **options),
    )


def lengths_of(rows):
    return np.array([rows, 0, 1, rows - rows // 3, rows])


@pytest.mark.parametrize("rows", [3, 60])
@pytest.mark.parametrize("ranges", ["none", "causal", "window"])
def test_as_a_mask(each_isa, dtype, rows, ranges):
    """Bit for bit a mask of bools, with each of the rules about positions, forward and backward."""
    arrays = qkv((5, 4, rows, 12), 2, S, 9, dtype=dtype)
    options = {
        "none": {},
        "causal": {"is_causal": True, "query_offset": np.array([240, 0, 100, 290, -5])},
        "window": {"window_size": (40, 3), "query_offset": 120},
    }[ranges] | {"enable_gqa": True}
    j, i = np.arange(S), np.arange(rows)[:, None]
    is_key = (j >= STARTS[:, None]) & (j < ENDS[:, None])
    is_pair = is_key[:, None, None] & (i < lengths_of(rows)[:, None, None, None])
    given = options | {"kv_starts": STARTS, "kv_lengths": ENDS, "query_lengths": lengths_of(rows)}
    check_each(each_isa, *arrays, **given)
    masked = options | {"attn_mask": is_pair}
    assert same_bits(attend(*arrays, **given), attend(*arrays, **masked))
    assert same_bits(steps(*arrays[:2], **given), steps(*arrays[:2], **masked))
    grad_out = grad_of(*arrays)
    assert_same(backward(grad_out, *arrays, **given), backward(grad_out, *arrays, **masked))


@pytest.mark.parametrize("rows", [3, 60])
def test_what_padding_holds(isa, dtype, rows):
    """NaN and infinity in it, in grad_out and grad_lse there, reach nothing, nor any sink."""
    query, key, value = qkv((5, 4, rows, 12), 2, S, 9, dtype=dtype)
    sinks, lengths = normal(4, dtype=dtype), lengths_of(rows)
    options = {"kv_starts": STARTS, "query_lengths": lengths, "sinks": sinks, "enable_gqa": True}
    grad_out, grad_lse = grad_of(query, key, value), normal(5, 4, rows, dtype=dtype)
    forward = attend(query, key, value, **options)
    want = backward(grad_out, query, key, value, grad_lse=grad_lse, **options)
    padded = np.arange(rows) >= lengths[:, None]
    for poison in (np.nan, np.inf, -np.inf):
        q, k, v = query.copy(), key.copy(), value.copy()
        g, g_lse = grad_out.copy(), grad_lse.copy()
        for x in (q, g, g_lse):
            x.swapaxes(1, 2)[padded] = poison
        for x in (k, v):
            x.swapaxes(1, 2)[np.arange(S) < STARTS[:, None]] = poison
        out, lse = attend(q, k, v, **options)
        assert same_bits((out, lse), forward), poison
        got = backward(g, q, k, v, grad_lse=g_lse, **options)
        assert_same(got, want, poison)
        for x in (out, got["query"]):
            rows_of_padding = np.ascontiguousarray(x.swapaxes(1, 2)[padded])
            assert same_bits(rows_of_padding, np.zeros_like(rows_of_padding))
        assert (lse.swapaxes(1, 2)[padded] == -np.inf).all()
    # A query that sees no key, but is one, has its sink for lse, and hands lse's gradient to it.
    assert (lse[4, 0] == forward[1][4, 0]).all()
    np.testing.assert_allclose(lse[4, :, 0], sinks, rtol=1e-6)


def test_each_form(isa, dtype):
    """An int for all, an array for each, one that broadcasts; any dtype of ints; nothing at all."""
    arrays = qkv((2, 3, 4, 20, 8), seqlen_k=S, dtype=dtype)
    want = attend(*arrays, kv_starts=np.full((2, 3), 7), query_lengths=np.full((2, 3), 11))
    for starts, lengths in (
        (7, 11),
        (np.int64(7), np.array(11, np.uint8)),
        (np.array([7, 7, 7]), np.array([[11], [11]], np.int32)),
    ):
        assert same_bits(attend(*arrays, kv_starts=starts, query_lengths=lengths), want)
    plain = attend(*arrays)
    assert same_bits(attend(*arrays, kv_starts=0, query_lengths=20), plain)
    none = attend(*arrays, kv_starts=S)
    assert same_bits(none, attend(*arrays, query_lengths=0))
    assert same_bits(none, attend(*arrays, kv_starts=150, kv_lengths=150))


def test_left_padding_of_whole_blocks(isa, dtype):
    """Sequences that end together, as generation has them: the bits of those without padding."""
    query, key, value = qkv((1, 2, 40, 16), seqlen_k=200, dtype=dtype)
    want = attend(query, key, value, is_causal=True, query_offset=160)
    pad = [np.concatenate([np.full_like(x[:, :, :128], np.nan), x], 2) for x in (key, value)]
    got = attend(query, *pad, is_causal=True, query_offset=288, kv_starts=128)
    assert same_bits(got, want)
