"""The steps alone, against the reference: project, scores, softmax, weights, weighted sum."""

import numpy as np
import pytest

import selfattn
from selfattn import reference
from support.arrays import normal, one_head, qkv
from support.compare import assert_close, check_scores, largest, unit_roundoff, wide


def check_sum(weights, value, **options):
    """A sum's error is at most some units of the sum of its terms' sizes."""
    got = selfattn.weighted_sum(weights, value, **options)
    want = wide(reference.weighted_sum, weights, value, **options)
    size = wide(reference.weighted_sum, np.abs(weights), np.abs(value), **options)
    assert got.dtype == weights.dtype
    assert_close(got, want, 8 * unit_roundoff(weights.dtype) * size, (weights.shape, value.shape))


def check_softmax(x, axis=-1):
    """2.5 last places for exp, division and product, abs(x - max) for what is rounded before it,
    n / 16 for the sum in 16 chains; a last place is 2 units at most."""
    got = selfattn.softmax(x, axis)
    want = wide(reference.softmax, x, axis=axis)
    below = x.max(axis, keepdims=True).astype(np.float64) - x if x.size else x
    places = 2.5 + below + x.shape[axis] / 16
    assert got.dtype == x.dtype
    bound = 2 * unit_roundoff(x.dtype) * places * want + float(np.finfo(x.dtype).smallest_subnormal)
    assert_close(got, want, bound, (x.shape, axis))


@pytest.mark.parametrize("rows", [1, 3, 9, 40])
def test_scores_and_weights_at_every_tail(isa, dtype, rows):
    for n in [*range(1, 70), 127, 128, 129, 130]:
        check_scores(*one_head(rows, n, 5, dtype=dtype)[:2])
        check_scores(*one_head(rows, 21, n, dtype=dtype)[:2])
    for n in (255, 257, 511, 513, 1030):
        check_scores(*one_head(rows, n, 16, dtype=dtype)[:2])


def test_scores_and_weights_of_many_heads(isa, dtype):
    for heads_q, heads_kv in ((6, 6), (6, 2), (6, 1)):
        query, key, _ = qkv((2, heads_q, 11, 8), heads_kv, 150, dtype=dtype)
        for scale in (None, 0, -2.0, 5.0):
            check_scores(query, key, enable_gqa=True, scale=scale)
    check_scores(normal(7, 4, dtype=dtype), normal(2, 3, 9, 4, dtype=dtype, seed=1))


def test_weights_sum_to_one_and_make_the_fused_result(isa, dtype):
    """The fused call is these steps, and differs by roundings."""
    query, key, value = one_head(40, 300, 16, dtype=dtype)
    seen = {"is_causal": True, "query_offset": 100}
    weights = selfattn.attention_weights(query, key, **seen)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(weights.sum(-1, dtype=np.float64), 1, rtol=8 * eps)
    got = selfattn.weighted_sum(weights, value)
    fused = selfattn.scaled_dot_product_attention(query, key, value, **seen)
    np.testing.assert_allclose(got, fused, rtol=0, atol=8 * eps * largest(value))
    scores = selfattn.scaled_dot_product(query, key, **seen)
    # Scores of size 5, in units of 1 and of log 2: each rounds by some eps of that.
    np.testing.assert_allclose(selfattn.softmax(scores), weights, rtol=40 * eps)


def test_softmax_at_every_length(isa, dtype):
    for n in [*range(1, 301), 1000, 5000]:
        check_softmax(normal(3, n, dtype=dtype))
        check_softmax(30 * normal(2, n, dtype=dtype))


def test_softmax_along_every_axis(isa, dtype):
    x = normal(3, 17, 5, 20, dtype=dtype)
    for axis in range(-4, 4):
        check_softmax(x, axis)
        check_softmax(x.transpose(2, 0, 3, 1), axis)
    check_softmax(normal(9, dtype=dtype), 0)
    check_softmax(normal(*([2] * 12), dtype=dtype), 5)


@pytest.mark.parametrize("shift", [1e4, -1e4, 3e38, -3e38])
def test_softmax_does_not_overflow(isa, dtype, shift):
    x = normal(4, 50, dtype=dtype)
    check_softmax(np.asarray(x + dtype(shift), dtype))
    assert np.isfinite(selfattn.softmax(x * dtype(1e37))).all()
    check_softmax(np.full((2, 7), shift, dtype))
    # The largest numbers of both signs: x - max is -inf, whose exp is 0.
    top = np.finfo(dtype).max
    assert np.array_equal(selfattn.softmax(np.array([top, -top], dtype)), [1, 0])


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_weighted_sum_at_every_tail(isa, dtype, rows):
    for n in [*range(1, 70), 127, 128, 129, 130, 513]:
        check_sum(normal(rows, n, dtype=dtype), normal(n, 5, dtype=dtype, seed=1))
        check_sum(normal(rows, 20, dtype=dtype), normal(20, n, dtype=dtype, seed=1))


def test_weighted_sum_of_many_heads(isa, dtype):
    value = normal(2, 2, 30, 7, dtype=dtype, seed=1)
    check_sum(normal(2, 6, 5, 30, dtype=dtype), value, enable_gqa=True)
    check_sum(normal(2, 2, 5, 30, dtype=dtype), value)
    check_sum(normal(5, 30, dtype=dtype), value)
    check_sum(normal(2, 6, 5, 30, dtype=dtype), value[:, :1])


def test_weighted_sum_is_plain_arithmetic(isa, dtype):
    """A weight of 0 times NaN is NaN: nothing is masked here."""
    for rows in (1, 40):
        weights, value = np.zeros((rows, 9), dtype), normal(9, 4, dtype=dtype)
        value[3, 2] = np.nan
        out = selfattn.weighted_sum(weights, value)
        assert np.isnan(out[:, 2]).all()
        assert (out[:, [0, 1, 3]] == 0).all()


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_project(dtype, leading):
    x, weight, bias = (normal(*shape, dtype=dtype) for shape in ((*leading, 7), (5, 7), (5,)))
    for given in ((x, weight), (x, weight, bias), (x[..., ::-1], weight.T.copy().T, bias)):
        before = [a.copy() for a in given]
        got = selfattn.project(*given)
        assert got.dtype == dtype
        assert got.shape == (*leading, 5)
        size = 7 * largest(x) * largest(weight) + largest(bias)
        assert_close(got, wide(reference.project, *given), 8 * unit_roundoff(dtype) * size)
        assert all(map(np.array_equal, given, before))
