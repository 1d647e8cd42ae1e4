"""sinks: one more logit for each head under the softmax, without a key and without a value.

It takes a share of the weights, is in lse, and stands even where a row sees no key. It counts once:
not once for each split of 512 keys, nor for each thread.
"""

import numpy as np
import pytest

import selfattn
from selfattn import reference
from support.arrays import normal, one_head, qkv, same_bits
from support.compare import check_each
from support.option_arrays import bool_mask, float_mask, runs, slopes

DECODE, PREFILL = 2, 37  # rows for either kernel


def attend(*arrays, **options):
    return selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)


@pytest.mark.parametrize("rows", [1, 3, PREFILL])
def test_every_seqlen_k(each_isa, dtype, rows):
    """Tails, blocks, splits: it counts once, not once for each of them."""
    near = [n + d for n in (128, 256, 512, 1024) for d in (-1, 0, 1)]
    for seqlen_k in [*range(1, 40), *near, 2000]:
        arrays = one_head(rows, seqlen_k, 7, 3, dtype=dtype)
        check_each(each_isa, *arrays, sinks=np.array([1.5], dtype))


@pytest.mark.parametrize("sink", [0.0, 1.0, -3.0, 8.0, 40.0, -40.0, 200.0, -200.0, 1e4, -1e4])
def test_size_of_a_sink(each_isa, dtype, sink):
    """Below all scores, among them and above, where it is the maximum that is subtracted."""
    for rows in (DECODE, PREFILL):
        for size in (0.01, 1, 30):
            query, key, value = one_head(rows, 300, 16, dtype=dtype)
            sinks = np.array([sink], dtype)
            check_each(each_isa, query * dtype(size), key, value, sinks=sinks)


@pytest.mark.parametrize("heads_q", [1, 2, 6, 12])
def test_each_head_has_its_own(each_isa, dtype, heads_q):
    """Also where the rows of a tile are (position, head of the group)."""
    for heads_kv in (n for n in (1, 2, 3) if heads_q % n == 0):
        for rows in (1, 3, 11):
            query, key, value = qkv((2, heads_q, rows, 8), heads_kv, 140, 5, dtype=dtype)
            for kind in {dtype, np.float32}:
                sinks = (np.arange(heads_q) - 2).astype(kind)
                check_each(each_isa, query, key, value, enable_gqa=True, sinks=sinks)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 2, 3)], ids=str)
def test_every_number_of_axes(each_isa, dtype, leading):
    """(Hq,) whatever is before the heads; 2-D inputs are one head."""
    query, key = normal(*leading, 9, 4, dtype=dtype), normal(*leading, 21, 4, dtype=dtype, seed=1)
    sinks = normal(leading[-1] if leading else 1, dtype=dtype)
    check_each(each_isa, query, key, key, sinks=sinks)


def test_it_is_one_more_key_without_a_value(isa, dtype):
    """Not by the reference: the same as a key whose score is the sink and whose value is 0."""
    for rows in (DECODE, PREFILL):
        query, key, value = one_head(rows, 300, 8, 5, dtype=dtype)
        for sink in (-1.0, 2.5, 9.0):
            got, got_lse = attend(query, key, value, sinks=np.array([sink], dtype))
            more = [np.concatenate([x, np.zeros_like(x[:1])]) for x in (key, value)]
            mask = np.zeros(301, dtype)
            mask[300] = sink
            want, want_lse = attend(query, *more, attn_mask=mask)
            # Each is within 8 units and some for scores of size 10, twice of the largest value.
            atol = 100 * np.finfo(dtype).eps * float(np.abs(value).max())
            np.testing.assert_allclose(got, want, rtol=0, atol=atol)
            np.testing.assert_allclose(got_lse, want_lse, rtol=0, atol=atol)


def test_weights_sum_to_what_it_leaves(isa, dtype):
    """1 - exp(sink - lse), where exp(sink - lse) is its share."""
    query, key, value = one_head(PREFILL, 300, 8, dtype=dtype)
    for sink in (-2.0, 3.0, 7.0):
        sinks = np.array([sink], dtype)
        _, lse = attend(query, key, value, sinks=sinks)
        weights = selfattn.attention_weights(query, key, sinks=sinks)
        left = 1 - np.exp(sink - lse.astype(np.float64))
        assert (left < 0.9999).all()
        atol = 20 * np.finfo(dtype).eps
        np.testing.assert_allclose(weights.sum(-1, dtype=np.float64), left, rtol=0, atol=atol)


def nothing_seen(rows, seqlen_k, dtype):
    """Every way not to see a key."""
    yield {"kv_lengths": 0}
    yield {"is_causal": True, "query_offset": -rows}
    yield {"window_size": (3, -1), "query_offset": seqlen_k + 3}
    yield {"attn_mask": np.zeros((rows, seqlen_k), bool)}
    yield {"attn_mask": np.zeros((), bool)}
    yield {"attn_mask": np.full((1, seqlen_k), -np.inf, dtype)}
    yield {"segment_ids": (np.zeros(rows, int), np.ones(seqlen_k, int))}
    yield {"segment_ids": (np.full(rows, 5), np.arange(seqlen_k) % 2)}


@pytest.mark.parametrize("rows", [1, 3, PREFILL])
@pytest.mark.parametrize("seqlen_k", [1, 128, 700])
def test_rows_that_see_no_key(isa, dtype, rows, seqlen_k):
    """Fault 1: the output is 0, and lse the sink itself, to the bit."""
    query, key, value = one_head(rows, seqlen_k, 6, dtype=dtype)
    for sink in (0.0, 1.3, -7.77, 1e-3, 12345.678, float(np.finfo(dtype).min)):
        sinks = np.array([sink], dtype)
        for options in nothing_seen(rows, seqlen_k, dtype):
            out, lse = attend(query, key, value, sinks=sinks, **options)
            assert same_bits(out, np.zeros_like(out)), options
            assert np.array_equal(lse, np.full(rows, sinks[0])), (sink, lse[0], options)
            assert not selfattn.attention_weights(query, key, sinks=sinks, **options).any()


def test_rows_that_see_no_key_beside_others(each_isa, dtype):
    """Fault 1: in one tile, for float32 sinks of float64 calls too."""
    query, key, value = one_head(PREFILL, 300, 6, dtype=dtype)
    mask = bool_mask(PREFILL, 300)
    mask[::3] = False
    for kind in {dtype, np.float32}:
        sinks = np.array([0.3], kind)
        check_each(each_isa, query, key, value, attn_mask=mask, sinks=sinks)
        out, lse = attend(query, key, value, attn_mask=mask, sinks=sinks)
        assert not out[::3].any()
        assert np.array_equal(lse[::3], np.full(len(out[::3]), sinks[0], dtype))
        assert (lse[1::3] > sinks[0]).all()


def test_with_everything_else(each_isa, dtype):
    for rows in (DECODE, PREFILL):
        query, key, value = qkv((2, 4, rows, 6), 2, 150, dtype=dtype)
        sinks = normal(4, dtype=dtype)
        for options in (
            {"is_causal": True, "query_offset": 100},
            {"is_causal": True, "query_offset": -1},
            {"window_size": (40, 10), "query_offset": np.array([120, 60])},
            {"kv_lengths": np.array([130, 0])},
            {"attn_mask": bool_mask(4, rows, 150, share=0.02)},
            {"attn_mask": float_mask(2, 1, rows, 150, dtype=dtype)},
            {"alibi_slopes": slopes(4, dtype=dtype), "softcap": 2.0, "scale": -1.0},
            {"segment_ids": (np.arange(rows) % 3, runs(150, 40, 20))},
        ):
            check_each(each_isa, query, key, value, sinks=sinks, enable_gqa=True, **options)


@pytest.mark.parametrize("head_dim", [1, 15, 64, 127, 1024])
def test_head_dims(each_isa, dtype, head_dim):
    for rows in (DECODE, PREFILL):
        check_each(
            each_isa, *one_head(rows, 140, head_dim, dtype=dtype), sinks=np.array([2.0], dtype)
        )


def test_strides_of_sinks(isa, dtype):
    """Fault 10: reversed, with gaps, broadcast, unaligned, read-only."""
    query, key, value = qkv((6, 20, 8), seqlen_k=140, dtype=dtype)
    sinks = normal(6, dtype=dtype)
    want = attend(query, key, value, sinks=sinks)
    packed = np.zeros(6, [("more", "u1"), ("x", dtype)])
    packed["x"] = sinks
    frozen = sinks.copy()
    frozen.flags.writeable = False
    for layout in (np.repeat(sinks, 3)[::3], sinks[::-1].copy()[::-1], packed["x"], frozen):
        assert same_bits(attend(query, key, value, sinks=layout), want)
    one = np.broadcast_to(sinks[:1], 6)
    assert same_bits(
        attend(query, key, value, sinks=one), attend(query, key, value, sinks=one.copy())
    )


def test_out_over_the_sinks(isa, dtype):
    """Fault 18: sinks that lie where out does are right all the same."""
    query, key, value = qkv((4, PREFILL, 6), dtype=dtype)
    sinks = normal(4, dtype=dtype)
    want = selfattn.scaled_dot_product_attention(query, key, value, sinks=sinks)
    memory = np.zeros((4, PREFILL, 6), dtype)
    memory.reshape(-1)[:4] = sinks
    aliased = memory.reshape(-1)[:4]
    selfattn.scaled_dot_product_attention(query, key, value, sinks=aliased, out=memory)
    assert same_bits(memory, want)


@pytest.mark.parametrize("sink", [np.nan, np.inf, -np.inf, 1.0])
def test_any_sink_in_a_row_that_sees_no_key(isa, dtype, sink):
    """A fully masked row is 0 and never NaN, whatever the sink; it alone is in the lse."""
    query, key, value = qkv((1, 2, 5, 4), seqlen_k=7, dtype=dtype)
    sinks = np.full(2, sink, dtype)
    out, lse = selfattn.scaled_dot_product_attention(
        query, key, value, sinks=sinks, kv_lengths=0, return_lse=True
    )
    assert not out.any()
    assert not selfattn.attention_weights(query, key, sinks=sinks, kv_lengths=0).any()
    want = reference.scaled_dot_product_attention(
        query, key, value, sinks=sinks, kv_lengths=0, return_lse=True
    )
    assert same_bits((out, lse), want)
    assert same_bits(lse, np.full_like(lse, sink))
