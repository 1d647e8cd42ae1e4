"""Attention of a sequence whose positions are on many ranks, with the bits of one machine.

Called by users. `problem.py` makes sure that all ranks ask for the same, `ring.py` has keys and
values travel, and each rank folds them, in their order, into its rows (`row_pieces.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from .. import _args
from .layout import BLOCK, Layout, Piece
from .problem import RingProblem
from .ring import Arrays, travel
from .row_pieces import RowPiece
from .transport import transport_of

if TYPE_CHECKING:
    from .._typing import Array, Ints, Number, Window


# Whether lse is returned too is known where `return_lse` is, to type checkers too.
@overload
def ring_attention(
    query: Array,
    key: Array,
    value: Array,
    comm: Any,
    *,
    attn_mask: Array | None = ...,
    dropout_p: Number = ...,
    is_causal: bool = ...,
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
    layout: Layout = ...,
    block: int = ...,
    return_lse: Literal[False] = ...,
    num_threads: int | None = ...,
) -> np.ndarray: ...


@overload
def ring_attention(
    query: Array,
    key: Array,
    value: Array,
    comm: Any,
    *,
    attn_mask: Array | None = ...,
    dropout_p: Number = ...,
    is_causal: bool = ...,
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
    layout: Layout = ...,
    block: int = ...,
    return_lse: Literal[True],
    num_threads: int | None = ...,
) -> tuple[np.ndarray, np.ndarray]: ...


@overload
def ring_attention(
    query: Array,
    key: Array,
    value: Array,
    comm: Any,
    *,
    attn_mask: Array | None = ...,
    dropout_p: Number = ...,
    is_causal: bool = ...,
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
    layout: Layout = ...,
    block: int = ...,
    return_lse: bool,
    num_threads: int | None = ...,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]: ...


def ring_attention(
    query: Array,
    key: Array,
    value: Array,
    comm: Any,
    *,
    attn_mask: Array | None = None,
    dropout_p: Number = 0.0,
    is_causal: bool = False,
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
    layout: Layout = "contiguous",
    block: int = BLOCK,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Attention of this rank's queries over the keys of all ranks.

    Every rank calls it with its shard of the query, of the key and of the value, as `shard` cuts
    them, and gets its shard of the result: that of one call of `scaled_dot_product_attention` over
    the whole, to the last bit, whatever the number of ranks and the layout.

    Parameters
    ----------
    query : array, shape (..., Hq, L, E)
        This rank's positions. Those of all ranks are a sequence of their own length.
    key : array, shape (..., Hkv, S, E)
        This rank's positions.
    value : array, shape (..., Hkv, S, Ev)
    comm
        A communicator of mpi4py; a process group of torch.distributed on the CPU; or a transport,
        such as `run_ranks` makes.
    attn_mask, attn_bias : array that broadcasts to (..., Hq, L, all keys), optional
        This rank's rows, in the order of its queries, over the keys of all ranks. All ranks have
        a mask of the same dtype, or none; and so of the bias.
    segment_ids : int array, or two, optional
        This rank's queries' ids, (..., L), and its keys' ids, (..., S); one array is both.
    layout : {"contiguous", "zigzag"}
    block : int
        As they were given to `shard`.
    return_lse : bool
        Return the natural log of each row's sum of exponentials too.
    dropout_p, is_causal, scale, enable_gqa, query_offset, query_lengths, kv_starts, kv_lengths, \
window_size, softcap, alibi_slopes, sinks, dropout_seed, num_threads
        As `scaled_dot_product_attention` takes them for the whole: lengths, offsets and seeds are
        those of one call. All but `num_threads` are the same on all ranks.

    Returns
    -------
    out : array, shape (..., Hq, L, Ev)
        This rank's positions.
    lse : array, shape (..., Hq, L)
        Only with `return_lse`.

    Raises
    ------
    TypeError, ValueError
        As `scaled_dot_product_attention`; where ranks differ in what they must share; where a
        shard is not one that `shard` cuts. On all ranks, before any data has moved.
    RankError
        If another rank failed, which raises what it failed of.

    Notes
    -----
    A rank holds its shards, the pieces of two others (one that is read and passed on, one that
    arrives), its queries' state, which is a result and three more numbers a row, and its result.
    Pieces of keys that none of a rank's queries sees do not come to it.

    Examples
    --------
    By way of threads in one process; under `mpiexec`, comm is `mpi4py.MPI.COMM_WORLD`.

    >>> import numpy as np
    >>> from selfattn import distributed, scaled_dot_product_attention
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 2, 4000, 8))
    >>> def attend(comm):
    ...     shards = [
    ...         distributed.shard(x, comm.ranks, comm.rank, layout="zigzag")
    ...         for x in (query, key, value)
    ...     ]
    ...     return distributed.ring_attention(*shards, comm, is_causal=True, layout="zigzag")
    >>> whole = distributed.unshard(distributed.run_ranks(2, attend), layout="zigzag")
    >>> at_once = scaled_dot_product_attention(query, key, value, is_causal=True)
    >>> np.array_equal(whole, at_once)
    True
    """
    options = {
        "attn_mask": attn_mask,
        "dropout_p": dropout_p,
        "is_causal": is_causal,
        "scale": scale,
        "enable_gqa": enable_gqa,
        "attn_bias": attn_bias,
        "query_offset": query_offset,
        "query_lengths": query_lengths,
        "kv_starts": kv_starts,
        "kv_lengths": kv_lengths,
        "window_size": window_size,
        "softcap": softcap,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "segment_ids": segment_ids,
        "dropout_seed": dropout_seed,
    }
    transport = transport_of(comm)
    states: list[RowPiece] = []

    def start(problem: RingProblem) -> None:
        _args.flag("return_lse", return_lse)
        threads = _args.num_threads(num_threads)
        states.extend(RowPiece(problem, piece, threads) for piece in problem.own_queries)

    problem = RingProblem(transport, (query, key, value), options, layout, block, start)

    def visit(piece: Piece, arrays: Arrays, move_on: Callable[[], None]) -> None:
        for rows in states:
            rows.attend(piece, arrays, move_on)

    travel(
        transport,
        problem.key_pieces,
        problem.readers_of_keys,
        problem.own_keys,
        problem.like_keys,
        visit,
    )
    out = np.empty(problem.out_shape, problem.query.dtype)
    lse = [rows.write_result(out) for rows in states]
    return (out, np.concatenate(lse, -1)) if return_lse else out
