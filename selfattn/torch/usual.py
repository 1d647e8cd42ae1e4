"""The usual call with gradients, in as few steps as it takes: no option but causal and groups.

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
    num_threads = _args.num_threads(keywords.pop("num_threads", None))
    if not kernels.is_short(keywords):
        return None
    return _function.apply((*kernels.short(keywords), num_threads, given), query, key, value)


def _forward(ctx: Any, kept: tuple[Any, ...], query: Any, key: Any, value: Any) -> Any:
    is_grouped, is_causal, num_threads, given = kept
    results = memory.attention(query, key, value, is_grouped, is_causal, True, num_threads)
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
        results = grad_out, out, lse, grad_lse
        found = memory.attention_gradients(
            query, key, value, is_grouped, is_causal, results, num_threads
        )
        if found is not None:
            return (None, *found)
    tensors = query, key, value, out, lse
    return (None, *operators.input_gradients(tensors, grad_out, grad_lse, given))


_function: Any = type(
    "selfattn_attention",
    (_SingleLevelFunction,),
    {"forward": staticmethod(_forward), "backward": staticmethod(_backward)},
)
