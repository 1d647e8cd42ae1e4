"""flash-attn's attention to caches: new keys and values are appended in place, then attended to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._args.numbers import integer
from ..torch import scaled_dot_product_attention
from . import arguments, rotary

_NAMES = ("q", "k_cache", "v_cache")


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """Append k and v to caches, in place, and attend to all that the caches hold then.

    Parameters that are not named below are those of `flash_attn_func`. The last query stands
    beside the last key of its own entry. There are no gradients: the result never requires one.

    Parameters
    ----------
    q : tensor, shape (batch, seqlen_q, heads, head_dim)
    k_cache : tensor, shape (batch_cache, capacity, heads_k, head_dim)
    v_cache : tensor, shape (batch_cache, capacity, heads_k, head_dim_v)
    k, v : tensor, shapes (batch, seqlen_new, heads_k, head_dim or head_dim_v), optional
        Written to the caches, from row `cache_seqlens` on.
    rotary_cos, rotary_sin : tensor, shape (positions, rotary_dim / 2), optional
        k is rotated at positions `cache_seqlens`, `cache_seqlens + 1`, …, and q is too where
        causal or a window is given, else all of it at `cache_seqlens`.
    cache_seqlens : int, or int tensor, shape (batch,), optional
        How many rows of a cache are filled before; all of them unless given.
    cache_batch_idx : int tensor, shape (batch,), optional
        Which entry of the caches each entry of the batch has. These are copied to be read.
    cache_leftpad : int tensor, shape (batch,), optional
        The first row of a cache that counts; those before it are not seen.
    block_table : None
        Caches in pages are not built.
    rotary_interleaved : bool
        Pairs are the elements 2i and 2i + 1; otherwise i and `i + rotary_dim / 2`.
    num_splits : int
        It changes nothing: how keys are split is a constant here, whatever the number of threads.

    Returns
    -------
    out : tensor, shape (batch, seqlen_q, heads, head_dim_v)
    softmax_lse : tensor, shape (batch, heads, seqlen_q)
        Only with `return_softmax_lse`.

    Raises
    ------
    TypeError, ValueError
        As `flash_attn_func`; for lengths that a cache does not hold, before anything is written.
        In compiled code these are PyTorch's own errors of indices.
    NotImplementedError
        For a `block_table`.

    Examples
    --------
    >>> import torch
    >>> from selfattn.flash_attn import flash_attn_with_kvcache
    >>> k_cache, v_cache = torch.zeros(2, 1, 16, 1, 8)
    >>> q, k, v = torch.randn(3, 1, 1, 1, 8)
    >>> out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=0, causal=True)
    >>> torch.equal(out, v), torch.equal(k_cache[:, :1], k)
    (True, True)
    """
    if block_table is not None:
        raise NotImplementedError("block_table: caches in pages are not built; expected None")
    _check(
        q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx,
        cache_leftpad,
    )  # fmt: skip
    given = arguments.options(softmax_scale, causal, window_size, softcap, alibi_slopes)
    filled = k_cache.shape[1] if cache_seqlens is None else cache_seqlens
    new = 0 if k is None else k.shape[1]
    longest = _longest(filled, q, k_cache, new)
    with torch.no_grad():
        if rotary_cos is not None and rotary_sin is not None and k is not None:
            _check_positions(rotary_cos, longest, q.shape[1], new)
            is_local = "is_causal" in given or "window_size" in given
            tables = rotary_cos, rotary_sin
            steps = torch.arange(q.shape[1], device="cpu") * is_local
            q = rotary.rotate(q, *tables, _positions(filled, steps), rotary_interleaved)
            steps = torch.arange(new, device="cpu")
            k = rotary.rotate(k, *tables, _positions(filled, steps), rotary_interleaved)
        if k is not None and v is not None:
            for cache, rows in ((k_cache, k), (v_cache, v)):
                _append(cache, rows, filled, cache_batch_idx)
        k_cache, v_cache = k_cache[:, :longest], v_cache[:, :longest]
        if cache_batch_idx is not None:
            entries = cache_batch_idx.long()
            k_cache, v_cache = k_cache[entries], v_cache[entries]
        lengths = filled.long() + new if isinstance(filled, Tensor) else filled + new
        if isinstance(lengths, Tensor):
            given["kv_lengths"] = lengths
        if arguments.is_aligned(given):
            given["query_offset"] = lengths - q.shape[1]
        if cache_leftpad is not None:
            given["kv_starts"] = cache_leftpad.clamp(0, k_cache.shape[1])
        query, key, value = (x.transpose(1, 2) for x in (q, k_cache, v_cache))
        out, lse = scaled_dot_product_attention(query, key, value, return_lse=True, **given)
    out = out.transpose(1, 2)
    return (out, lse) if return_softmax_lse else out


def _check(
    q: Any, k_cache: Any, v_cache: Any, k: Any, v: Any, cos: Any, sin: Any, lengths: Any,
    entries: Any, leftpad: Any,
) -> None:  # fmt: skip
    for name, x in zip(_NAMES, (q, k_cache, v_cache), strict=True):
        arguments.tensor(name, x, arguments.DENSE)
    batch = q.shape[0]
    _check_ints("cache_batch_idx", entries, batch)
    _check_ints("cache_leftpad", leftpad, batch)
    if isinstance(lengths, Tensor):
        _check_ints("cache_seqlens", lengths, batch)
    elif lengths is not None and not isinstance(lengths, torch.SymInt):
        integer("cache_seqlens", lengths)
    chosen = [k_cache, v_cache]
    if entries is not None:
        _check_entries(entries, len(k_cache))
        chosen = [x[:1].expand(batch, -1, -1, -1) for x in chosen]
    arguments.check_operands(arguments.DENSE, q, chosen[0], chosen[1], _NAMES)
    if (k is None) != (v is None):
        name = "k" if k is None else "v"
        raise ValueError(f"{name}: expected k and v, or neither, got one of them")
    if k is None:
        if cos is not None:
            raise ValueError("rotary_cos: expected k and v beside it, got none")
        return
    if lengths is None:
        raise ValueError("cache_seqlens: expected an int or a tensor beside k and v, got None")
    arguments.check_operands(arguments.DENSE, q, k, v)
    for name, x, cache in (("k", k, k_cache), ("v", v, v_cache)):
        if x.shape[2:] != cache.shape[2:]:
            expected = ", ".join(map(str, (batch, "seqlen_new", *cache.shape[2:])))
            raise ValueError(f"{name}: expected shape ({expected}), got {tuple(x.shape)}")
    if cos is not None or sin is not None:
        rotary.check(cos, sin, q.shape[-1])


def _check_ints(name: str, x: Any, batch: int) -> None:
    if x is None:
        return
    if not isinstance(x, Tensor) or x.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected a tensor of int32 or int64, got {_kind(x)}")
    if x.shape != (batch,):
        raise ValueError(f"{name}: expected shape ({batch},), got {tuple(x.shape)}")


def _check_entries(entries: Tensor, batch_cache: int) -> None:
    if torch.compiler.is_compiling() or not entries.numel():
        return
    for i in map(int, entries.aminmax()):
        if not 0 <= i < batch_cache:
            raise ValueError(f"cache_batch_idx: expected 0 to {batch_cache - 1}, got {i}")


def _kind(x: Any) -> str:
    return str(x.dtype) if isinstance(x, Tensor) else type(x).__name__


def _longest(filled: int | Tensor, q: Tensor, cache: Tensor, new: int) -> Any:
    """The most rows that any entry's cache will hold; its capacity where that is not known yet."""
    capacity = cache.shape[1]
    low = most = filled
    if isinstance(filled, Tensor):
        if torch.compiler.is_compiling():
            return capacity
        low, most = (int(x) for x in filled.aminmax()) if filled.numel() else (0, 0)
    if low < 0 or most + new > capacity:
        raise ValueError(
            f"cache_seqlens: expected lengths from 0 to {capacity - new}, of a cache of {capacity} "
            f"rows that {new} are appended to, got {low if low < 0 else most}"
        )
    return most + new


def _check_positions(cos: Tensor, longest: Any, seqlen_q: int, new: int) -> None:
    needed = longest - new + max(seqlen_q, new)
    if not torch.compiler.is_compiling() and cos.shape[0] < needed:
        raise ValueError(f"rotary_cos: expected {needed} positions or more, got {cos.shape[0]}")


def _positions(filled: int | Tensor, steps: Tensor) -> Tensor:
    return filled.long()[:, None] + steps if isinstance(filled, Tensor) else filled + steps


def _append(cache: Tensor, x: Tensor, filled: int | Tensor, entries: Tensor | None) -> None:
    """Write rows of (batch, seqlen_new, heads, head_dim) after those that are there."""
    if not isinstance(filled, Tensor) and entries is None:
        cache[:, filled : filled + x.shape[1]] = x
        return
    if entries is None:
        entries = torch.arange(x.shape[0], device="cpu")
    rows = _positions(filled, torch.arange(x.shape[1], device="cpu"))
    cache[entries.long()[:, None], rows] = x
