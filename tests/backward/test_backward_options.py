"""The backward pass with every option: masks and their gradients, sinks and theirs, caps, slopes.

Poison and rows that see no key are in test_backward_masked_rows.py, extreme numbers in
test_backward_extremes.py.
"""

import itertools

import numpy as np
import pytest

from support.arrays import normal, one_head, qkv
from support.compare_gradients import check_each_gradient, check_gradients
from support.gradients import assert_same, backward, grad_of
from support.option_arrays import (
    KINDS,
    bool_mask,
    broadcasts,
    float_mask,
    option,
    range_mask,
    runs,
    slopes,
)

# Few rows, a tile of many, and more than one tile.
FEW, MANY, MORE = 2, 37, 150


def check(each_isa, *arrays, **options):
    check_each_gradient(each_isa, grad_of(*arrays), *arrays, **options)


def kinds(dtype):
    """The dtypes that a float option may have."""
    return [np.float32] if dtype == np.float32 else [np.float64, np.float32]


# ------------------------------------------------------------------ masks and their gradients


@pytest.mark.parametrize("rows", [FEW, 9])
def test_every_mask_that_broadcasts(each_isa, dtype, rows):
    """The mask's gradient is summed over each axis of 1 and each that it lacks: 31 shapes."""
    arrays = qkv((2, 6, rows, 5), 2, 133, 3, dtype=dtype)
    for shape in broadcasts((2, 6, rows, 133)):
        for kind in kinds(dtype):
            mask = float_mask(*shape, dtype=kind)
            check(each_isa, *arrays, attn_mask=np.asarray(mask), enable_gqa=True)
        check(each_isa, *arrays, attn_mask=np.asarray(bool_mask(*shape)), enable_gqa=True)


def test_a_float_mask_under_other_options(each_isa, dtype):
    """What others mask has no gradient; a soft cap and a scale have no part in it."""
    arrays = qkv((2, 4, MANY, 6), 2, 150, dtype=dtype)
    for shape, options in itertools.product(
        [(2, 4, MANY, 150), (1, 150), (4, 1, 1), (MANY, 1), ()],
        [
            {"is_causal": True, "query_offset": 80},
            {"window_size": (30, 2), "query_offset": np.array([100, 20])},
            {"kv_lengths": np.array([70, 0]), "softcap": 1.5},
            {"segment_ids": (np.arange(MANY) % 3, runs(150, 40, 20)), "scale": -2.0},
            {"dropout_p": 0.3, "dropout_seed": 1, "alibi_slopes": slopes(4, dtype=dtype)},
        ],
    ):
        mask = np.asarray(float_mask(*shape, dtype=dtype, masked=0.1))
        check(each_isa, *arrays, attn_mask=mask, enable_gqa=True, **options)


def test_float32_mask_of_a_float64_call(isa):
    """Its gradient is of its own dtype, as the gradient of every input is."""
    arrays = one_head(MANY, 150, 8, dtype=np.float64)
    for shape in ((MANY, 150), (1, 150), (MANY, 1), ()):
        mask = np.asarray(float_mask(*shape), np.float32)
        got = check_gradients(grad_of(*arrays), *arrays, attn_mask=mask)["attn_mask"]
        wide = backward(grad_of(*arrays), *arrays, attn_mask=mask.astype(np.float64))["attn_mask"]
        assert got.dtype == np.float32
        # Each rounded once: the sum itself is of the call's dtype.
        np.testing.assert_allclose(got, wide, rtol=2**-24, atol=1e-12)


def test_the_gradient_of_what_is_masked(isa, dtype):
    """Exactly 0, where the mask itself masks and where anything else does."""
    arrays = one_head(MANY, 300, 8, dtype=dtype)
    mask = float_mask(MANY, 300, dtype=dtype)
    seen = range_mask(MANY, 300, is_causal=True, query_offset=150)
    got = backward(grad_of(*arrays), *arrays, attn_mask=mask, is_causal=True, query_offset=150)
    gradient = got["attn_mask"]
    assert not gradient[~seen | (mask == -np.inf)].any()
    assert gradient[seen & (mask != -np.inf)].all()


# ------------------------------------------------------------------ sinks and their gradients


@pytest.mark.parametrize("heads_q", [1, 2, 6, 12])
def test_sinks(each_isa, dtype, heads_q):
    for heads_kv in (n for n in (1, 2, 3) if heads_q % n == 0):
        for rows in (1, 3, 25):
            arrays = qkv((2, heads_q, rows, 8), heads_kv, 140, 5, dtype=dtype)
            for kind in kinds(dtype):
                sinks = (np.arange(heads_q) - 2).astype(kind)
                check(each_isa, *arrays, sinks=sinks, enable_gqa=True)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 2, 3)], ids=str)
def test_sinks_of_every_number_of_axes(each_isa, dtype, leading):
    query, key = normal(*leading, 9, 4, dtype=dtype), normal(*leading, 21, 4, dtype=dtype, seed=1)
    sinks = normal(leading[-1] if leading else 1, dtype=dtype)
    check(each_isa, query, key, key, sinks=sinks)
    if leading:
        check(each_isa, query, key[..., :1, :, :], key, sinks=sinks)


@pytest.mark.parametrize("sink", [0.0, -3.0, 8.0, 40.0, -40.0, 200.0, -200.0, 600.0, 1e4, -1e4])
def test_size_of_a_sink(each_isa, dtype, sink):
    """Above all scores it leaves no weight to them; below, it has none."""
    for rows, size in itertools.product((FEW, MANY), (0.01, 1, 30)):
        query, key, value = one_head(rows, 300, 16, dtype=dtype)
        sinks = np.array([sink], dtype)
        check(each_isa, query * dtype(size), key, value, sinks=sinks)
        check(each_isa, query * dtype(size), key, value, sinks=sinks, dropout_p=0.5)


def test_sink_as_one_more_key(isa, dtype):
    """Not by the reference: the gradients of a key whose score is the sink and whose value is 0."""
    for rows in (FEW, MANY):
        query, key, value = one_head(rows, 300, 8, 5, dtype=dtype)
        grad_out = grad_of(query, key, value)
        more = [np.concatenate([x, np.zeros_like(x[:1])]) for x in (key, value)]
        for sink in (-1.0, 2.5, 9.0):
            got = backward(grad_out, query, key, value, sinks=np.array([sink], dtype))
            mask = np.zeros((1, 301), dtype)
            mask[:, 300] = sink
            want = backward(grad_out, query, *more, attn_mask=mask)
            # Gradients below 10 in size, of sums of some tens of terms.
            near = {"rtol": 0, "atol": 200 * np.finfo(dtype).eps}
            np.testing.assert_allclose(got["query"], want["query"], **near)
            np.testing.assert_allclose(got["key"], want["key"][:300], **near)
            np.testing.assert_allclose(got["value"], want["value"][:300], **near)
            np.testing.assert_allclose(got["sinks"], want["attn_mask"][0, 300:], **near)


# ------------------------------------------------------------------ all others


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, MANY, MORE])
def test_options(each_isa, dtype, kind, rows):
    arrays = qkv((2, 4, rows, 12), 2, 150, 7, dtype=dtype)
    options = option(kind, 2, 4, rows, 150, dtype) | {"enable_gqa": True}
    for more in ({}, {"is_causal": True, "query_offset": 70}, {"dropout_p": 0.2, "scale": -0.6}):
        check(each_isa, *arrays, **options | more)


@pytest.mark.parametrize("softcap", [0.05, 0.5, 2.0, 30, 1e4])
def test_softcap(each_isa, dtype, softcap):
    """Scores that are bent until nothing of them is left, and scores that are not bent."""
    for rows, size in itertools.product((FEW, MANY), (0.1, 1, 8)):
        query, key, value = one_head(rows, 140, 8, 5, dtype=dtype)
        check(each_isa, query * dtype(size), key, value, softcap=softcap)
        check(each_isa, query * dtype(size), key, value, softcap=softcap, is_causal=True)


@pytest.mark.parametrize("rows", [FEW, MANY, MORE])
def test_ranges(each_isa, dtype, rows):
    """Causal, windows, lengths, offsets; each batch entry its own; edges of blocks and of tiles."""
    arrays = qkv((2, 2, rows, 6), seqlen_k=300, dtype=dtype)
    for options in (
        {"is_causal": True, "query_offset": np.array([127, -20])},
        {"is_causal": True, "query_offset": 300},
        {"window_size": (0, 0), "query_offset": 128},
        {"window_size": (3, -1), "query_offset": 120},
        {"window_size": (-1, 5), "query_offset": np.array([-3, 200])},
        {"window_size": (150, 20), "query_offset": 100, "is_causal": True},
        {"kv_lengths": np.array([0, 300])},
        {"kv_lengths": np.array([129, 1])},
        {"kv_lengths": np.array([128, 127]), "is_causal": True, "query_offset": 100},
    ):
        check(each_isa, *arrays, **options)


@pytest.mark.parametrize("rows", [3, MANY, MORE])
def test_holes(each_isa, dtype, rows):
    """Whole blocks, tiles and rows that nothing sees, or all, or some."""
    arrays = one_head(rows, 300, 6, 4, dtype=dtype)
    i, j = np.arange(rows)[:, None], np.arange(300)
    for mask in (
        (i + j) % 2 == 0,
        (i // 8 + j // 128) % 2 == 0,
        (i == rows // 2) & (j >= 0),
        (i != rows // 2) & (j >= 0),
        (j == 299) & (i >= 0),
        (j == 0) & (i >= 0),
        (j >= 2 * i) & (j < 2 * i + 40),
        (j >= 128) & (j < 256) & (i >= 0),
        (i >= 2) & (j >= 100),
    ):
        check(each_isa, *arrays, attn_mask=mask)
        check(each_isa, *arrays, attn_mask=np.where(mask, dtype(-1.5), dtype(-np.inf)))


# ------------------------------------------------------------------ rows that see no key


@pytest.mark.parametrize("rows", [3, MANY, MORE])
def test_rows_that_see_no_key_beside_others(each_isa, dtype, rows):
    """Faults 1 and 7: their gradients are 0, and they add nothing to those of keys and values."""
    arrays = one_head(rows, 300, 6, dtype=dtype)
    grad_out = grad_of(*arrays)
    blind = np.arange(rows) % 3 == 0
    mask = bool_mask(rows, 300, share=0.6)
    mask[blind] = False
    for sinks in ({}, {"sinks": np.array([0.3], dtype)}):
        for seen in (mask, np.where(mask, dtype(0.5), dtype(-np.inf))):
            options = {"attn_mask": seen} | sinks
            check_each_gradient(each_isa, grad_out, *arrays, **options)
            got = backward(grad_out, *arrays, **options)
            assert not got["query"][blind].any()
            other = [x.copy() for x in (grad_out, arrays[0])]
            for x in other:
                x[blind] = np.nan
            spoiled = backward(other[0], other[1], *arrays[1:], **options)
            assert_same(spoiled, got)


# ------------------------------------------------------------------ numbers that are too large


def test_least_numbers_beside_others(each_isa, dtype):
    """Fault 2: finfo.min masks all but exactly, where there is another number in the row."""
    arrays = one_head(MANY, 300, 6, 5, dtype=dtype)
    mask = np.where(bool_mask(MANY, 300), dtype(0), np.finfo(dtype).min)
    check(each_isa, *arrays, attn_mask=mask)


@pytest.mark.parametrize("size", [100, 500, 511, 512, 513, 600, 1e4, 1e6])
@pytest.mark.parametrize("sign", [-1, 1])
def test_size_of_lse(each_isa, dtype, size, sign):
    """Up to 512 the weights come from lse, beyond it not: it has lost too many of its places."""
    for rows in (FEW, MANY):
        arrays = one_head(rows, 300, 6, 5, dtype=dtype)
        mask = normal(rows, 300, dtype=dtype)
        large = mask + dtype(sign * size)
        check(each_isa, *arrays, attn_mask=large)
        one = mask.copy()
        one[0] = large[0]  # a single row of its tile
        check(each_isa, *arrays, attn_mask=one)
        check(each_isa, *arrays, attn_mask=large, sinks=np.array([sign * size], dtype))
        check(each_isa, *arrays, attn_mask=large, is_causal=True, dropout_p=0.3)


@pytest.mark.parametrize("rows", [1, 3, MANY])
def test_sinks_as_large_as_the_mask(isa, dtype, rows):
    """Fault 2: every key and the sink have the weight 1 / (S + 1), however large their number is.

    The share of the sink is lost in an lse of that size, as the weights of the keys are.
    """
    for seqlen_k in (1, 7, 140):
        arrays = qkv((1, 2, rows, 6), seqlen_k=seqlen_k, dtype=dtype)
        grad_out, value = grad_of(*arrays).astype(np.float64), arrays[2].astype(np.float64)
        delta = (grad_out * value.mean(2, keepdims=True) * seqlen_k / (seqlen_k + 1)).sum(-1)
        want = -(delta / (seqlen_k + 1)).sum(2)[0]
        terms = (np.abs(grad_out) @ np.abs(value).swapaxes(-1, -2)).sum((2, 3))[0]
        for large in (0, 500, -500, 600, -600, 2.0**20, np.finfo(np.float32).min):
            mask, sinks = np.full((1, 1), large, dtype), np.full(2, large, dtype)
            got = backward(grad_of(*arrays), *arrays, attn_mask=mask, sinks=sinks, scale=0.0)
            # An lse up to 512 is rounded to half its last place.
            size = 16 + (abs(large) if abs(large) <= 512 else 0)
            near = size * np.finfo(dtype).eps * terms / (seqlen_k + 1) ** 2
            assert (np.abs(got["sinks"] - want) <= near).all(), (
                seqlen_k,
                large,
                got["sinks"],
                want,
            )
