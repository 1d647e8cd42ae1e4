"""The reference's merge_states against its attention over all the keys at once."""

import math

import numpy as np

from selfattn import reference
from support.arrays import normal, qkv


def test_merge_states_is_attention_over_the_union():
    """Any split of the keys in two, and either side of it empty, in some rows or in all."""
    query, key, value = qkv((2, 3, 4, 5), 3, 9, dtype=np.float64)
    sinks = normal(3, dtype=np.float64)

    def attend(seen, **options):
        return reference.scaled_dot_product_attention(
            query, key, value, seen, return_lse=True, **options
        )

    union = normal(2, 3, 4, 9) > -1
    for cut in (normal(2, 3, 4, 9, seed=1) > 0, np.arange(9) < 4, np.array(True), np.array(False)):
        for options in ({}, {"sinks": sinks}):
            a, b = attend(union & cut, **options), attend(union & ~cut)
            for got in (reference.merge_states(*a, *b), reference.merge_states(*b, *a)):
                for x, wanted in zip(got, attend(union, **options), strict=True):
                    np.testing.assert_allclose(x, wanted, rtol=1e-13, atol=1e-15)
    parts = [attend(np.arange(9) == j) for j in range(9)]
    merged = parts[0]
    for part in parts[1:]:
        merged = reference.merge_states(*merged, *part)
    for x, wanted in zip(merged, attend(None), strict=True):
        np.testing.assert_allclose(x, wanted, rtol=1e-13, atol=1e-15)


def test_merge_states_at_the_ends():
    """A side whose lse is -inf adds nothing, NaN or not; lse of any size neither over- nor under-
    flow; two empty sides are an empty one.
    """
    out, none = np.array([[1.0, -2.0]]), np.array([-np.inf])
    for junk in (np.nan, np.inf, -np.inf, 3.0):
        for lse in (np.array([0.1]), np.array([-1e300]), np.array([1e300])):
            side, empty = (out, lse), (np.full((1, 2), junk), none)
            for pair in ((side, empty), (empty, side)):
                got = reference.merge_states(*pair[0], *pair[1])
                assert np.array_equal(got[0], out)
                assert np.array_equal(got[1], lse)
        got = reference.merge_states(*empty, *empty)
        assert np.array_equal(got[0], [[0, 0]])
        assert got[1] == -np.inf
    out, lse = reference.merge_states(
        *(np.array([x], np.float32) for x in ([1.0], 88.0, [4.0], 88.0 + math.log(2)))
    )
    assert out.dtype == lse.dtype == np.float32
    np.testing.assert_allclose(out, 3.0, rtol=1e-5)
    np.testing.assert_allclose(lse, 88.0 + math.log(3), rtol=1e-7)
