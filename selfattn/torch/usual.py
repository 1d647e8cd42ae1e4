"""The usual calls with gradients, in as few steps as they take: projections, and attention with no
option but `is_causal` and `enable_gqa`.

A small call's time is Python's, not the kernel's. What this leaves out is what `operators.py` does
for all calls: options are not looked through for tensors to be kept, nor gradients for those of
options. Only for calls that nothing but autograd sees (`eager.py`); what is not usual about the
backward pass takes the way of the operator.
"""

from __future__ import annotations

from typing import Any

from torch.autograd.function import _SingleLevelFunction

from .. import _args, _core
from . import eager, kernels, operators, options
from .arrays import memory


def attend(query: Any, key: Any, value: Any, given: tuple[Any, ...]) -> Any:
    """(out, lse), recorded to be differentiated; None of any but the usual options."""
    keywords: dict[str, Any] = _core.nondefault(options.NAMES, options.DEFAULTS, given)
    num_threads = keywords.pop("num_threads", None)
    if not options.is_short(keywords):
        return None
    return _attention.apply((*options.short(keywords), num_threads, given), query, key, value)


def _forward(ctx: Any, kept: tuple[Any, ...], query: Any, key: Any, value: Any) -> Any:
    is_grouped, is_causal, num_threads, given = kept
    threads = _args.num_threads(num_threads)
    results = memory.attention(query, key, value, is_grouped, is_causal, True, threads)
    if results is None:
        results = kernels.attend(query, key, value, given, True)
    ctx.kept = kept
    ctx.save_for_backward(query, key, value, *results)
    ctx.set_materialize_grads(False)
    return results


def _backward(ctx: Any, grad_out: Any, grad_lse: Any) -> Any:
    is_grouped, is_causal, num_threads, given = ctx.kept
    query, key, value, out, lse = ctx.saved_tensors
    if grad_out is not None and eager.is_final(grad_out, grad_lse):
        results, threads = (grad_out, out, lse, grad_lse), _args.num_threads(num_threads)
        found = memory.attention_gradients(
            query, key, value, is_grouped, is_causal, results, threads
        )
        if found is not None:
            return (None, *found)
    tensors = query, key, value, out, lse
    return (None, *operators.input_gradients(tensors, grad_out, grad_lse, given))


# ------------------------------------------------------------------ projections


def project(x: Any, weight: Any, bias: Any, num_threads: int | None) -> Any:
    """x @ weight.T + bias, which may be None, recorded to be differentiated."""
    operands = (x, weight) if bias is None else (x, weight, bias)
    return _projection.apply(num_threads, *operands)


def _project(ctx: Any, num_threads: int | None, x: Any, weight: Any, bias: Any = None) -> Any:
    ctx.num_threads = num_threads
    ctx.save_for_backward(x, weight)
    return kernels.linear_forward(x, weight, bias, num_threads)


def _project_backward(ctx: Any, grad_out: Any) -> Any:
    x, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = needs[1], needs[2], len(needs) > 3 and needs[3]
    backward = kernels.linear_gradients if eager.is_final(grad_out) else operators.linear_backward
    found = backward(grad_out, x, weight, *wanted, ctx.num_threads)
    of_all = [x if is_wanted else None for x, is_wanted in zip(found, wanted, strict=True)]
    return (None, *of_all)[: len(needs)]


def _function_of(name: str, forward: Any, backward: Any) -> Any:
    functions = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(f"selfattn_{name}", (_SingleLevelFunction,), functions)


_attention = _function_of("attention", _forward, _backward)
_projection = _function_of("linear", _project, _project_backward)
