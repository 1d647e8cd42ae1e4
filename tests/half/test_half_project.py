"""Projections and their gradients in half types: float32's rounded once, in every set.

Few rows have kernels of their own, for a weight whose rows are contiguous and for one whose columns
are; long sums are cut into runs; and a weight beyond the caches is read in another way.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import selfattn
from support.arrays import HALF_DTYPES, normal
from support.halves import assert_rounded, each_half, widened
from support.layouts import bits_at
from support.strategies import laid_out, lengths, repeatable

# (rows, n_in, n_out)
SHAPES = {
    "one row": (1, 64, 48),
    "one row, tails": (1, 33, 7),
    "few rows": (4, 300, 65),
    "up to eight": (8, 130, 33),
    "runs of few rows": (2, 2100, 30),
    "many rows": (50, 64, 96),
    "many rows, tails": (97, 129, 131),
    "runs": (60, 2100, 50),
    "one input": (20, 1, 9),
    "one output": (20, 9, 1),
    "no inputs": (5, 0, 4),
    "no outputs": (5, 4, 0),
    "no rows": (0, 5, 4),
}


def transposed(x):
    return x.T.copy().T


WEIGHTS = {
    "rows contiguous": lambda x: x,
    "columns contiguous": transposed,
    "every other column": lambda x: np.repeat(x, 2, -1)[:, ::2],
    "backwards": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "at odd addresses": lambda x: bits_at(1, x),
}


def both(x, weight, bias, grad_out, threads=1):
    """The projection, with and without a bias, and all gradients."""
    yield selfattn.project(x, weight, bias, num_threads=threads)
    yield selfattn.project(x, weight, num_threads=threads)
    yield from selfattn.project_backward(grad_out, x, weight, bias, num_threads=threads)


def compare(each_isa, arrays, half, threads=1, context=""):
    want = list(both(*widened(arrays), threads))
    for isa in each_isa():
        got = list(both(*arrays, threads))
        assert {x.dtype for x in got} == {np.dtype(half)}
        assert_rounded(got, want, f"{context} {isa}")


def given_arrays(half, rows, n_in, n_out):
    x, weight = normal(rows, n_in, dtype=half), normal(n_out, n_in, dtype=half, seed=1)
    return x, weight, normal(n_out, dtype=half, seed=2), normal(rows, n_out, dtype=half, seed=3)


@each_half
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("layout", WEIGHTS)
def test_every_way_of_the_kernels(each_isa, half, name, layout):
    x, weight, bias, grad_out = given_arrays(half, *SHAPES[name])
    compare(each_isa, (x, WEIGHTS[layout](weight), bias, grad_out), half, context=(name, layout))


@each_half
@pytest.mark.parametrize("layout", ["rows contiguous", "columns contiguous"])
def test_a_weight_beyond_the_caches(each_isa, half, layout):
    x, weight, *_ = given_arrays(half, 5, 1100, 4000)
    weight = WEIGHTS[layout](weight)
    want = selfattn.project(*widened((x, weight)))
    for isa in each_isa():
        assert_rounded(selfattn.project(x, weight), want, isa)


@each_half
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(each_isa, half, threads):
    arrays = given_arrays(half, 300, 130, 200)
    compare(each_isa, arrays, half, threads)
    compare(each_isa, [x[:2] if x.shape[0] == 300 else x for x in arrays], half, threads)


@each_half
def test_gradients_of_many_rows_are_sums_of_float32(each_isa, half):
    """The bias's is a plain sum: in the half type it would stop at 2048, or 256."""
    rows = 5000
    x, weight, grad_out = np.ones((rows, 3), half), np.ones((2, 3), half), np.ones((rows, 2), half)
    for _ in each_isa():
        gradients = selfattn.project_backward(grad_out, x, weight, np.ones(2, half))
        for got in gradients[1:]:
            assert (got == half(rows)).all()


@each_half
def test_padding_of_nan(each_isa, half):
    """A row whose gradient is 0, of either sign, adds nothing to the weight's."""
    x, weight, bias, grad_out = given_arrays(half, 40, 33, 17)
    grad_out[3], grad_out[7] = 0, -0.0
    want = list(both(*widened((x, weight, bias, grad_out))))[3:]
    x[3], x[7] = np.nan, np.inf
    for isa in each_isa():
        got = list(both(x, weight, bias, grad_out))[3:]
        assert_rounded(got, want, isa)


@each_half
def test_subnormals_and_overflow(each_isa, half):
    """The smallest numbers count, and what is beyond the largest becomes infinite by rounding."""
    least = half(2.0**-24 if half is np.float16 else 2.0**-133)
    most = half(65504 if half is np.float16 else 3.38e38)
    x = np.array([[least, 3 * least, most, most, -most]], half)
    weight = np.array([[1, 1, 0, 0, 0], [0.5, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 2]])
    weight, bias, grad_out = weight.astype(half), np.zeros(4, half), np.ones((1, 4), half)
    compare(each_isa, (x, weight, bias, grad_out), half)
    for _ in each_isa():
        got = selfattn.project(x, weight)[0]
        assert got[0] == 4 * least
        assert got[2] == most
        assert np.isneginf(got[3])


@given(data=st.data(), threads=st.integers(1, 3))
@repeatable(50)
def test_any_projection(each_isa, data, threads):
    half = data.draw(st.sampled_from(HALF_DTYPES))
    leading = data.draw(st.lists(st.integers(1, 6), max_size=3))
    n_in, n_out = data.draw(lengths(530)), data.draw(lengths(140))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shapes = (*leading, n_in), (n_out, n_in), (n_out,), (*leading, n_out)
    arrays = [data.draw(laid_out(rng.standard_normal(shape).astype(half))) for shape in shapes]
    compare(each_isa, arrays, half, threads)
