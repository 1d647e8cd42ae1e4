"""int8: what docs/caches.md says of its error, of an element and of what attends."""

import numpy as np
import pytest

import selfattn
from selfattn import reference
from support.arrays import HALF_DTYPES, bfloat16, normal, same_bits

ULP = float(np.finfo(np.float32).eps)
HEADS_KV, GROUP, N, E, EV = 2, 3, 700, 40, 24


def spread(*shape, seed):
    """Rows from 1e-30 to 1e30, one element or all of them large, some of nothing but 0."""
    x = normal(*shape, dtype=np.float64, seed=seed)
    x[..., ::3] **= 9
    x *= 10.0 ** np.linspace(-30, 30, shape[-2])[:, None]
    x[..., 5, :] = 0
    return x.astype(np.float32)


def held(key, value, paged=False):
    if not paged:
        cache = selfattn.KVCache(1, key.shape[1], N, E, EV, dtype=np.int8)
        cache.append(key, value)
        return cache, cache.attend
    cache = selfattn.PagedKVCache(50, 16, key.shape[1], E, EV, dtype=np.int8)
    ids = [cache.new_sequence()]
    cache.append(ids, key, value)
    return cache, lambda *arrays, **options: cache.attend(ids, *arrays, **options)


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "bfloat16"])
def test_an_element_is_off_by_half_a_scale(kind):
    """Half of max|row| / 127, and the rounding of a quotient and of a product in float32."""
    if kind == "bfloat16" and bfloat16 is None:
        pytest.skip("ml_dtypes is not installed")
    dtype = bfloat16 if kind == "bfloat16" else np.dtype(kind)
    make = normal if kind == "float16" else spread
    key = make(1, HEADS_KV, N, E, seed=0).astype(dtype)
    value = make(1, HEADS_KV, N, EV, seed=1).astype(dtype)
    cache, _ = held(key, value)
    for given, got in ((key, cache.key), (value, cache.value)):
        given = given.astype(np.float64)
        half = np.abs(given).max(-1, keepdims=True) / 254
        error = np.abs(got - given)
        assert (error <= half * (1 + 254 * 2 * ULP)).all()
        assert (error > 0.99 * half).any()  # so the bound says what it is
        assert got.dtype == np.float32


def output_bound(query, key, value):
    """What half a scale in each key and value can change of an output, for each query and column.

    Scores move by d at most, so weights by factors within exp(-2 d) and exp(2 d): half of the sum
    of their changes is tanh(d / 2) at most, and moves a mean of values by that part of their range.
    """
    step = np.abs(key).max(-1) / 254
    d = (np.abs(query).sum(-1)[..., None] * step[..., None, :]).max(-1) / np.sqrt(E)
    span = value.max(-2) - value.min(-2)
    moved = np.tanh(d / 2)[..., None] * span[..., None, :]
    return moved + np.abs(value).max((-2, -1))[..., None, None] / 254


@pytest.mark.parametrize("paged", [False, True])
def test_attention_is_off_by_no_more_than_that(each_isa, paged):
    """Beside float64's attention to the rows as they were given; scores up to 20 apart."""
    query = 3 * normal(1, HEADS_KV * GROUP, 5, E)
    key, value = normal(1, HEADS_KV, N, E, seed=1), normal(1, HEADS_KV, N, EV, seed=2)
    wide = [x.astype(np.float64) for x in (query, key, value)]
    options = {"is_causal": True, "query_offset": N - 5, "enable_gqa": True}
    want = reference.scaled_dot_product_attention(*wide, **options)
    rows = [np.repeat(x, GROUP, 1) for x in wide[1:]]
    bound = output_bound(wide[0], *rows)
    kept = None
    for isa in each_isa():
        _, attend = held(key, value, paged)
        out = attend(query)
        kept = out if kept is None else kept
        assert same_bits(out, kept), isa
    error = np.abs(kept - want)
    assert (error <= bound + 1e-6).all()
    relative = np.sqrt((error**2).mean() / (want**2).mean())
    assert relative < 0.02  # the bound is of the worst; this is what there is


def test_nothing_else_is_rounded(each_isa):
    """Beside float64's attention to the rows that the cache stands for: float32's error.

    Of a query in a half type the result is rounded to it, once.
    """
    query = normal(1, HEADS_KV * GROUP, 1, E)
    key, value = normal(1, HEADS_KV, N, E, seed=1), normal(1, HEADS_KV, N, EV, seed=2)
    cache, attend = held(key, value)
    want = reference.scaled_dot_product_attention(query, cache.key, cache.value, enable_gqa=True)
    for isa in each_isa():
        assert np.abs(attend(query) - want).max() < 4 * ULP, isa
        for half in HALF_DTYPES:
            rounded = query.astype(half)
            expected = attend(rounded.astype(np.float32)).astype(half)
            assert same_bits(attend(rounded), expected), (isa, half)


@pytest.mark.parametrize("largest", [np.finfo(np.float32).max, 190 * 2.0**-149])
def test_rows_at_both_ends_of_float32(largest):
    """A scale rounded up overflows times 127; one of few bits, rounded down, is too small."""
    key = np.zeros((1, 1, 1, E), np.float32)
    key[..., :2] = largest, -largest / 2
    cache, _ = held(key, key[..., :EV])
    assert (np.abs(np.float64(cache.key) - key) <= largest / 254 * (1 + 2e-5) + 2.0**-149).all()
