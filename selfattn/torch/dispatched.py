"""PyTorch's own attention operators on the CPU, by selfattn: what the provider puts in their place.

    _scaled_dot_product_flash_attention_for_cpu, …_backward
        what F.scaled_dot_product_attention comes to, where PyTorch's rules let it
    _flash_attention_forward, …_backward, …_inplace
        varlen_attn, which has no kernel on the CPU otherwise

They return tensors that lie in memory as PyTorch's fake kernels say, which compiled code relies on.
What selfattn's kernels do not compute goes to those that were there before.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._threads import get_num_threads
from ..backward import varlen_attention_backward
from ..varlen import varlen_attention
from . import kernels
from .arrays import DTYPES, array_of, memory, tensor_of
from .masks import bools_of

_library: Any = torch.library
_DENSE = "_scaled_dot_product_flash_attention_for_cpu"
_VARLEN = "_flash_attention"


class Handle:
    """The kernels while they are in place; `remove` puts PyTorch's own back."""

    def __init__(self) -> None:
        self._before = {
            name: _library.get_kernel(f"aten::{name}", "CPU")
            for name in (_DENSE, f"{_DENSE}_backward")
        }
        self._library = _library.Library("aten", "IMPL", "CPU")
        with warnings.catch_warnings():  # that an operator of PyTorch's own is overridden
            warnings.simplefilter("ignore")
            implement = self._library.impl
            implement(_DENSE, self._forward, with_keyset=True)
            implement(f"{_DENSE}_backward", self._backward, with_keyset=True)
            implement(f"{_VARLEN}_forward", _varlen_forward)
            implement(f"{_VARLEN}_backward", _varlen_backward)
            implement(f"{_VARLEN}_forward_no_dropout_inplace", _varlen_inplace)

    def remove(self) -> None:
        self._library._destroy()

    def _forward(
        self, keyset: Any, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0,
        is_causal: bool = False, *, attn_mask: Tensor | None = None, scale: float | None = None,
    ) -> Any:  # fmt: skip
        if query.dtype not in DTYPES or dropout_p:
            return self._before[_DENSE].call_boxed(
                keyset, query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
            )
        out = torch.empty_like(query)
        problem = _problem(query, key, value, attn_mask, is_causal, scale)
        lse = memory.attend(problem, out, True, get_num_threads())
        return out, lse.transpose(1, 2).contiguous().transpose(1, 2)

    def _backward(
        self, keyset: Any, grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor,
        out: Tensor, lse: Tensor, dropout_p: float, is_causal: bool, *,
        attn_mask: Tensor | None = None, scale: float | None = None,
    ) -> Any:  # fmt: skip
        if query.dtype not in DTYPES or dropout_p:
            return self._before[f"{_DENSE}_backward"].call_boxed(
                *(keyset, grad_out, query, key, value, out, lse, dropout_p, is_causal),
                attn_mask=attn_mask,
                scale=scale,
            )
        problem = _problem(query, key, value, attn_mask, is_causal, scale)
        gradients = tuple(
            [
                torch.empty_permuted(x.shape, (0, 2, 1, 3), dtype=x.dtype, device="cpu")
                for x in (query, key, value)
            ]
        )
        if 0 in problem.lse_shape:  # nothing is written then
            return tuple(x.zero_() for x in gradients)
        results = grad_out, out, lse, None
        if not memory.differentiate(problem, *results, gradients, get_num_threads()):
            raise RuntimeError(
                "selfattn: expected grad_out, out and lse as the forward pass has them"
            )
        return gradients


def _problem(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any, is_causal: bool, scale: Any
) -> Any:
    keywords: dict[str, Any] = {"enable_gqa": True}
    if attn_mask is not None:
        keywords["attn_mask"] = bools_of(array_of("attn_mask", attn_mask))
    if is_causal:
        keywords["is_causal"] = True
    if scale is not None:
        keywords["scale"] = scale
    return kernels.problem_of(query, key, value, keywords)


# ------------------------------------------------------------------ varlen_attn


def _packed(query: Tensor, key: Tensor, value: Tensor, cum_seq_q: Any, cum_seq_k: Any) -> Any:
    """[query, key, value, starts_q, starts_k]: the rows of sequences; buffers may be longer."""
    if cum_seq_q is None or cum_seq_k is None:
        raise NotImplementedError(
            "varlen_attn: expected cu_seq_q and cu_seq_k, got none on the CPU"
        )
    starts_q, starts_k = array_of("cu_seq_q", cum_seq_q), array_of("cu_seq_k", cum_seq_k)
    rows = (_end(starts_q), _end(starts_k), _end(starts_k))
    operands = [
        array_of(name, x)[:end]
        for name, x, end in zip(("query", "key", "value"), (query, key, value), rows, strict=True)
    ]
    return [*operands, starts_q, starts_k]


def _end(starts: Any) -> int:
    return int(starts[-1]) if starts.size else 0


def _packed_options(
    starts_q: Any, starts_k: Any, is_causal: bool, scale: Any, left: Any, right: Any,
    seqused_k: Any = None, alibi_slopes: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """FlashAttention's options as selfattn's: the last query is aligned with the last key."""
    window = tuple(-1 if side is None else int(side) for side in (left, right))
    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": True}
    lengths = np.diff(starts_k)
    if seqused_k is not None:
        lengths = options["kv_lengths"] = array_of("seqused_k", seqused_k)
    if alibi_slopes is not None:
        options["alibi_slopes"] = array_of("alibi_slopes", alibi_slopes)
    if window != (-1, -1):
        options["window_size"] = window
    if is_causal or window != (-1, -1) or alibi_slopes is not None:
        options["query_offset"] = lengths.astype(np.int64) - np.diff(starts_q)
    return options


def _attend_packed(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, cum_seq_q: Any, cum_seq_k: Any,
    max_q: int, max_k: int, dropout_p: float, is_causal: bool, return_debug_mask: bool, *,
    scale: float | None = None, window_size_left: Any = None, window_size_right: Any = None,
    seqused_k: Any = None, alibi_slopes: Any = None, block_table: Any = None,
    num_splits: Any = None,
) -> Tensor:  # fmt: skip
    """Write into `out`; return lse. How keys are split changes no bits, whatever `num_splits`."""
    if block_table is not None:
        raise NotImplementedError("varlen_attn: block_table is not built on the CPU")
    if dropout_p or return_debug_mask:
        raise NotImplementedError("varlen_attn: dropout is not built on the CPU")
    operands = _packed(query, key, value, cum_seq_q, cum_seq_k)
    target = array_of("out", out)
    rows = len(operands[0])
    options = _packed_options(
        operands[3], operands[4], is_causal, scale, window_size_left, window_size_right, seqused_k,
        alibi_slopes,
    )  # fmt: skip
    _, lse = varlen_attention(*operands, out=target[:rows], return_lse=True, **options)
    if rows == len(target):
        return tensor_of(lse)
    target[rows:] = 0
    unused = np.full((lse.shape[0], len(target) - rows), -np.inf, lse.dtype)
    return tensor_of(np.concatenate((lse, unused), axis=1))


def _varlen_forward(query: Tensor, *arguments: Any, **options: Any) -> Any:
    out = torch.empty_like(query)
    lse = _attend_packed(out, query, *arguments, **options)
    state, unused = query.new_zeros(2, dtype=torch.uint64), query.new_zeros((), dtype=torch.uint64)
    return out, lse, state, unused, query.new_empty(0)


def _varlen_inplace(out: Tensor, *arguments: Any, **options: Any) -> Tensor:
    return _attend_packed(out, *arguments, **options)


def _varlen_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    cum_seq_q: Any, cum_seq_k: Any, max_q: int, max_k: int, dropout_p: float, is_causal: bool,
    rng_state: Any, unused: Any, *, scale: float | None = None, window_size_left: Any = None,
    window_size_right: Any = None,
) -> Any:  # fmt: skip
    *operands, starts_q, starts_k = _packed(query, key, value, cum_seq_q, cum_seq_k)
    rows = len(operands[0])
    results: Any = (array_of("out", out)[:rows], array_of("lse", lse)[:, :rows])
    options = _packed_options(
        starts_q, starts_k, is_causal, scale, window_size_left, window_size_right
    )
    found = varlen_attention_backward(
        *(array_of("grad_out", grad_out)[:rows], *operands, *results, starts_q, starts_k), **options
    )
    gradients = []
    for x, gradient in zip((query, key, value), found[:3], strict=True):
        new = torch.zeros_like(x)
        array_of("", new)[: len(gradient)] = gradient
        gradients.append(new)
    return tuple(gradients)
