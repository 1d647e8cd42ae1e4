"""What tests of NaN, infinity and masked rows share."""

import itertools
import math

import numpy as np

import selfattn
from support.arrays import same_bits

NAN, INF = math.nan, math.inf
POISON = [NAN, INF, -INF]
# Rows for the decode kernels and for the prefill kernels.
ROWS = [1, 3, 40]


def attend(*arrays, **options):
    return selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)


def is_masked(out, lse):
    """The row is 0 (not -0), and its lse -inf."""
    zero = np.zeros_like(out)
    return same_bits(np.ascontiguousarray(out), zero) and bool((lse == -INF).all())


def expected(scores, values):
    """softmax(scores) @ values of one row and its lse, in plain Python; scores may be anything."""
    if any(math.isnan(s) or s == INF for s in scores):
        return NAN, NAN  # inf - inf
    top = max(scores, default=-INF)
    if top == -INF:
        return 0.0, -INF
    weights = [math.exp(s - top) for s in scores]
    total = sum(weights)
    return sum(w * v for w, v in zip(weights, values, strict=True)) / total, top + math.log(total)


def check_poisoned_key(query, key, value, j, sees, **options):
    """Poison in key j, of one head, changes no bit of the rows that do not see it, and all others.

    `sees` says which rows do.
    """
    want = attend(query, key, value, **options)
    blind = ~sees
    for poison, in_key in itertools.product(POISON, (True, False)):
        bad_key, bad_value = key.copy(), value.copy()
        (bad_key if in_key else bad_value)[0, 0, j] = poison
        out, lse = attend(query, bad_key, bad_value, **options)
        context = (j, poison, in_key)
        assert same_bits(out[0, 0, blind], want[0][0, 0, blind]), context
        assert same_bits(lse[0, 0, blind], want[1][0, 0, blind]), context
        if in_key and math.isnan(poison):
            assert np.isnan(out[0, 0, ~blind]).all(), context
            assert np.isnan(lse[0, 0, ~blind]).all(), context
        if not in_key:
            assert not np.isfinite(out[0, 0, ~blind]).any(), context
            assert same_bits(lse, want[1]), context


def hidings(seqlen_q, seqlen_k, j, n):
    """Each way of hiding key j from some queries: options, and a slice of the queries."""
    first, rest = slice(n), slice(n, None)
    seen = np.ones((seqlen_q, seqlen_k), bool)
    seen[first, j] = False
    ids_q, ids_k = np.zeros(seqlen_q, np.int64), np.zeros(seqlen_k, np.int64)
    ids_q[rest] = ids_k[j:] = 1
    yield {"attn_mask": seen}, first
    yield {"attn_mask": np.where(seen, np.float32(0.5), np.float32(-np.inf))}, first
    yield {"segment_ids": (ids_q, ids_k)}, first
    yield {"is_causal": True, "query_offset": j - n}, first
    yield {"window_size": (-1, 0), "query_offset": j - n}, first
    yield {"window_size": (0, -1), "query_offset": j - n + 1}, rest
    yield {"kv_lengths": j}, slice(None)
