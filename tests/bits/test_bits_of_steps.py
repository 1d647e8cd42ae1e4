"""Bits of scores, weights and softmax: the same over threads, leading-axis slices, ISAs (fault 30).

And of the weighted sum, which costs nothing more to promise.
"""

import numpy as np
import pytest

import selfattn
from support.arrays import normal, qkv, same_bits

OPTIONS = [{}, {"is_causal": True}, {"window_size": (200, 1), "query_offset": 90}]


def dropped_weights(query, key, **options):
    return selfattn.attention_weights(query, key, dropout_p=0.4, dropout_seed=2, **options)


PAIRS = [selfattn.scaled_dot_product, selfattn.attention_weights, dropped_weights]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("step", PAIRS)
def test_scores_and_weights_over_threads_and_slices(isa, dtype, step, options):
    query, key, _ = qkv((2, 4, 50, 40), 2, 700, dtype=dtype)
    want = step(query, key, enable_gqa=True, num_threads=1, **options)
    for n in (2, 3, 8):
        got = step(query, key, enable_gqa=True, num_threads=n, **options)
        assert same_bits(got, want), n
    for b in range(2 if step is not dropped_weights else 0):  # dropout knows the batch and the head
        for head in range(4):
            alone = step(query[b, head], key[b, head // 2], **options)
            assert same_bits(alone, want[b, head]), (b, head)
    for b, heads, queries in ((1, 4, 50), (2, 2, 50), (2, 4, 3)):
        first = np.s_[:b, :heads, :queries]
        part = step(query[first], key[:b, : heads // 2], enable_gqa=True, **options)
        assert same_bits(part, want[first]), (b, heads, queries)


@pytest.mark.parametrize("step", PAIRS)
def test_scores_and_weights_over_sets(each_isa, dtype, step):
    for shape, heads_kv, seqlen_k in (((1, 2, 3, 70), 1, 530), ((1, 4, 40, 5), 2, 140)):
        query, key, _ = qkv(shape, heads_kv, seqlen_k, dtype=dtype)
        for options in OPTIONS:
            results = [(isa, step(query, key, enable_gqa=True, **options)) for isa in each_isa()]
            for isa, result in results[1:]:
                assert same_bits(result, results[0][1]), (isa, results[0][0], options)


def test_softmax_over_threads_and_slices(isa, dtype):
    x = normal(30, 7, 400, dtype=dtype)
    for axis in range(3):
        want = selfattn.softmax(x, axis, num_threads=1)
        for n in (2, 3, 8):
            assert same_bits(selfattn.softmax(x, axis, num_threads=n), want), (axis, n)
    for i in range(0, 30, 7):
        assert same_bits(selfattn.softmax(x[i]), selfattn.softmax(x)[i])
    for stride in (2, -1, 3):
        part = x[..., ::stride]
        assert same_bits(selfattn.softmax(part.copy()), selfattn.softmax(part))


def test_softmax_over_sets(each_isa, dtype):
    for n in [*range(1, 70), 1000, 4099]:
        x = 5 * normal(3, n, dtype=dtype)
        x[1] *= 100
        x[2, n // 2 :] = -np.inf
        results = [(isa, selfattn.softmax(x)) for isa in each_isa()]
        for isa, result in results[1:]:
            assert same_bits(result, results[0][1]), (isa, results[0][0], n)


def test_weighted_sum_over_threads_slices_and_sets(each_isa, dtype):
    weights = normal(2, 4, 21, 600, dtype=dtype)
    value = normal(2, 2, 600, 37, dtype=dtype, seed=1)
    want = None
    for isa in each_isa():
        for n in (1, 2, 3, 8):
            got = selfattn.weighted_sum(weights, value, enable_gqa=True, num_threads=n)
            want = got if want is None else want
            assert same_bits(got, want), (isa, n)
        for head in range(4):
            alone = selfattn.weighted_sum(weights[1, head], value[1, head // 2])
            assert same_bits(alone, want[1, head]), (isa, head)


@pytest.mark.parametrize("length", [1, 3, 10, 31, 63, 64, 70, 4099, 8192, 9000])
def test_softmax_of_more_than_the_caches_hold(isa, dtype, length):
    """Results that large go around the caches: wherever they begin, and no byte beside them."""
    if isa == "portable" and length not in (64, 9000):
        pytest.skip("stores as always: two lengths are enough")
    itemsize = np.dtype(dtype).itemsize
    rows = (34 << 20) // (itemsize * length)
    x = np.resize(normal(1_000_003, dtype=dtype), (rows, length))  # again and again
    want = np.empty_like(x)
    for first in range(0, rows, rows // 3):
        part = slice(first, first + rows // 3)
        selfattn.softmax(x[part], out=want[part])
    bits, want = f"u{itemsize}", want.view(f"u{itemsize}")
    memory = np.full(rows * length + 17, 7, dtype)
    for shift in (0, 5):
        out = memory[shift : shift + rows * length].reshape(rows, length)
        assert selfattn.softmax(x, out=out, num_threads=2) is out
        assert np.array_equal(out.view(bits), want), shift
        assert (memory[:shift] == 7).all()
        assert (memory[shift + rows * length :] == 7).all()
        memory[:] = 7
    unaligned = np.zeros(rows * length * itemsize + 1, np.uint8)[1:].view(dtype)
    out = unaligned.reshape(rows, length)
    selfattn.softmax(x, out=out)
    assert same_bits(out[-3:].copy(), selfattn.softmax(x[-3:]))


def test_a_score_of_minus_0_in_any_company(isa, dtype):
    """A mask of floats turns -0 into 0 for each row, also where all of a block's mask is 0."""
    tiny = np.finfo(dtype).tiny
    query = np.full((40, 1), tiny, dtype)
    key = np.full((3, 1), -tiny, dtype)  # their products are too small for anything but -0
    mask = np.zeros((40, 3), dtype)
    mask[7, 2] = 1
    together = selfattn.scaled_dot_product(query, key, mask, scale=1.0)
    alone = selfattn.scaled_dot_product(query[:1], key, mask[:1], scale=1.0)
    assert np.signbit(selfattn.scaled_dot_product(query, key, scale=1.0)).all()
    assert same_bits(alone, together[:1])
    assert not np.signbit(alone).any()
