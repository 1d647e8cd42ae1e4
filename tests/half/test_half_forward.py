"""Attention in half types: float32's result rounded once, lse float32, in every set.

By lists of shapes, each for a way that the kernels take: few rows, where a lane is a key; many, on
keys that are converted once for several tiles, or block by block; splits that threads share. Then
any shapes, layouts and options (hypothesis).
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import selfattn
from selfattn import reference
from support.arrays import HALF_DTYPES, qkv
from support.compare import assert_close
from support.halves import assert_rounded, check, each_half, widened
from support.layouts import LAYOUTS, bits_at
from support.option_arrays import KINDS, option, without_sinks
from support.strategies import problems, repeatable

attend = selfattn.scaled_dot_product_attention

# Query's (..., Hq, L, E), then Hkv, S, Ev.
SHAPES = {
    "one row": ((2, 2, 1, 64), 2, 200, 64),
    "a row of a group": ((1, 4, 1, 80), 1, 513, 33),
    "few rows": ((1, 2, 4, 16), 2, 130, 7),
    "rows of a lane": ((1, 1, 8, 33), 1, 127, 8),
    "an odd dimension": ((1, 2, 3, 7), 2, 129, 1),
    "dimension 1": ((1, 2, 20, 1), 2, 70, 1),
    "one tile": ((1, 2, 30, 64), 2, 300, 80),
    "several tiles, staged": ((1, 2, 110, 64), 2, 640, 64),
    "tiles of groups, staged": ((2, 6, 50, 33), 2, 515, 16),
    "block by block": ((1, 1, 60, 128), 1, 1300, 128),
    "wide, block by block": ((1, 1, 50, 256), 1, 700, 256),
    "wide heads of few rows": ((1, 2, 2, 256), 2, 140, 128),
    "only values long": ((1, 1, 60, 8), 1, 2100, 130),
    "no dimension": ((1, 2, 5, 0), 2, 9, 4),
    "no dimension, many rows": ((1, 2, 50, 0), 2, 140, 9),
    "no columns": ((1, 2, 30, 8), 2, 9, 0),
    "no keys": ((1, 2, 30, 8), 2, 0, 4),
    "no keys, few rows": ((1, 2, 3, 8), 2, 0, 4),
    "no rows": ((1, 2, 0, 8), 2, 9, 4),
}


def arrays_of(name, half, seed=0):
    return qkv(*SHAPES[name], dtype=half, seed=seed)


def with_lse(*arrays, **options):
    return attend(*arrays, return_lse=True, enable_gqa=True, **options)


@each_half
@pytest.mark.parametrize("name", SHAPES)
def test_every_way_of_the_kernels(each_isa, half, name):
    query, key, value = arrays_of(name, half)
    wide = widened((query, key, value))
    for options in (
        {},
        {"is_causal": True, "query_offset": max(key.shape[-2] - query.shape[-2], 0)},
        {"dropout_p": 0.2, "dropout_seed": 3},
    ):
        want = with_lse(*wide, **options)
        for isa in each_isa():
            out, lse = with_lse(query, key, value, **options)
            assert out.dtype == half
            assert lse.dtype == np.float32
            assert_rounded((out, lse), want, f"{name} {isa} {options}")
            if not options:
                alone = attend(query, key, value, enable_gqa=True)
                assert_rounded(alone, want[0], f"{name} {isa} without lse")


@each_half
def test_float32s_results_are_the_references(half):
    """So that the oracle of these tests is not one that is wrong in the same way."""
    arrays = arrays_of("several tiles, staged", half)
    out, lse = with_lse(*arrays)
    wide = [x.astype(np.float64) for x in arrays]
    want, want_lse = reference.scaled_dot_product_attention(*wide, return_lse=True)
    assert_close(out, want, np.abs(want) * np.spacing(half(1)).astype(float) + 1e-6)
    assert_close(lse, want_lse, 1e-5)


@each_half
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "keys"), [(3, 140), (50, 530)])
def test_every_option(each_isa, half, rows, keys, kind):
    query, key, value = qkv((2, 4, rows, 16), 2, keys, 8, dtype=half)
    for dtype in (half, np.float32):  # arrays of options of query's dtype, and of float32
        options = option(kind, 2, 4, rows, keys, dtype)
        want = with_lse(*widened((query, key, value)), **widened(options))
        for isa in each_isa():
            context = f"{kind} {dtype} {isa}"
            assert_rounded(with_lse(query, key, value, **options), want, context)
        check(selfattn.scaled_dot_product, query, key, enable_gqa=True, **without_sinks(options))
        check(selfattn.attention_weights, query, key, enable_gqa=True, **options)


@each_half
@pytest.mark.parametrize("name", ["alibi_slopes", "sinks", "attn_mask"])
@pytest.mark.parametrize("rows", [2, 40])
def test_options_of_float32_are_not_rounded_to_half(each_isa, half, rows, name):
    query, key, value = qkv((1, 2, rows, 8), seqlen_k=50, dtype=half)
    number = np.float32(1 + 2.0**-12)  # rounds to 1 in both half types
    assert half(number) == 1
    shape = (2, rows, 50) if name == "attn_mask" else (2,)
    exact, one = (np.full(shape, x, np.float32) for x in (number, 1))
    exact[..., 0] = one[..., 0] = 1.5  # else a mask would be one for all keys
    for _ in each_isa():
        got = check(with_lse, query, key, value, **{name: exact}, dtypes=(half, np.float32))
        others = with_lse(query, key, value, **{name: one})
        assert (got[1] != others[1]).any()  # lse shows the difference
        halves = with_lse(query, key, value, **{name: one.astype(half)})
        assert_rounded(halves, with_lse(*widened((query, key, value)), **{name: one}))


@each_half
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [2, 110])
def test_layouts(each_isa, half, rows, layout):
    arrays = qkv((2, 3, rows, 16), seqlen_k=150, head_dim_v=9, dtype=half)
    options = {"is_causal": True, "query_offset": 150 - rows}  # few rows too see many keys
    want = with_lse(*widened(arrays), **options)
    laid_out = [LAYOUTS[layout](x) for x in arrays]
    for x in laid_out:
        x.flags.writeable = False
    for isa in each_isa():
        assert_rounded(with_lse(*laid_out, **options), want, f"{layout} {isa}")
        out = LAYOUTS[layout](np.zeros_like(arrays[0], shape=want[0].shape))
        if out.flags.writeable:
            assert attend(*laid_out, out=out, **options) is out
            assert_rounded(out.copy(), want[0], f"out {layout} {isa}")


@each_half
@pytest.mark.parametrize("rows", [1, 50])
def test_odd_addresses(each_isa, half, rows):
    arrays = qkv((2, 2, rows, 24), seqlen_k=140, dtype=half)
    want = with_lse(*widened(arrays))
    for _ in each_isa():
        for offset in (1, 2, 3, 31):
            odd = [bits_at(offset, x) for x in arrays]
            out = bits_at(offset, np.zeros(want[0].shape, half))
            attend(*odd, out=out)
            assert_rounded(out.copy(), want[0], offset)


RANGES = [
    {"kv_lengths": np.array([130, 400, 260])},
    {"is_causal": True, "query_offset": np.array([300, 0, 140])},
    {"window_size": (40, 0), "query_offset": np.array([0, 300, 140])},
]


@each_half
@pytest.mark.parametrize("options", RANGES, ids=lambda options: next(iter(options)))
def test_entries_that_see_other_keys_of_one_head(each_isa, half, options):
    """A copy of the keys that one entry sees does not serve the next, though the head is one."""
    query, key, value = qkv((3, 1, 110, 16), seqlen_k=400, dtype=half)
    arrays = query, key[:1], value[:1]
    want = with_lse(*widened(arrays), **options)
    for isa in each_isa():
        assert_rounded(with_lse(*arrays, num_threads=1, **options), want, isa)


@each_half
@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("rows", [2, 110])
def test_strides_of_0(each_isa, half, rows, axis):
    """One row, or one column, seen again and again; a column only of query and value."""
    arrays = qkv((1, 2, rows, 16), seqlen_k=150, dtype=half)
    repeated = [np.broadcast_to(x.take([0], axis), x.shape) for x in arrays]
    if axis == -1:
        repeated[1] = arrays[1]
    for _ in each_isa():
        check(with_lse, *repeated)


@each_half
@pytest.mark.parametrize("threads", [2, 3])
def test_splits_that_threads_share(each_isa, half, threads):
    """One head and long keys: whoever computes the last split of a tile merges them."""
    for rows in (1, 3, 20):
        arrays = qkv((1, 1, rows, 64), seqlen_k=5000, dtype=half)
        want = with_lse(*widened(arrays), num_threads=1)
        for _ in each_isa():
            assert_rounded(with_lse(*arrays, num_threads=threads), want, rows)


@given(problem=problems(HALF_DTYPES), threads=st.integers(1, 3))
@repeatable(25)
def test_any_problem(each_isa, problem, threads):
    check_problem(each_isa, problem, threads)


@pytest.mark.long
@given(problem=problems(HALF_DTYPES), threads=st.integers(1, 3))
@repeatable(1000)
def test_many_problems(each_isa, problem, threads):
    check_problem(each_isa, problem, threads)


def check_problem(each_isa, problem, threads):
    """The three functions of a problem, in every set."""
    (query, key, value), options = problem
    no_sinks = without_sinks(options)
    calls = (
        (attend, (query, key, value), options | {"return_lse": True}),
        (selfattn.scaled_dot_product, (query, key), no_sinks),
        (selfattn.attention_weights, (query, key), options),
    )
    want = [f(*widened(arrays), **widened(given)) for f, arrays, given in calls]
    for isa in each_isa():
        got = [f(*arrays, **given, num_threads=threads) for f, arrays, given in calls]
        assert_rounded(got, want, isa)
        assert got[0][0].dtype == got[1].dtype == got[2].dtype == query.dtype
