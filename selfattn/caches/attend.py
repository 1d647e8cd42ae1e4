"""A query's attention to what a cache holds: its options, its positions and its result.

The queries of an entry are its newest positions. Called by both caches, which say where keys lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _args

if TYPE_CHECKING:
    from .._core import AttentionProblem


class Call(NamedTuple):
    """What a call of `attend` gives, checked."""

    query: np.ndarray  # (batch, Hq, L, E), as it is computed with
    dtype: np.dtype  # the query's own, and so the result's
    lengths: np.ndarray  # of each entry, how many keys it has
    queries: np.ndarray  # and how many of the L queries
    short: list[int]  # entries with fewer than L
    options: dict[str, Any]  # of the problem
    num_threads: int

    @property
    def offsets(self) -> np.ndarray:
        """The position of each entry's first query among its keys."""
        offsets: np.ndarray = self.lengths - self.queries
        return offsets


def call_of(
    query: Any,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    lengths: np.ndarray,
    queries: Any,
    num_threads: Any,
    options: dict[str, Any],
) -> Call:
    """The call; `shape` is the batch, the cache's heads and its head_dim, `dtype` the cache's."""
    batch, num_heads_kv, head_dim = shape
    query = _args.array("query", query)
    if query.ndim != 4 or query.shape[0] != batch or query.shape[-1] != head_dim:
        raise ValueError(f"query: expected shape ({batch}, Hq, L, {head_dim}), got {query.shape}")
    heads = query.shape[1]
    if heads != 1 and (num_heads_kv == 0 or heads % num_heads_kv):
        raise ValueError(
            f"query: expected a number of heads that is a multiple of the cache's {num_heads_kv}, "
            f"got {heads}"
        )
    own = query.dtype
    if dtype == np.int8:
        if own == np.float64:
            raise TypeError(
                "query: expected float32, float16 or bfloat16, as what a cache of int8 holds is "
                "computed in float32, got float64"
            )
        query = query.astype(np.float32, copy=False)
    elif own != dtype:
        raise TypeError(f"query: expected {dtype}, the cache's dtype, got {own}")
    short = []
    if queries is None:
        queries = np.full(batch, query.shape[2], np.int64)
    else:
        queries = _args.per_batch("lengths", queries, (batch,), 0, query.shape[2])
        short = np.flatnonzero(queries < query.shape[2]).tolist()
    threads = _args.num_threads(num_threads)
    return Call(query, own, lengths, queries, short, options, threads)


def set_options(problem: AttentionProblem, call: Call, first_key: int | np.ndarray = 0) -> None:
    """Those of the call, where an entry's keys begin at position `first_key`."""
    _args.set_options(problem, call.options)
    if 0 in problem.lse_shape:
        return
    offsets = np.ascontiguousarray(call.offsets - first_key)
    lengths = np.maximum(call.lengths - first_key, 0)
    problem.set_query_offset(offsets if (offsets != offsets[0]).any() else int(offsets[0]))
    if (lengths != problem.scores_shape[-1]).any():
        problem.set_kv_lengths(lengths)


def attend(
    problem: AttentionProblem,
    call: Call,
    return_lse: Any,
    out: np.ndarray | None,
    compute: Callable[[np.ndarray, np.ndarray | None], None] | None = None,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """The problem's result; what an entry has no query for is 0, and its lse -inf.

    `compute(out, lse)`, if given, writes it in another way.
    """
    with_lse = _args.flag("return_lse", return_lse)
    real = _args.real_dtype(call.query.dtype)
    lse = np.empty(problem.lse_shape, real) if with_lse else None

    def fill(target: np.ndarray) -> None:
        is_own = target.dtype == call.query.dtype
        result = target if is_own else np.empty(target.shape, call.query.dtype)
        if compute is None:
            problem.attend(result, lse, call.num_threads)
        else:
            compute(result, lse)
        if not is_own:
            with np.errstate(all="ignore"):
                target[...] = result  # rounded once
        for b in call.short:
            target[b, :, call.queries[b] :] = 0
            if lse is not None:
                lse[b, :, call.queries[b] :] = -np.inf

    like = call.query
    if like.dtype != call.dtype:
        like = np.empty_like(like, call.dtype)
    result = _args.compute_into(out, problem.out_shape, like, problem.arrays, fill)
    return result if lse is None else (result, lse)
