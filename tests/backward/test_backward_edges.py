"""Where a shortcut of the backward pass would show: lse of -inf, orders of sums, zeros' signs."""

import numpy as np
import pytest

import selfattn
from support.arrays import DTYPES, normal, qkv
from support.compare import assert_close
from support.gradients import assert_same, backward, expected, grad_of


def test_lse_that_overflows():
    """lse is -inf, and the row sees keys all the same: out has said so, and so do the gradients."""
    query = np.full((1, 3, 4), 5, np.float32)
    key = np.repeat(-np.arange(1, 6, dtype=np.float32), 4).reshape(1, 5, 4)
    value = normal(1, 5, 4, dtype=np.float32)
    grad_out = normal(1, 3, 4, dtype=np.float32, seed=1)
    _, lse = selfattn.scaled_dot_product_attention(query, key, value, scale=1e38, return_lse=True)
    assert (lse == -np.inf).all()
    got = backward(grad_out, query, key, value, scale=1e38)
    assert_close(got["value"], expected(grad_out, query, key, value, scale=1e38)["value"], 1e-6)
    assert np.abs(got["value"]).max() > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 1, 1), (6, 30, 1), (1, 30, 1), (1, 1, 1)])
def test_mask_gradient_of_ranges_and_of_elements(shape, dtype):
    """Ids in order are ranges of keys, the same ids negated are not: the sums have one order."""
    query, key, value = qkv((1, 6, 30, 8), 2, 75, dtype=dtype)
    ids = np.sort(np.random.default_rng(3).integers(0, 5, 75))
    options = {"enable_gqa": True, "attn_mask": normal(*shape, dtype=dtype, seed=4)}
    grad_out = grad_of(query, key, value)
    ranges = backward(grad_out, query, key, value, segment_ids=(ids[20:50], ids), **options)
    elements = backward(grad_out, query, key, value, segment_ids=(-ids[20:50], -ids), **options)
    assert_same(elements, ranges)


def test_signs_of_zeros():
    """Where products underflow, a part that is left out and one that adds 0 leave the same zero."""
    rng = np.random.default_rng(0)
    query = (rng.standard_normal((1, 192, 4)) * 1e-42).astype(np.float32)
    key = normal(1, 96, 4, dtype=np.float32, seed=1)
    grad_out = normal(1, 192, 4, dtype=np.float32, seed=2) / 1000
    i, j = np.arange(192)[:, None], np.arange(96)
    seen = (j >= i - 10) & (j <= i)
    by_range = backward(grad_out, query, key, key, window_size=(10, 0), is_causal=True)
    assert_same(backward(grad_out, query, key, key, attn_mask=seen), by_range)


@pytest.mark.parametrize("heads_kv", [1, 3])
def test_no_query_heads(heads_kv):
    query, key = np.zeros((2, 0, 5, 4), np.float32), np.ones((2, heads_kv, 7, 4), np.float32)
    got = backward(query, query, key, key, enable_gqa=True)
    assert got["query"].shape == query.shape
    assert got["key"].shape == key.shape
    assert not got["key"].any()
    assert not got["value"].any()
