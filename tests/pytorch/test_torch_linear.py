"""selfattn.torch's projection: the bits of the NumPy API, values and gradients."""

import itertools

import numpy as np
import pytest

import selfattn
from support.arrays import normal

torch = pytest.importorskip("torch")

from selfattn import torch as ours  # noqa: E402
from support.tensors import assert_same_bits, tensor, tensors  # noqa: E402


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 0), (2, 1, 33)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_bits_of_the_numpy_api(dtype, shape, has_bias):
    x, weight = normal(*shape, 20, dtype=dtype), normal(9, 20, dtype=dtype, seed=1)
    inputs = [x, weight] + [normal(9, dtype=dtype, seed=2)] * has_bias
    grad_out = normal(*shape, 9, dtype=dtype, seed=3)
    want = selfattn.project(*inputs)
    gradients = selfattn.project_backward(grad_out, *inputs)
    with torch.inference_mode():
        assert_same_bits(ours.linear(*tensors(*inputs)), want)
    leaves = tensors(*inputs, requires_grad=True)
    out = ours.linear(*leaves)
    assert_same_bits(out, want)
    out.backward(tensor(grad_out))
    for leaf, gradient in zip(leaves, gradients, strict=False):
        assert_same_bits(leaf.grad, gradient)


def test_gradients_that_are_wanted(dtype):
    """Any of them without the others: the same bits."""
    inputs = [normal(5, 20, dtype=dtype), normal(9, 20, dtype=dtype, seed=1)]
    inputs.append(normal(9, dtype=dtype, seed=2))
    gradients = selfattn.project_backward(np.ones((5, 9), dtype), *inputs)
    for wanted in itertools.product((False, True), repeat=3):
        if any(wanted):
            leaves = [tensor(x, y) for x, y in zip(inputs, wanted, strict=True)]
            ours.linear(*leaves).sum().backward()
            for leaf, gradient, is_wanted in zip(leaves, gradients, wanted, strict=True):
                assert (leaf.grad is not None) == is_wanted
                if is_wanted:
                    assert_same_bits(leaf.grad, gradient)


def test_strides(dtype):
    x, weight = normal(4, 3, 20, dtype=dtype), normal(9, 20, dtype=dtype, seed=1)
    want = selfattn.project(x.swapaxes(0, 1), weight)
    given = tensor(x).transpose(0, 1), tensor(np.ascontiguousarray(weight.T)).T
    out = ours.linear(*given)
    assert out.is_contiguous()
    assert_same_bits(out, want)


def test_rows_alone_have_the_bits_of_the_batch(dtype):
    x, weight = tensors(normal(33, 64, dtype=dtype), normal(48, 64, dtype=dtype, seed=1))
    out = ours.linear(x, weight)
    assert all(torch.equal(ours.linear(x[i : i + 1], weight)[0], out[i]) for i in range(33))


def test_of_torchs_own_function(dtype):
    inputs = [normal(7, 64, dtype=dtype), normal(9, 64, dtype=dtype, seed=1)]
    inputs.append(normal(9, dtype=dtype, seed=2))
    near = 200 * torch.finfo(tensor(inputs[0]).dtype).eps
    results = []
    for function in (ours.linear, torch.nn.functional.linear):
        leaves = tensors(*inputs, requires_grad=True)
        out = function(*leaves)
        (out * out).sum().backward()
        results.append([out.detach(), *(x.grad for x in leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=near, atol=near * float(want.abs().max()))
