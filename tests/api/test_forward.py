"""The fused forward pass against the reference: every shape, tail and way of sharing heads.

The bound and its reason stand in compare.py. One kernel set is compared with the reference; the
others have its bits.
"""

from functools import partial

import numpy as np
import pytest

from selfattn import scaled_dot_product_attention as attend
from support.arrays import BROADCASTS, normal, one_head, qkv
from support.compare import check_each

check = partial(check_each, scores=False)

# Few rows take the shape of a kernel whose lanes are keys, many the one whose lanes are queries.
DECODE, PREFILL = 2, 37  # rows for either kernel


@pytest.mark.parametrize("rows", [DECODE, PREFILL])
def test_every_head_dim(each_isa, dtype, rows):
    """Tails of E (fault 12): sums over it run in chunks of 8 or 16, packing in whole vectors."""
    for head_dim in range(1, 131):
        check(each_isa, *one_head(rows, 37, head_dim, 5, dtype=dtype))


@pytest.mark.parametrize("rows", [DECODE, PREFILL])
def test_every_head_dim_v(each_isa, dtype, rows):
    for head_dim_v in range(1, 131):
        check(each_isa, *one_head(rows, 37, 8, head_dim_v, dtype=dtype))


@pytest.mark.parametrize("rows", [DECODE, PREFILL])
def test_every_seqlen_k(each_isa, dtype, rows):
    """Up to past two blocks of 128 keys, then around four blocks, a split of 512, and two."""
    near = [n + d for n in (384, 512, 640, 1024) for d in (-1, 0, 1, 3)]
    for seqlen_k in [*range(1, 301), *near]:
        check(each_isa, *one_head(rows, seqlen_k, 7, 3, dtype=dtype))


def test_every_seqlen_q(each_isa, dtype):
    """Around the lanes of each set, and the rows of one and of two tiles."""
    for seqlen_q in [*range(1, 71), 95, 96, 97, 127, 128, 129, 193]:
        check(each_isa, *one_head(seqlen_q, 19, 6, 5, dtype=dtype))


def test_grid_of_shapes(each_isa, dtype):
    for rows in (1, 5, 16, 33, 64, 65, 130):
        for seqlen_k in (1, 17, 128, 129, 530):
            for head_dim, head_dim_v in ((1, 64), (64, 1), (16, 16), (65, 33), (80, 96), (130, 64)):
                check(each_isa, *one_head(rows, seqlen_k, head_dim, head_dim_v, dtype=dtype))


def test_long_and_wide(each_isa, dtype):
    """Many splits; a head_dim of many chunks."""
    check(each_isa, *one_head(3, 5000, 16, dtype=dtype))
    check(each_isa, *one_head(20, 2100, 16, dtype=dtype))
    check(each_isa, *one_head(3, 40, 1000, 700, dtype=dtype))
    check(each_isa, *one_head(20, 40, 1000, 700, dtype=dtype))


@pytest.mark.parametrize("heads_q", [1, 2, 6, 8, 12, 64])
def test_grouped_heads(each_isa, dtype, heads_q):
    """Query head h attends to key head h // (Hq // Hkv): repeat_interleave order."""
    for heads_kv in (n for n in (1, 2, 3, 4, 8, 32) if heads_q % n == 0):
        for rows in (1, 3, 11):
            arrays = qkv((2, heads_q, rows, 8), heads_kv, 20, 5, dtype=dtype)
            check(each_isa, *arrays, enable_gqa=True)


def test_group_is_the_heads_in_order():
    """The reference aside: each query head equals a call with its own key head alone."""
    query, key, value = qkv((1, 6, 4, 8), 2, 9)
    out = attend(query, key, value, enable_gqa=True)
    for head in range(6):
        own = attend(query[0, head], key[0, head // 3], value[0, head // 3])
        assert np.array_equal(out[0, head], own)


@pytest.mark.parametrize("leading", BROADCASTS, ids=str)
@pytest.mark.parametrize("rows", [2, 20])
def test_leading_axes_broadcast(each_isa, dtype, leading, rows):
    """2-D to 7-D; batch and head axes of 1, or absent ones, serve all."""
    query = normal(*leading[0], rows, 6, dtype=dtype)
    key = normal(*leading[1], 21, 6, dtype=dtype, seed=1)
    value = normal(*leading[2], 21, 5, dtype=dtype, seed=2)
    check(each_isa, query, key, value)


@pytest.mark.parametrize("scale", [0, 0.0, 1, -1.0, 0.3, -0.07, 4.0, np.float32(0.5)])
def test_scale(each_isa, dtype, scale):
    """0 is the mean of the values; negative is legal."""
    for rows in (DECODE, PREFILL):
        check(each_isa, *one_head(rows, 140, 24, dtype=dtype), scale=scale)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 30.0])
def test_size_of_the_inputs(each_isa, dtype, size):
    """Scores so small that all weights are alike, and so large that one takes all."""
    for rows in (DECODE, PREFILL):
        query, key, value = one_head(rows, 300, 16, dtype=dtype)
        check(each_isa, query * dtype(size), key * dtype(size), value)


def test_the_largest_score_may_come_at_any_key(each_isa, dtype):
    """The running maximum rises in the first block, the last, or in each: every rescale is used."""
    query, key, value = one_head(PREFILL, 700, 4, dtype=dtype)
    query = np.abs(query)
    steps = np.linspace(0, 8, 700, dtype=dtype)
    for at in (0, 1, 127, 128, 129, 511, 512, 513, 640, 699):
        key[...] = 0
        key[at] = 5
        check(each_isa, query, key, value, context=f"largest at {at}")
        check(each_isa, query[:DECODE], key, value, context=f"largest at {at}")
    for slope in (steps, steps[::-1]):
        check(each_isa, query, slope[:, None] * np.ones(4, dtype), value, context="slope")
        check(each_isa, query[:DECODE], slope[:, None] * np.ones(4, dtype), value, context="slope")
