"""Attention over packed sequences: rows of many lengths, end to end, without padding.

Called by users; `_args` checks what they give and makes a problem of it, whose batch entries are
the sequences; `_core` computes it. The truth it is tested against is `reference/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from . import _args

if TYPE_CHECKING:
    from ._core import AttentionProblem
    from ._typing import Array, Ints, Number, Sequences, Window


@overload
def varlen_attention(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Sequences,
    cu_seqlens_k: Sequences,
    attn_mask: Array | None = ...,
    dropout_p: Number = ...,
    is_causal: bool = ...,
    *,
    scale: Number | None = ...,
    enable_gqa: bool = ...,
    attn_bias: Array | None = ...,
    query_offset: Ints = ...,
    query_lengths: Ints | None = ...,
    kv_starts: Ints | None = ...,
    kv_lengths: Ints | None = ...,
    window_size: Window | None = ...,
    softcap: Number | None = ...,
    alibi_slopes: Array | None = ...,
    sinks: Array | None = ...,
    segment_ids: Array | tuple[Array, Array] | None = ...,
    dropout_seed: int = ...,
    return_lse: Literal[False] = ...,
    out: np.ndarray | None = ...,
    num_threads: int | None = ...,
) -> np.ndarray: ...


@overload
def varlen_attention(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Sequences,
    cu_seqlens_k: Sequences,
    attn_mask: Array | None = ...,
    dropout_p: Number = ...,
    is_causal: bool = ...,
    *,
    scale: Number | None = ...,
    enable_gqa: bool = ...,
    attn_bias: Array | None = ...,
    query_offset: Ints = ...,
    query_lengths: Ints | None = ...,
    kv_starts: Ints | None = ...,
    kv_lengths: Ints | None = ...,
    window_size: Window | None = ...,
    softcap: Number | None = ...,
    alibi_slopes: Array | None = ...,
    sinks: Array | None = ...,
    segment_ids: Array | tuple[Array, Array] | None = ...,
    dropout_seed: int = ...,
    return_lse: Literal[True],
    out: np.ndarray | None = ...,
    num_threads: int | None = ...,
) -> tuple[np.ndarray, np.ndarray]: ...


@overload
def varlen_attention(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Sequences,
    cu_seqlens_k: Sequences,
    attn_mask: Array | None = ...,
    dropout_p: Number = ...,
    is_causal: bool = ...,
    *,
    scale: Number | None = ...,
    enable_gqa: bool = ...,
    attn_bias: Array | None = ...,
    query_offset: Ints = ...,
    query_lengths: Ints | None = ...,
    kv_starts: Ints | None = ...,
    kv_lengths: Ints | None = ...,
    window_size: Window | None = ...,
    softcap: Number | None = ...,
    alibi_slopes: Array | None = ...,
    sinks: Array | None = ...,
    segment_ids: Array | tuple[Array, Array] | None = ...,
    dropout_seed: int = ...,
    return_lse: bool,
    out: np.ndarray | None = ...,
    num_threads: int | None = ...,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]: ...


def varlen_attention(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Sequences,
    cu_seqlens_k: Sequences,
    attn_mask: Array | None = None,
    dropout_p: Number = 0.0,
    is_causal: bool = False,
    *,
    scale: Number | None = None,
    enable_gqa: bool = False,
    attn_bias: Array | None = None,
    query_offset: Ints = 0,
    query_lengths: Ints | None = None,
    kv_starts: Ints | None = None,
    kv_lengths: Ints | None = None,
    window_size: Window | None = (-1, -1),
    softcap: Number | None = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    segment_ids: Array | tuple[Array, Array] | None = None,
    dropout_seed: int = 0,
    return_lse: bool = False,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Attend within each of B packed sequences: as a call for each, in one.

    Parameters that are not named below and errors are those of `scaled_dot_product_attention`.
    Each sequence has the bits that it has alone.

    Parameters
    ----------
    query : array, shape (total_q, Hq, E)
        Of one of `scaled_dot_product_attention`'s dtypes: the queries of all sequences, one
        sequence after the other.
    key : array, shape (total_k, Hkv, E)
    value : array, shape (total_k, Hkv, Ev)
    cu_seqlens_q, cu_seqlens_k : int array or list, shape (B + 1,); or a pair, each of shape (B,)
        Sequence b is rows `cu_seqlens[b]` to `cu_seqlens[b + 1]`: they start at 0, never decrease
        and end at the total, or before it where buffers are longer. A sequence may be empty.
        A pair (starts, lengths) says the same of rows anywhere: sequence b is `lengths[b]` rows
        from `starts[b]` on, in any order and with gaps. Sequences of keys may share rows, those of
        queries may not.
    attn_mask, attn_bias : array that broadcasts to (Hq, total_q, longest of keys), optional
        Columns count from the first key of the query's own sequence.
    query_offset : int, or int array or list, shape (B,)
    query_lengths, kv_starts, kv_lengths : int array or list, shape (B,), optional
        Each from 0 to the sequence's own number of queries or keys: how much of it is used. These
        are FlashAttention's `seqused_q`, `leftpad_k` and `seqused_k`.
    alibi_slopes : array, shape (Hq,) or (B, Hq), optional
    segment_ids : int array, shape (total,), or a pair, shapes (total_q,) and (total_k,), optional
    out : array, shape (total_q, Hq, Ev), optional

    Returns
    -------
    out : array, shape (total_q, Hq, Ev)
        A query of no sequence gets 0, as one does that sees no key.
    lse : array, shape (Hq, total_q)
        Only with `return_lse`. That of a query of no sequence is -inf.

    Notes
    -----
    The layout is that of FlashAttention's `flash_attn_varlen_func` (Dao, 2023).

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 5, 1, 4))
    >>> out = selfattn.varlen_attention(query, key, value, np.array([0, 2, 5]), np.array([0, 2, 5]))
    >>> alone = selfattn.scaled_dot_product_attention(query[2:, 0], key[2:, 0], value[2:, 0])
    >>> np.array_equal(out[2:, 0], alone)
    True
    >>> starts, lengths = np.array([0, 0]), np.array([3, 5])  # both read the first three keys
    >>> keys = starts, lengths
    >>> shared = selfattn.varlen_attention(query, key, value, np.array([0, 2, 5]), keys)
    >>> alone = selfattn.scaled_dot_product_attention(query[:2, 0], key[:3, 0], value[:3, 0])
    >>> np.array_equal(shared[:2, 0], alone)
    True
    """
    values = (
        attn_mask, dropout_p, is_causal, scale, enable_gqa, attn_bias, query_offset, query_lengths,
        kv_starts, kv_lengths, window_size, softcap, alibi_slopes, sinks, segment_ids,
        dropout_seed,
    )  # fmt: skip
    options = _args.nondefault("varlen_attention", values)
    problem = _args.varlen_problem(query, key, value, cu_seqlens_q, cu_seqlens_k, **options)
    num_threads = _args.num_threads(num_threads)
    with_lse = _args.flag("return_lse", return_lse)
    lse = np.empty(problem.lse_shape, _args.real_dtype(problem.query.dtype)) if with_lse else None
    heads, total, head_dim_v = problem.out_shape
    result = _args.compute_into(
        out,
        (total, heads, head_dim_v),
        problem.query.swapaxes(0, 1),
        problem.arrays,
        lambda target: _attend(problem, target, lse, num_threads),
    )
    return result if lse is None else (result, lse)


def _attend(
    problem: AttentionProblem, out: np.ndarray, lse: np.ndarray | None, num_threads: int
) -> None:
    """Into `out` and `lse`; rows that are of no sequence are what those are that see no key."""
    problem.attend(out.swapaxes(0, 1), lse, num_threads)
    queries = problem.queries
    if queries is None or not queries.has_gaps:
        return
    gaps = queries.gaps()
    out[gaps] = 0
    if lse is not None:
        lse[:, gaps] = -np.inf
