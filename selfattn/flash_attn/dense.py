"""flash-attn's functions of batches: queries, keys and values apart, or packed into one tensor.

Tensors are read where they lie: an axis of heads after that of positions is one of strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..torch import scaled_dot_product_attention
from . import arguments, probabilities


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of a batch, on the CPU, with gradients of q, k and v.

    The last query stands beside the last key: query i at position `i + seqlen_k - seqlen_q`.

    Parameters
    ----------
    q : tensor, shape (batch, seqlen_q, heads, head_dim)
        float16, bfloat16, float32 or float64, on the CPU. Any strides.
    k : tensor, shape (batch, seqlen_k, heads_k, head_dim)
        Query head h attends to key head `h // (heads / heads_k)`.
    v : tensor, shape (batch, seqlen_k, heads_k, head_dim_v)
    dropout_p : float
        The seed is drawn from PyTorch's generator; `torch.manual_seed` makes it reproducible.
    softmax_scale : float, optional
        Factor of the scores; `1 / sqrt(head_dim)` unless given.
    causal : bool
        A query sees the keys up to its own position.
    window_size : (left, right)
        It sees so many keys before its position and after it; -1 is no limit.
    softcap : float
        Scores x become `softcap * tanh(x / softcap)`; 0 or less is none.
    alibi_slopes : tensor, shape (heads,) or (batch, heads), optional
        `slope * |distance|` is subtracted from a score. It has no gradient.
    deterministic : bool
        It is always so.
    return_attn_probs : bool
        Return `(out, softmax_lse, S_dmask)`.

    Returns
    -------
    out : tensor, shape (batch, seqlen_q, heads, head_dim_v)
        A query that sees no key gets 0.
    softmax_lse : tensor, shape (batch, heads, seqlen_q)
        float32, of float64 tensors float64; -inf where no key is seen. A constant to autograd, as
        flash-attn's own backward takes it for one.
    S_dmask : tensor, shape (batch, heads, seqlen_q, seqlen_k), or None where dropout_p is 0
        The weights, negative where they were dropped.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, kind or device; for shapes that do not fit together.
    NotImplementedError
        For second and forward-mode derivatives, and where `alibi_slopes` requires grad.

    Notes
    -----
    The method is FlashAttention's (Dao, 2023); `selfattn.scaled_dot_product_attention` says how
    it is computed here, and its bits are the result's.

    Examples
    --------
    >>> import torch
    >>> from selfattn.flash_attn import flash_attn_func
    >>> q = torch.ones(1, 2, 1, 8, dtype=torch.bfloat16)
    >>> k = torch.ones(1, 3, 1, 8, dtype=torch.bfloat16)
    >>> v = torch.tensor([3.0, 5.0, 10.0]).bfloat16().reshape(1, 3, 1, 1)
    >>> flash_attn_func(q, k, v, causal=True).flatten().tolist()
    [4.0, 6.0]
    """
    arguments.check_operands(arguments.DENSE, q, k, v)
    given = arguments.options(softmax_scale, causal, window_size, softcap, alibi_slopes, dropout_p)
    if arguments.is_aligned(given):
        given["query_offset"] = k.shape[1] - q.shape[1]
    query, key, value = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if not return_attn_probs:
        return scaled_dot_product_attention(query, key, value, **given).transpose(1, 2)
    out, lse = scaled_dot_product_attention(query, key, value, return_lse=True, **given)
    weights = probabilities.of_dense(query, key, given) if "dropout_p" in given else None
    return out.transpose(1, 2), lse.detach(), weights


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_func` of queries, keys and values in one tensor, whose gradient is one tensor.

    Parameters that are not named below, results and errors are those of `flash_attn_func`.

    Parameters
    ----------
    qkv : tensor, shape (batch, seqlen, 3, heads, head_dim)

    Examples
    --------
    >>> import torch
    >>> from selfattn.flash_attn import flash_attn_qkvpacked_func
    >>> qkv = torch.randn(2, 5, 3, 4, 8, requires_grad=True)
    >>> flash_attn_qkvpacked_func(qkv, causal=True).sum().backward()
    >>> qkv.grad.shape
    torch.Size([2, 5, 3, 4, 8])
    """
    shape = "(batch, seqlen, 3, heads, head_dim)"
    q, k, v = arguments.unpacked("qkv", qkv, shape, 2, 3)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
        deterministic, return_attn_probs,
    )  # fmt: skip


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_func` of keys and values in one tensor, whose gradient is one tensor.

    Parameters that are not named below, results and errors are those of `flash_attn_func`.

    Parameters
    ----------
    q : tensor, shape (batch, seqlen_q, heads, head_dim)
    kv : tensor, shape (batch, seqlen_k, 2, heads_k, head_dim)

    Examples
    --------
    >>> import torch
    >>> from selfattn.flash_attn import flash_attn_kvpacked_func
    >>> q, kv = torch.randn(2, 5, 4, 8), torch.randn(2, 7, 2, 1, 8)
    >>> flash_attn_kvpacked_func(q, kv).shape
    torch.Size([2, 5, 4, 8])
    """
    shape = "(batch, seqlen, 2, heads, head_dim)"
    k, v = arguments.unpacked("kv", kv, shape, 2, 2)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
        deterministic, return_attn_probs,
    )  # fmt: skip
