"""Keys and values whose rows are strided are staged: copied to one place for all tiles of a head.

Fault 53. In BSHD layout a head's rows are strided. The bits must be those of contiguous copies,
which are read in place. There are enough rows and heads for a thread to compute four tiles of one
head, from where on staging begins.
"""

from itertools import pairwise

import numpy as np
import pytest

import selfattn
from support.arrays import same_bits
from support.memory import GIVEN_BACK, MEMORY, linux
from support.staged import OPTIONS, bshd
from support.subprocesses import run


def attend(*arrays, **options):
    return selfattn.scaled_dot_product_attention(
        *arrays, enable_gqa=True, return_lse=True, **options
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bits_of_contiguous_copies(isa, dtype, rng, options):
    query = bshd(rng, (2, 4, 250, 24), dtype)
    key, value = bshd(rng, (2, 2, 400, 24), dtype), bshd(rng, (2, 2, 400, 40), dtype)
    value[0, 0, 350, 3] = np.nan
    key[1, 1, 2, 0] = np.inf
    want = attend(*map(np.ascontiguousarray, (query, key, value)), num_threads=1, **options)
    for n in (1, 2):
        assert same_bits(attend(query, key, value, num_threads=n, **options), want), n


def test_a_head_of_finite_values_before_others(isa, dtype, rng):
    """What is known of one head's staged values is not taken for true of the next's (fault 53)."""
    query, key, value = (bshd(rng, (2, 3, 250, 24), dtype) for _ in range(3))
    value[:, 1, 200, 3] = np.nan
    value[1, 2, 5, 7] = np.inf
    mask = np.ones((250, 250), bool)
    mask[::3, [5, 200]] = False  # in a block that other rows see
    copies = [np.ascontiguousarray(x) for x in (query, key, value)]
    got = attend(query, key, value, attn_mask=mask, num_threads=1)
    assert same_bits(got, attend(*copies, attn_mask=mask))
    assert np.isfinite(got[0][:, :, ::3]).all()


@pytest.mark.parametrize("layout", ["keys", "values", "both"])
def test_either_may_be_strided_or_both(isa, rng, layout):
    query = bshd(rng, (1, 3, 400, 16), "f4")
    key, value = (bshd(rng, (1, 3, 300, 16), "f4") for _ in range(2))
    want = attend(query, np.ascontiguousarray(key), np.ascontiguousarray(value))
    if layout == "keys":
        value = np.ascontiguousarray(value)
    if layout == "values":
        key = np.ascontiguousarray(key)
    assert same_bits(attend(query, key, value, num_threads=1), want)


def test_keys_on_either_side_of_the_budget(isa, rng):
    """As many as the staging buffer holds, and one more."""
    budget = (2**20 - 2 * 64) // (2 * 64 * 4)
    query = bshd(rng, (1, 2, 400, 64), "f4")
    for n in (budget, budget + 1):
        key, value = (bshd(rng, (1, 2, n, 64), "f4") for _ in range(2))
        want = attend(query, np.ascontiguousarray(key), np.ascontiguousarray(value))
        assert same_bits(attend(query, key, value, num_threads=1), want), n


def test_packed_sequences(isa, dtype, rng):
    """Long ones, whose keys are staged, among short and empty ones."""
    starts = np.cumsum([0, 300, 5, 0, 260, 90])
    query, key, value = (
        rng.standard_normal((starts[-1], heads, 16)).astype(dtype) for heads in (4, 2, 2)
    )
    got = selfattn.varlen_attention(
        query, key, value, starts, starts, is_causal=True, enable_gqa=True, num_threads=2
    )
    for begin, end in pairwise(starts):
        each = [np.ascontiguousarray(x[begin:end].swapaxes(0, 1)) for x in (query, key, value)]
        want, _ = attend(*each, is_causal=True)
        assert same_bits(got[begin:end], want.swapaxes(0, 1))


def test_a_sequence_without_keys_before_others(isa, rng):
    """It begins where theirs do. With a second key head, the rows are strided."""
    query = rng.standard_normal((4000, 1, 16)).astype("f4")
    key, value = (rng.standard_normal((300, 2, 16)).astype("f4")[:, :1] for _ in range(2))
    starts = np.array([0, 2000, 4000]), np.array([0, 0, 300])
    got = selfattn.varlen_attention(query, key, value, *starts, num_threads=1)
    each = [np.ascontiguousarray(x.swapaxes(0, 1)) for x in (query[2000:], key, value)]
    assert same_bits(got[:2000], np.zeros_like(got[:2000]))
    assert same_bits(got[2000:], attend(*each)[0].swapaxes(0, 1))


def test_keys_that_overlap(isa, rng):
    """One sequence's second head begins where the next one's first does."""

    def windows():
        base = rng.standard_normal((2 * 30 + 300, 20)).astype("f4")[:, :16]
        view = np.lib.stride_tricks.sliding_window_view(base, 330, axis=0)
        return view[::30].transpose(2, 0, 1)

    query, key, value = rng.standard_normal((4000, 2, 16)).astype("f4"), windows(), windows()
    starts = np.array([0, 2000, 4000]), np.array([0, 30, 330])
    got = selfattn.varlen_attention(query, key, value, *starts, num_threads=1)
    want = selfattn.varlen_attention(query, key.copy(), value.copy(), *starts, num_threads=1)
    assert same_bits(got, want)


@linux
def test_memory():
    """At most 1 MiB more for each thread, however many heads and keys there are."""
    code = """
    for heads, keys in ((2, 2047), (8, 2047), (2, 2048), (2, 20_000)):
        rng = np.random.default_rng(0)
        query = rng.random((1, 600, heads, 64), "f4").swapaxes(1, 2)
        key, value = (rng.random((1, keys, heads, 64), "f4").swapaxes(1, 2) for _ in range(2))
        out = np.zeros_like(query)
        for n in (1, 2):
            attend(query, key, value, out=out, num_threads=n)
            grown = peak_of(lambda: attend(query, key, value, out=out, num_threads=n))
            assert grown < n * 2**20 + 1_000_000, (heads, keys, n, grown)
    """
    run(GIVEN_BACK + MEMORY, code)
