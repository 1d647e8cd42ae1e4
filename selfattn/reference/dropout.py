"""Dropout: which weights are kept, by a hash of where they stand and nothing else.

    row  = mix64(mix64(seed) + i C(0) + h C(1) + sum over a of index_a C(2 + a))
    kept = mix32(mix32(j + low half of row) ^ high half of row) >= floor(dropout_p 2^32 + 1/2)

for query i, head h and key j, with the axes before the heads counted from the last. A slice from
the start of any axis keeps its elements, and an axis of 1 changes none. All is modulo 2^64 or 2^32.
"""

from __future__ import annotations

import math

import numpy as np


@np.errstate(over="ignore")
def dropout_kept(scores_shape, dropout_p, dropout_seed=0, *, sequence=0):
    """True where dropout keeps the weight: (..., Hq, L, S), or (L, S), which is head 0.

    `sequence` is where the axis before the heads starts, or where it would stand if there is none.
    """
    *leading, seqlen_k = scores_shape
    row = _mix64(np.uint64(int(dropout_seed) % 2**64)) + np.uint64(sequence) * _constant(2)
    for n, count in enumerate(reversed(leading)):
        index = np.arange(count, dtype=np.uint64)
        row = row + (index * _constant(n)).reshape(-1, *[1] * n)
    row = _mix64(row)[..., None]
    low, high = (row & 0xFFFFFFFF).astype(np.uint32), (row >> 32).astype(np.uint32)
    j = np.arange(seqlen_k, dtype=np.uint32)
    return _mix32(_mix32(j + low) ^ high) >= np.uint32(threshold(dropout_p))


def dropout_factor(scores_shape, dropout_p, dropout_seed=0, *, sequence=0):
    """What the weights are multiplied by: 1 / (1 - dropout_p) where kept, else 0."""
    if dropout_p == 0:
        return 1.0
    if dropout_p == 1:
        return np.zeros(scores_shape)
    kept = dropout_kept(scores_shape, dropout_p, dropout_seed, sequence=sequence)
    return np.where(kept, 1.0 / (1.0 - dropout_p), 0.0)


def threshold(dropout_p):
    """The part of 2^32 that is dropped, rounded; 2^32 itself is no uint32."""
    return min(math.floor(dropout_p * 2**32 + 0.5), 2**32 - 1)


def _constant(n):
    """An odd number for axis n of the rows."""
    return _mix64(np.uint64((n + 1) * 0x9E3779B97F4A7C15 % 2**64)) | np.uint64(1)


def _mix64(z):
    """The last steps of splitmix64: Steele, Lea and Flood, 2014."""
    z = (z ^ (z >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> 27)) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> 31)


def _mix32(x):
    """A hash of 32 bits: Wellons, "Prospecting for hash functions", 2018."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
