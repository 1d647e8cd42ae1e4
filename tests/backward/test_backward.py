"""The fused backward pass against the reference: every shape, tail and way of sharing heads.

The bounds and their reasons stand in compare_gradients.py. Options are in test_backward_options.py,
arrays as they lie in memory in test_backward_arrays.py, bits in test_backward_bits.py.
"""

import itertools

import numpy as np
import pytest

from selfattn import scaled_dot_product_attention as attend
from support.arrays import BROADCASTS, normal, one_head, qkv
from support.compare_gradients import check_each_gradient, check_gradients
from support.gradients import backward, grad_of

# Few rows, a tile of many, and more than one tile.
DECODE, PREFILL = 2, 37  # rows for either kernel


def check(each_isa, *arrays, **options):
    check_each_gradient(each_isa, grad_of(*arrays), *arrays, **options)


# ------------------------------------------------------------------ lengths and head_dim


def test_every_small_shape_at_every_offset(each_isa, dtype):
    """Fault 8: causal, all L and S up to 9, from no key seen to all of them."""
    for rows, seqlen_k in itertools.product(range(1, 10), repeat=2):
        arrays = one_head(rows, seqlen_k, 3, 2, dtype=dtype)
        for offset in range(-rows, seqlen_k + 1):
            check(each_isa, *arrays, is_causal=True, query_offset=offset)


@pytest.mark.parametrize("rows", [DECODE, PREFILL])
def test_every_head_dim(each_isa, dtype, rows):
    """Fault 12: tails of E in the gradients of queries and keys."""
    for head_dim in range(1, 131):
        check(each_isa, *one_head(rows, 37, head_dim, 5, dtype=dtype))


@pytest.mark.parametrize("rows", [DECODE, PREFILL])
def test_every_head_dim_v(each_isa, dtype, rows):
    """Fault 12: tails of Ev in the gradient of values, and in delta."""
    for head_dim_v in range(1, 131):
        check(each_isa, *one_head(rows, 37, 8, head_dim_v, dtype=dtype))


LENGTHS = [1, 8, 16, 24, 95, 96, 97, 127, 128, 129, 192, 300, 513]


@pytest.mark.parametrize("seqlen_k", LENGTHS)
def test_lengths(each_isa, dtype, seqlen_k):
    """Around the edges of tiles of rows, and of blocks and splits of keys."""
    for rows in LENGTHS:
        check(each_isa, *one_head(rows, seqlen_k, 6, 5, dtype=dtype))


@pytest.mark.parametrize("seqlen_k", [24, 96, 129, 300, 513])
def test_lengths_and_causal(each_isa, dtype, seqlen_k):
    """Fault 8: aligned at the first query and at the last, and one off."""
    for rows in LENGTHS:
        arrays = one_head(rows, seqlen_k, 6, 5, dtype=dtype)
        for offset in {0, seqlen_k - rows, seqlen_k - rows - 1}:
            check(each_isa, *arrays, is_causal=True, query_offset=offset)


@pytest.mark.parametrize("rows", [DECODE, PREFILL])
def test_every_seqlen_k(each_isa, dtype, rows):
    near = [n + d for n in (128, 512, 640) for d in (-1, 0, 1, 3)]
    for seqlen_k in [*range(1, 71), *near]:
        check(each_isa, *one_head(rows, seqlen_k, 7, 3, dtype=dtype))


def test_every_seqlen_q(each_isa, dtype):
    near = [n + d for n in (128, 192, 256) for d in (-1, 0, 1, 3)]
    for rows in [*range(1, 71), *near]:
        check(each_isa, *one_head(rows, 19, 6, 5, dtype=dtype))


def test_grid_of_shapes(each_isa, dtype):
    for rows, seqlen_k in itertools.product((1, 5, 33, 130), (1, 17, 129, 530)):
        for head_dim, head_dim_v in ((1, 64), (64, 1), (16, 16), (65, 33), (130, 64)):
            check(each_isa, *one_head(rows, seqlen_k, head_dim, head_dim_v, dtype=dtype))


def test_long_and_wide(each_isa, dtype):
    """Many splits, many tiles; a head_dim of many chunks."""
    for shape in ((3, 3000, 16), (20, 2100, 16), (2000, 20, 16), (3, 40, 1000, 700), (70, 9, 700)):
        check(each_isa, *one_head(*shape, dtype=dtype))


# ------------------------------------------------------------------ axes and heads


@pytest.mark.parametrize("heads_q", [1, 2, 6, 12, 64])
def test_grouped_heads(each_isa, dtype, heads_q):
    """The gradients of a key and its value are sums over the heads of the group."""
    for heads_kv in (n for n in (1, 2, 3, 32) if heads_q % n == 0):
        for rows in (1, 3, 25):
            arrays = qkv((2, heads_q, rows, 8), heads_kv, 20, 5, dtype=dtype)
            check(each_isa, *arrays, enable_gqa=True)


@pytest.mark.parametrize("leading", BROADCASTS, ids=str)
@pytest.mark.parametrize("rows", [2, 20])
def test_leading_axes_broadcast(each_isa, dtype, leading, rows):
    """2-D to 7-D; the gradient of what has 1 of an axis, or lacks it, is summed over that axis."""
    query = normal(*leading[0], rows, 6, dtype=dtype)
    key = normal(*leading[1], 21, 6, dtype=dtype, seed=1)
    value = normal(*leading[2], 21, 5, dtype=dtype, seed=2)
    check(each_isa, query, key, value)


@pytest.mark.parametrize("axis", ["batch", "heads", "both"])
def test_each_input_broadcasts(each_isa, dtype, axis):
    """Query, key and value, each of them and every two: 1 of the axis in place of 3."""
    for which in itertools.product((False, True), repeat=3):
        arrays = [
            x[:1] if fewer and axis == "batch" else x[:, :1] if fewer and axis == "heads" else x
            for x, fewer in zip(qkv((3, 4, 9, 5), seqlen_k=40, dtype=dtype), which, strict=True)
        ]
        if axis == "both":
            arrays = [x[:1, :1] if fewer else x for x, fewer in zip(arrays, which, strict=True)]
        check(each_isa, *arrays)
        check(each_isa, *arrays, is_causal=True, query_offset=20)


def test_a_sum_over_many(each_isa, dtype):
    """One key for every batch entry and head; one query for all keys."""
    query, key, value = qkv((9, 8, 30, 6), seqlen_k=30, dtype=dtype)
    check(each_isa, query, key[:1, :1], value[:1, :1])
    check(each_isa, query[:1, :1], key, value)
    check(each_isa, query, key[0, 0], value)
    check(each_isa, query, key, value[0, 0])


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("scale", [0, 0.0, 1, -1.0, 0.3, -0.07, 4.0, np.float32(0.5)])
def test_scale(each_isa, dtype, scale):
    for rows in (DECODE, PREFILL):
        check(each_isa, *one_head(rows, 140, 24, dtype=dtype), scale=scale)


def test_scale_of_zero(isa, dtype):
    """The scores do not depend on queries and keys: their gradients are 0."""
    for rows in (DECODE, PREFILL):
        arrays = one_head(rows, 140, 24, dtype=dtype)
        got = backward(grad_of(*arrays), *arrays, scale=0.0)
        assert not got["query"].any()
        assert not got["key"].any()
        assert got["value"].all()


@pytest.mark.parametrize("size", [1e-30, 1e-3, 30.0])
def test_size_of_the_inputs(each_isa, dtype, size):
    """Scores so small that all weights are alike, and so large that one takes all."""
    for rows in (DECODE, PREFILL):
        query, key, value = one_head(rows, 300, 16, dtype=dtype)
        check(each_isa, query * dtype(size), key * dtype(size), value)
        check(each_isa, query * dtype(size), key, value)
        grad_out = grad_of(query, key, value) * dtype(size)
        check_each_gradient(each_isa, grad_out, query, key, value * dtype(size))


def test_gradients_are_of_the_sum(dtype):
    """Not by the reference: what a small step of each input does to sum(grad_out * out)."""
    arrays = qkv((2, 2, 6, 5), 1, 9, 4, dtype=np.float64)
    grad_out = grad_of(*arrays)
    options = {"is_causal": True, "query_offset": 3, "softcap": 2.0, "enable_gqa": True}
    got = backward(*(x.astype(dtype) for x in (grad_out, *arrays)), **options)
    for n, name in enumerate(got):
        for at in [(0, 0, 0, 0), (1, 0, 3, 1), (0, 0, 5, 3), (1, 0, 2, 2)]:
            ends = []
            for step in (1e-4, -1e-4):
                moved = [x.copy() for x in arrays]
                moved[n][at] += step
                ends.append((grad_out * attend(*moved, **options)).sum())
            # The quotient is off by 1e-8 of a third derivative that is some ten, and by rounding.
            slope = (ends[0] - ends[1]) / 2e-4
            assert abs(got[name][at] - slope) <= 1e-6 + 200 * np.finfo(dtype).eps, (name, at)


# ------------------------------------------------------------------ dropout


@pytest.mark.parametrize("dropout_p", [0.0, 1e-9, 0.1, 0.5, 0.99, 1.0, 1])
def test_dropout(each_isa, dtype, dropout_p):
    for rows in (1, 3, PREFILL, 150):
        arrays = qkv((2, 4, rows, 8), 2, 150, 5, dtype=dtype)
        for seed in (0, -1, 2**63 + 12345):
            options = {"dropout_p": dropout_p, "dropout_seed": seed, "enable_gqa": True}
            check(each_isa, *arrays, **options)
        check(each_isa, *arrays, is_causal=True, query_offset=60, **options)


def test_all_dropped(isa, dtype):
    """dropout_p = 1: nothing depends on any input, and no 1 / 0 is anywhere."""
    for rows in (DECODE, PREFILL):
        arrays = qkv((2, 4, rows, 8), 2, 150, 5, dtype=dtype)
        sinks = normal(4, dtype=dtype)
        bias = normal(rows, 150, dtype=dtype)
        options = {"dropout_p": 1.0, "enable_gqa": True, "sinks": sinks, "attn_mask": bias}
        for name, x in backward(grad_of(*arrays), *arrays, **options).items():
            assert not x.any(), name


@pytest.mark.parametrize("shapes", [((2, 1, 3), (3,), (2, 5, 1)), ((3,), (2, 1, 1), ())], ids=str)
def test_dropout_of_axes_that_broadcast(each_isa, dtype, shapes):
    """Each entry of the broadcast problem has a mask of its own, whatever the inputs lack."""
    query = normal(*shapes[0], 9, 6, dtype=dtype)
    key = normal(*shapes[1], 21, 6, dtype=dtype, seed=1)
    value = normal(*shapes[2], 21, 5, dtype=dtype, seed=2)
    check(each_isa, query, key, value, dropout_p=0.4, dropout_seed=3)


# ------------------------------------------------------------------ empty axes


def test_every_axis_in_0_and_1(each_isa, dtype):
    """Fault 9: S = 0 is a row that sees nothing, E = 0 has the mean of the values."""
    for batch, heads, rows, seqlen_k, head_dim, head_dim_v in itertools.product((0, 1), repeat=6):
        query = normal(batch, heads, rows, head_dim, dtype=dtype)
        key = normal(batch, heads, seqlen_k, head_dim, dtype=dtype)
        value = normal(batch, heads, seqlen_k, head_dim_v, dtype=dtype)
        grad_out = normal(batch, heads, rows, head_dim_v, dtype=dtype, seed=7)
        for options in (
            {},
            {"is_causal": True, "query_offset": -1},
            {"sinks": normal(heads, dtype=dtype), "softcap": 1.0},
            {"attn_mask": normal(rows, seqlen_k, dtype=dtype), "dropout_p": 0.5},
            {"attn_mask": normal(heads, 1, seqlen_k, dtype=dtype), "scale": 2.0},
        ):
            check_each_gradient(each_isa, grad_out, query, key, value, **options)


def test_empty_axes_that_are_summed_over(isa, dtype):
    """A sum over no batch entries, heads or queries is 0, over memory that held something else."""
    ones = np.ones((1, 1, 3, 4), dtype)
    for leading in ((0, 1), (1, 0), (0, 7)):
        empty = np.empty((*leading, 5, 4), dtype)
        grad_out = np.empty((*leading, 3, 4), dtype)
        got = check_gradients(grad_out, ones, empty, empty)
        assert same_zeros(got["query"], ones)
        grad_out = np.empty((*leading, 5, 4), dtype)
        got = check_gradients(grad_out, empty, ones, ones)
        assert same_zeros(got["key"], ones)
        assert same_zeros(got["value"], ones)
    for seqlen_k in (1, 40, 600):
        key = normal(2, seqlen_k, 8, dtype=dtype)
        query, grad_out = np.empty((2, 0, 8), dtype), np.empty((2, 0, 8), dtype)
        got = check_gradients(grad_out, query, key, key)
        assert same_zeros(got["key"], key)
        assert same_zeros(got["value"], key)


def same_zeros(gradient, like):
    return gradient.shape == like.shape and not gradient.any()


def test_no_keys(isa, dtype):
    for rows in (1, 3, 40):
        query, nothing = normal(2, rows, 8, dtype=dtype), np.empty((2, 0, 8), dtype)
        for options in ({}, {"sinks": normal(2, dtype=dtype)}):
            got = check_gradients(query, query, nothing, nothing, **options)
            assert same_zeros(got["query"], query)
            assert not got.get("sinks", np.zeros(1)).any()


def test_no_head_dim(each_isa, dtype):
    """All scores are 0; the gradient of the values is not."""
    for rows, seqlen_k in ((1, 7), (3, 300), (40, 300)):
        query, key = np.empty((2, rows, 0), dtype), np.empty((2, seqlen_k, 0), dtype)
        value = normal(2, seqlen_k, 5, dtype=dtype)
        check(each_isa, query, key, value)
        mask = normal(rows, seqlen_k, dtype=dtype)
        check(each_isa, query, key, value, attn_mask=mask, softcap=1.0, is_causal=True)
