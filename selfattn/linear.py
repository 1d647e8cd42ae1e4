"""Step 1 of self-attention, and its gradients: rows, projected by a learnable weight and bias.

    out = x W' + b        dx = dy W        dW = dy' x        db = sum of dy over the rows

Called by users and by `nn/`; `_args` checks, `_core` computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import _args, _core
from .gradients import ProjectionGradients

if TYPE_CHECKING:
    from ._typing import Array


def project(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Project by a learnable weight and bias: `x @ weight.T + bias`.

    A row of the result has the same bits whatever other rows are in `x`, whatever the number of
    threads, the instruction set and the strides.

    Parameters
    ----------
    x : array, shape (..., n_in)
        float32, float64, float16 or bfloat16. Any strides.
    weight : array, shape (n_out, n_in)
        Of x's dtype. Any strides; a step of rows is copied at a time where they do not lie well.
    bias : array, shape (n_out,), optional
    out : array, shape (..., n_out), optional
        It may overlap an input.
    num_threads : int, optional

    Returns
    -------
    array, shape (..., n_out)

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype or kind; for a wrong shape.

    Notes
    -----
    The layout of `weight` is that of `torch.nn.Linear`.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> selfattn.project(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, -1.0]]), np.ones(2))
    array([[ 4., -1.]])
    """
    rows, matrix, offset, shape = _args.projection(x, weight, bias)
    num_threads = _args.num_threads(num_threads)
    inputs = (rows, matrix) if offset is None else (rows, matrix, offset)
    return _args.compute_into(
        out,
        shape,
        rows,
        inputs,
        lambda target: _core.project(rows, matrix, offset, target, num_threads),
    )


def project_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    num_threads: int | None = None,
) -> ProjectionGradients:
    """The gradients of `sum(grad_out * out)`, for `out` of `project(x, weight, bias)`.

    A row of the gradient of x has the same bits whatever other rows there are, as a row of `out`
    has. Those of weight and bias are sums over the rows, and so depend on all of them; the rows are
    added in one order, so they have the same bits whatever the number of threads, the instruction
    set and the strides.

    Parameters
    ----------
    grad_out : array, shape (..., n_out)
        The gradient of `out`, of x's dtype. Any strides.
    x : array, shape (..., n_in)
    weight : array, shape (n_out, n_in)
    bias : array, shape (n_out,), optional
        Given if its gradient is wanted, which does not depend on its values.
    num_threads : int, optional

    Returns
    -------
    ProjectionGradients
        Named (x, weight, bias), each of the shape and dtype of its input; the last is None where
        there is no bias.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype or kind; for a wrong shape.

    Notes
    -----
    A row whose gradient is 0 everywhere adds nothing to the weight's, whatever x holds there: it
    may be padding of NaN.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> x, weight = np.array([[1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, -1.0]])
    >>> gradients = selfattn.project_backward(np.array([[1.0, 10.0]]), x, weight)
    >>> gradients.x, gradients.weight, gradients.bias
    (array([[ 1., -9.]]), array([[ 1.,  2.],
           [10., 20.]]), None)
    """
    rows, matrix, offset, shape = _args.projection(x, weight, bias)
    grad = _args.gradient_of("grad_out", grad_out, shape, rows)
    of_bias = None if offset is None else np.empty(offset.shape, offset.dtype)
    gradients = ProjectionGradients(
        np.empty(rows.shape, rows.dtype), np.empty(matrix.shape, matrix.dtype), of_bias
    )
    _core.project_backward(grad, rows, matrix, *gradients, _args.num_threads(num_threads))
    return gradients
