"""Caches whose rows stand directly against memory which no one may touch: guard.py.

Run as a program, by test_guard_pages.py:

    python guard_caches.py ISA DTYPE

A pool of pages is put into guarded memory, whole or row by row; what attends gets the bits of a
contiguous cache in plain memory.
"""

import itertools
import sys

import numpy as np

import selfattn
from selfattn import _core
from support.compare import same_bits
from support.guard import Memory, dtype_named

HEADS_KV, LENGTH = 2, 140
SIZES = [1, 3, 16, 48, 128]
HEAD_DIMS = [(3, 7), (16, 64), (40, 5), (64, 64)]


def guarded(rows, end, by_row):
    """The same rows, of a cache's keys or values, and their scales if they have any."""
    for name in ("rows", "scales"):
        x = getattr(rows, name)
        if x is None:
            continue
        count = x.size // x.shape[-1] if by_row else 1
        put = Memory(count, x.nbytes // count).array(x.shape, x.dtype, end, by_row)
        put[...] = x
        setattr(rows, name, put)


def run_all(dtype):
    given = np.dtype(np.float32) if dtype == np.int8 else dtype
    rng = np.random.default_rng(0)
    for size, (e, ev), length_q, (end, by_row) in itertools.product(
        SIZES, HEAD_DIMS, (1, 5, 20), itertools.product((True, False), repeat=2)
    ):
        print(size, e, ev, length_q, end, by_row, file=sys.stderr)
        query = rng.standard_normal((1, 2 * HEADS_KV, length_q, e)).astype(given)
        key = rng.standard_normal((1, HEADS_KV, LENGTH, e)).astype(given)
        value = rng.standard_normal((1, HEADS_KV, LENGTH, ev)).astype(given)
        plain = selfattn.KVCache(1, HEADS_KV, LENGTH, e, ev, dtype=dtype)
        plain.append(key, value)
        paged = selfattn.PagedKVCache(-(-LENGTH // size), size, HEADS_KV, e, ev, dtype=dtype)
        sequence = paged.new_sequence()
        paged.append([sequence], key, value)
        for rows in (paged._keys, paged._values):
            guarded(rows, end, by_row)
        for options in ({}, {"window_size": (37, -1)}, {"is_causal": False}):
            got = paged.attend([sequence], query, **options)
            assert same_bits(got, plain.attend(query, **options)), "result"


if __name__ == "__main__":
    assert _core.force_isa(sys.argv[1])
    name = sys.argv[2]
    run_all(np.dtype(np.int8) if name == "int8" else dtype_named(name))
