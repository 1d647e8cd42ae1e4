"""Packed sequences that lie anywhere: starts and lengths, gaps, shared keys, longer buffers.

Each has the bits of its own call, docs/semantics.md, packed sequences. What lies between them is
NaN here.
"""

import numpy as np
import pytest

import selfattn
from selfattn import reference
from support.arrays import normal, same_bits
from support.gradients import assert_same, packed_backward, wanted_grads
from support.packed import OPTIONS, Packed, calls

LENGTHS = [(5, 6), (0, 3), (60, 140), (1, 1), (4, 0), (17, 520)]
ORDER = [3, 0, 5, 1, 4, 2]
GAP = 3


class Scattered:
    """The rows of packed sequences in another order, with gaps between them."""

    def __init__(self, packed):
        self.packed = packed
        self.queries, self.total_q = self._places(packed.lengths_q)
        self.keys, self.total_k = self._places(packed.lengths_k)

    @staticmethod
    def _places(lengths):
        starts, at = np.empty(len(lengths), int), GAP
        for b in ORDER:
            starts[b] = at
            at += lengths[b] + GAP
        return (starts, lengths), at

    def spread(self, x, cumulative, places, total, axis=0, fill=np.nan):
        """x with each sequence's rows at its place."""
        shape = list(x.shape)
        shape[axis] = total
        y = np.moveaxis(np.full(shape, fill, x.dtype), axis, 0)
        for start, length, at in zip(*places, cumulative[:-1], strict=True):
            y[start : start + length] = np.moveaxis(x, axis, 0)[at : at + length]
        return np.moveaxis(y, 0, axis)

    def of_queries(self, x, axis=0, fill=np.nan):
        return self.spread(x, self.packed.cu_q, self.queries, self.total_q, axis, fill)

    def of_keys(self, x, fill=np.nan):
        return self.spread(x, self.packed.cu_k, self.keys, self.total_k, fill=fill)

    def options(self, options):
        """Those of rows are spread too."""
        moved = dict(options)
        for name in ("attn_mask", "attn_bias"):
            if name in options and options[name].ndim > 1:
                x = options[name]
                moved[name] = x if x.shape[-2] == 1 else self.of_queries(x, -2, False)
        if "segment_ids" in options:
            ids_q, ids_k = options["segment_ids"]
            moved["segment_ids"] = self.of_queries(ids_q, fill=9), self.of_keys(ids_k, fill=9)
        return moved

    @property
    def arrays(self):
        query, key, value = self.packed.arrays
        return self.of_queries(query), self.of_keys(key), self.of_keys(value)


@pytest.mark.parametrize("name", ["plain", "offsets", "bias and bool mask", "used", "all"])
def test_scattered(isa, dtype, name):
    """Forward and backward, whatever lies between; rows of no sequence get 0."""
    packed = Packed(LENGTHS, dtype)
    options = OPTIONS[name](packed)
    x = Scattered(packed)
    spread = x.options(options) | {"enable_gqa": True}
    want, want_lse = packed.attend(**options)
    for n in (1, 3):
        out, lse = selfattn.varlen_attention(
            *x.arrays, x.queries, x.keys, return_lse=True, num_threads=n, **spread
        )
        assert same_bits(out, x.of_queries(want, fill=0))
        assert same_bits(lse, x.of_queries(want_lse, 1, -np.inf))
    grad_out = normal(*want.shape, dtype=dtype, seed=9)
    of_packed = packed_backward(grad_out, packed, **options)
    got = selfattn.varlen_attention_backward(
        *(x.of_queries(grad_out), *x.arrays, out, lse, x.queries, x.keys),
        **wanted_grads(options),
        **spread,
    )
    assert same_bits(got.query, x.of_queries(of_packed["query"], fill=0))
    assert same_bits(got.key, x.of_keys(of_packed["key"], fill=0))
    assert same_bits(got.value, x.of_keys(of_packed["value"], fill=0))
    for name in ("attn_mask", "attn_bias"):
        if name in of_packed:
            rows = options[name].ndim > 1 and options[name].shape[-2] > 1
            expected = x.of_queries(of_packed[name], -2, 0) if rows else of_packed[name]
            assert same_bits(getattr(got, name), expected), name


def test_buffers_longer_than_the_sequences(isa, dtype):
    """As cu_seqlens that end before the rows do; `out` is written there too."""
    packed = Packed(LENGTHS, dtype)
    want, want_lse = packed.attend(is_causal=True)
    grad_out = normal(*want.shape, dtype=dtype, seed=9)
    expected = packed_backward(grad_out, packed, is_causal=True)

    def longer(x, fill=np.nan):
        return np.concatenate([x, np.full((7, *x.shape[1:]), fill, x.dtype)])

    arrays, out = [longer(x) for x in packed.arrays], np.full_like(longer(want), 7)
    ends = packed.cu_q, packed.cu_k
    options = {"is_causal": True, "enable_gqa": True}
    _, lse = selfattn.varlen_attention(*arrays, *ends, out=out, return_lse=True, **options)
    assert same_bits(out, longer(want, 0))
    assert same_bits(lse, longer(want_lse.T, -np.inf).T)
    got = selfattn.varlen_attention_backward(longer(grad_out), *arrays, out, lse, *ends, **options)
    kept = {name: x for name, x in got._asdict().items() if x is not None}
    assert_same(kept, {name: longer(x, 0) for name, x in expected.items()})
    none = np.array([0])
    assert not selfattn.varlen_attention(*arrays, none, none, **options).any()


def test_shared_keys(isa, dtype):
    """A prefix that several sequences read, and their own keys behind it; ranges that overlap."""
    packed = Packed([(3, 140), (20, 200), (1, 130), (0, 10)], dtype)
    key, value = normal(300, 2, 8, dtype=dtype, seed=5), normal(300, 2, 5, dtype=dtype, seed=6)
    starts = np.array([0, 0, 170, 50])
    options = OPTIONS["used"](packed) | {"is_causal": True, "query_offset": 100}
    rows = [slice(s, s + n) for s, n in zip(starts, packed.lengths_k, strict=True)]
    packed.key, packed.value = (np.concatenate([x[r] for r in rows]) for x in (key, value))
    keys = starts, packed.lengths_k
    got = selfattn.varlen_attention(
        packed.query, key, value, packed.cu_q, keys, enable_gqa=True, return_lse=True, **options
    )
    assert same_bits(got, calls(packed, **options))


def test_the_reference():
    """It sums what shared rows have of each sequence, and is otherwise that of packed ones."""
    packed = Packed([(2, 3), (4, 5)], np.float64)
    keys = np.array([1, 0]), packed.lengths_k
    key, value = packed.key[:5], packed.value[:5]
    grad_out = normal(6, 4, 5, dtype=np.float64)
    got = reference.varlen_attention_backward(
        grad_out, packed.query, key, value, None, None, packed.cu_q, keys, enable_gqa=True
    )
    want = np.zeros_like(key)
    for b, start in enumerate(keys[0]):
        q, k = slice(*packed.cu_q[b : b + 2]), slice(start, start + keys[1][b])
        alone = reference.scaled_dot_product_attention_backward(
            *(y.swapaxes(0, 1) for y in (grad_out[q], packed.query[q], key[k], value[k])),
            *(None, None),
            enable_gqa=True,
        )
        want[k] += alone.key.swapaxes(0, 1)
    np.testing.assert_allclose(got.key, want, rtol=1e-13, atol=1e-14)


def test_lists():
    """A list of ints is as an array, of two ints too; so are the lists of a pair."""
    query, key, value = normal(3, 9, 2, 8)
    for given, array in (([0, 9], [0, 9]), ((0, 4, 9), [0, 4, 9]), ([[0, 4], [4, 5]], [0, 4, 9])):
        got = selfattn.varlen_attention(query, key, value, given, given)
        assert same_bits(got, selfattn.varlen_attention(query, key, value, *[np.array(array)] * 2))
