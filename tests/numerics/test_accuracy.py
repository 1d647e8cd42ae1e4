"""The promised error, docs/numerics.md, of the forward pass in float32 and float64.

Faults 14 and 46. The largest error of a call against a longer type, median over 20 seeds, for N(0,
1) inputs and S <= 1000: at most 1.0 * 2^-24 * max|V| (float64: 2^-53), and on any input at most 1.1
times PyTorch's. Every set computes the same bits (test_bits.py), so the one in use answers for all.
"""

import statistics

import numpy as np
import pytest

import selfattn
from support import oracle
from support.arrays import one_head
from support.compare import UNIT

pytestmark = oracle.needs_long_double

# L, S, E, Ev
SHAPES = [
    (1, 1000, 64, 64),
    (4, 1000, 128, 128),
    (64, 1000, 64, 64),
    (32, 999, 128, 128),
    (16, 300, 80, 80),
    (3, 512, 16, 16),
    (40, 600, 256, 32),
]
# Scores that are very long sums.
LONG_HEADS = [(48, 100, 2048, 32), (48, 100, 8192, 16), (2, 100, 8192, 16)]
# Weights that few keys share: each is large, and so is what its rounding moves.
FEW_KEYS = [(128, 128, 64, 64), (200, 200, 32, 32), (50, 77, 64, 128)]


def error(out, want):
    return float(np.abs(out - want).max())


def median_error(shape, dtype, seeds):
    """In units of 2^-24 (2^-53) * max|V|."""
    errors = []
    for seed in range(seeds):
        query, key, value = one_head(*shape, dtype=dtype, seed=100 * seed)
        want, _ = oracle.attention(query, key, value)
        out = selfattn.scaled_dot_product_attention(query, key, value)
        errors.append(error(out, want) / float(np.abs(value).max()))
    return statistics.median(errors) / UNIT[np.dtype(dtype)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_median_error(dtype, shape):
    assert median_error(shape, dtype, seeds=20) <= 1.0


@pytest.mark.parametrize("shape", FEW_KEYS, ids=str)
def test_median_error_with_few_keys(dtype, shape):
    assert median_error(shape, dtype, seeds=20) <= 1.0


@pytest.mark.parametrize("shape", [*SHAPES, *FEW_KEYS, *LONG_HEADS], ids=str)
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.long), 5])
def test_against_torch(dtype, shape, size):
    """query and key are N(0, size^2). The less a call computes, the more seeds a median needs."""
    torch = pytest.importorskip("torch")
    ours, theirs = [], []
    for seed in range(100 if shape[0] * shape[1] < 4_000 and shape[2] < 1000 else 12):
        query, key, value = one_head(*shape, dtype=dtype, seed=100 * seed)
        query, key = query * dtype(size), key * dtype(size)
        want, _ = oracle.attention(query, key, value)
        ours.append(error(selfattn.scaled_dot_product_attention(query, key, value), want))
        tensors = [torch.from_numpy(x)[None, None] for x in (query, key, value)]
        out = torch.nn.functional.scaled_dot_product_attention(*tensors)
        theirs.append(error(out[0, 0].numpy(), want))
    assert statistics.median(ours) <= 1.1 * statistics.median(theirs)


@pytest.mark.parametrize("seqlen_k", [4000, 20000])
def test_error_does_not_grow_with_the_keys(dtype, seqlen_k):
    """Sums run block by block and split by split, not in one long chain."""
    assert median_error((2, seqlen_k, 16, 16), dtype, seeds=5) <= 1.0


def test_lse(dtype):
    """Half a last place of lse, and the error of a score: a unit of each of its products, and of
    each of the sums that they run through, is above what was ever seen."""
    errors = []
    for seed in range(20):
        query, key, value = one_head(40, 500, 64, dtype=dtype, seed=100 * seed)
        _, want = oracle.attention(query, key, value)
        _, lse = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True)
        errors.append(error(lse, want))
    # lse is about 6.7, so half its last place is 4 units; the scores' products sum to about 6.
    assert statistics.median(errors) <= (4 + 6) * UNIT[np.dtype(dtype)]


def test_softmax(dtype):
    """Each weight, in last places of it: 2.5 for exp, the division and the product; abs(x - max)
    since that difference is rounded before exp; n / 16 for a sum in 16 chains."""
    for n in (1, 2, 7, 16, 100, 1000, 5000):
        for size in (0.1, 1, 10):
            x = (size * np.random.default_rng(n).standard_normal((20, n))).astype(dtype)
            below = x.astype(oracle.wider(dtype)) - x.max(-1, keepdims=True)
            want = np.exp(below) / np.exp(below).sum(-1, keepdims=True)
            off = np.abs(selfattn.softmax(x) - want) / np.spacing(want.astype(dtype))
            normal = want > np.finfo(dtype).smallest_normal
            assert (off <= 2.5 - below + n / 16)[normal].all(), (n, size)
