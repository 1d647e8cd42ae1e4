"""Gradients where there is nothing to see: docs/semantics.md, rows that see no key.

Faults 1, 3, 6 and 7: rows that see no key by any rule, rows whose scores are all -inf, infinite
scores. NaN and infinity in the arrays are in test_backward_poison.py, very large numbers in
test_backward_extremes.py.
"""

import itertools

import numpy as np
import pytest

import selfattn
from support.arrays import DTYPES, normal, one_head, qkv
from support.gradients import DROPOUT, ROWS, assert_same, backward, by_kind, expected, grad_of
from support.nonfinite import INF, NAN, POISON, is_masked
from support.option_arrays import bool_mask, option


def no_gradient(gradients, context=""):
    """All of them exactly 0; a NaN is not."""
    for name, x in gradients.items():
        assert not x.any(), (name, context)


# ------------------------------------------------------------------ rows that see no key


def nothing_seen(rows, seqlen_k, dtype):
    """Every way to see no key, alone and on top of what changes scores and weights."""
    ways = [
        {"attn_mask": np.zeros((rows, seqlen_k), bool)},
        {"attn_mask": np.zeros((), bool)},
        {"attn_mask": np.full((rows, 1), -INF, dtype)},
        {"attn_mask": np.full(seqlen_k, -INF, np.float32)},
        {"segment_ids": (np.zeros(rows, int), np.ones(seqlen_k, int))},
        {"segment_ids": (np.full(rows, 5), np.arange(seqlen_k) % 3)},
        {"kv_lengths": 0},
        {"kv_lengths": np.zeros(1, int)},
        {"is_causal": True, "query_offset": -rows},
        {"window_size": (3, 5), "query_offset": seqlen_k + 3},
        {"window_size": (3, 5), "query_offset": -rows - 5},
    ]
    heads = np.array([0.5, 0.1], dtype)
    changed = [
        {},
        {"sinks": heads},
        {"softcap": 2.0, "alibi_slopes": heads, "sinks": heads},
        DROPOUT,
    ]
    for way, more in itertools.product(ways, changed):
        yield way | more


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("seqlen_k", [1, 128, 300])
def test_rows_that_see_no_key(isa, dtype, rows, seqlen_k):
    """Faults 1 and 7, "fully masked row": all is 0, whatever stands in q, K, V and grad_out."""
    arrays = qkv((1, 2, rows, 8), seqlen_k=seqlen_k, dtype=dtype)
    inputs = grad_of(*arrays), *arrays
    for poison in (1.0, *POISON):
        poisoned = [x * dtype(poison) for x in inputs]
        for options in nothing_seen(rows, seqlen_k, dtype):
            for n in (1, 3):
                no_gradient(backward(*poisoned, num_threads=n, **options), (poison, options))


def blind_rows(rows, seqlen_k, dtype):
    """Options under which rows 1, 4, 7, ... see no key, and that say of no other row the same."""
    blind = np.arange(rows) % 3 == 1
    mask = bool_mask(rows, seqlen_k, share=0.6)
    mask[:, 0] = True
    mask[blind] = False
    ids = np.where(blind, 99, np.arange(rows) % 5)
    heads = np.array([0.3, -0.2], dtype)
    for options in (
        {"attn_mask": mask},
        {"attn_mask": np.where(mask, dtype(0.5), dtype(-INF))},
        {"attn_mask": np.where(mask, np.float32(0.5), np.float32(-INF))},
        {"segment_ids": (ids, np.arange(seqlen_k) * 5 // seqlen_k)},
        {"segment_ids": (ids, np.arange(seqlen_k) % 5)},
    ):
        yield blind, options
        yield blind, options | {"sinks": heads}
        yield blind, options | {"sinks": heads, "softcap": 2.0, "alibi_slopes": heads}
        yield blind, options | DROPOUT
    first = np.arange(rows) < (rows + 1) // 2
    for sinks in ({}, {"sinks": heads}):
        yield first, {"is_causal": True, "query_offset": -int(first.sum())} | sinks
        last = {"window_size": (4, 2), "query_offset": seqlen_k + 4 - int(first.sum())}
        yield ~first, last | sinks


@pytest.mark.parametrize("rows", [3, 9, 40, 70])
def test_masked_rows_beside_others(isa, dtype, rows):
    """Faults 1 and 7: what stands in their q and grad_out changes no bit of anything."""
    if isa == "portable" and rows == 70:
        pytest.skip("its vectors are short: 9 and 40 rows have all of their tails")
    arrays = qkv((1, 2, rows, 8), seqlen_k=200, dtype=dtype)
    grad_out = grad_of(*arrays)
    query, key, value = arrays
    for blind, options in blind_rows(rows, 200, dtype):
        want = backward(grad_out, query, key, value, **options)
        assert not want["query"][:, :, blind].any(), options
        for x in want.values():
            assert np.isfinite(x).all(), options
        for poison in POISON:
            bad_query, bad_grad = query.copy(), grad_out.copy()
            bad_query[:, :, blind] = bad_grad[:, :, blind] = poison
            for pair in ((grad_out, bad_query), (bad_grad, query), (bad_grad, bad_query)):
                got = backward(*pair, key, value, **options)
                assert_same(got, want, (poison, options))


def test_every_seqlen_k_of_nothing_but_minus_infinity(isa, dtype):
    """Faults 3 and 7: a row of -inf at every S, for one row, few and many."""
    for seqlen_k in range(1, 301):
        for rows in (1, 4, 40):
            if rows == 40 and seqlen_k % 3:
                continue
            query, key, value = one_head(rows, seqlen_k, 3, dtype=dtype)
            grad_out = normal(rows, 3, dtype=dtype)
            grad_out[0] = query[0] = NAN
            for seen in (dtype(0), True):
                mask = np.full((rows, seqlen_k), seen)
                mask[0] = -INF if seen is not True else False
                got = backward(grad_out, query, key, value, attn_mask=mask)
                assert not got["query"][0].any(), (seqlen_k, rows)
                for x in got.values():
                    assert np.isfinite(x).all(), (seqlen_k, rows)


# ------------------------------------------------------------------ infinite scores


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_infinite_scores_masks_and_caps(isa, dtype, cap):
    """Fault 6: score, mask and cap over a table of 0, 1, infinities and NaN, at two keys."""
    table = [0.0, 1.0, INF, -INF, NAN]
    value = np.array([[1.0], [2.0]], dtype)
    query, grad_out = np.ones((20, 1), dtype), np.full((20, 1), 1.5, dtype)
    # Of numbers of size 4 at most, 20 rows are summed.
    near = 20 * 32 * np.finfo(dtype).eps
    for scores in itertools.product(table, repeat=2):
        key = np.array(scores, dtype)[:, None]
        for masks in itertools.product(table, repeat=2):
            options = {"attn_mask": np.array(masks, dtype), "scale": 1.0, "softcap": cap}
            inputs = grad_out, query, key, value
            got, want = backward(*inputs, **options), expected(*inputs, **options)
            context = str((scores, masks))
            assert_same(by_kind(got), by_kind(want), context)
            for name, x in want.items():
                np.testing.assert_allclose(got[name], x, rtol=0, atol=near, err_msg=context)


@pytest.mark.parametrize("rows", ROWS)
def test_scores_that_are_minus_infinity_by_arithmetic(isa, dtype, rows):
    """Fault 7, "fully masked row": under any option that lets them through they count as masked."""
    for seqlen_k in (1, 17, 128, 300):
        query, key, value = qkv((1, 2, rows, 4), 1, seqlen_k, dtype=dtype)
        grad_out = grad_of(query, key, value)
        query[..., 0] = 1
        key[..., 0] = -INF
        for kind in ("bool", "float", "segments", "unsorted", "alibi", "sinks"):
            options = option(kind, 1, 2, rows, seqlen_k, dtype)
            for poison in (1.0, *POISON):
                got = backward(grad_out * dtype(poison), query, key, value, **options)
                no_gradient(got, (kind, seqlen_k, poison))


@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_of_minus_infinity_beside_others(isa, dtype, rows, sinks):
    """Fault 7: of odd rows, all that the mask lets through is -inf by arithmetic."""
    query, key, value = qkv((1, 2, rows, 4), seqlen_k=160, dtype=dtype)
    grad_out = grad_of(query, key, value)
    odd, bad = np.arange(rows) % 2 == 1, np.arange(160) % 5 == 2
    mask = np.where(odd[:, None], bad, ~bad)
    options = {"sinks": np.array([0.2, -0.3], dtype)} if sinks else {}
    query[..., 0] = np.abs(query[..., 0])
    query[:, :, ~odd, 0] = -query[:, :, ~odd, 0]
    hidden = backward(grad_out, query, key, value, attn_mask=mask & ~odd[:, None], **options)
    key[:, :, bad, 0] = -INF
    for poison in (1.0, NAN, INF):
        bad_grad = grad_out.copy()
        bad_grad[:, :, odd] *= dtype(poison)
        assert_same(
            backward(bad_grad, query, key, value, attn_mask=mask, **options), hidden, poison
        )


@pytest.mark.parametrize("rows", ROWS)
def test_scores_that_overflow(isa, dtype, rows):
    """To -inf, of finite numbers: all of a row, and it counts as masked; some, and they weigh 0."""
    large = dtype(np.sqrt(np.finfo(dtype).max) * 16)
    query, key, value = qkv((1, 1, rows, 4), seqlen_k=140, dtype=dtype)
    grad_out = grad_of(query, key, value)
    query[..., 0], key[..., 0] = large, -large
    out, lse = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True)
    assert is_masked(out, lse)
    no_gradient(backward(grad_out, query, key, value))
    no_gradient(backward(grad_out, query, key, value, sinks=np.ones(1, dtype)))
    key[:, :, ::2, 0] = 0
    query[..., 1:] = 0
    got = backward(grad_out, query, key, value)
    assert not got["key"][:, :, 1::2].any()
    assert not got["value"][:, :, 1::2].any()
    for x in got.values():
        assert not np.isnan(x).any()
    # The keys that are left are alike to the queries: their values are averaged.
    mean = grad_out.astype(np.float64).sum(-2, keepdims=True) / 70
    np.testing.assert_allclose(
        got["value"][:, :, ::2],
        np.broadcast_to(mean, (1, 1, 70, 4)),
        rtol=0,
        atol=32 * np.finfo(dtype).eps,
    )


def test_numpy_error_state(isa):
    """Fault 17: nothing is raised or warned about, under any np.errstate, and the state stays."""
    x = normal(40, 8)
    x[3, 2], x[5, 1], x[7, 3], x[9, 0] = NAN, INF, 3e38, 1e-42
    with np.errstate(all="raise"):
        state = np.geterr()
        for dtype in DTYPES:
            y = x.astype(dtype)
            out, lse = selfattn.scaled_dot_product_attention(y, y, y, return_lse=True)
            for options in ({}, {"is_causal": True, "query_offset": -9}):
                selfattn.scaled_dot_product_attention_backward(y, y, y, y, out, lse, **options)
        assert np.geterr() == state
        assert np.isnan(lse[3])
