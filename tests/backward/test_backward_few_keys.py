"""Gradients of queries that see few keys: exactly 0 where there is one, else its rounding alone.

Fault 39. With one key its weight is 1 and the output its value, so no change of query or key
changes it. test_backward_torch.py compares the error with PyTorch's.
"""

import numpy as np
import pytest

import selfattn
from support.arrays import normal, qkv
from support.gradients import backward, grad_of


@pytest.mark.parametrize("head_dim_v", [1, 3, 16, 17, 33, 64, 100, 128, 300])
@pytest.mark.parametrize("rows", [1, 4, 200])
def test_one_key(isa, dtype, rows, head_dim_v):
    arrays = qkv((3, 2, rows, 20), seqlen_k=1, head_dim_v=head_dim_v, dtype=dtype)
    gradients = backward(grad_of(*arrays), *arrays)
    assert not gradients["query"].any()
    assert not gradients["key"].any()
    assert gradients["value"].any()


@pytest.mark.parametrize("size", [1, 30, 1000])
def test_one_key_among_many(isa, dtype, size):
    """That ranges, a mask or segments leave, of any score; the rows beside have more."""
    rows = keys = 150
    query, key, value = qkv((2, rows, 48), seqlen_k=keys, dtype=dtype)
    query = query * dtype(size)
    grad_out = grad_of(query, key, value)
    first, own, mask = np.arange(rows) == 0, np.ones(rows, bool), normal(rows, keys) > 0
    mask[::3] = np.eye(rows, dtype=bool)[::3]
    ids = np.arange(rows)
    for options, single in (
        ({"is_causal": True}, first),
        ({"window_size": (0, 0)}, own),
        ({"segment_ids": ids}, own),
        ({"attn_mask": mask}, np.arange(rows) % 3 == 0),
        ({"attn_mask": np.where(mask, 0, -np.inf).astype(dtype)}, np.arange(rows) % 3 == 0),
    ):
        gradients = backward(grad_out, query, key, value, **options)
        assert not gradients["query"][:, single].any(), options.keys()


@pytest.mark.parametrize("keys", [2, 3, 8, 16, 17])
def test_few_keys_of_a_piece(isa, dtype, keys):
    """Keys in two calls, with an lse of both: each call's gradients are those of the whole."""
    query, key, value = qkv((2, 50, 32), seqlen_k=2 * keys, dtype=dtype)
    grad_out = grad_of(query, key, value)
    out, lse = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True)
    whole = backward(grad_out, query, key, value)
    got = np.zeros_like(query)
    for piece in (slice(0, keys), slice(keys, None)):
        gradients = selfattn.scaled_dot_product_attention_backward(
            grad_out, query, key[:, piece], value[:, piece], out, lse
        )
        got += gradients.query
        assert np.abs(gradients.key - whole["key"][:, piece]).max() <= 200 * np.finfo(dtype).eps
    assert np.abs(got - whole["query"]).max() <= 200 * np.finfo(dtype).eps
