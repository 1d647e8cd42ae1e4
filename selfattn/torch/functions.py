"""The public functions: of tensors, with the signatures of the NumPy API's and all of its options.

Each packs its options for the operator (`options.py`), and calls it; or the kernel at once, where
nobody would see the difference (`eager.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._args import flag
from . import eager, kernels, operators, options, usual

Number = Any  # a float or an int, or what torch.compile puts in its place
Ints = Any  # an int or an int tensor
Sequences = Any  # an int tensor, or a pair of them


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: Number = 0.0,
    is_causal: bool = False,
    *,
    scale: Number | None = None,
    enable_gqa: bool = False,
    attn_bias: Tensor | None = None,
    query_offset: Ints = 0,
    query_lengths: Ints | None = None,
    kv_starts: Ints | None = None,
    kv_lengths: Ints | None = None,
    window_size: Sequence[int] | None = (-1, -1),
    softcap: Number | None = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    segment_ids: Tensor | tuple[Tensor, Tensor] | None = None,
    dropout_seed: Ints = 0,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> Any:
    """`selfattn.scaled_dot_product_attention` of tensors, with gradients.

    Parameters, shapes and meaning are those of the NumPy function, with tensors for arrays; the
    result has the same bits. Tensors are read where they lie, whatever their strides.

    Parameters
    ----------
    query, key, value : tensor, shapes (..., Hq, L, E), (..., Hkv, S, E), (..., Hkv, S, Ev)
        float32, float64, float16 or bfloat16, on the CPU.
    attn_mask : tensor that broadcasts to (..., Hq, L, S), optional
        Of bools or floats. One of floats may require grad, broadcast or not.
    attn_bias : tensor that broadcasts to (..., Hq, L, S), optional
        Of floats, beside a mask. It may require grad, broadcast or not.
    sinks : tensor, shape (Hq,), optional
        It may require grad.
    dropout_seed : int, or an int64 tensor of one element
        A tensor lets a compiled program draw it anew in each call.

    Returns
    -------
    out : tensor, shape (..., Hq, L, Ev)
        Of query's dtype; its axes lie in memory in the order of query's.
    lse : tensor, shape (..., Hq, L)
        Only with `return_lse`; of float32 for half types. It has gradients as `out` has.

    Raises
    ------
    TypeError, ValueError
        As the NumPy function; TypeError for a tensor that is not on the CPU.
    NotImplementedError
        For forward-mode derivatives, for second derivatives, and where `alibi_slopes` requires
        grad: none of these is ever silently 0.

    Notes
    -----
    See `selfattn.scaled_dot_product_attention` for the method and its sources. Under
    torch.func.vmap the mapped axis becomes a leading axis of one call.

    Examples
    --------
    >>> import torch, selfattn.torch
    >>> query = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> value = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> out = selfattn.torch.scaled_dot_product_attention(query, query, value, is_causal=True)
    >>> out.sum().backward()
    >>> query.grad.shape
    torch.Size([2, 2])
    """
    given = options.of_call(
        attn_mask, dropout_p, is_causal, scale, enable_gqa, attn_bias, query_offset, query_lengths,
        kv_starts, kv_lengths, window_size, softcap, alibi_slopes, sinks, segment_ids, dropout_seed,
        num_threads,
    )  # fmt: skip
    return attend(query, key, value, given, flag("return_lse", return_lse))


def attend(query: Tensor, key: Tensor, value: Tensor, given: Any, return_lse: bool = False) -> Any:
    """The same, of the operator's arguments."""
    if eager.is_plain(query, key, value):
        return attend_at_once(query, key, value, given, return_lse)
    if not torch.compiler.is_compiling():
        check(given, query=query, key=key, value=value)
    out, lse = operators.attention(query, key, value, *given)
    return (out, lse) if return_lse else out


def attend_at_once(
    query: Tensor, key: Tensor, value: Tensor, given: Any, return_lse: bool = False
) -> Any:
    """The same of what is plain (`eager.py`)."""
    if eager.wants_grad(query, key, value, *given):
        results = usual.attend(query, key, value, given)
        if results is None:
            results = operators.attention_at_once((query, key, value, *given))
        out, lse = results
    else:
        out, lse = kernels.attend(query, key, value, given, return_lse)
    return (out, lse) if return_lse else out


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Sequences,
    cu_seqlens_k: Sequences,
    attn_mask: Tensor | None = None,
    dropout_p: Number = 0.0,
    is_causal: bool = False,
    *,
    scale: Number | None = None,
    enable_gqa: bool = False,
    attn_bias: Tensor | None = None,
    query_offset: Ints = 0,
    query_lengths: Ints | None = None,
    kv_starts: Ints | None = None,
    kv_lengths: Ints | None = None,
    window_size: Sequence[int] | None = (-1, -1),
    softcap: Number | None = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    segment_ids: Tensor | tuple[Tensor, Tensor] | None = None,
    dropout_seed: Ints = 0,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> Any:
    """`selfattn.varlen_attention` of tensors, with gradients: packed sequences of many lengths.

    Parameters that are not named below are those of `scaled_dot_product_attention` here, and shapes
    are those of the NumPy function.

    Parameters
    ----------
    query, key, value : tensor, shapes (total_q, Hq, E), (total_k, Hkv, E), (total_k, Hkv, Ev)
    cu_seqlens_q, cu_seqlens_k : int tensor, shape (B + 1,); or a pair, each of shape (B,)
        Sequence b is rows `cu_seqlens[b]` to `cu_seqlens[b + 1]`. A pair (starts, lengths) says the
        same of rows anywhere: sequence b is `lengths[b]` rows from `starts[b]` on, in any order and
        with gaps. Sequences of keys may share rows where no gradients are asked for, those of
        queries never.

    Returns
    -------
    out : tensor, shape (total_q, Hq, Ev)
        A query of no sequence gets 0.
    lse : tensor, shape (Hq, total_q)
        Only with `return_lse`. It has gradients as `out` has.

    Examples
    --------
    >>> import torch, selfattn.torch
    >>> query = torch.randn(5, 1, 4, requires_grad=True)
    >>> starts = torch.tensor([0, 2, 5])
    >>> out = selfattn.torch.varlen_attention(query, query, query, starts, starts)
    >>> alone = selfattn.torch.scaled_dot_product_attention(*[query[2:, 0]] * 3)
    >>> torch.equal(out[2:, 0], alone)
    True
    >>> keys = torch.tensor([0, 0]), torch.tensor([3, 5])  # both read the first three keys
    >>> shared = selfattn.torch.varlen_attention(query, query, query, starts, keys)
    >>> one = torch.tensor([0, 5])
    >>> whole = selfattn.torch.varlen_attention(query, query, query, one, one)
    >>> torch.equal(shared[2:], whole[2:])
    True
    """
    given = options.of_call(
        attn_mask, dropout_p, is_causal, scale, enable_gqa, attn_bias, query_offset, query_lengths,
        kv_starts, kv_lengths, window_size, softcap, alibi_slopes, sinks, segment_ids, dropout_seed,
        num_threads,
    )  # fmt: skip
    starts_q, lengths_q = _sequences("cu_seqlens_q", cu_seqlens_q)
    starts_k, lengths_k = _sequences("cu_seqlens_k", cu_seqlens_k)
    if not torch.compiler.is_compiling():
        check(given, query=query, key=key, value=value)
        check((), cu_seqlens_q=starts_q, cu_seqlens_k=starts_k)
        for name, x in (("cu_seqlens_q", lengths_q), ("cu_seqlens_k", lengths_k)):
            if x is not None:
                check((), **{name: x})
    sequences = starts_q, starts_k, lengths_q, lengths_k
    out, lse = operators.varlen(query, key, value, *sequences, *given)
    return (out, lse) if flag("return_lse", return_lse) else out


def _sequences(name: str, given: Sequences) -> tuple[Any, Any]:
    """(cu_seqlens, None), or the pair (starts, lengths)."""
    if not isinstance(given, (tuple, list)) or not any(isinstance(x, Tensor) for x in given):
        return given, None
    if len(given) != 2:
        raise TypeError(f"{name}: expected a tensor or a pair of them, got {len(given)} of them")
    if not isinstance(given[1], Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(given[1]).__name__}")
    return given[0], given[1]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, num_threads: int | None = None
) -> Tensor:
    """`selfattn.project` of tensors, with gradients: `x @ weight.T + bias`.

    A row of the result has the same bits whatever other rows there are, and so has a row of the
    gradient of `x`. Gradients that nobody asks for are not computed.

    Parameters
    ----------
    x : tensor, shape (..., n_in)
        float32, float64, float16 or bfloat16, on the CPU. Any strides.
    weight : tensor, shape (n_out, n_in)
    bias : tensor, shape (n_out,), optional

    Returns
    -------
    tensor, shape (..., n_out)
        In C order, as `torch.nn.functional.linear` returns it.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, kind or device; for a wrong shape.
    NotImplementedError
        For forward-mode and for second derivatives.

    Examples
    --------
    >>> import torch, selfattn.torch
    >>> weight = torch.tensor([[1.0, 1.0], [0.0, -1.0]], requires_grad=True)
    >>> selfattn.torch.linear(torch.tensor([[1.0, 2.0]]), weight).tolist()
    [[3.0, -2.0]]
    """
    if eager.is_plain(x, weight, bias):
        return project_at_once(x, weight, bias, num_threads)
    if not torch.compiler.is_compiling():
        check((), x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    result: Tensor = operators.linear(x, weight, bias, num_threads)
    return result


def project_at_once(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_threads: int | None = None
) -> Tensor:
    """The same of what is plain (`eager.py`)."""
    if eager.wants_grad(x, weight, bias):
        result: Tensor = usual.project(x, weight, bias, num_threads)
        return result
    return kernels.linear_forward(x, weight, bias, num_threads)


def check(options_given: Sequence[Any], **tensors: Any) -> None:
    """Refuse what is no dense tensor on the CPU: the dispatcher's own words name no argument."""
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    others = [(options.NAMES[i], options_given[i]) for i in options.TENSORS if options_given]
    for name, x in (*tensors.items(), *others):
        if x is None:
            continue
        if not x.is_cpu:
            raise TypeError(f"{name}: expected a tensor on the CPU, got one on {x.device}")
        if x.layout is not torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got one of {x.layout}")
