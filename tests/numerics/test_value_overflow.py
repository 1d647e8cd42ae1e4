"""Values so large that their sum overflows, though their mean does not: the mean is right.

Fault 45. What is expected is the mean of values divided by a power of 2, in float64 for float32, or
in the same dtype.
"""

import numpy as np
import pytest

import selfattn
from support.arrays import normal, qkv, same_bits

LARGE = {np.float32: 2.0**127, np.float64: 2.0**1023}


def large_values(*shape, dtype, seed=0):
    """Between half of the largest number and all of it, of both signs."""
    x = np.random.default_rng(seed).uniform(0.5, 1.0, shape)
    signs = np.sign(normal(*shape[:-2], 1, shape[-1], seed=seed))
    largest = np.finfo(dtype).max
    return (np.minimum(x, 1 - 2.0**-20) * signs).astype(dtype) * largest


def mean_of(weights, value):
    shrunk = value / value.dtype.type(2.0**60)
    return np.asarray(weights.astype(np.float64) @ shrunk.astype(np.float64), np.float64) * 2.0**60


def assert_mean(got, query, key, value, **options):
    weights = selfattn.attention_weights(query, key, **options)
    with np.errstate(over="ignore"):
        want = mean_of(weights, value).astype(value.dtype)
    unit = np.finfo(value.dtype).eps
    shape = want.shape
    assert got.shape == shape
    assert np.isfinite(got).all()
    tolerance = 64 * unit * np.abs(value).max()
    with np.errstate(over="ignore"):
        assert (np.abs(got / 2 - want / 2) <= tolerance).all()


@pytest.mark.parametrize("keys", [1, 2, 3, 16, 129, 700, 1500])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_equal_scores(isa, dtype, rows, keys):
    """The mean of equal values is that value, the very largest included."""
    query, key = np.zeros((rows, 8), dtype), np.zeros((keys, 8), dtype)
    for value in (np.finfo(dtype).max, -np.finfo(dtype).max, LARGE[dtype] * dtype(1.5)):
        values = np.full((keys, 3), value, dtype)
        out, lse = selfattn.scaled_dot_product_attention(query, key, values, return_lse=True)
        assert np.isfinite(out).all()
        assert np.abs(out / value - 1).max() <= 4 * np.finfo(dtype).eps
        assert np.abs(lse - np.log(keys)).max() <= 1e-5


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"window_size": (40, 3)}], ids=str)
@pytest.mark.parametrize(("rows", "keys"), [(1, 90), (5, 700), (130, 700)])
def test_any_scores(isa, dtype, rows, keys, options):
    if options:
        options = options | {"query_offset": keys - rows}
    query, key, _ = qkv((2, 3, rows, 20), seqlen_k=keys, dtype=dtype)
    value = large_values(2, 3, keys, 33, dtype=dtype)
    out = selfattn.scaled_dot_product_attention(query, key, value, **options)
    assert_mean(out, query, key, value, **options)


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_bits(each_isa, dtype, rows):
    """A row's are its own: alone, in a batch, at any number of threads and in every set."""
    query, key, _ = qkv((2, 2, rows, 16), seqlen_k=1100, dtype=dtype)
    value = np.concatenate(
        [large_values(2, 2, 1100, 5, dtype=dtype), normal(2, 2, 1100, 5, dtype=dtype)], -1
    )
    value[0, 0] = normal(1100, 10, dtype=dtype)  # a head that overflows nowhere
    want = None
    for _ in each_isa():
        whole = selfattn.scaled_dot_product_attention(query, key, value, num_threads=1)
        want = whole if want is None else want
        assert same_bits(whole, want)
        for threads in (2, 5):
            out = selfattn.scaled_dot_product_attention(query, key, value, num_threads=threads)
            assert same_bits(out, want)
        for b, h, r in ((0, 0, 0), (0, 1, 0), (1, 1, rows - 1)):
            row = selfattn.scaled_dot_product_attention(
                query[b, h, r : r + 1], key[b, h], value[b, h], num_threads=3
            )
            assert same_bits(row[0], want[b, h, r])


def test_a_head_that_overflows_changes_no_other(isa, dtype):
    """Nor the rows of its own tile that do not."""
    query, key, value = qkv((1, 2, 60, 16), seqlen_k=300, dtype=dtype)
    options = {"is_causal": True, "query_offset": 240, "num_threads": 1}
    before = selfattn.scaled_dot_product_attention(query, key, value, **options)
    value[0, 1, 270:] = large_values(30, 16, dtype=dtype)
    after = selfattn.scaled_dot_product_attention(query, key, value, **options)
    assert same_bits(after[0, 0], before[0, 0])
    assert same_bits(after[0, 1, :30], before[0, 1, :30])
    assert np.isfinite(after).all()


def test_what_is_infinite_stays(isa, dtype):
    """Infinite or NaN values that are attended, beside large ones; and masked ones."""
    query, key = np.zeros((40, 8), dtype), np.zeros((40, 8), dtype)
    value = np.full((40, 4), LARGE[dtype] * dtype(1.5), dtype)
    value[5, 0], value[6, 1], value[7, 2] = np.inf, -np.inf, np.nan
    out = selfattn.scaled_dot_product_attention(query, key, value)
    assert (out[:, 0] == np.inf).all()
    assert (out[:, 1] == -np.inf).all()
    assert np.isnan(out[:, 2]).all()
    assert (np.abs(out[:, 3] / value[0, 3] - 1) < 1e-5).all()
    mask = np.ones((40, 40), bool)
    mask[:, 5:8] = False
    out = selfattn.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert (np.abs(out / value[0, 3] - 1) < 1e-5).all()


def test_options(isa, dtype):
    """Packed sequences, groups, a sink, a mask, and dropout, whose factor makes larger sums."""
    query, key, _ = qkv((1, 4, 30, 16), 2, 90, dtype=dtype)
    value = large_values(1, 2, 90, 16, dtype=dtype)
    attend = selfattn.scaled_dot_product_attention
    out = attend(query, key, value, enable_gqa=True)
    assert np.isfinite(out).all()
    packed = [np.ascontiguousarray(x[0].swapaxes(0, 1)) for x in (query, key, value)]
    cu_q, cu_k = np.array([0, 30]), np.array([0, 90])
    varlen = selfattn.varlen_attention(*packed, cu_q, cu_k, enable_gqa=True)
    assert same_bits(varlen.swapaxes(0, 1), out[0])
    sinks = np.zeros(4, dtype)
    with_sink = attend(query, key, value, enable_gqa=True, sinks=sinks)
    assert np.isfinite(with_sink).all()
    assert (np.abs(with_sink) <= np.abs(out)).all()
    value = value / dtype(2)  # dropped, the rest is multiplied by 4/3
    dropped = attend(query, key, value, enable_gqa=True, dropout_p=0.25)
    small = attend(query, key, value / dtype(2.0**40), enable_gqa=True, dropout_p=0.25)
    assert np.isfinite(dropped).all()
    near = np.abs(dropped / dtype(2.0**40) - small) <= 1e-4 * np.abs(value).max() / 2.0**40
    assert near.all()


def test_merge_states(isa, dtype):
    large = np.finfo(dtype).max
    out = np.array([[large, -large, large / 2, 1.0, np.inf]], dtype)
    lse = np.zeros(1, dtype)
    merged, _ = selfattn.merge_states(out, lse, out, lse)
    assert same_bits(merged, out)
    merged, _ = selfattn.merge_states(out[:, :4], lse, -out[:, :4], lse)
    assert (merged == 0).all()
    none = np.full(1, -np.inf, dtype)
    merged, _ = selfattn.merge_states(out, lse, out, none)
    assert same_bits(merged, out)
