"""The operators' kernels: of tensors on the CPU, by the NumPy API; and of tensors without memory.

A kernel and its fake have one signature, that of the operator. torch.compile and torch.export run
the fake to know shapes, dtypes and strides of what the kernel will return.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _args, _core, attention, backward, linear, varlen
from . import options, shapes
from .arrays import array_of, new_gradient, new_result, tensor_of

Tensors = tuple[Tensor, ...]


def _arrays(**tensors: Tensor) -> Any:
    return [array_of(name, x) for name, x in tensors.items()]


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
    """Attention's result alone, where nobody asks for lse."""
    keywords = options.of_kernel(given)
    out = new_result(query, shapes.attention(query, key, value))
    arrays = _arrays(query=query, key=key, value=value)
    attention.scaled_dot_product_attention(*arrays, out=array_of("out", out), **keywords)
    return out


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
    return new_result(query, shape), query.new_empty(shape[:-1])


def attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    mask_grad: bool, sinks_grad: bool, *given: Any,
) -> Tensors:  # fmt: skip
    keywords = options.of_kernel(options.filled(given))
    found = backward.scaled_dot_product_attention_backward(
        *_arrays(grad_out=grad_out, query=query, key=key, value=value, out=out, lse=lse),
        mask_grad=mask_grad,
        sinks_grad=sinks_grad,
        **keywords,
    )
    return _gradients(found, query)


def fake_attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    mask_grad: bool, sinks_grad: bool, *given: Any,
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
    return out, query.new_empty((heads, total))


def varlen_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, mask_grad: bool, sinks_grad: bool, *given: Any,
) -> Tensors:  # fmt: skip
    keywords = options.of_kernel(options.filled(given))
    found = backward.varlen_attention_backward(
        *_arrays(grad_out=grad_out, query=query, key=key, value=value, out=out, lse=lse),
        *_arrays(cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k),
        mask_grad=mask_grad,
        sinks_grad=sinks_grad,
        **keywords,
    )
    return _gradients(found, query)


def fake_varlen_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, mask_grad: bool, sinks_grad: bool, *given: Any,
) -> Tensors:  # fmt: skip
    return _fake_gradients(query, key, value, mask_grad, sinks_grad, given)


# ------------------------------------------------------------------ projections


def linear_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, num_threads: int | None = None
) -> Tensor:
    # In C order, as PyTorch's own: layers view it as heads.
    out = x.new_empty(shapes.linear(x, weight))
    linear.project(
        array_of("x", x),
        array_of("weight", weight),
        None if bias is None else array_of("bias", bias),
        out=array_of("out", out),
        num_threads=num_threads,
    )
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
