"""flash-attn's functions of packed sequences, one after the other, of any lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..torch import eager, varlen_attention
from . import arguments, probabilities


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Any:
    """Attention within each of several sequences, on the CPU, with gradients of q, k and v.

    Parameters that are not named below are those of `flash_attn_func`. In each sequence the last
    query stands beside the last key, and each has the bits that it has alone.

    Parameters
    ----------
    q : tensor, shape (total_q, heads, head_dim)
    k : tensor, shape (total_k, heads_k, head_dim)
    v : tensor, shape (total_k, heads_k, head_dim_v)
    cu_seqlens_q, cu_seqlens_k : int tensor, shape (sequences + 1)
        Sequence b is rows `cu_seqlens[b]` to `cu_seqlens[b + 1]`. They start at 0. Rows after the
        last of them belong to no sequence and get 0; not so in compiled code, where there must be
        none.
    max_seqlen_q, max_seqlen_k : int
        Lengths of the longest sequences. They are not needed here, and not looked at.
    alibi_slopes : tensor, shape (heads,) or (sequences, heads), optional
    block_table : None
        Caches in pages are not built.

    Returns
    -------
    out : tensor, shape (total_q, heads, head_dim_v)
    softmax_lse : tensor, shape (heads, total_q)
    S_dmask : tensor, shape (sequences, heads, longest of q, longest of k), or None

    Raises
    ------
    TypeError, ValueError
        As `flash_attn_func`, and for cu_seqlens that do not fit.
    NotImplementedError
        As `flash_attn_func`, and for a `block_table`.

    Examples
    --------
    >>> import torch
    >>> from selfattn.flash_attn import flash_attn_func, flash_attn_varlen_func
    >>> q = torch.randn(5, 2, 8)
    >>> starts = torch.tensor([0, 2, 5], dtype=torch.int32)
    >>> out = flash_attn_varlen_func(q, q, q, starts, starts, 3, 3, causal=True)
    >>> torch.equal(out[2:], flash_attn_func(*[q[None, 2:]] * 3, causal=True)[0])
    True
    """
    if block_table is not None:
        raise NotImplementedError("block_table: caches in pages are not built; expected None")
    arguments.check_operands(arguments.PACKED, q, k, v)
    arguments.tensor("cu_seqlens_q", cu_seqlens_q, "(sequences + 1)")
    arguments.tensor("cu_seqlens_k", cu_seqlens_k, "(sequences + 1)")
    if cu_seqlens_k.shape != cu_seqlens_q.shape:
        raise ValueError(
            f"cu_seqlens_k: expected shape {tuple(cu_seqlens_q.shape)}, cu_seqlens_q's, got "
            f"{tuple(cu_seqlens_k.shape)}"
        )
    given = arguments.options(softmax_scale, causal, window_size, softcap, alibi_slopes, dropout_p)
    if arguments.is_aligned(given) and cu_seqlens_k is not cu_seqlens_q:
        given["query_offset"] = cu_seqlens_k.diff().long() - cu_seqlens_q.diff().long()
    rows, starts = q.shape[0], (cu_seqlens_q, cu_seqlens_k)
    if eager.is_plain(q, k, v, *starts):
        q, k, v = _within(q, starts[0]), _within(k, starts[1]), _within(v, starts[1])
    more = rows - q.shape[0]
    if not return_attn_probs:
        out = varlen_attention(q, k, v, *starts, **given)
        return pad(out, (0, 0, 0, 0, 0, more)) if more else out
    out, lse = varlen_attention(q, k, v, *starts, return_lse=True, **given)
    lse = lse.detach()
    weights = probabilities.of_packed(q, k, *starts, given) if "dropout_p" in given else None
    if more:
        out, lse = pad(out, (0, 0, 0, 0, 0, more)), pad(lse, (0, more), value=-torch.inf)
    return out, lse, weights


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_varlen_func` of queries, keys and values in one tensor, as its gradient is.

    Parameters that are not named below, results and errors are those of `flash_attn_varlen_func`.

    Parameters
    ----------
    qkv : tensor, shape (total, 3, heads, head_dim)
    cu_seqlens : int tensor, shape (sequences + 1)
    max_seqlen : int

    Examples
    --------
    >>> import torch
    >>> from selfattn.flash_attn import flash_attn_varlen_qkvpacked_func
    >>> qkv = torch.randn(5, 3, 4, 8, requires_grad=True)
    >>> starts = torch.tensor([0, 2, 5], dtype=torch.int32)
    >>> flash_attn_varlen_qkvpacked_func(qkv, starts, 3).sum().backward()
    >>> qkv.grad.shape
    torch.Size([5, 3, 4, 8])
    """
    q, k, v = arguments.unpacked("qkv", qkv, "(total, 3, heads, head_dim)", 1, 3)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, softmax_scale, causal,
        window_size, softcap, alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_varlen_func` of keys and values in one tensor, whose gradient is one tensor.

    Parameters that are not named below, results and errors are those of `flash_attn_varlen_func`.

    Parameters
    ----------
    q : tensor, shape (total_q, heads, head_dim)
    kv : tensor, shape (total_k, 2, heads_k, head_dim)

    Examples
    --------
    >>> import torch
    >>> from selfattn.flash_attn import flash_attn_varlen_kvpacked_func
    >>> q, kv = torch.randn(5, 4, 8), torch.randn(6, 2, 1, 8)
    >>> starts_q, starts_k = torch.tensor([0, 2, 5]), torch.tensor([0, 3, 6])
    >>> flash_attn_varlen_kvpacked_func(q, kv, starts_q, starts_k, 3, 3, causal=True).shape
    torch.Size([5, 4, 8])
    """
    k, v = arguments.unpacked("kv", kv, "(total, 2, heads, head_dim)", 1, 2)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale,
        causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip


def _within(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The rows that belong to a sequence; all of them where `cu_seqlens` is wrong."""
    end = int(cu_seqlens[-1]) if len(cu_seqlens) else 0
    return x[:end] if 0 <= end < len(x) else x
