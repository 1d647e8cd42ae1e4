"""The backward pass: its inputs beside the problem, and arrays that gradients are written to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, overload

import numpy as np

from .. import _core
from .._core import AttentionProblem
from . import options
from .arrays import array, as_array, lse_dtype, real_dtype, same_dtype


def backward_inputs(
    problem: AttentionProblem, out_shape: tuple[int, ...], grad_out: Any, out: Any, lse: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """grad_out and out as arrays of query's dtype, lse as one of its real dtype.

    `out_shape` is that of the user's out: the problem's, or that of packed sequences.
    """
    query, shapes = problem.query, (out_shape, out_shape, problem.lse_shape)
    arrays = []
    for (name, x), shape in zip(
        (("grad_out", grad_out), ("out", out), ("lse", lse)), shapes, strict=True
    ):
        x = array(name, x)
        (lse_dtype if name == "lse" else same_dtype)(name, x, "query", query)
        if x.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {x.shape}")
        arrays.append(x)
    of_out, out, lse = arrays
    return of_out, out, lse


def check_apart(problem: AttentionProblem) -> None:
    """ValueError where a row of packed keys is of several sequences: it is written by each."""
    if problem.keys is not None and problem.keys.overlaps:
        raise ValueError(
            "cu_seqlens_k: expected sequences that share no rows of key where gradients are asked "
            "for, got some that do; give each its own (key[rows]), and add up their gradients"
        )


def lse_gradient(problem: AttentionProblem, grad_lse: Any) -> np.ndarray | None:
    """The gradient of lse as an array of lse's shape and dtype; None where none is given."""
    if grad_lse is None:
        return None
    x = array("grad_lse", grad_lse)
    lse_dtype("grad_lse", x, "query", problem.query)
    if x.shape != problem.lse_shape:
        raise ValueError(f"grad_lse: expected shape {problem.lse_shape}, got {x.shape}")
    return x


class Wanted(NamedTuple):
    """Which options have a gradient too: each one's value, and whether it is asked for."""

    attn_mask: tuple[Any, Any]
    sinks: tuple[Any, Any]
    attn_bias: tuple[Any, Any]


def new_gradients(problem: AttentionProblem, wanted: Wanted) -> tuple[Any, ...]:
    """Arrays for the gradients of query, key, value, mask, sinks, bias; the others if asked for.

    Of the inputs' dtype, except where several rows of scores add to one element, as the kernels do
    in reals: those of mask, sinks and bias, which are zeros, and of a query that is broadcast.
    `in_own_dtypes` gives them their own.
    """
    real = real_dtype(problem.query.dtype)
    of_options = option_gradients(real, wanted)
    # Nothing is written where there are no rows of scores, and of rows that are of no sequence.
    has_gaps = any(x is not None and x.has_gaps for x in (problem.queries, problem.keys))
    new = np.zeros if has_gaps or 0 in problem.lse_shape else np.empty
    query, key, value = (_like(x, new, x.dtype) for x in problem.arrays[:3])
    if math.prod(query.shape[:-1]) < math.prod(problem.lse_shape):
        query = _like(problem.query, new, real)
    return query, key, value, *of_options


def option_gradients(real: np.dtype, wanted: Wanted) -> tuple[Any, ...]:
    """Zeros for those of mask, sinks and bias that are asked for."""
    of_mask = of_sinks = of_bias = None
    (attn_mask, mask_grad), (sinks, sinks_grad), (attn_bias, bias_grad) = wanted
    if options.flag("mask_grad", mask_grad):
        mask = None if attn_mask is None else as_array("attn_mask", attn_mask)
        if mask is None or mask.dtype == bool:
            got = "none" if mask is None else "one of bools"
            raise ValueError(f"mask_grad: expected an attn_mask of floats, got {got}")
        of_mask = np.zeros(mask.shape, real)
    if options.flag("sinks_grad", sinks_grad):
        if sinks is None:
            raise ValueError("sinks_grad: expected sinks, got none")
        of_sinks = np.zeros(as_array("sinks", sinks).size, real)
    if options.flag("bias_grad", bias_grad):
        if attn_bias is None:
            raise ValueError("bias_grad: expected an attn_bias, got none")
        of_bias = np.zeros(as_array("attn_bias", attn_bias).shape, real)
    return of_mask, of_sinks, of_bias


def in_own_dtypes(
    problem: AttentionProblem, gradients: tuple[Any, ...], wanted: Wanted
) -> tuple[Any, ...]:
    """What `new_gradients` made, in the dtypes and shapes of what they are the gradients of."""
    query, key, value, *others = gradients
    others = [in_dtype_of(of_x, x) for of_x, (x, _) in zip(others, wanted, strict=True)]
    return in_dtype_of(query, problem.query), key, value, *others


@overload
def in_dtype_of(gradient: np.ndarray, x: Any) -> np.ndarray: ...
@overload
def in_dtype_of(gradient: None, x: Any) -> None: ...
def in_dtype_of(gradient: np.ndarray | None, x: Any) -> np.ndarray | None:
    """The gradient of `x` in its own shape and dtype, rounded to nearest; None stays None."""
    if gradient is None:
        return None
    x = as_array("", x)
    gradient, dtype = gradient.reshape(x.shape), x.dtype
    if gradient.dtype == dtype:
        return gradient
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return _core.in_default_environment(gradient.astype, dtype)


def _like(x: np.ndarray, new: Callable[..., np.ndarray], dtype: np.dtype) -> np.ndarray:
    """An array that lies in memory as `x` does, if each of its rows lies in one piece."""
    rows_in_one_piece = x.strides[-1:] == (x.itemsize,)
    if x.flags.c_contiguous or not rows_in_one_piece or 0 in x.strides:
        return new(x.shape, dtype)
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    array = new([x.shape[axis] for axis in order], dtype)
    return array.transpose(np.argsort(order))
