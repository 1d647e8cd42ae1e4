"""Gradients in half types: those of float32, each rounded once to its input's dtype, in every set.

`out` and `lse` are read as they are given, the one in query's dtype, the other in float32.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import selfattn
from support.arrays import HALF_DTYPES, normal, one_head, qkv, same_bits
from support.gradients import grad_of, options_of, upon
from support.halves import assert_rounded, each_half, rounded, widened
from support.layouts import LAYOUTS, bits_at
from support.option_arrays import float_mask
from support.strategies import backward_problems, repeatable

attend = selfattn.scaled_dot_product_attention

# Query's (..., Hq, L, E), then Hkv, S, Ev.
SHAPES = {
    "one row": ((1, 2, 1, 16), 2, 40, 8),
    "few rows, decoding": ((1, 4, 1, 64), 1, 300, 33),
    "an odd dimension": ((1, 2, 5, 7), 2, 129, 1),
    "dimension 1": ((1, 2, 20, 1), 2, 70, 1),
    "many heads, staged": ((2, 6, 100, 16), 6, 140, 8),
    "groups, several tiles, staged": ((1, 4, 60, 33), 2, 300, 64),
    "few tiles, block by block": ((1, 2, 60, 64), 2, 530, 80),
    "beyond what is staged": ((1, 1, 100, 256), 1, 1060, 256),
    "wide": ((1, 1, 40, 256), 1, 140, 256),
    "no dimension": ((1, 2, 30, 0), 2, 9, 4),
    "no columns": ((1, 2, 30, 8), 2, 9, 0),
    "no keys": ((1, 2, 30, 8), 2, 0, 4),
    "no rows": ((1, 2, 0, 8), 2, 9, 4),
}


FLOATS = ("attn_mask", "attn_bias", "sinks")  # options that have a gradient


def forward(arrays, options):
    out, lse = attend(*arrays, return_lse=True, **options)
    assert lse.dtype == np.float32
    return {"out": out, "lse": lse}


def check(each_isa, grad_out, *arrays, threads=1, context="", **options):
    """All gradients against those of float32, upon the same out and lse."""
    options = options | {"num_threads": threads}
    given = options | forward(arrays, options)
    want = upon(*widened((grad_out, *arrays)), **widened(given))
    dtypes = dict(zip(("query", "key", "value"), (x.dtype for x in arrays), strict=True))
    dtypes |= {name: options[name].dtype for name in FLOATS if name in want}
    for isa in each_isa():
        got = upon(grad_out, *arrays, **given)
        assert {name: x.dtype for name, x in got.items()} == dtypes
        for name, x in got.items():
            wide = want[name]
            assert_rounded(x, wide, f"{context} {isa} {name}")


@each_half
@pytest.mark.parametrize("name", SHAPES)
def test_every_way_of_the_kernels(each_isa, half, name):
    arrays = qkv(*SHAPES[name], dtype=half)
    rows, keys = arrays[0].shape[-2], arrays[1].shape[-2]
    grad_out = grad_of(*arrays)
    for options in ({}, {"is_causal": True, "query_offset": max(keys - rows, 0)}):
        check(each_isa, grad_out, *arrays, enable_gqa=True, context=name, **options)


OPTIONS = [
    *("bool", "float", "biased", "padded", "unsorted", "alibi", "softcap", "sinks", "window"),
    *("lengths", "dropout"),
]


@each_half
@pytest.mark.parametrize("kind", [*OPTIONS, "all and dropout"])
def test_every_option(each_isa, half, kind):
    arrays = qkv((2, 4, 60, 16), 2, 140, 8, dtype=half)
    for dtype in (half, np.float32):  # arrays of options of query's dtype, and of float32
        options = options_of(kind, 2, 4, 60, 140, dtype)
        check(each_isa, grad_of(*arrays), *arrays, enable_gqa=True, context=kind, **options)


@each_half
@pytest.mark.parametrize("shape", [(), (140,), (60, 1), (1, 60, 140), (4, 1, 140), (2, 1, 60, 140)])
def test_a_broadcast_masks_gradient_is_rounded_once(each_isa, half, shape):
    """It is a sum over what the mask is broadcast over."""
    arrays = qkv((2, 4, 60, 16), 2, 140, 8, dtype=half)
    for dtype in (half, np.float32):
        options = {"attn_mask": np.asarray(normal(*shape)).astype(dtype), "enable_gqa": True}
        check(each_isa, grad_of(*arrays), *arrays, **options)


BROADCASTS = [
    # query's leading axes, key's, value's
    ((1, 4), (3, 4), (3, 4)),
    ((3, 1), (3, 4), (3, 4)),
    ((3, 4), (1, 4), (3, 1)),
    ((3, 4), (3, 1), (1, 4)),
    ((4,), (3, 1), (3, 1)),
    ((3, 4), (3, 4), (4,)),
    ((3, 4), (2,), (3, 2)),
]


@each_half
@pytest.mark.parametrize("leading", BROADCASTS)
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_of_what_is_broadcast_are_rounded_once(each_isa, half, leading, threads):
    shapes = [(*n, rows, 9) for n, rows in zip(leading, (50, 130, 130), strict=True)]
    arrays = [normal(*shape, dtype=half, seed=i) for i, shape in enumerate(shapes)]
    out = attend(*arrays, enable_gqa=True)
    grad_out = normal(*out.shape, dtype=half, seed=9)
    check(each_isa, grad_out, *arrays, enable_gqa=True, threads=threads, context=leading)


@each_half
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(each_isa, half, layout):
    arrays = qkv((2, 3, 50, 16), seqlen_k=70, head_dim_v=9, dtype=half)
    grad_out = grad_of(*arrays)
    given = forward(arrays, {})
    want = upon(*widened((grad_out, *arrays)), **widened(given))
    laid_out = [LAYOUTS[layout](x) for x in (grad_out, *arrays)]
    given = {"out": LAYOUTS[layout](given["out"]), "lse": given["lse"]}
    for x in (*laid_out, given["out"]):
        x.flags.writeable = False
    for isa in each_isa():
        assert_rounded(upon(*laid_out, **given), want, f"{layout} {isa}")


@each_half
def test_odd_addresses(each_isa, half):
    arrays = qkv((2, 3, 50, 16), seqlen_k=70, head_dim_v=9, dtype=half)
    odd = [bits_at(1, x) for x in arrays]
    check(each_isa, bits_at(3, grad_of(*arrays)), *odd)


@each_half
def test_out_and_lse_are_read_as_given(each_isa, half):
    """Neither is computed again: D is the sum over that out, weights are of that lse."""
    arrays = one_head(40, 70, 16, 8, dtype=half)
    grad_out = grad_of(*arrays)
    given = forward(arrays, {})
    usual = upon(grad_out, *arrays, **given)
    other = {
        "out": given["out"] + half(0.25),
        "lse": given["lse"] + np.float32(2.0**-9),  # less than a half type resolves there
    }
    for changed in ({"out": other["out"]}, {"lse": other["lse"]}, other):
        used = given | changed
        want = upon(*widened((grad_out, *arrays)), **widened(used))
        for isa in each_isa():
            got = upon(grad_out, *arrays, **used)
            assert_rounded(got, want, isa)
            assert not same_bits(got["query"], usual["query"])


@each_half
def test_gradients_of_pieces_of_the_keys(each_isa, half):
    """With the merged out and lse, a piece's keys get the whole call's gradients."""
    query, key, value = qkv((1, 2, 60, 16), seqlen_k=200, dtype=half)
    grad_out = grad_of(query, key, value)
    pieces = [(key[..., :70, :], value[..., :70, :]), (key[..., 70:, :], value[..., 70:, :])]
    (out_a, lse_a), (out_b, lse_b) = (attend(query, *p, return_lse=True) for p in pieces)
    out, lse = selfattn.merge_states(out_a, lse_a, out_b, lse_b)
    given = {"out": out, "lse": lse}
    for piece in pieces:
        want = upon(*widened((grad_out, query, *piece)), **widened(given))
        for isa in each_isa():
            assert_rounded(upon(grad_out, query, *piece, **given), want, isa)


@each_half
def test_gradients_are_sums_of_float32(each_isa, half):
    """Thousands of equal terms: a sum in the half type would stop growing."""
    rows, keys = 9000, 2
    query, key = np.zeros((1, rows, 8), half), np.zeros((1, keys, 8), half)
    value = np.zeros((1, keys, 8), half)
    grad_out = np.ones((1, rows, 8), half)
    given = forward((query, key, value), {})
    for _ in each_isa():
        got = upon(grad_out, query, key, value, **given)
        assert same_bits(got["value"], rounded(np.full((1, keys, 8), 4500.0), half))
    assert half(2048) + half(0.5) == half(2048)  # which is where it would have stopped


@each_half
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(each_isa, half, threads):
    """One head, whose queries and keys have jobs of their own; and a mask's gradient."""
    arrays = qkv((1, 1, 400, 33), seqlen_k=700, head_dim_v=16, dtype=half)
    mask = float_mask(400, 700, dtype=half)
    check(each_isa, grad_of(*arrays), *arrays, attn_mask=mask, threads=threads)


@given(problem=backward_problems(HALF_DTYPES), threads=st.integers(1, 3))
@repeatable(30)
def test_any_problem(each_isa, problem, threads):
    grad_out, arrays, options = problem
    check(each_isa, grad_out, *arrays, threads=threads, **options)


@pytest.mark.long
@given(problem=backward_problems(HALF_DTYPES), threads=st.integers(1, 3))
@repeatable(600)
def test_many_problems(each_isa, problem, threads):
    grad_out, arrays, options = problem
    check(each_isa, grad_out, *arrays, threads=threads, **options)
