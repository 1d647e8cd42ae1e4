"""What the provider puts in the place of two functions of `torch.nn.functional`.

Each looks at its arguments, and leaves to PyTorch's own function what selfattn does not compute: so
the errors are PyTorch's too. They stay harmless where somebody keeps one of them: `is_on` and
`is_linear_on`, which compiled code is guarded on, say whether they do anything.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import eager, functions, kernels, options
from .arrays import DTYPES

is_on = False
is_linear_on = False

_is_tracing: Any = torch._C._get_tracing_state
# The operator's options between `enable_gqa` and `dropout_seeds`, which PyTorch's function lacks.
_MIDDLE = options.DEFAULTS[options.NAMES.index("enable_gqa") + 1 : options.SEEDS]

torch_attention: Any = F.scaled_dot_product_attention
torch_linear: Any = F.linear


def _is_ours(x: Any) -> bool:
    """A plain tensor, dense and on the CPU, of a dtype that the kernels compute in."""
    return (
        (type(x) is Tensor or type(x) is torch.nn.Parameter)
        and x.dtype in DTYPES
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_nested
    )


def _is_left_alone() -> bool:
    """Whether PyTorch is to see its own function: it writes a script."""
    return not torch.compiler.is_compiling() and _is_tracing() is not None


def _as_autocast_does(x: Any, dtype: torch.dtype) -> Any:
    """What PyTorch makes of an argument of attention before its own kernels see it."""
    if not isinstance(x, Tensor) or not x.is_cpu or x.dtype == torch.float64:
        return x
    return x.to(dtype) if x.is_floating_point() else x


def _at_once(
    query: Any, key: Any, value: Any, attn_mask: Any, is_causal: Any, scale: Any, enable_gqa: Any
) -> Any:
    """The result where nothing is to be differentiated or transformed, in the least time.

    None where there is something, or where PyTorch's own function may have to be asked.
    """
    if not eager.is_plain(query, key, value) or torch.is_autocast_enabled("cpu"):
        return None
    options: dict[str, Any] = {}
    if attn_mask is not None:
        if is_causal or not eager.is_plain(attn_mask):
            return None
        options["attn_mask"] = attn_mask
    if is_causal:
        options["is_causal"] = True
    if scale is not None:
        options["scale"] = scale
    if enable_gqa:
        options["enable_gqa"] = True
    if not options:
        out = kernels.attend_at_once(query, key, value)
        if out is not None:
            return out
    if eager.wants_grad(query, key, value, attn_mask):
        return None
    return kernels.attend_with_keywords(query, key, value, options)


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`torch.nn.functional.scaled_dot_product_attention`, by selfattn where it can.

    What is dropped depends on a seed that is drawn from PyTorch's generator.
    """
    if is_on and not torch.compiler.is_compiling() and not dropout_p:
        out = _at_once(query, key, value, attn_mask, is_causal, scale, enable_gqa)
        if out is not None:
            return out
    if is_on and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value, attn_mask = (
            _as_autocast_does(x, dtype) for x in (query, key, value, attn_mask)
        )
    is_ours = (
        is_on
        and _is_ours(query)
        and _is_ours(key)
        and _is_ours(value)
        and query.dtype == key.dtype == value.dtype
        and not _is_left_alone()
    )
    if is_ours and attn_mask is not None:
        is_ours = (
            not is_causal
            and (type(attn_mask) is Tensor or type(attn_mask) is torch.nn.Parameter)
            and attn_mask.is_cpu
            and (attn_mask.dtype in (torch.bool, torch.float32, query.dtype))
        )
    if not is_ours:
        return torch_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    seed = None
    if dropout_p > 0.0:
        seed = options.drawn_seed()
    is_constant = attn_mask is not None and not attn_mask.requires_grad
    given = (attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return functions.attend(query, key, value, (*given, *_MIDDLE, seed, None, is_constant))


def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """`torch.nn.functional.linear`, by selfattn where it can."""
    is_ours = (
        is_linear_on
        and _is_ours(input)
        and _is_ours(weight)
        and input.dtype == weight.dtype
        and weight.dim() == 2
        and input.dim() > 0
        and not torch.is_autocast_enabled("cpu")  # which keeps what it casts of weights
        and not _is_left_alone()
    )
    if is_ours and bias is not None:
        is_ours = _is_ours(bias) and bias.dtype == weight.dtype and bias.dim() == 1
    if not is_ours:
        return torch_linear(input, weight, bias)
    return functions.linear(input, weight, bias)
