"""The operators' kernels: of tensors on the CPU, by the NumPy API; and of tensors without memory.

A kernel and its fake have one signature, that of the operator. torch.compile and torch.export run
the fake to know shapes, dtypes and strides of what the kernel will return.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _args, _core, attention, backward, varlen
from .._threads import get_num_threads
from . import options, shapes
from .arrays import DTYPES, array_of, lse_dtype, new_gradient, new_result, tensor_of
from .masks import bools_of

Tensors = tuple[Tensor, ...]
Operands = tuple[np.ndarray, np.ndarray, np.ndarray]


def _arrays(**tensors: Tensor) -> Any:
    return [array_of(name, x) for name, x in tensors.items()]


def _array_at_once(x: Tensor) -> np.ndarray:
    """As `array_of`, sooner. TypeError or RuntimeError for what is no plain memory of numbers."""
    return array_of("", x) if x.dtype is torch.bfloat16 else x.numpy()


def _arrays_at_once(query: Tensor, key: Tensor, value: Tensor) -> Operands:
    """`_array_at_once` of three, where the first one's dtype decides."""
    if query.dtype is torch.bfloat16:
        return array_of("query", query), array_of("key", key), array_of("value", value)
    return query.numpy(), key.numpy(), value.numpy()


def _operands(query: Tensor, key: Tensor, value: Tensor) -> Operands:
    """The arrays of any tensors; sooner where they are plain ones."""
    if not query.requires_grad:
        try:
            return _arrays_at_once(query, key, value)
        except (TypeError, RuntimeError):
            pass  # the errors that name the argument come below
    return array_of("query", query), array_of("key", key), array_of("value", value)


def _gradients(found: Any, query: Tensor) -> Tensors:
    """As an operator returns them: a tensor without elements where there is no gradient."""
    return tuple(query.new_empty(0) if x is None else tensor_of(x) for x in found)


def _fake_gradients(
    query: Tensor, key: Tensor, value: Tensor, mask_grad: bool, sinks_grad: bool, given: Any
) -> Tensors:
    given = options.filled(given)
    mask, sinks = given[options.MASK], given[options.SINKS]
    return (
        *(new_gradient(x) for x in (query, key, value)),
        mask.new_empty(mask.shape) if mask_grad else query.new_empty(0),
        sinks.new_empty(sinks.shape) if sinks_grad else query.new_empty(0),
    )


# ------------------------------------------------------------------ attention


def attend(query: Tensor, key: Tensor, value: Tensor, given: tuple[Any, ...]) -> Tensor:
    """Attention's result alone, as `scaled_dot_product_attention` computes it, in less time."""
    keywords = {} if given is options.DEFAULTS else options.of_kernel(given)
    num_threads = _args.num_threads(keywords.pop("num_threads", None))
    return _attend(query, _operands(query, key, value), keywords, num_threads)


def _attend(query: Tensor, arrays: Any, keywords: dict[str, Any], num_threads: int) -> Tensor:
    problem = _args.attention_problem(*arrays, **keywords)
    out = new_result(query, problem.out_shape)
    problem.attend(_array_at_once(out), None, num_threads)
    return out


def attend_with_keywords(
    query: Tensor, key: Tensor, value: Tensor, keywords: dict[str, Any]
) -> Tensor | None:
    """The same with keywords of the NumPy API, of which a mask alone may be a tensor.

    None where the tensors are not of one dtype of ours, or something requires grad.
    """
    mask = keywords.get("attn_mask")
    try:
        arrays = _arrays_at_once(query, key, value)
        if mask is not None:
            mask = keywords["attn_mask"] = bools_of(_array_at_once(mask))
    except (TypeError, RuntimeError):
        return None
    dtype = arrays[0].dtype
    if query.dtype not in DTYPES or dtype != arrays[1].dtype or dtype != arrays[2].dtype:
        return None
    if mask is not None and mask.dtype != dtype and mask.dtype != bool and mask.dtype != np.float32:
        return None
    return _attend(query, arrays, keywords, get_num_threads())


_USUAL = tuple(option.default for option in _args.options_of("scaled_dot_product_attention")[:-3])


def attend_at_once(
    query: Tensor, key: Tensor, value: Tensor, values: tuple[Any, ...] = _USUAL
) -> Tensor | None:
    """The same for the usual arrays in C order, if no option differs from its default; else None.

    `values` are those of the NumPy API's options, but `return_lse` and what follows it.
    """
    if query.requires_grad or key.requires_grad or value.requires_grad:
        return None
    try:
        if not query.is_contiguous():
            return None
        is_bfloat16 = query.dtype is torch.bfloat16
        if is_bfloat16:
            arrays = _arrays_at_once(query, key, value)
        else:
            arrays = query.numpy(), key.numpy(), value.numpy()
    except (TypeError, RuntimeError):  # of another device or layout, of a dtype that NumPy lacks
        return None
    out = _core.fast_path(*arrays, None, values, _USUAL, None, get_num_threads)
    if out is None:
        return None
    return tensor_of(out) if is_bfloat16 else torch.from_numpy(out)


def attention_forward(query: Tensor, key: Tensor, value: Tensor, *given: Any) -> Tensors:
    keywords = options.of_kernel(options.filled(given))
    out = new_result(query, shapes.attention(query, key, value))
    _, lse = attention.scaled_dot_product_attention(
        *_arrays(query=query, key=key, value=value),
        out=array_of("out", out),
        return_lse=True,
        **keywords,
    )
    return out, tensor_of(lse)


def fake_attention_forward(query: Tensor, key: Tensor, value: Tensor, *given: Any) -> Tensors:
    shapes.check("key", key.shape[-1], query.shape[-1], "query's head_dim")
    shapes.check("value", value.shape[-2], key.shape[-2], "key's number of rows")
    shape = shapes.attention(query, key, value)
    lse = query.new_empty(shape[:-1], dtype=lse_dtype(query.dtype))
    return new_result(query, shape), lse


def attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    grad_lse: Tensor | None, mask_grad: bool, sinks_grad: bool, *given: Any,
) -> Tensors:  # fmt: skip
    keywords = options.of_kernel(options.filled(given))
    found = backward.scaled_dot_product_attention_backward(
        *_arrays(grad_out=grad_out, query=query, key=key, value=value, out=out, lse=lse),
        grad_lse=None if grad_lse is None else array_of("grad_lse", grad_lse),
        mask_grad=mask_grad,
        sinks_grad=sinks_grad,
        **keywords,
    )
    return _gradients(found, query)


def fake_attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    grad_lse: Tensor | None, mask_grad: bool, sinks_grad: bool, *given: Any,
) -> Tensors:  # fmt: skip
    return _fake_gradients(query, key, value, mask_grad, sinks_grad, given)


# ------------------------------------------------------------------ packed sequences


def varlen_forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
    *given: Any,
) -> Tensors:  # fmt: skip
    keywords = options.of_kernel(options.filled(given))
    out = new_result(query, shapes.varlen(query, key, value))
    starts = _arrays(cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    if cu_seqlens_k is cu_seqlens_q:  # which the validator then reads once
        starts[1] = starts[0]
    _, lse = varlen.varlen_attention(
        *_arrays(query=query, key=key, value=value),
        *starts,
        out=array_of("out", out),
        return_lse=True,
        **keywords,
    )
    return out, tensor_of(lse)


def fake_varlen_forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
    *given: Any,
) -> Tensors:  # fmt: skip
    shapes.check("key", key.shape[-1], query.shape[-1], "query's head_dim")
    total, heads, head_dim_v = shapes.varlen(query, key, value)
    out = new_result(query, (total, heads, head_dim_v))
    return out, query.new_empty((heads, total), dtype=lse_dtype(query.dtype))


def varlen_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, grad_lse: Tensor | None, mask_grad: bool,
    sinks_grad: bool, *given: Any,
) -> Tensors:  # fmt: skip
    keywords = options.of_kernel(options.filled(given))
    found = backward.varlen_attention_backward(
        *_arrays(grad_out=grad_out, query=query, key=key, value=value, out=out, lse=lse),
        *_arrays(cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k),
        grad_lse=None if grad_lse is None else array_of("grad_lse", grad_lse),
        mask_grad=mask_grad,
        sinks_grad=sinks_grad,
        **keywords,
    )
    return _gradients(found, query)


def fake_varlen_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, grad_lse: Tensor | None, mask_grad: bool,
    sinks_grad: bool, *given: Any,
) -> Tensors:  # fmt: skip
    return _fake_gradients(query, key, value, mask_grad, sinks_grad, given)


# ------------------------------------------------------------------ projections


def linear_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, num_threads: int | None = None
) -> Tensor:
    """What `linear.project` computes, in less time."""
    offset = None if bias is None else array_of("bias", bias)
    rows, matrix, offset, shape = _args.projection(
        array_of("x", x), array_of("weight", weight), offset
    )
    threads = _args.num_threads(num_threads)
    out = x.new_empty(shape)  # in C order, as PyTorch's own: layers view it as heads
    _core.project(rows, matrix, offset, _array_at_once(out), threads)
    return out


def fake_linear_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, num_threads: int | None = None
) -> Tensor:
    shapes.check("weight", weight.shape[-1], x.shape[-1], "x's last axis")
    return x.new_empty(shapes.linear(x, weight))


def linear_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, x_grad: bool, weight_grad: bool, bias_grad: bool,
    num_threads: int | None = None,
) -> Tensors:  # fmt: skip
    """Each of the gradients that is asked for; `linear.project_backward` makes them all."""
    rows, matrix = _arrays(x=x, weight=weight)
    *_, shape = _args.projection(rows, matrix, None)
    grad = _args.gradient_of("grad_out", array_of("grad_out", grad_out), shape, rows)
    found = fake_linear_backward(grad_out, x, weight, x_grad, weight_grad, bias_grad)
    wanted = zip(found, (x_grad, weight_grad, bias_grad), strict=True)
    of_x, of_weight, of_bias = (array_of("", new) if want else None for new, want in wanted)
    threads = _args.num_threads(num_threads)
    _core.project_backward(grad, rows, matrix, of_x, of_weight, of_bias, threads)
    return found


def fake_linear_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, x_grad: bool, weight_grad: bool, bias_grad: bool,
    num_threads: int | None = None,
) -> Tensors:  # fmt: skip
    return (
        x.new_empty(x.shape if x_grad else 0),
        x.new_empty(weight.shape if weight_grad else 0),
        x.new_empty(weight.shape[0] if bias_grad else 0),
    )
