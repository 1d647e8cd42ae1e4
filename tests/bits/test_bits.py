"""The same query gets the same bits, whatever else is in the call and whatever computes it.

Fault 30, and more than the peers promise: threads, splits shared by threads, batches, slices,
single rows, padding, memory layout, keys that no query sees, and the instruction sets themselves.
Every comparison is of bits: not a single one may differ.
"""

import numpy as np
import pytest

import selfattn
from support.arrays import normal, one_head, qkv, same_bits


def attend(*arrays, **options):
    return selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)


OPTIONS = [
    {},
    {"is_causal": True},
    {"window_size": (150, 3), "query_offset": 100},
    {"kv_lengths": np.array([500, 1])},
]
THREADS = [1, 2, 3, 4, 5, 8]


def rows(result, index):
    """The same rows of out and of lse."""
    return tuple(x[index] for x in result)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 70, 20), (2, 4, 3, 20)], ids=["prefill", "decode"])
def test_threads(isa, dtype, options, shape):
    arrays = qkv(shape, 2, 530, dtype=dtype)
    want = attend(*arrays, enable_gqa=True, num_threads=1, **options)
    for n in THREADS[1:]:
        got = attend(*arrays, enable_gqa=True, num_threads=n, **options)
        assert same_bits(got, want), n


@pytest.mark.parametrize("seqlen_q", [1, 3, 40])
def test_threads_that_share_the_splits_of_a_row(isa, dtype, seqlen_q):
    """One head, many keys: the splits go to the threads, and are merged in their own order.

    Large enough that a call wakes eight; several times, since who takes which split is chance.
    """
    arrays = one_head(seqlen_q, 5000, 64, dtype=dtype)
    for options in ({}, {"is_causal": True, "query_offset": 4000}, {"window_size": (700, 2000)}):
        want = attend(*arrays, num_threads=1, **options)
        for n in [*THREADS[1:], 16] * (3 if seqlen_q < 40 else 1):
            assert same_bits(attend(*arrays, num_threads=n, **options), want), (n, options)


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
@pytest.mark.parametrize("seqlen_q", [2, 21, 45])
def test_batch_and_head_slices(isa, dtype, options, seqlen_q):
    """21 queries of three heads are one tile of four vectors; alone, a head is cut otherwise."""
    query, key, value = qkv((3, 6, seqlen_q, 12), 2, 300, dtype=dtype)
    whole = attend(query, key, value, enable_gqa=True, **options)
    for b in range(3):
        alone = attend(query[b], key[b], value[b], enable_gqa=True, **options)
        assert same_bits(alone, rows(whole, b)), b
        for head in range(6):
            kv = head // 3
            alone = attend(query[b, head], key[b, kv], value[b, kv], **options)
            assert same_bits(alone, rows(whole, (b, head))), (b, head)


@pytest.mark.parametrize("head_dim", [5, 64, 72, 130])
def test_a_row_alone(isa, dtype, head_dim):
    """Decode against prefill: each row, and each run of rows, as a call of its own."""
    query, key, value = one_head(70, 260, head_dim, 20, dtype=dtype)
    for options in ({}, {"is_causal": True}, {"window_size": (60, 9)}):
        whole = attend(query, key, value, query_offset=150, **options)
        for count in (1, 2, 7, 8, 9, 17, 64):
            for first in range(0, 70, count):
                part = slice(first, first + count)
                alone = attend(query[part], key, value, query_offset=150 + first, **options)
                assert same_bits(alone, rows(whole, part)), (first, count, options)


def test_a_row_alone_in_a_group(isa, dtype):
    """Where the tile's rows are (position, head), the position alone, and the head alone."""
    query, key, value = qkv((1, 8, 21, 16), 2, 140, dtype=dtype)
    whole = attend(query, key, value, enable_gqa=True, is_causal=True, query_offset=119)
    for i in range(21):
        part = (slice(None), slice(None), slice(i, i + 1))
        alone = attend(
            query[part], key, value, enable_gqa=True, is_causal=True, query_offset=119 + i
        )
        assert same_bits(alone, rows(whole, part)), i


@pytest.mark.parametrize("seqlen_q", [1, 40])
def test_right_padding(isa, dtype, seqlen_q):
    """Keys behind kv_lengths against keys that are not there, at every length around the edges."""
    query, key, value = qkv((1, 2, seqlen_q, 12), seqlen_k=1100, dtype=dtype)
    edges = [n + d for n in (4, 16, 64, 128, 256, 512, 640, 1024) for d in (-1, 0, 1, 2)]
    for length in (0, 1, *edges):
        padded = attend(query, key, value, kv_lengths=np.array([length]))
        short = attend(query, key[:, :, :length], value[:, :, :length])
        assert same_bits(padded, short), length


@pytest.mark.parametrize("seqlen_q", [1, 40])
def test_keys_in_front_that_no_query_sees(isa, dtype, seqlen_q):
    """Whole masked blocks of 128 are skipped: no bit tells that they were there."""
    query, key, value = one_head(seqlen_q, 300, 12, dtype=dtype)
    for blocks in (
        1,
        4,
        8,
    ):  # splits of 512 start at key 0: all fits one, or whole ones are in front
        front = normal(128 * blocks, 12, dtype=dtype, seed=9) * 1000
        for window in ((40, 5), (0, 0), (seqlen_q + 20, -1)):
            options = {"window_size": window}
            want = attend(query, key, value, query_offset=60, **options)
            moved = attend(
                query,
                np.concatenate([front, key]),
                np.concatenate([front, value]),
                query_offset=60 + 128 * blocks,
                **options,
            )
            assert same_bits(moved, want), (blocks, window)


@pytest.mark.parametrize("seqlen_q", [2, 40])
def test_memory_layout(isa, dtype, seqlen_q):
    """BSHD against BHSD, strided, reversed, transposed, Fortran order: the values decide."""
    arrays = qkv((2, 3, seqlen_q, 20), seqlen_k=150, dtype=dtype)
    want = attend(*arrays, is_causal=True)
    for name, layout in {
        "BSHD": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
        "Fortran": np.asfortranarray,
        "columns first": lambda x: np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3),
        "every other": lambda x: np.repeat(x, 2, -1)[..., ::2],
        "reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
        "rows reversed": lambda x: x[:, :, ::-1].copy()[:, :, ::-1],
        "padded": lambda x: np.pad(x, ((0, 0), (1, 0), (0, 2), (3, 1)))[:, 1:, :-2, 3:-1],
    }.items():
        for which in ((0, 1, 2), (0,), (1,), (2,)):
            moved = [layout(x) if i in which else x for i, x in enumerate(arrays)]
            assert same_bits(attend(*moved, is_causal=True), want), (name, which)


@pytest.mark.parametrize("seqlen_q", [1, 3, 40])
def test_instruction_sets(each_isa, dtype, seqlen_q):
    """Fused multiply-add, fixed orders and our own exp2 and log: no set differs from another."""
    shapes = [(60, 7, 5), (530, 64, 64), (700, 130, 33), (90, 300, 80)]
    for seqlen_k, head_dim, head_dim_v in shapes:
        arrays = one_head(seqlen_q, seqlen_k, head_dim, head_dim_v, dtype=dtype)
        for options in ({}, {"is_causal": True, "query_offset": 9}, {"scale": 3.0}):
            results = [(isa, attend(*arrays, **options)) for isa in each_isa()]
            for isa, result in results[1:]:
                assert same_bits(result, results[0][1]), (isa, results[0][0], options)
