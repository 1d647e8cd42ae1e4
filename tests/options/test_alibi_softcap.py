"""ALiBi and softcap: what changes scores before they are masked, alone, together, in their order.

t = c tanh(scale q k / c) - slope |i + offset - j| + mask: test_order says so in plain Python, the
rest is compared with the reference. Infinite scores and numbers are in test_nonfinite_options.py.
"""

import itertools
import math

import numpy as np
import pytest

import selfattn
from support.arrays import normal, one_head, qkv, same_bits
from support.compare import check_each
from support.option_arrays import bool_mask, broadcasts, float_mask, slopes

DECODE, PREFILL = 2, 37  # rows for either kernel


def test_order(isa, dtype):
    """Cap, then slope, then float mask, then what is masked: scalar by scalar, in plain Python."""
    query, key, _ = one_head(5, 9, 3, dtype=dtype)
    query *= 3
    mask = float_mask(5, 9, dtype=dtype)
    for cap, slope, offset, given in itertools.product(
        (0.0, 0.7, 4), (None, 0.5), (0, -3, 6), (None, mask, mask != -np.inf)
    ):
        options = {"softcap": cap, "query_offset": offset, "scale": 1.0, "window_size": (6, 2)}
        if slope is not None:
            options["alibi_slopes"] = np.array([slope], dtype)
        got = selfattn.scaled_dot_product(query, key, given, **options)
        for i, j in np.ndindex(5, 9):
            score = math.fsum(float(a) * float(b) for a, b in zip(query[i], key[j], strict=True))
            score = cap * math.tanh(score / cap) if cap else score
            score -= (slope or 0.0) * abs(i + offset - j)
            if given is not None:
                score += float(given[i, j]) if given.dtype != bool else 0.0
                score = score if given[i, j] and given[i, j] != -np.inf else -math.inf
            if not -6 <= j - i - offset <= 2:
                score = -math.inf
            # A few roundings of numbers that are below 64.
            assert got[i, j] == score or abs(got[i, j] - score) <= 64 * np.finfo(dtype).eps


def test_slopes_alone(isa, dtype):
    """Over scores of 0 nothing is rounded where slopes are powers of two: the bias itself."""
    given = np.array([0.5, 0.25, -2.0, 0.0, 2.0**-8, 16.0], dtype)
    for rows, seqlen_k, offset in ((1, 140, 139), (5, 700, 300), (PREFILL, 133, -50), (3, 9, 0)):
        query, key = np.zeros((6, rows, 1), dtype), np.zeros((6, seqlen_k, 1), dtype)
        i, j = np.arange(rows)[:, None], np.arange(seqlen_k)
        want = -given[:, None, None] * np.abs(i + offset - j)
        for cap in (0.0, 3.0):
            got = selfattn.scaled_dot_product(
                query, key, alibi_slopes=given, query_offset=offset, softcap=cap
            )
            assert np.array_equal(got, want)


@pytest.mark.parametrize("rows", [1, 3, PREFILL])
def test_slopes_at_every_seqlen_k(each_isa, dtype, rows):
    """Tails, blocks and splits: the distance is from the query's position, wherever the key is."""
    near = [n + d for n in (128, 256, 512, 640) for d in (-1, 0, 1, 3)]
    given = np.array([0.1], dtype)
    for seqlen_k in [*range(1, 40), *near]:
        arrays = one_head(rows, seqlen_k, 7, 3, dtype=dtype)
        for offset in (seqlen_k - rows, seqlen_k // 2):
            check_each(each_isa, *arrays, alibi_slopes=given, query_offset=offset)


@pytest.mark.parametrize("rows", [DECODE, 11])
def test_every_shape_of_slopes(each_isa, dtype, rows):
    """(Hq,), or with axes before the heads, each of them 1 or full; in float32 always."""
    query, key, value = qkv((2, 3, 6, rows, 5), 2, 133, 3, dtype=dtype)
    offset = np.array([[100, 0, -5], [130, 50, 7]])
    for leading in broadcasts((2, 3)):
        for kind in {dtype, np.float32}:
            options = {"enable_gqa": True, "query_offset": offset}
            options["alibi_slopes"] = slopes(*leading, 6, dtype=kind)
            check_each(each_isa, query, key, value, **options)


@pytest.mark.parametrize("leading", [(), (3,), (2, 1), (1, 2, 1, 2)], ids=str)
def test_every_number_of_axes(each_isa, dtype, leading):
    """2-D inputs are one head."""
    query, key = normal(*leading, 9, 4, dtype=dtype), normal(*leading, 21, 4, dtype=dtype, seed=1)
    heads = leading[-1:] or (1,)
    for shape in broadcasts(leading[:-1]):
        given = slopes(*shape, *heads, dtype=dtype)
        check_each(each_isa, query, key, key, alibi_slopes=given, softcap=2.0)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, -0.5, 8.0, 1000.0])
def test_size_of_slopes(each_isa, dtype, size):
    """0 is none; a negative slope prefers what is far; a steep one leaves the nearest key alone."""
    for rows in (DECODE, PREFILL):
        arrays = one_head(rows, 700, 6, dtype=dtype)
        for offset in (0, 650, -20, 800):
            given = np.array([size], dtype)
            check_each(each_isa, *arrays, alibi_slopes=given, query_offset=offset)
        check_each(each_isa, *arrays, alibi_slopes=given, query_offset=600, is_causal=True)


def test_a_slope_of_zero_changes_no_bit_of_the_scores(isa, dtype):
    query, key, _ = one_head(PREFILL, 300, 6, dtype=dtype)
    want = selfattn.scaled_dot_product(query, key)
    got = selfattn.scaled_dot_product(query, key, alibi_slopes=np.zeros(1, dtype))
    assert np.array_equal(got, want)


@pytest.mark.parametrize("offset", [2**24, 2**31, -(2**33), 2**53, 2**61, -(2**61)])
def test_slopes_far_away(each_isa, dtype, offset):
    """Positions that no float32, or no float64, counts: the distance is rounded, never wrapped."""
    for rows in (1, PREFILL):
        query, key, value = one_head(rows, 140, 4, dtype=dtype)
        for slope in (2.0**-60, 1e-12, 0.25):
            check_each(
                each_isa,
                query,
                key,
                value,
                alibi_slopes=np.array([slope], dtype),
                query_offset=offset,
            )
    i, j = np.arange(5)[:, None], np.arange(140)
    zeros = np.zeros((140, 1), dtype)
    got = selfattn.scaled_dot_product(
        zeros[:5], zeros, alibi_slopes=np.ones(1, dtype), query_offset=offset
    )
    distance = np.abs((i + offset - j).astype(np.longdouble))
    np.testing.assert_allclose(got, -distance.astype(np.float64), rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("cap", [0.01, 0.5, 1, 5.0, 30.0, 50, 1000.0, np.float32(2.5)])
def test_softcap(each_isa, dtype, cap):
    """From a cap that makes all scores alike to one that none of them feels."""
    for rows in (DECODE, PREFILL):
        query, key, value = one_head(rows, 150, 24, dtype=dtype)
        for size in (1e-3, 1, 10):
            check_each(each_isa, query * dtype(size), key, value, softcap=cap)
        check_each(each_isa, query, key, value, softcap=cap, scale=-2.0)
        check_each(each_isa, query, key, value, softcap=cap, is_causal=True, query_offset=100)


@pytest.mark.parametrize("rows", [1, 3, PREFILL])
def test_softcap_at_every_seqlen_k(each_isa, dtype, rows):
    """Keys that pad a tile are capped too, and must not come out of it as seen."""
    near = [n + d for n in (128, 256, 512) for d in (-1, 0, 1, 3)]
    for seqlen_k in [*range(1, 70), *near]:
        check_each(each_isa, *one_head(rows, seqlen_k, 7, 3, dtype=dtype), softcap=1.5)


@pytest.mark.parametrize("head_dim", [1, 15, 64, 127, 1024])
def test_head_dims(each_isa, dtype, head_dim):
    for rows in (DECODE, PREFILL):
        arrays = one_head(rows, 140, head_dim, dtype=dtype)
        check_each(each_isa, *arrays, softcap=2.0)
        check_each(each_isa, *arrays, alibi_slopes=np.array([0.1], dtype), query_offset=70)


def test_no_score_exceeds_its_cap(isa, dtype):
    """tanh is at most 1, however large the score; and the sign is the score's."""
    query, key, _ = one_head(PREFILL, 300, 16, dtype=dtype)
    for cap in (0.1, 1.0, 3.7, 50.0):
        for size in (1, 100, 1e10):
            scores = selfattn.scaled_dot_product(query * dtype(size), key)
            got = selfattn.scaled_dot_product(query * dtype(size), key, softcap=cap)
            assert (np.abs(got) <= dtype(cap)).all()
            assert np.array_equal(np.sign(got), np.sign(scores))


def test_caps_that_the_dtype_cannot_hold(isa):
    """Fault 16: a cap beyond float32 caps nothing, one below it leaves no score; never NaN."""
    for dtype, caps in {
        np.float32: (1e30, 3e38, 1e39, 1e300, 1e-30, 1e-38, 1e-44, 1e-50, 1e-300),
        np.float64: (1e300, 1.7e308, 1e-300, 5e-324),
    }.items():
        info = np.finfo(dtype)
        least = float(info.smallest_subnormal)
        for rows in (DECODE, PREFILL):
            query, key, value = one_head(rows, 140, 6, dtype=dtype)
            key[3] = 0  # a score of 0: 0 / 0 must not come of it
            for cap in caps:
                scores = selfattn.scaled_dot_product(query, key, softcap=cap)
                want, atol = np.zeros((rows, 140)), 2 * cap
                if cap > 1:  # a score over such a cap may be subnormal, and lose places
                    want = selfattn.scaled_dot_product(query, key)
                    atol = min(cap, float(info.max)) * least
                near = {"rtol": 8 * info.eps, "atol": max(atol, least)}
                np.testing.assert_allclose(scores, want, err_msg=str(cap), **near)
                out = selfattn.scaled_dot_product_attention(query, key, value, softcap=cap)
                assert np.isfinite(out).all()


def test_a_cap_of_zero_is_none(isa, dtype):
    """torch's way of saying so; not a bit differs."""
    arrays = one_head(PREFILL, 140, 6, dtype=dtype)
    want = selfattn.scaled_dot_product_attention(*arrays)
    for none in (0, 0.0, -0.0):
        assert same_bits(selfattn.scaled_dot_product_attention(*arrays, softcap=none), want)


def test_together_with_ranges_and_masks(each_isa, dtype):
    for rows in (DECODE, PREFILL):
        query, key, value = qkv((2, 4, rows, 6), 2, 150, dtype=dtype)
        both = {"softcap": 1.5, "alibi_slopes": slopes(2, 4, dtype=dtype), "enable_gqa": True}
        for options in (
            {"is_causal": True, "query_offset": 100},
            {"window_size": (40, 10), "query_offset": np.array([120, 60])},
            {"kv_lengths": np.array([130, 7]), "query_offset": 90},
            {"attn_mask": bool_mask(4, rows, 150), "query_offset": -3},
            {"attn_mask": float_mask(2, 1, rows, 150, dtype=dtype), "scale": 0.0},
            {"sinks": normal(4, dtype=dtype)},
        ):
            check_each(each_isa, query, key, value, **both, **options)


def test_out_over_the_slopes(isa, dtype):
    """Fault 18: slopes that lie where out does are right all the same."""
    query, key, value = qkv((4, PREFILL, 6), dtype=dtype)
    given = slopes(4, dtype=dtype)
    want = selfattn.scaled_dot_product_attention(query, key, value, alibi_slopes=given)
    memory = np.zeros((4, PREFILL, 6), dtype)
    memory.reshape(-1)[:4] = given
    aliased = memory.reshape(-1)[:4]
    selfattn.scaled_dot_product_attention(query, key, value, alibi_slopes=aliased, out=memory)
    assert same_bits(memory, want)
