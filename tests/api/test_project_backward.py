"""project_backward: beside the reference, finite differences and PyTorch; padding and NaN."""

import numpy as np
import pytest

import selfattn
from selfattn import reference
from support.arrays import normal, same_bits
from support.projections import (
    N_IN,
    N_OUT,
    ROWS,
    arrays,
    check_each_gradient,
    check_gradients,
    grad_of,
)


@pytest.mark.parametrize("rows", ROWS)
def test_at_every_edge(each_isa, dtype, rows):
    for n_in in (*N_IN[:3], *N_IN[5:-1]):
        for n_out in N_OUT[:-2]:
            given = arrays(rows, n_in, n_out, dtype)
            check_each_gradient(each_isa, grad_of(*given[:2]), *given)
    for shape in ((4097, 24), (24, 4097), (300, 769)):
        given = arrays(rows, *shape, dtype)
        check_each_gradient(each_isa, grad_of(*given[:2]), *given)


def test_at_every_tail(each_isa, dtype):
    for n in [*range(1, 70), 95, 97, 127, 128, 129, 191, 193, 257]:
        for shape in ((n, 9, 7), (5, n, 9), (30, n, 9), (5, 9, n), (30, 9, n)):
            given = arrays(*shape, dtype)
            check_each_gradient(each_isa, grad_of(*given[:2]), *given)


@pytest.mark.parametrize("rows", [4097, 20_000])
def test_many_rows(each_isa, dtype, rows):
    given = arrays(rows, 5, 3, dtype)
    check_each_gradient(each_isa, grad_of(*given[:2]), *given, num_threads=2)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (1, 2, 1)])
def test_any_leading_axes(isa, dtype, leading):
    given = arrays(leading, 7, 5, dtype)
    for count in (2, 3):
        got = check_gradients(grad_of(*given[:2]), *given[:count])
        assert [x.shape for x in got[:count]] == [x.shape for x in given[:count]]
        assert all(x.dtype == dtype for x in got[:count])
    assert isinstance(got, selfattn.ProjectionGradients)
    assert selfattn.project_backward(grad_of(*given[:2]), *given[:2]).bias is None


def test_the_biass_values_do_not_matter(isa, dtype):
    x, weight, bias = arrays(30, 7, 5, dtype)
    grad_out = grad_of(x, weight)
    want = selfattn.project_backward(grad_out, x, weight, bias)
    assert same_bits(selfattn.project_backward(grad_out, x, weight, bias * np.nan), want)


def test_inputs_are_never_written(isa, dtype):
    given = arrays(30, 70, 9, dtype)
    inputs = (grad_of(*given[:2]), *given)
    want, before = selfattn.project_backward(*inputs), [x.copy() for x in inputs]
    for x in inputs:
        x.flags.writeable = False
    assert same_bits(selfattn.project_backward(*inputs), want)
    assert same_bits(tuple(before), inputs)


def test_finite_differences(isa):
    """In float64, through project itself: it is linear in each input, so steps may be long."""
    inputs = list(arrays((2, 3), 6, 4, np.float64))
    grad_out = grad_of(*inputs[:2])
    got = selfattn.project_backward(grad_out, *inputs)
    for i, gradient in enumerate(got):
        for at in np.ndindex(gradient.shape):
            sums = []
            for step in (1, -1):
                moved = [x.copy() for x in inputs]
                moved[i][at] += step
                sums.append(float((grad_out * selfattn.project(*moved)).sum()))
            assert abs((sums[0] - sums[1]) / 2 - gradient[at]) < 1e-12, (i, at)


@pytest.mark.parametrize("rows", [1, 5, 150])
def test_beside_autograd(isa, dtype, rows):
    torch = pytest.importorskip("torch")
    inputs = arrays((2, rows), 129, 25, dtype)
    grad_out = grad_of(*inputs[:2])
    tensors = [torch.from_numpy(x.astype(np.float64)).requires_grad_() for x in inputs]
    torch.nn.functional.linear(*tensors).backward(torch.from_numpy(grad_out.astype(np.float64)))
    got = check_gradients(grad_out, *inputs)
    for x, tensor in zip(got, tensors, strict=True):
        # Sums of up to 300 terms, most below 4 in size: each may be off by 8 units of that.
        atol = 8 * 300 * np.finfo(dtype).eps
        np.testing.assert_allclose(x, tensor.grad.numpy(), rtol=0, atol=atol)


def test_empty_axes(isa, dtype):
    """Sums of nothing are 0."""
    for rows in (0, 1, 3, 60):
        for n_in in (0, 1, 65):
            for n_out in (0, 1, 50):
                given = arrays((rows, 1), n_in, n_out, dtype)
                got = check_gradients(grad_of(*given[:2]), *given, num_threads=3)
                for x, want in zip(got, given, strict=True):
                    assert x.shape == want.shape
                if n_out == 0:
                    assert same_bits(got.x, np.zeros_like(got.x))
                if rows == 0:
                    assert same_bits(got.weight, np.zeros_like(got.weight))
                    assert same_bits(got.bias, np.zeros_like(got.bias))


# ------------------------------------------------------------------ NaN and infinity


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [3, 30, 300])
def test_rows_without_a_gradient_add_nothing(isa, dtype, rows, poison):
    """Padding, whatever x holds there; -0 is 0 too. All bits, as if it held 0."""
    x, weight, bias = arrays(rows, 150, 60, dtype)
    grad_out = grad_of(x, weight)
    padding = np.arange(rows) % 3 == 1
    grad_out[padding] = 0
    grad_out[padding, 7] = -0.0
    x[padding] = 0
    want = selfattn.project_backward(grad_out, x, weight, bias)
    x[padding, 3] = x[padding, 149] = poison
    for layout in (np.asarray, np.asfortranarray):
        for n in (1, 2):
            got = selfattn.project_backward(
                layout(grad_out), layout(x), weight, bias, num_threads=n
            )
            assert same_bits(tuple(map(np.ascontiguousarray, got)), want)
    assert np.isfinite(got.weight).all()


@pytest.mark.parametrize("rows", [3, 30, 300])
@pytest.mark.parametrize("at", [0, 49, 59])
def test_one_gradient_is_enough_to_add(isa, dtype, rows, at):
    """Then NaN in x is in its column of every row: 0 times NaN is NaN."""
    x, weight, _ = arrays(rows, 70, 60, dtype)
    grad_out = grad_of(x, weight)
    want = selfattn.project_backward(grad_out, x, weight).weight
    grad_out[1] = 0
    grad_out[1, at] = 1e-30
    x[1, 11] = np.nan
    got = selfattn.project_backward(grad_out, x, weight).weight
    assert np.isnan(got[:, 11]).all()
    assert np.isfinite(np.delete(got, 11, axis=1)).all()
    assert not np.isnan(want).any()


@pytest.mark.parametrize("rows", [1, 4, 30, 150])
def test_poison_of_a_gradient_stays_in_its_row_of_x(isa, dtype, rows):
    x, weight, bias = arrays(rows, 70, 60, dtype)
    grad_out = grad_of(x, weight)
    want = selfattn.project_backward(grad_out, x, weight, bias)
    for poison in (np.nan, np.inf, -np.inf):
        poisoned = grad_out.copy()
        poisoned[rows // 2, 31] = poison
        got = selfattn.project_backward(poisoned, x, weight, bias)
        others = np.arange(rows) != rows // 2
        assert same_bits(got.x[others], want.x[others])
        assert not np.isfinite(got.x[rows // 2]).any()
        # And in its row of the weight's, its element of the bias's.
        others = np.arange(60) != 31
        assert same_bits(got.weight[others], want.weight[others])
        assert same_bits(got.bias[others], want.bias[others])
        assert not np.isfinite(got.weight[31]).any()
        assert not np.isfinite(got.bias[31])


def test_the_reference_leaves_padding_out_too(dtype):
    x, weight, bias = arrays(3, 4, 5, dtype)
    grad_out = grad_of(x, weight)
    grad_out[1] = x[1] = 0
    want = reference.project_backward(grad_out, x, weight, bias)
    x[1] = np.nan
    assert same_bits(reference.project_backward(grad_out, x, weight, bias), want)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"grad_out": normal(3, 4)},
            ValueError,
            r"grad_out: expected shape \(3, 5\), got \(3, 4\)",
        ),
        ({"grad_out": normal(5)}, ValueError, r"grad_out: expected shape \(3, 5\), got \(5,\)"),
        (
            {"grad_out": normal(3, 5, dtype=np.float64)},
            TypeError,
            "grad_out: expected .*float32.*float64",
        ),
        ({"grad_out": [1.0]}, TypeError, "grad_out: expected .*got list"),
        ({"x": normal(3, 4, dtype=np.float64)}, TypeError, "weight: expected .*float64.*float32"),
        (
            {"weight": normal(5, 3)},
            ValueError,
            r"weight: expected shape \(n_out, 4\), got \(5, 3\)",
        ),
        ({"bias": normal(6)}, ValueError, r"bias: expected shape \(5,\), got \(6,\)"),
        ({"num_threads": 0}, ValueError, "num_threads: expected .*got 0"),
        ({"num_threads": "2"}, TypeError, "num_threads: expected .*got str"),
    ],
)
def test_errors(changed, error, message):
    x, weight, bias = arrays(3, 4, 5)
    given = {"grad_out": normal(3, 5), "x": x, "weight": weight, "bias": bias} | changed
    with pytest.raises(error, match=f"^{message}"):
        selfattn.project_backward(**given)
