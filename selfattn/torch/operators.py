"""The operators of PyTorch, `torch.ops.selfattn`: schemas, kernels, derivatives, rules of vmap.

    attention, varlen, linear           forward
    …_backward                          their gradients, which are not differentiated again

`attention` and `varlen` return (out, lse), both differentiable: a backward takes `grad_lse`, which
may be None. Their arguments after the tensors are those of `options.py`, in its order. Gradients
that are not asked for are tensors without elements. The public functions stand upon these; other
integrations may, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import batching, differentiation, eager, kernels, options

_QKV = "Tensor query, Tensor key, Tensor value"
_UPON = f"Tensor grad_out, {_QKV}, Tensor out, Tensor lse"
# Without lengths these are cu_seqlens, else where each sequence starts.
_STARTS = "Tensor starts_q, Tensor starts_k, Tensor? lengths_q, Tensor? lengths_k"
_WANTED = "Tensor? grad_lse, bool mask_grad, bool sinks_grad, bool bias_grad"
_GRADIENTS = "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"

# name: arguments and results, kernel, fake kernel, rule of vmap
_OPERATORS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any], batching.Rule]] = {
    "attention": (
        f"({_QKV}, {options.SCHEMA}) -> (Tensor out, Tensor lse)",
        kernels.attention_forward,
        kernels.fake_attention_forward,
        batching.attention,
    ),
    "attention_backward": (
        f"({_UPON}, {_WANTED}, {options.SCHEMA}) -> {_GRADIENTS}",
        kernels.attention_backward,
        kernels.fake_attention_backward,
        batching.attention_backward,
    ),
    "varlen": (
        f"({_QKV}, {_STARTS}, {options.SCHEMA}) -> (Tensor out, Tensor lse)",
        kernels.varlen_forward,
        kernels.fake_varlen_forward,
        batching.varlen,
    ),
    "varlen_backward": (
        f"({_UPON}, {_STARTS}, {_WANTED}, {options.SCHEMA}) -> {_GRADIENTS}",
        kernels.varlen_backward,
        kernels.fake_varlen_backward,
        batching.varlen_backward,
    ),
    "linear": (
        "(Tensor x, Tensor weight, Tensor? bias=None, int? num_threads=None) -> Tensor",
        kernels.linear_forward,
        kernels.fake_linear_forward,
        batching.linear,
    ),
    "linear_backward": (
        "(Tensor grad_out, Tensor x, Tensor weight, bool x_grad, bool weight_grad, "
        "bool bias_grad, int? num_threads=None) -> (Tensor, Tensor, Tensor)",
        kernels.linear_backward,
        kernels.fake_linear_backward,
        batching.linear_backward,
    ),
}

# Lives as long as the process: without it there are no operators.
_register: Any = torch.library
library: Any = _register.Library("selfattn", "DEF")


def _define() -> None:
    for name, (signature, kernel, fake, rule) in _OPERATORS.items():
        library.define(name + signature)
        library.impl(name, kernel, "CPU")
        _register.register_fake(f"selfattn::{name}", fake, lib=library)
        _register.register_vmap(f"selfattn::{name}", rule, lib=library)


_define()
attention: Any = torch.ops.selfattn.attention.default
varlen: Any = torch.ops.selfattn.varlen.default
linear: Any = torch.ops.selfattn.linear.default
_attention_backward: Any = torch.ops.selfattn.attention_backward.default
_varlen_backward: Any = torch.ops.selfattn.varlen_backward.default
linear_backward: Any = torch.ops.selfattn.linear_backward.default


# ------------------------------------------------------------------ derivatives


def _save_attention(ctx: Any, arguments: tuple[Any, ...], results: Any, tensors: int = 3) -> None:
    """Tensors by PyTorch's own means, which sees when one is written to."""
    given = options.filled(arguments[tensors:])
    places = [i for i in options.TENSORS if given[i] is not None]
    ctx.save_for_backward(*arguments[:tensors], *results, *[given[i] for i in places])
    if places:
        given = tuple([None if i in places else x for i, x in enumerate(given)])
    ctx.kept = tensors, places, given
    ctx.set_materialize_grads(False)  # most calls leave lse's gradient None, which costs nothing


def _needs(ctx: Any, n: int) -> tuple[bool, ...]:
    """Which of the operator's n inputs need a gradient; the last may be left out, being None."""
    needs: tuple[bool, ...] = ctx.needs_input_grad[2:]
    return needs + (False,) * (n - len(needs))


def _attention_gradients(ctx: Any, backward: Any, grad_out: Any, grad_lse: Any) -> tuple[Any, ...]:
    """Those of `_inputs`."""
    if grad_out is None and grad_lse is None:
        return (None,) * (len(ctx.needs_input_grad) - 2)
    n, places, given = ctx.kept
    saved = ctx.saved_tensors
    if places:
        given = list(given)
        for place, x in zip(places, saved[n + 2 :], strict=True):
            given[place] = x
    if grad_out is None:
        grad_out = saved[n].new_zeros(()).expand(saved[n].shape)
    wanted = _needs(ctx, 6)[3:]
    *found, of_mask, of_sinks, of_bias = backward(
        grad_out, *saved[:3], *saved[n : n + 2], *saved[3:n], grad_lse, *wanted, *given
    )
    of_options = zip((of_mask, of_sinks, of_bias), wanted, strict=True)
    return (*found, *[x if is_wanted else None for x, is_wanted in of_options])


def _differentiate_attention(ctx: Any, grad_out: Any, grad_lse: Any) -> tuple[Any, ...]:
    return _attention_gradients(ctx, _backward_of(grad_out, grad_lse), grad_out, grad_lse)


def _backward_of(grad_out: Any, grad_lse: Any) -> Any:
    """The operator, or its kernel where nobody would see the difference."""
    is_final = eager.is_final(grad_out, grad_lse)
    return kernels.attention_gradients if is_final else _attention_backward


def input_gradients(
    tensors: tuple[Any, ...], grad_out: Any, grad_lse: Any, given: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Those of query, key and value, of (query, key, value, out, lse), where no option has one."""
    if grad_out is None and grad_lse is None:
        return None, None, None
    backward = _backward_of(grad_out, grad_lse)
    if grad_out is None:
        grad_out = tensors[3].new_zeros(()).expand(tensors[3].shape)
    found: tuple[Any, ...] = backward(grad_out, *tensors, grad_lse, False, False, False, *given)
    return found[:3]


def _save_varlen(ctx: Any, arguments: tuple[Any, ...], results: Any) -> None:
    _save_attention(ctx, arguments, results, tensors=7)


def _differentiate_varlen(ctx: Any, grad_out: Any, grad_lse: Any) -> tuple[Any, ...]:
    return _attention_gradients(ctx, _varlen_backward, grad_out, grad_lse)


def _save_linear(ctx: Any, arguments: tuple[Any, ...], result: Any) -> None:
    x, weight, *rest = arguments
    ctx.save_for_backward(x, weight)
    ctx.num_threads = rest[1] if len(rest) > 1 else None


def _differentiate_linear(ctx: Any, grad_out: Any) -> tuple[Any, ...]:
    needs = _needs(ctx, 3)
    found = linear_backward(grad_out, *ctx.saved_tensors, *needs, ctx.num_threads)
    return tuple([x if is_wanted else None for x, is_wanted in zip(found, needs, strict=True)])


def _inputs(tensors: int) -> tuple[int, ...]:
    """Places of query, key, value, mask, sinks and bias among `tensors` and the options."""
    return (0, 1, 2, *[tensors + place for place in options.DIFFERENTIABLE])


def _constants(tensors: int) -> dict[int, str]:
    return {tensors + options.NAMES.index("alibi_slopes"): "alibi_slopes"}


attention_at_once = differentiation.register(
    library,
    "attention",
    _inputs(3),
    _save_attention,
    _differentiate_attention,
    _constants(3),
    kernels.attention_forward,
)
differentiation.register(
    library, "varlen", _inputs(7), _save_varlen, _differentiate_varlen, _constants(7)
)
differentiation.register(library, "linear", (0, 1, 2), _save_linear, _differentiate_linear)
for _name in ("attention_backward", "varlen_backward", "linear_backward"):
    differentiation.register(library, _name)
