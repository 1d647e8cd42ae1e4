"""Bits of a projection's rows: the same whatever is beside them, on any threads, in every set.

Fault 42. And of the gradients: those of x as of rows, those of weight and bias for the same rows.
"""

import numpy as np
import pytest

import selfattn
from support.arrays import normal, same_bits
from support.projections import LAYOUTS, ROWS, arrays, grad_of

THREADS = (1, 2, 3, 8)
# (n_in, n_out): within a chunk, a part, a block; a tile's columns and more; blocks of few rows.
SHAPES = [(1, 1), (63, 7), (130, 50), (300, 769), (4097, 23)]


def gradients(grad_out, *given, **options):
    """As a tuple without None."""
    got = selfattn.project_backward(grad_out, *given, **options)
    return tuple(x for x in got if x is not None)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_alone_and_among_others(isa, dtype, shape, transposed):
    """Any number of them, from the first or to the last, all kernels."""
    x, weight, bias = arrays(145, *shape, dtype)
    weight = np.asfortranarray(weight) if transposed else weight
    grad_out = grad_of(x, weight)
    want = selfattn.project(x, weight, bias)
    want_x = selfattn.project_backward(grad_out, x, weight).x
    # As many rows at the end as at the beginning are as many; portably, the largest take long.
    both = isa != "portable" or shape != (300, 769)
    for rows in ROWS:
        for part in (slice(rows), slice(145 - rows, None))[: 1 + both]:
            assert same_bits(selfattn.project(x[part], weight, bias), want[part]), part
            got = selfattn.project_backward(grad_out[part], x[part], weight).x
            assert same_bits(got, want_x[part]), part
    for row in (0, 71, 144):
        assert same_bits(selfattn.project(x[row], weight, bias), want[row]), row
        got = selfattn.project_backward(grad_out[row], x[row], weight).x
        assert same_bits(got, want_x[row]), row
    for part in (slice(None, None, 2), slice(None, None, -1), slice(100, 3, -5)):
        assert same_bits(selfattn.project(x[part], weight, bias), want[part].copy()), part
        got = selfattn.project_backward(grad_out[part], x[part], weight).x
        assert same_bits(got, want_x[part].copy()), part


@pytest.mark.parametrize("leading", [(24,), (4, 6), (2, 3, 4), (24, 1), (1, 24), (2, 1, 12)])
def test_leading_axes(isa, dtype, leading):
    """They are rows, also where they are strided; repeated, they are the same rows again."""
    x, weight, bias = arrays(24, 130, 50, dtype)
    want = selfattn.project(x, weight, bias)
    grad_out = grad_of(x, weight)
    want_gradients = gradients(grad_out, x, weight, bias)
    for layout in (np.asarray, np.asfortranarray, LAYOUTS["every third row"]):
        given = layout(x.reshape(*leading, 130))
        got = selfattn.project(given, weight, bias)
        assert same_bits(got.reshape(24, 50), want)
        of_x, *others = gradients(layout(grad_out.reshape(*leading, 50)), given, weight, bias)
        assert same_bits((of_x.reshape(24, 130), *others), want_gradients)
    repeated = np.broadcast_to(x, (3, 24, 130))
    for got in selfattn.project(repeated, weight, bias):
        assert same_bits(got, want)


@pytest.mark.parametrize("rows", [1, 4, 8, 9, 145, 700])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads(isa, dtype, shape, rows):
    given = arrays(rows, *shape, dtype)
    grad_out = grad_of(*given[:2])
    want = selfattn.project(*given, num_threads=1)
    want_gradients = gradients(grad_out, *given, num_threads=1)
    portably_long = isa == "portable" and rows * shape[0] * shape[1] > 10**7
    for n in THREADS[-1:] if portably_long else THREADS[1:]:
        assert same_bits(selfattn.project(*given, num_threads=n), want), n
        assert same_bits(gradients(grad_out, *given, num_threads=n), want_gradients), n


@pytest.mark.parametrize("rows", ROWS)
def test_sets(each_isa, dtype, rows):
    for shape in SHAPES:
        given = arrays(rows, *shape, dtype)
        grad_out = grad_of(*given[:2])
        results = [
            (isa, (selfattn.project(*given), *gradients(grad_out, *given))) for isa in each_isa()
        ]
        for isa, got in results[1:]:
            assert same_bits(got, results[0][1]), (isa, results[0][0], shape)


@pytest.mark.parametrize("rows", [1, 3, 5, 30, 150])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(isa, dtype, rows, name):
    """One array at a time, then all."""
    x, weight, bias = arrays(rows, 136, 50, dtype)
    inputs = (grad_of(x, weight), x, weight, bias)
    want = (selfattn.project(*inputs[1:]), *gradients(*inputs))
    for which in ((0,), (1,), (2,), (3,), (0, 1, 2, 3)):
        moved = [LAYOUTS[name](a) if i in which else a for i, a in enumerate(inputs)]
        assert all(map(np.array_equal, moved, inputs))
        got = (selfattn.project(*moved[1:], num_threads=2), *gradients(*moved, num_threads=2))
        assert same_bits(tuple(map(np.ascontiguousarray, got)), want), which


@pytest.mark.parametrize("rows", [1, 3, 30])
def test_unaligned(isa, dtype, rows):
    """Every offset from an aligned address, of bytes and not of elements."""
    from support.layouts import bits_at

    x, weight, bias = arrays(rows, 72, 25, dtype)
    inputs = (grad_of(x, weight), x, weight, bias)
    want = (selfattn.project(*inputs[1:]), *gradients(*inputs))
    for offset in range(1, 64):
        moved = [bits_at(offset, a) for a in inputs]
        assert same_bits((selfattn.project(*moved[1:]), *gradients(*moved)), want), offset


@pytest.mark.parametrize("rows", [1, 4, 30, 150])
def test_strides_of_zero(isa, dtype, rows):
    """Along rows, columns and both, of each array and of all."""
    x, weight, bias = arrays(rows, 136, 50, dtype)
    inputs = (grad_of(x, weight), x, weight, bias)
    for part in (np.s_[:1], np.s_[..., :1], np.s_[:1, :1]):
        for which in ((0,), (1,), (2,), (0, 1, 2)):
            moved = [
                np.broadcast_to(a[part], a.shape) if i in which else a for i, a in enumerate(inputs)
            ]
            moved[3] = np.broadcast_to(bias[:1], bias.shape)
            copies = [np.ascontiguousarray(a) for a in moved]
            want = (selfattn.project(*copies[1:]), *gradients(*copies))
            got = (selfattn.project(*moved[1:]), *gradients(*moved))
            assert same_bits(tuple(map(np.ascontiguousarray, got)), want), (part, which)


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_larger_than_caches(each_isa, dtype, transposed):
    """More rows take the kernel of few rows there."""
    n_in, n_out = (1500, 1463) if dtype == np.float32 else (1100, 1063)
    x, weight, bias = arrays(17, n_in, n_out, dtype)
    assert weight.nbytes > 8 << 20
    layout = np.asfortranarray if transposed else np.asarray
    grad_out, want = grad_of(x, weight), None
    for isa in each_isa():
        for rows in (17, *range(1, 10)):
            given = x[:rows], layout(weight)
            got = (
                selfattn.project(*given, bias, num_threads=2),
                selfattn.project_backward(grad_out[:rows], *given).x,
            )
            want = got if want is None else want
            assert same_bits(got, tuple(a[:rows] for a in want)), (isa, rows)


def test_a_bias_is_added_once_at_the_end(isa, dtype):
    for rows in (1, 30):
        x, weight, bias = arrays(rows, 300, 50, dtype)
        want = selfattn.project(x, weight) + bias
        assert same_bits(selfattn.project(x, weight, bias), want)


@pytest.mark.parametrize("rows", [5, 150, 700])
def test_columns_of_the_weights_gradient(isa, dtype, rows):
    """An element has the bits of its own column of x and of grad_out, whatever is beside them."""
    x, weight, bias = arrays(rows, 150, 60, dtype)
    grad_out = grad_of(x, weight)
    _, want, of_bias = selfattn.project_backward(grad_out, x, weight, bias)
    for columns in (slice(0, 1), slice(3, 40), slice(145, 150)):
        got = selfattn.project_backward(grad_out, x[:, columns], weight[:, columns]).weight
        assert same_bits(got, want[:, columns].copy()), columns
    for columns in (slice(0, 1), slice(3, 40), slice(57, 60)):
        part = grad_out[:, columns]
        _, got, few = selfattn.project_backward(part, x, weight[columns], bias[columns])
        assert same_bits((got, few), (want[columns], of_bias[columns])), columns
    ones = np.ones((rows, 1), dtype)
    got = selfattn.project_backward(grad_out, ones, weight[:, :1]).weight
    assert same_bits(got[:, 0].copy(), of_bias)


def test_signs_of_zero(isa, dtype):
    """A sum begins at 0: that of no terms and that of terms of -0 are 0, not -0, in any row."""
    for rows in (1, 30):
        for n_in in (0, 1, 5, 64, 65, 130):
            x, weight = -np.zeros((rows, n_in), dtype), np.ones((9, n_in), dtype)
            got = selfattn.project(x, weight)
            assert same_bits(got, np.zeros_like(got)), (rows, n_in)
            got = selfattn.project(x, weight, normal(9, dtype=dtype) * dtype(-0.0))
            assert (got == 0).all()
