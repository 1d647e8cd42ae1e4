"""Empty axes: S = 0 is a row that sees nothing, E = 0 the mean of the values; others are empty.

Fault 9: a crash, or uninitialised memory.
"""

import itertools

import numpy as np
import pytest

import selfattn
from selfattn import reference
from support.arrays import normal
from support.compare import check_attention, check_scores
from support.option_arrays import bool_mask, float_mask, slopes

OPTIONS = [
    {},
    {"is_causal": True},
    {"is_causal": True, "query_offset": -1},
    {"window_size": (0, 0)},
    {"scale": 2.0, "num_threads": 4},
]


def axes(count, values=(0, 1)):
    return itertools.product(values, repeat=count)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_axis_in_0_and_1(isa, dtype, options):
    for batch, heads, rows, seqlen_k, head_dim, head_dim_v in axes(6):
        query = normal(batch, heads, rows, head_dim, dtype=dtype)
        key = normal(batch, heads, seqlen_k, head_dim, dtype=dtype)
        value = normal(batch, heads, seqlen_k, head_dim_v, dtype=dtype)
        context = str((query.shape, key.shape, value.shape))
        known = {k: v for k, v in options.items() if k != "num_threads"}
        for call, truth, arrays in (
            ("scaled_dot_product_attention", {"return_lse": True}, (query, key, value)),
            ("scaled_dot_product", {}, (query, key)),
            ("attention_weights", {}, (query, key)),
        ):
            got = getattr(selfattn, call)(*arrays, **options, **truth)
            want = getattr(reference, call)(*arrays, **known, **truth)
            # One key, one product: at most a few roundings of numbers of size 3.
            for x, y in zip(
                *((r if isinstance(r, tuple) else (r,)) for r in (got, want)), strict=True
            ):
                assert x.shape == y.shape, context
                assert x.dtype == dtype, context
                np.testing.assert_allclose(x, y, rtol=8 * np.finfo(dtype).eps, err_msg=context)


def options_with_axes(batch, heads, rows, seqlen_k, dtype):
    """Options that are arrays, whose axes are empty where those of the inputs are."""
    sinks = {"sinks": normal(heads, dtype=dtype)}
    ids_q, ids_k = np.zeros((batch, rows), int), np.zeros(seqlen_k, int)
    yield {"attn_mask": bool_mask(batch, heads, rows, seqlen_k)}
    yield {"attn_mask": float_mask(heads, 1, seqlen_k, dtype=dtype)} | sinks
    yield {"attn_mask": np.zeros((), bool), "segment_ids": (ids_q, ids_k)} | sinks
    yield {"segment_ids": (ids_q, ids_k + 1), "softcap": 0.5} | sinks
    yield {"alibi_slopes": slopes(batch, heads, dtype=dtype), "query_offset": 3}
    if rows == seqlen_k:
        yield {"segment_ids": ids_q, "attn_mask": bool_mask(rows, 1)}


def test_every_axis_with_options(isa, dtype):
    for batch, heads, rows, seqlen_k, head_dim, head_dim_v in axes(6):
        query = normal(batch, heads, rows, head_dim, dtype=dtype)
        key = normal(batch, heads, seqlen_k, head_dim, dtype=dtype)
        value = normal(batch, heads, seqlen_k, head_dim_v, dtype=dtype)
        for options in options_with_axes(batch, heads, rows, seqlen_k, dtype):
            check_attention(query, key, value, **options)
            if head_dim_v:  # once is enough
                check_scores(query, key, **options)


def test_no_keys_but_a_sink(isa, dtype):
    """A sink and no key: 0, and lse is the sink, over memory that held something else."""
    for rows in (1, 3, 40):
        query, nothing = normal(2, rows, 8, dtype=dtype), np.empty((2, 0, 8), dtype)
        sinks = np.array([1.3, -7.1], dtype)
        out = np.full((2, rows, 8), np.nan, dtype)
        for more in ({}, {"attn_mask": np.ones((rows, 0), bool)}, {"softcap": 2.0}):
            out.fill(np.nan)
            _, lse = selfattn.scaled_dot_product_attention(
                query, nothing, nothing, sinks=sinks, out=out, return_lse=True, **more
            )
            assert (out == 0).all()
            assert np.array_equal(lse, np.broadcast_to(sinks[:, None], (2, rows)))


def test_no_head_dim_with_options(isa, dtype):
    """All scores are 0: a float mask or a slope is all that there is to the weights."""
    for rows in (1, 3, 40):
        query, key = np.empty((2, rows, 0), dtype), np.empty((2, 300, 0), dtype)
        value = normal(2, 300, 5, dtype=dtype)
        for options in (
            {"attn_mask": float_mask(2, rows, 300, dtype=dtype), "softcap": 1.0},
            {"attn_mask": bool_mask(rows, 300), "sinks": slopes(2, dtype=dtype)},
            {"alibi_slopes": slopes(2, dtype=dtype), "query_offset": 90},
        ):
            check_attention(query, key, value, **options)
            check_scores(query, key, **options)


def test_no_keys(isa, dtype):
    """0 and -inf, over memory that held something else."""
    for rows in (1, 3, 40):
        query, nothing = normal(2, rows, 8, dtype=dtype), np.empty((2, 0, 8), dtype)
        out = np.full((2, rows, 8), np.nan, dtype)
        _, lse = selfattn.scaled_dot_product_attention(
            query, nothing, nothing, out=out, return_lse=True
        )
        assert (out == 0).all()
        assert (lse == -np.inf).all()
        out.fill(np.nan)
        selfattn.weighted_sum(np.empty((2, rows, 0), dtype), nothing, out=out)
        assert (out == 0).all()


def test_no_head_dim(isa, dtype):
    """All scores are 0: the mean of the values that a query sees, and the log of their number."""
    for rows, seqlen_k in ((1, 7), (3, 300), (40, 300)):
        query, key = np.empty((rows, 0), dtype), np.empty((seqlen_k, 0), dtype)
        value = normal(seqlen_k, 5, dtype=dtype)
        out, lse = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True)
        mean = value.astype(np.float64).mean(0)
        # Sums of up to 300 values below 4, divided: well within 300 roundings.
        near = {"rtol": 0, "atol": 16 * np.finfo(dtype).eps}
        np.testing.assert_allclose(out, np.broadcast_to(mean, out.shape), **near)
        np.testing.assert_allclose(lse, np.full(rows, np.log(seqlen_k)), **near)
        assert not selfattn.scaled_dot_product(query, key).any()
        out = selfattn.scaled_dot_product_attention(query, key, value, is_causal=True)
        count = np.arange(1, rows + 1)[:, None]
        mean = value[:rows].astype(np.float64).cumsum(0) / count
        np.testing.assert_allclose(out, mean, **near)


def test_no_batch_entries_and_options_over_them(isa, dtype):
    query, key = np.empty((0, 2, 3, 4), dtype), np.empty((0, 2, 5, 4), dtype)
    none = np.empty(0, int)
    out = selfattn.scaled_dot_product_attention(
        query, key, key, kv_lengths=none, query_offset=none, is_causal=True
    )
    assert out.shape == (0, 2, 3, 4)


def test_empty_axes_that_broadcast(isa, dtype):
    ones = np.ones((1, 1, 3, 4), dtype)
    for leading in ((0, 1), (1, 0), (0, 0), (0, 7)):
        empty = np.empty((*leading, 5, 4), dtype)
        out = selfattn.scaled_dot_product_attention(ones, empty, empty)
        assert out.shape == (*leading, 3, 4)
        out = selfattn.scaled_dot_product_attention(np.empty((*leading, 3, 4), dtype), ones, ones)
        assert out.shape == (*leading, 3, 4)


def test_no_query_heads_in_a_group(isa, dtype):
    key = normal(2, 2, 5, 4, dtype=dtype)
    query = np.empty((2, 0, 3, 4), dtype)
    assert selfattn.scaled_dot_product_attention(query, key[:, :1], key[:, :1]).shape == query.shape
    out = selfattn.scaled_dot_product_attention(query, key, key, enable_gqa=True)
    assert out.shape == query.shape
    with pytest.raises(ValueError, match=r"key: expected a number .*divides .*2, got 0"):
        selfattn.scaled_dot_product_attention(
            key, query[:, :, :0], query[:, :, :0], enable_gqa=True
        )


def test_softmax_and_sum(isa, dtype):
    for shape in axes(3, (0, 1, 3)):
        for axis in range(3):
            y = selfattn.softmax(np.zeros(shape, dtype), axis)
            assert y.shape == shape
            np.testing.assert_allclose(y, 1 / max(shape[axis], 1), rtol=4 * np.finfo(dtype).eps)
    for rows, seqlen_k, width in axes(3, (0, 1, 3)):
        weights, value = np.ones((rows, seqlen_k), dtype), np.ones((seqlen_k, width), dtype)
        got = selfattn.weighted_sum(weights, value)
        assert np.array_equal(got, np.full((rows, width), seqlen_k, dtype))


def test_project(isa, dtype):
    for rows, width, out in axes(3, (0, 1, 3)):
        y = selfattn.project(np.ones((rows, width), dtype), np.ones((out, width), dtype))
        assert np.array_equal(y, np.full((rows, out), width, dtype))


def test_a_window_over_keys_without_end_and_without_width():
    """Nothing may walk all of the keys, not even to fetch them."""
    query, key = np.ones((1, 8, 60, 0), np.float32), np.ones((1, 8, 2**40, 0), np.float32)
    out = selfattn.scaled_dot_product_attention(query, key, key, window_size=(5, 5))
    assert out.shape == (1, 8, 60, 0)
