"""Strided keys and values, and their gradients, are staged as in the forward pass.

See test_staged_keys.py; here three tiles of 96 rows are enough for staging. The bits must be those
of contiguous copies, whose gradients are added up in place.
"""

from itertools import pairwise

import numpy as np
import pytest

import selfattn
from support.arrays import same_bits
from support.gradients import assert_same, backward
from support.memory import BACKWARD, GIVEN_BACK, MEMORY, linux
from support.staged import OPTIONS, bshd
from support.subprocesses import run


def check(*arrays, num_threads=(1,), **options):
    """(grad_out, query, key, value) as they lie, against contiguous copies of them."""
    copies = [np.ascontiguousarray(x) for x in arrays]
    want = backward(*copies, enable_gqa=True, num_threads=1, **options)
    for n in num_threads:
        got = backward(*arrays, enable_gqa=True, num_threads=n, **options)
        assert_same(got, want, n)
    return got


def random_arrays(rng, heads, rows, keys, dims, dtype="f4", batch=1):
    """grad_out, query, key and value of (query, key) heads and (head_dim, head_dim_v)."""
    return (
        bshd(rng, (batch, heads[0], rows, dims[1]), dtype),
        bshd(rng, (batch, heads[0], rows, dims[0]), dtype),
        bshd(rng, (batch, heads[1], keys, dims[0]), dtype),
        bshd(rng, (batch, heads[1], keys, dims[1]), dtype),
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bits_of_contiguous_copies(isa, dtype, rng, options):
    arrays = random_arrays(rng, (4, 2), 250, 400, (24, 17), dtype, batch=2)
    alone, shared = ((1,), (2,)) if isa == "portable" else ((1, 2), (1, 2))  # slow: each once
    check(*arrays, num_threads=shared, **options)
    arrays[3][0, 0, 350, 3] = np.nan
    arrays[2][1, 1, 2, 0] = np.inf
    check(*arrays, num_threads=alone, **options)


@pytest.mark.parametrize("which", ["key", "value"])
def test_only_one_is_strided(isa, rng, which):
    grad_out, query, key, value = random_arrays(rng, (3, 3), 300, 200, (16, 32))
    if which == "key":
        value = np.ascontiguousarray(value)
    else:
        key = np.ascontiguousarray(key)
    got = check(grad_out, query, key, value)
    assert got["key"].strides == key.strides
    assert got["value"].strides == value.strides


def test_keys_on_either_side_of_the_budget(isa, rng):
    """Those of four arrays that fill 2 MiB, and one more."""
    budget = 2 * 2**20 // (4 * 64 * 4)
    for keys in (budget, budget + 1):
        check(*random_arrays(rng, (2, 2), 200, keys, (64, 64)))


def test_gradients_of_a_mask_and_of_sinks(isa, dtype, rng):
    """They have jobs of their own, some of which read all keys, some no keys, some a part."""
    arrays = random_arrays(rng, (2, 2), 300, 300, (16, 16), dtype)
    mask = rng.standard_normal((300, 300)).astype(dtype)
    mask[rng.random(mask.shape) < 0.2] = -np.inf
    sinks = rng.standard_normal(2).astype(dtype)
    check(*arrays, attn_mask=mask, sinks=sinks)
    check(*arrays, attn_mask=mask[:, :1], sinks=sinks, num_threads=(2,))


def test_rows_that_are_recomputed(isa, dtype, rng):
    """Where lse is too large to tell the weights, the keys are read once more before."""
    grad_out, query, key, value = random_arrays(rng, (2, 2), 300, 300, (16, 16), dtype)
    query[0, 1, 100:150] *= 1000
    check(grad_out, query, key, value, is_causal=True)


def test_keys_that_the_batch_shares(isa, rng):
    """A job's sums grow over batch entries, whose tiles read the same keys; or other values."""
    grad_out, query, key, value = random_arrays(rng, (2, 2), 200, 150, (16, 16), batch=3)
    one_key, one_value = (np.broadcast_to(x[:1], x.shape) for x in (key, value))
    check(grad_out, query, key[:1], value[:1])
    check(grad_out, query, key[:1], value)
    check(grad_out, query, key, value[:1])
    check(grad_out, query, one_key, one_value)
    check(grad_out, query[:1], key, value)


def test_packed_sequences(isa, dtype, rng):
    """Long ones among short ones, empty ones, and ones without queries or without keys."""
    starts_q = np.cumsum([0, 300, 5, 0, 260, 0, 90, 200])
    starts_k = np.cumsum([0, 200, 5, 0, 300, 250, 0, 1])
    query, grad_out = (rng.standard_normal((starts_q[-1], 4, 16)).astype(dtype) for _ in range(2))
    key, value = (rng.standard_normal((starts_k[-1], 2, 16)).astype(dtype) for _ in range(2))
    starts = starts_q, starts_k
    options = {"enable_gqa": True, "num_threads": 2}
    out, lse = selfattn.varlen_attention(query, key, value, *starts, return_lse=True, **options)
    got = selfattn.varlen_attention_backward(
        grad_out, query, key, value, out, lse, *starts, **options
    )
    for q, k in zip(pairwise(starts_q), pairwise(starts_k), strict=True):
        rows = [x[slice(*q)] for x in (grad_out, query)] + [x[slice(*k)] for x in (key, value)]
        each = [np.ascontiguousarray(x.swapaxes(0, 1)) for x in rows]
        want = backward(*each, enable_gqa=True)
        assert same_bits(got.query[slice(*q)], want["query"].swapaxes(0, 1)), (q, k)
        assert same_bits(got.key[slice(*k)], want["key"].swapaxes(0, 1)), (q, k)
        assert same_bits(got.value[slice(*k)], want["value"].swapaxes(0, 1)), (q, k)


def test_packed_sequences_that_share_a_mask(isa, dtype, rng):
    """The job of its gradient walks them all: short ones, one without keys, then a longer one.

    One key head of two has strided rows; a copy of it has not.
    """
    starts = np.cumsum([0, 150, 40, 200, 130]), np.cumsum([0, 20, 0, 120, 30])
    query, grad_out = (rng.standard_normal((520, 2, 16)).astype(dtype) for _ in range(2))
    key, value = (rng.standard_normal((170, 2, 16)).astype(dtype)[:, :1] for _ in range(2))
    mask = rng.standard_normal(120).astype(dtype)

    def gradients(*arrays):
        out, lse = selfattn.varlen_attention(
            *arrays, *starts, mask, enable_gqa=True, return_lse=True
        )
        return selfattn.varlen_attention_backward(
            *(grad_out, *arrays, out, lse, *starts, mask),
            enable_gqa=True,
            mask_grad=True,
            num_threads=1,
        )

    want = gradients(query, key.copy(), value.copy())
    assert same_bits(gradients(query, key, value)[:4], want[:4])


@linux
def test_memory():
    """At most 2 MiB more for each thread, however many heads and keys there are."""
    code = """
    for heads, keys in ((2, 2048), (8, 2048), (2, 2049), (2, 20_000)):
        rng = np.random.default_rng(0)
        query = rng.random((1, 300, heads, 64), "f4").swapaxes(1, 2)
        key, value = (rng.random((1, keys, heads, 64), "f4").swapaxes(1, 2) for _ in range(2))
        out, lse = attend(query, key, value, return_lse=True)
        results = query.nbytes + key.nbytes + value.nbytes
        for n in (1, 2):
            call = lambda: dense(out, query, key, value, out, lse, num_threads=n)
            call()
            grown = peak_of(call)
            assert grown < results + n * 2 * 2**20 + 1_500_000, (heads, keys, n, grown - results)
    """
    run(GIVEN_BACK + MEMORY + BACKWARD, code)
