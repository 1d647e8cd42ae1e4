"""Which keys a query sees: causal, windows, offsets, lengths, alone and together.

The reference's masks are compared with a plain loop over the rule in test_reference.py; here the
kernels, which never look at keys outside a row's range, are compared with the reference.
"""

import itertools

import numpy as np
import pytest

from selfattn import attention_weights, reference
from support.arrays import one_head, qkv
from support.compare import check_attention, check_scores


def seen(seqlen_q, seqlen_k, **options):
    """Where the weights are not 0: with all scores equal, exactly the keys that are seen."""
    query, key = np.zeros((seqlen_q, 1), np.float32), np.zeros((seqlen_k, 1), np.float32)
    return attention_weights(query, key, **options) > 0


def test_causal_alignment(isa):
    """Fault 8: every L, S up to 9 and every offset that matters; key j is seen iff j <= i + offset.

    Said here in plain Python, not by the reference.
    """
    for seqlen_q, seqlen_k in itertools.product(range(1, 10), repeat=2):
        for offset in range(-10, 11):
            want = [[j <= i + offset for j in range(seqlen_k)] for i in range(seqlen_q)]
            got = seen(seqlen_q, seqlen_k, is_causal=True, query_offset=offset)
            assert np.array_equal(got, want), (seqlen_q, seqlen_k, offset)


def test_causal_values(isa, dtype):
    """Fault 8: the fused result for the same L, S and offsets."""
    for seqlen_q, seqlen_k in itertools.product(range(1, 10), repeat=2):
        arrays = one_head(seqlen_q, seqlen_k, 3, dtype=dtype)
        for offset in range(-seqlen_q, seqlen_k + 1):
            check_attention(*arrays, is_causal=True, query_offset=offset)


@pytest.mark.parametrize("left", [-1, 0, 1, 3, 200])
@pytest.mark.parametrize("right", [-1, 0, 2, 200])
def test_window(isa, dtype, left, right):
    """Inclusive on both sides, around i + query_offset; -1 is unbounded."""
    for seqlen_q, seqlen_k in ((7, 9), (9, 7), (1, 5), (40, 300), (70, 140)):
        query, key, value = one_head(seqlen_q, seqlen_k, 5, dtype=dtype)
        for offset in (0, 3, -4, seqlen_k - seqlen_q, 290):
            options = {"window_size": (left, right), "query_offset": offset}
            check_attention(query, key, value, **options)
            check_attention(query, key, value, is_causal=True, **options)


def test_window_in_plain_words(isa):
    for left, right, offset in itertools.product((-1, 0, 2), (-1, 0, 1), (-3, 0, 4)):
        want = [
            [
                (left == -1 or j >= i + offset - left) and (right == -1 or j <= i + offset + right)
                for j in range(9)
            ]
            for i in range(6)
        ]
        got = seen(6, 9, window_size=(left, right), query_offset=offset)
        assert np.array_equal(got, want), (left, right, offset)


@pytest.mark.parametrize("edge", [126, 127, 128, 129, 511, 512, 513, 640])
def test_edges_at_blocks_and_splits(isa, dtype, edge):
    """A range that begins or ends at, before or after the end of a block of 128, a split of 512."""
    for rows in (1, 3, 33):
        query, key, value = one_head(rows, 700, 4, dtype=dtype)
        check_attention(query, key, value, is_causal=True, query_offset=edge)
        check_attention(query, key, value, is_causal=True, query_offset=edge - rows)
        check_attention(query, key, value, window_size=(5, 5), query_offset=edge)
        check_attention(query, key, value, window_size=(0, -1), query_offset=edge)
        check_attention(query, key, value, window_size=(130, 0), query_offset=edge)


def test_lengths(isa, dtype):
    """Keys at or past the length are masked: each from 0 to S, one for each batch entry."""
    for rows in (1, 20):
        query, key, value = qkv((1, 2, rows, 4), seqlen_k=140, dtype=dtype)
        query, key, value = (np.broadcast_to(x, (141, *x.shape[1:])) for x in (query, key, value))
        check_attention(query, key, value, kv_lengths=np.arange(141))
        check_attention(query, key, value, kv_lengths=np.arange(141), is_causal=True)


@pytest.mark.parametrize("kind", [int, np.int32, np.array])
def test_one_length_for_all(isa, dtype, kind):
    """A number serves every batch entry, and is all there is to give where there is no batch."""
    check_attention(*qkv((2, 2, 5, 4), seqlen_k=9, dtype=dtype), kv_lengths=kind(6))
    check_attention(*one_head(5, 9, 4, dtype=dtype), kv_lengths=kind(0))


def test_arrays_over_the_axes_before_the_heads(isa, dtype):
    """query_offset and kv_lengths: one for each batch entry, broadcast over what they lack."""
    query, key, value = qkv((2, 3, 4, 20, 6), 2, 130, 5, dtype=dtype)
    offsets = np.array([[0, 110, -7], [129, -30, 55]])
    lengths = np.array([[0, 130, 64], [128, 1, 129]])
    for option in ({}, {"is_causal": True}, {"window_size": (20, 3)}):
        for x in (offsets, offsets[:, :1], offsets[0], offsets.astype(np.int16)):
            check_attention(query, key, value, enable_gqa=True, query_offset=x, **option)
        for x in (lengths, lengths[:1], lengths[1], lengths.astype(np.uint8), lengths.T.copy().T):
            check_attention(query, key, value, enable_gqa=True, kv_lengths=x, **option)
        check_attention(
            query, key, value, enable_gqa=True, query_offset=offsets, kv_lengths=lengths, **option
        )


def test_grouped_heads_under_every_mask(isa, dtype):
    """The rows of a tile are (position, head of the group): each needs its own position."""
    for heads_q, heads_kv, rows in ((8, 1, 9), (8, 2, 3), (6, 2, 30), (3, 1, 1)):
        query, key, value = qkv((2, heads_q, rows, 4), heads_kv, 150, dtype=dtype)
        for option in (
            {"is_causal": True},
            {"is_causal": True, "query_offset": 150 - rows},
            {"window_size": (4, 1), "query_offset": 70},
            {"kv_lengths": np.array([3, 129])},
        ):
            check_attention(query, key, value, enable_gqa=True, **option)
            check_scores(query, key, enable_gqa=True, **option)


@pytest.mark.parametrize("offset", [2**61, -(2**61), 2**40, -(2**40)])
def test_far_offsets_and_windows(isa, offset):
    """Positions near the edge of 64 bits: sums of them do not wrap around."""
    for window in ((-1, -1), (2**62, -1), (-1, 2**62), (2**61, 2**61), (10, 0)):
        for causal in (False, True):
            options = {"window_size": window, "query_offset": offset, "is_causal": causal}
            left, right = window
            want = [
                [
                    (not causal or j <= i + offset)
                    and (left == -1 or j >= i + offset - min(left, 2**61))
                    and (right == -1 or j <= i + offset + min(right, 2**61))
                    for j in range(5)
                ]
                for i in range(3)
            ]
            assert np.array_equal(seen(3, 5, **options), want), options


def test_scores_outside_the_mask_are_minus_infinity(isa, dtype):
    query, key, _ = one_head(9, 150, 4, dtype=dtype)
    for options in ({"is_causal": True}, {"window_size": (3, 2), "query_offset": 80}):
        visible = np.isfinite(reference.scaled_dot_product(query, key, **options))
        assert 0 < visible.sum() < visible.size
        check_scores(query, key, **options)
