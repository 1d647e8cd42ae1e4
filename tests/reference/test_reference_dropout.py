"""The reference's dropout: the hash by Python's integers, what a slice keeps, and statistics.

Which elements are dropped is fixed to the bit by (dropout_seed, batch, head, query, key), so no
test here is random: a bound on a statistic holds or it does not. Each is a z-score, near N(0, 1) if
elements were kept independently with probability 1 - p. There are some 20,000 of them: one of them
is past 4.5 in one family of eight, past 5 in one of 90. How they spread is bounded as well.
"""

import itertools
import math

import numpy as np
import pytest

from selfattn import reference
from selfattn.reference.dropout import dropout_factor, threshold
from support.arrays import normal, qkv, same_bits

SEEDS = [0, 1, -1, 12345, 2**32, 2**63, 2**64 - 1, -(2**63)]
Z = 5

# ------------------------------------------------------------------ the hash, in plain Python


def mix64(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def mix32(x):
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def constant(k):
    return mix64((k + 1) * 0x9E3779B97F4A7C15 % 2**64) | 1


def kept(dropout_p, seed, j, i, h=0, *batch):
    """Whether the weight of key j is kept for query i of head h; `batch` from the last axis."""
    row = mix64(seed % 2**64) + i * constant(0) + h * constant(1)
    row += sum(index * constant(2 + a) for a, index in enumerate(batch))
    row = mix64(row % 2**64)
    x = mix32(mix32((j + row % 2**32) % 2**32) ^ row >> 32)
    return x >= min(math.floor(dropout_p * 2**32 + 0.5), 2**32 - 1)


def test_the_mixers_are_the_published_ones():
    """splitmix64 from seed 0 gives these numbers first; mix32 is a bijection, and 0 stays 0."""
    first = [mix64(n * 0x9E3779B97F4A7C15 % 2**64) for n in (1, 2, 3)]
    assert first == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix32(0) == 0
    assert len({mix32(x << 14) for x in range(2**18)}) == 2**18


SHAPES = [(3, 40), (5, 3, 7), (2, 3, 4, 9), (3, 2, 2, 4, 5), (2, 1, 3, 1, 2, 6)]


@pytest.mark.parametrize("dropout_p", [0.0, 2.0**-32, 0.1, 0.5, 0.9, 1 - 2.0**-32, 1.0])
def test_against_plain_python(dropout_p):
    for shape, seed in itertools.product(SHAPES, SEEDS):
        got = reference.dropout_kept(shape, dropout_p, seed)
        assert (got.shape, got.dtype) == (shape, bool)
        for at in np.ndindex(shape):
            assert got[at] == kept(dropout_p, seed, *reversed(at)), (shape, seed, at)


def test_large_indices():
    """Sums that pass 2^32 and 2^64: the last of many keys, queries and batch entries."""
    for shape in ((1, 70_000), (70_000, 1), (70_000, 1, 1), (70_000, 1, 1, 1)):
        got = reference.dropout_kept(shape, 0.5, 3)
        for at in itertools.product(*((0, n // 3, n - 1) for n in shape)):
            assert got[at] == kept(0.5, 3, *reversed(at)), at


def test_the_threshold():
    """p = 0 keeps all; p is rounded to 32 bits; what would be 2^32 is one less."""
    for parts, want in (
        (0, 0),
        (0.25, 0),
        (0.5, 1),
        (0.75, 1),
        (2**31, 2**31),
        (2**31 + 1.5, 2**31 + 2),
    ):
        assert threshold(parts * 2.0**-32) == want
    assert threshold(0.1) == 429496730
    for p in (1 - 2.0**-32, 1 - 2.0**-33, 1.0):
        assert threshold(p) == 2**32 - 1
    shape = (40, 50)
    assert reference.dropout_kept(shape, 0.0, 1).all()
    assert not reference.dropout_kept(shape, 1.0, 1).any()
    for p, same in ((2.0**-34, 0.0), (0.5 + 2.0**-34, 0.5), (1 - 2.0**-40, 1.0)):
        assert np.array_equal(
            reference.dropout_kept(shape, p, 1), reference.dropout_kept(shape, same, 1)
        )
    more = [reference.dropout_kept(shape, p, 1) for p in (0.1, 0.3, 0.6, 0.9)]
    for some, fewer in itertools.pairwise(more):
        assert (some | ~fewer).all()  # what a larger p keeps, a smaller one keeps


def test_seeds_are_modulo_2_to_the_64():
    shape = (2, 3, 50)
    for seed in (-1, -12345, -(2**63)):
        a, b = (reference.dropout_kept(shape, 0.5, x) for x in (seed, seed + 2**64))
        assert np.array_equal(a, b)
    assert np.array_equal(
        reference.dropout_kept(shape, 0.5, np.int64(-5)), reference.dropout_kept(shape, 0.5, -5)
    )


# ------------------------------------------------------------------ slices and axes of 1


def test_slices_keep_their_elements():
    """From the start of every axis; axes of 1 before others change nothing; 2-D is head 0."""
    whole = reference.dropout_kept((3, 2, 4, 5, 6), 0.4, 7)
    for shape in itertools.product(*((1, n) for n in whole.shape)):
        part = reference.dropout_kept(shape, 0.4, 7)
        assert np.array_equal(part, whole[tuple(slice(n) for n in shape)])
    assert np.array_equal(reference.dropout_kept((2, 4, 5, 6), 0.4, 7), whole[0])
    assert np.array_equal(reference.dropout_kept((4, 5, 6), 0.4, 7), whole[0, 0])
    assert np.array_equal(reference.dropout_kept((5, 6), 0.4, 7), whole[0, 0, 0])
    for b in range(2):
        one = reference.dropout_kept((4, 5, 6), 0.4, 7, sequence=b)
        assert np.array_equal(one, whole[0, b])


def test_empty():
    for shape in ((0, 5), (5, 0), (0, 3, 4), (2, 0, 3, 4)):
        assert reference.dropout_kept(shape, 0.5, 1).shape == shape


# ------------------------------------------------------------------ attention with it


OPTIONS = {"dropout_p": 0.4, "dropout_seed": 9}


def test_attention_with_dropout():
    """Weights times kept / (1 - p), then the values; lse is that without dropout; p = 1 is 0."""
    query, key, value = qkv((2, 4, 5, 3), 2, 7, 2, dtype=np.float64)
    options = {"enable_gqa": True, "softcap": 2.0, "sinks": normal(4), "is_causal": True}
    weights = reference.attention_weights(query, key, **options)
    spread = np.repeat(value, 2, 1)
    factor = reference.dropout_kept((2, 4, 5, 7), 0.4, 9) / 0.6
    out, lse = reference.scaled_dot_product_attention(
        query, key, value, return_lse=True, **OPTIONS, **options
    )
    np.testing.assert_allclose(out, (weights * factor) @ spread, rtol=1e-13, atol=1e-15)
    without, want_lse = reference.scaled_dot_product_attention(
        query, key, value, return_lse=True, **options
    )
    assert same_bits(lse, want_lse)
    assert not np.array_equal(out, without)
    again = reference.scaled_dot_product_attention(
        query, key, value, dropout_p=0.0, dropout_seed=9, **options
    )
    assert same_bits(again, without)
    nothing = reference.scaled_dot_product_attention(query, key, value, dropout_p=1.0, **options)
    assert (nothing == 0).all()


def test_batch_axes_are_those_of_the_broadcast_problem():
    """Keys shared by the batch, or values alone with one, are dropped entry by entry."""
    query, key, value = qkv((2, 3, 4, 5), 3, 6, dtype=np.float64)
    for few in itertools.product((False, True), repeat=3):
        if all(few):
            continue
        arrays = [x[0] if one else x for x, one in zip((query, key, value), few, strict=True)]
        got = reference.scaled_dot_product_attention(*arrays, **OPTIONS)
        want = reference.scaled_dot_product_attention(
            *(np.broadcast_to(x, query.shape[:2] + x.shape[-2:]) for x in arrays), **OPTIONS
        )
        assert same_bits(got, want)


def test_packed_sequences_are_a_batch():
    """Each drops what the batch entry of its index drops, by its own queries and keys."""
    query, key, value = qkv((3, 2, 6, 4), 2, 8, dtype=np.float64)
    lengths_q, lengths_k = (4, 6, 1), (8, 3, 5)
    packed = [
        np.concatenate([x[b, :, :n].swapaxes(0, 1) for b, n in enumerate(lengths)])
        for x, lengths in ((query, lengths_q), (key, lengths_k), (value, lengths_k))
    ]
    cu_q, cu_k = (np.cumsum([0, *lengths]) for lengths in (lengths_q, lengths_k))
    got = reference.varlen_attention(*packed, cu_q, cu_k, **OPTIONS)
    want = reference.scaled_dot_product_attention(
        query, key, value, kv_lengths=np.array(lengths_k), **OPTIONS
    )
    for b, n in enumerate(lengths_q):
        rows = got[cu_q[b] : cu_q[b + 1]].swapaxes(0, 1)
        np.testing.assert_allclose(rows, want[b, :, :n], rtol=1e-13, atol=1e-15)


def test_the_mean_over_seeds_is_attention():
    """Unbiased: the mean of 2,000 results is within what their own spread allows."""
    query, key, value = qkv((2, 3, 4, 5), 3, 9, dtype=np.float64)
    results = np.stack([
        reference.scaled_dot_product_attention(query, key, value, dropout_p=0.3, dropout_seed=seed)
        for seed in range(2000)
    ])  # fmt: skip
    want = reference.scaled_dot_product_attention(query, key, value)
    z = (results.mean(0) - want) / (results.std(0) / math.sqrt(len(results)))
    assert np.abs(z).max() < Z


# ------------------------------------------------------------------ statistics


SHAPE = 4, 8, 64, 256  # batch, heads, queries, keys: 2^19 elements
AXES = ["batch", "head", "query", "key"]
PS = [0.1, 0.5, 0.9]


def centred(dropout_p, seed=0, shape=SHAPE):
    """Kept or not, with mean 0 and variance 1 over all seeds."""
    x = reference.dropout_kept(shape, dropout_p, seed)
    share = 1 - dropout_p
    return (x - share) / math.sqrt(share * dropout_p)


def correlation(*factors):
    """The z-score of the sum of products of what should be independent, elements and factors."""
    product = math.prod(factors)
    return float(product.sum()) / math.sqrt(product.size)


def test_the_share_that_is_kept():
    """Of the whole, and of each slice of each axis; and how far the sums over two axes spread.

    The square of a sum of m elements over m has the mean 1 and the variance 2 + k / m, k being the
    excess kurtosis of an element, (1 - 6 p q) / (p q).
    """
    for p, seed in itertools.product([0.001, *PS, 0.999], SEEDS):
        x = centred(p, seed)
        assert abs(correlation(x)) < Z, (p, seed)
        for axis in range(4):
            others = tuple(a for a in range(4) if a != axis)
            z = x.sum(others) / math.sqrt(x.size / SHAPE[axis])
            assert np.abs(z).max() < Z, (p, seed, AXES[axis])
        variance = p * (1 - p)
        for axes in itertools.combinations(range(4), 2):
            m = math.prod(SHAPE[a] for a in axes)
            squares = x.sum(axes) ** 2 / m
            per_square = 2 + (1 - 6 * variance) / variance / m
            spread = (float(squares.sum()) - squares.size) / math.sqrt(per_square * squares.size)
            assert abs(spread) < Z, (p, seed, axes)


@pytest.mark.parametrize("dropout_p", [0.1, 0.5])
def test_slices_spread_as_they_should(dropout_p):
    """Over 100 seeds, the z-scores of the slices of each axis have N(0, 1)'s variance and tails."""
    masks = [centred(dropout_p, seed) for seed in range(100)]
    for axis in range(4):
        others = tuple(a for a in range(4) if a != axis)
        z = np.array([x.sum(others) for x in masks]) / math.sqrt(masks[0].size / SHAPE[axis])
        assert abs(z.mean()) * math.sqrt(z.size) < Z, AXES[axis]
        assert abs((z**2).mean() - 1) / math.sqrt(2 / z.size) < Z, AXES[axis]
        assert abs((z**4).mean() - 3) / math.sqrt(96 / z.size) < Z, AXES[axis]


@pytest.mark.parametrize("dropout_p", PS)
def test_neighbours_are_independent(dropout_p):
    """Along each axis at many distances, and along all pairs of axes at once."""
    for seed in SEEDS[:4]:
        x = centred(dropout_p, seed)
        for axis, n in enumerate(SHAPE):
            for lag in (1, 2, 3, 4, 7, 8, 16, 32, 63, 64, 128):
                if lag < n:
                    a, b = np.split(x, [lag], axis)[1], np.split(x, [n - lag], axis)[0]
                    assert abs(correlation(a, b)) < Z, (seed, AXES[axis], lag)
        for one, two in itertools.combinations(range(4), 2):
            parts = []
            for first, second in itertools.product((False, True), repeat=2):
                part = np.delete(x, 0 if first else -1, one)
                parts.append(np.delete(part, 0 if second else -1, two))
            assert abs(correlation(parts[0], parts[3])) < Z, (seed, one, two)
            assert abs(correlation(parts[1], parts[2])) < Z, (seed, one, two)
            # The corners of a rectangle: 0 too, where a hash is not a sum of one for each axis.
            assert abs(correlation(*parts)) < Z, (seed, one, two)


@pytest.mark.parametrize("dropout_p", PS)
def test_seeds_are_independent(dropout_p):
    """Each from each, one apart or in one bit; and from another with its axes exchanged."""
    shape = 2, 4, 64, 64
    seeds = [*range(6), *(2**n for n in (16, 31, 32, 48, 63)), -1, -2]
    masks = [centred(dropout_p, seed, shape) for seed in seeds]
    for (a, x), (b, y) in itertools.combinations(zip(seeds, masks, strict=True), 2):
        assert abs(correlation(x, y)) < Z, (a, b)
    for seed, x in zip(seeds, masks, strict=True):
        upper = np.triu(np.ones((64, 64), bool), 1)
        assert abs(correlation(x[..., upper], x.swapaxes(-1, -2)[..., upper])) < Z, seed
        for moved in range(1, 4):  # the rows of one seed are not those of the next, displaced
            assert abs(correlation(x[:, :, moved:], masks[1][:, :, :-moved])) < Z, (seed, moved)


@pytest.mark.parametrize("axis", range(4), ids=AXES)
def test_patterns(axis):
    """Runs of 8 (of 4 in the batch) along an axis: each of the patterns as often as the others."""
    length = min(8, SHAPE[axis])
    for seed in SEEDS:
        x = np.moveaxis(reference.dropout_kept(SHAPE, 0.5, seed), axis, -1)
        runs = x.reshape(-1, length) @ (1 << np.arange(length))
        counts = np.bincount(runs, minlength=2**length)
        expected, freedom = runs.size / counts.size, counts.size - 1
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi_square - freedom) / math.sqrt(2 * freedom) < Z, seed


def test_the_factor():
    """1 / (1 - p) where kept, else 0; 1 without dropout, and 0 everywhere where p is 1."""
    for p in PS:
        x = dropout_factor((3, 50), p, 2)
        assert np.array_equal(x, np.where(reference.dropout_kept((3, 50), p, 2), 1 / (1 - p), 0))
    assert dropout_factor((3, 50), 0.0, 2) == 1
    assert (dropout_factor((3, 50), 1.0, 2) == 0).all()
    assert dropout_factor((3, 50), 1.0, 2).shape == (3, 50)
