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

from .._threads import get_num_threads
from . import eager, functions, options
from .arrays import DTYPES, memory

is_on = False
is_linear_on = False

_is_tracing: Any = torch._C._get_tracing_state
_is_any_autocast: Any = torch._C._is_any_autocast_enabled
# The operator's options between `enable_gqa` and `dropout_seeds`, which PyTorch's function lacks.
_MIDDLE = options.DEFAULTS[options.NAMES.index("enable_gqa") + 1 : options.SEEDS]

torch_attention: Any = F.scaled_dot_product_attention
torch_linear: Any = F.linear


def _is_ours(x: Any) -> bool:
    """A plain tensor, dense and on the CPU, of a dtype that the kernels compute in."""
    return (
        type(x) in eager.PLAIN
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
    if is_on and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value, attn_mask = (
            _as_autocast_does(x, dtype) for x in (query, key, value, attn_mask)
        )
    is_plain = is_on and eager.is_plain(query, key, value) and memory.are_alike(query, key, value)
    is_ours = is_plain or (
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
            and type(attn_mask) in eager.PLAIN
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
    given = (attn_mask, dropout_p, is_causal, scale, enable_gqa, *_MIDDLE, seed, None, is_constant)
    if not is_plain:
        return functions.attend(query, key, value, given)
    try:
        return functions.attend_at_once(query, key, value, given)
    except ValueError:  # what does not fit together: PyTorch has its own words for it
        return torch_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )


def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """`torch.nn.functional.linear`, by selfattn where it can."""
    is_plain = is_linear_on and eager.is_plain(input, weight, bias)
    if is_plain and not torch.is_grad_enabled() and not _is_any_autocast():
        out = memory.project(input, weight, bias, get_num_threads)
        if out is not None:
            return out
    operands = (input, weight) if bias is None else (input, weight, bias)
    is_plain = is_plain and memory.are_alike(*operands)
    is_ours = is_plain or (
        is_linear_on
        and all(map(_is_ours, operands))
        and input.dtype == weight.dtype == operands[-1].dtype
        and not _is_left_alone()
    )
    if (
        not is_ours
        or weight.dim() != 2
        or input.dim() == 0
        or (bias is not None and bias.dim() != 1)
        or torch.is_autocast_enabled("cpu")  # which keeps what it casts of weights
    ):
        return torch_linear(input, weight, bias)
    if not is_plain:
        return functions.linear(input, weight, bias)
    try:
        return functions.project_at_once(input, weight, bias)
    except ValueError:  # as above
        return torch_linear(input, weight, bias)


# torch.jit.script takes them for PyTorch's own, which it writes into its programs.
_builtins: Any = torch.jit._builtins
_builtins._register_builtin(scaled_dot_product_attention, "aten::scaled_dot_product_attention")
_builtins._register_builtin(linear, "aten::linear")
