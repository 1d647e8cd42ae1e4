"""The operators' kernels: of tensors on the CPU, by the NumPy API; and of tensors without memory.

A kernel and its fake have one signature, that of the operator. torch.compile and torch.export run
the fake to know shapes, dtypes and strides of what the kernel will return.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from .. import _args, _core, backward, varlen
from .._threads import get_num_threads
from ..gradients import AttentionGradients
from . import options, shapes
from .arrays import (
    array_of,
    lse_dtype,
    memory,
    new_gradient,
    new_result,
    new_tensor,
    tensor_of,
)

Tensors = tuple[Tensor, ...]


def _arrays(**tensors: Tensor) -> Any:
    return [array_of(name, x) for name, x in tensors.items()]


def _of_all(found: AttentionGradients) -> tuple[Tensor | None, ...]:
    """The gradients of query, key, value, mask, sinks and bias; None where there is none."""
    return tuple([None if x is None else tensor_of(x) for x in (*found, found.attn_bias)])


def _operators_gradients(found: Any, query: Tensor) -> Tensors:
    """As an operator returns them: a tensor without elements where there is no gradient."""
    return tuple(query.new_empty(0) if x is None else x for x in found)


def _fake_gradients(
    query: Tensor, key: Tensor, value: Tensor, wanted: tuple[bool, ...], given: Any
) -> Tensors:
    given = options.filled(given)
    others = [given[place] for place in options.DIFFERENTIABLE]
    return (
        *(new_gradient(x) for x in (query, key, value)),
        *(
            x.new_empty(x.shape) if is_wanted else query.new_empty(0)
            for x, is_wanted in zip(others, wanted, strict=True)
        ),
    )


# ------------------------------------------------------------------ attention


def problem_of(query: Tensor, key: Tensor, value: Tensor, keywords: dict[str, Any]) -> Any:
    """`_args.attention_problem` of tensors; sooner for the usual ones."""
    enable_gqa = _args.flag("enable_gqa", keywords.pop("enable_gqa", False))
    problem = memory.problem(query, key, value, enable_gqa)
    if problem is None:
        return _args.attention_problem(
            array_of("query", query),
            array_of("key", key),
            array_of("value", value),
            enable_gqa,
            **keywords,
        )
    if keywords:
        _args.set_options(problem, keywords)
    return problem


def attend(
    query: Tensor, key: Tensor, value: Tensor, given: tuple[Any, ...] = (), with_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The result, and its lse if that is wanted, of an operator's options."""
    keywords = options.of_kernel(options.filled(given))
    num_threads = _args.num_threads(keywords.pop("num_threads", None))
    if options.is_short(keywords):
        found = memory.attention(query, key, value, *options.short(keywords), with_lse, num_threads)
        if found is not None:
            return found
    problem = problem_of(query, key, value, keywords)
    out = new_result(query, problem.out_shape)
    return out, memory.attend(problem, out, with_lse, num_threads)


def attention_forward(query: Tensor, key: Tensor, value: Tensor, *given: Any) -> Any:
    return attend(query, key, value, given, with_lse=True)


def fake_attention_forward(query: Tensor, key: Tensor, value: Tensor, *given: Any) -> Tensors:
    shapes.check("key", key.shape[-1], query.shape[-1], "query's head_dim")
    shapes.check("value", value.shape[-2], key.shape[-2], "key's number of rows")
    shape = shapes.attention(query, key, value)
    lse = query.new_empty(shape[:-1], dtype=lse_dtype(query.dtype))
    return new_result(query, shape), lse


def attention_gradients(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    grad_lse: Tensor | None, mask_grad: bool, sinks_grad: bool, bias_grad: bool, *given: Any,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Of query, key, value, mask, sinks and bias; None where one is not wanted."""
    keywords = options.of_kernel(options.filled(given))
    num_threads = _args.num_threads(keywords.pop("num_threads", None))
    wanted = _args.Wanted(
        (keywords.get("attn_mask"), mask_grad),
        (keywords.get("sinks"), sinks_grad),
        (keywords.get("attn_bias"), bias_grad),
    )
    problem = problem_of(query, key, value, keywords)
    if not (mask_grad or sinks_grad or bias_grad):
        gradients = new_gradient(query), new_gradient(key), new_gradient(value)
        results = grad_out, out, lse, grad_lse
        if memory.differentiate(problem, *results, gradients, num_threads):
            return (*gradients, None, None, None)
    found = backward.differentiate(
        problem,
        array_of("grad_out", grad_out),
        array_of("out", out),
        array_of("lse", lse),
        None if grad_lse is None else array_of("grad_lse", grad_lse),
        wanted,
        num_threads,
    )
    return _of_all(found)


def attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    grad_lse: Tensor | None, mask_grad: bool, sinks_grad: bool, bias_grad: bool, *given: Any,
) -> Tensors:  # fmt: skip
    found = attention_gradients(
        *(grad_out, query, key, value, out, lse, grad_lse),
        *(mask_grad, sinks_grad, bias_grad),
        *given,
    )
    return _operators_gradients(found, query)


def fake_attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    grad_lse: Tensor | None, mask_grad: bool, sinks_grad: bool, bias_grad: bool, *given: Any,
) -> Tensors:  # fmt: skip
    return _fake_gradients(query, key, value, (mask_grad, sinks_grad, bias_grad), given)


# ------------------------------------------------------------------ packed sequences


def _sequences(
    starts_q: Tensor, starts_k: Tensor, lengths_q: Tensor | None, lengths_k: Tensor | None
) -> list[Any]:
    """Those of queries and of keys, as the NumPy API takes them."""
    starts = _arrays(cu_seqlens_q=starts_q, cu_seqlens_k=starts_k)
    if starts_k is starts_q:  # which the validator then reads once
        starts[1] = starts[0]
    names = "cu_seqlens_q", "cu_seqlens_k"
    return [
        start if length is None else (start, array_of(name, length))
        for name, start, length in zip(names, starts, (lengths_q, lengths_k), strict=True)
    ]


def varlen_forward(
    query: Tensor, key: Tensor, value: Tensor, starts_q: Tensor, starts_k: Tensor,
    lengths_q: Tensor | None, lengths_k: Tensor | None, *given: Any,
) -> Tensors:  # fmt: skip
    keywords = options.of_kernel(options.filled(given))
    out = new_result(query, shapes.varlen(query, key, value))
    _, lse = varlen.varlen_attention(
        *_arrays(query=query, key=key, value=value),
        *_sequences(starts_q, starts_k, lengths_q, lengths_k),
        out=array_of("out", out),
        return_lse=True,
        **keywords,
    )
    return out, tensor_of(lse)


def fake_varlen_forward(
    query: Tensor, key: Tensor, value: Tensor, starts_q: Tensor, starts_k: Tensor,
    lengths_q: Tensor | None, lengths_k: Tensor | None, *given: Any,
) -> Tensors:  # fmt: skip
    shapes.check("key", key.shape[-1], query.shape[-1], "query's head_dim")
    total, heads, head_dim_v = shapes.varlen(query, key, value)
    out = new_result(query, (total, heads, head_dim_v))
    return out, query.new_empty((heads, total), dtype=lse_dtype(query.dtype))


def varlen_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    starts_q: Tensor, starts_k: Tensor, lengths_q: Tensor | None, lengths_k: Tensor | None,
    grad_lse: Tensor | None, mask_grad: bool, sinks_grad: bool, bias_grad: bool, *given: Any,
) -> Tensors:  # fmt: skip
    keywords = options.of_kernel(options.filled(given))
    found = backward.varlen_attention_backward(
        *_arrays(grad_out=grad_out, query=query, key=key, value=value, out=out, lse=lse),
        *_sequences(starts_q, starts_k, lengths_q, lengths_k),
        grad_lse=None if grad_lse is None else array_of("grad_lse", grad_lse),
        mask_grad=mask_grad,
        sinks_grad=sinks_grad,
        bias_grad=bias_grad,
        **keywords,
    )
    return _operators_gradients(_of_all(found), query)


def fake_varlen_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    starts_q: Tensor, starts_k: Tensor, lengths_q: Tensor | None, lengths_k: Tensor | None,
    grad_lse: Tensor | None, mask_grad: bool, sinks_grad: bool, bias_grad: bool, *given: Any,
) -> Tensors:  # fmt: skip
    return _fake_gradients(query, key, value, (mask_grad, sinks_grad, bias_grad), given)


# ------------------------------------------------------------------ projections


def linear_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, num_threads: int | None = None
) -> Tensor:
    threads = get_num_threads if num_threads is None else partial(_args.num_threads, num_threads)
    out: Tensor | None = memory.project(x, weight, bias, threads)
    if out is not None:
        return out
    offset = None if bias is None else array_of("bias", bias)
    rows, matrix, offset, shape = _args.projection(
        array_of("x", x), array_of("weight", weight), offset
    )
    out = new_tensor(x, shape)  # in C order, as PyTorch's own: layers view it as heads
    _core.project(rows, matrix, offset, array_of("out", out), threads())
    return out


def fake_linear_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, num_threads: int | None = None
) -> Tensor:
    shapes.check("weight", weight.shape[-1], x.shape[-1], "x's last axis")
    return x.new_empty(shapes.linear(x, weight))


def linear_gradients(
    grad_out: Tensor, x: Tensor, weight: Tensor, x_grad: bool, weight_grad: bool, bias_grad: bool,
    num_threads: int | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Each that is asked for, else None; `linear.project_backward` makes them all."""
    threads = _args.num_threads(num_threads)
    wanted = x_grad, weight_grad, bias_grad
    quick = memory.project_gradients(grad_out, x, weight, wanted, threads)
    if quick is not None:
        return quick
    rows, matrix = array_of("x", x), array_of("weight", weight)
    *_, shape = _args.projection(rows, matrix, None)
    grad = _args.gradient_of("grad_out", array_of("grad_out", grad_out), shape, rows)
    found = (
        new_tensor(x, x.shape) if x_grad else None,
        new_tensor(x, weight.shape) if weight_grad else None,
        new_tensor(x, weight.shape[:1]) if bias_grad else None,
    )
    of_x, of_weight, of_bias = (None if new is None else array_of("", new) for new in found)
    _core.project_backward(grad, rows, matrix, of_x, of_weight, of_bias, threads)
    return found


def linear_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, x_grad: bool, weight_grad: bool, bias_grad: bool,
    num_threads: int | None = None,
) -> Tensors:  # fmt: skip
    found = linear_gradients(grad_out, x, weight, x_grad, weight_grad, bias_grad, num_threads)
    return _operators_gradients(found, x)


def fake_linear_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, x_grad: bool, weight_grad: bool, bias_grad: bool,
    num_threads: int | None = None,
) -> Tensors:  # fmt: skip
    return (
        x.new_empty(x.shape if x_grad else 0),
        x.new_empty(weight.shape if weight_grad else 0),
        x.new_empty(weight.shape[0] if bias_grad else 0),
    )
