"""Attention of a sequence whose positions are on many ranks, with the bits of one machine.

Called by users. `problem.py` makes sure that all ranks ask for the same, `ring.py` has keys and
values travel, and each rank folds them, in their order, into an `AttentionState`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from .. import _args
from ..state import AttentionState
from .layout import BLOCK, Layout, Piece, along
from .problem import RingProblem
from .ring import Arrays, travel
from .transport import transport_of

if TYPE_CHECKING:
    from .._typing import Array, Ints, Number, Window

# Keys of a piece that are attended to between two looks at the messages: a multiple of 512.
KEYS_AT_ONCE = 2048


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
    query_offset: Ints = ...,
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
    query_offset: Ints = ...,
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
    query_offset: Ints = ...,
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
    query_offset: Ints = 0,
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
    attn_mask : array that broadcasts to (..., Hq, L, all keys), optional
        This rank's rows, in the order of its queries, over the keys of all ranks. All ranks have
        a mask of the same dtype, or none.
    segment_ids : int array, or two, optional
        This rank's queries' ids, (..., L), and its keys' ids, (..., S); one array is both.
    layout : {"contiguous", "zigzag"}
    block : int
        As they were given to `shard`.
    return_lse : bool
        Return the natural log of each row's sum of exponentials too.
    dropout_p, is_causal, scale, enable_gqa, query_offset, kv_lengths, window_size, softcap, \
alibi_slopes, sinks, dropout_seed, num_threads
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
    arrives), and its result with three more numbers a row, twice. Pieces of keys that none of a
    rank's queries sees do not come to it, unless a later rank does not see them otherwise.

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
        "query_offset": query_offset,
        "kv_lengths": kv_lengths,
        "window_size": window_size,
        "softcap": softcap,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "segment_ids": segment_ids,
        "dropout_seed": dropout_seed,
    }
    transport = transport_of(comm)
    states: list[_Rows] = []

    def start(problem: RingProblem) -> None:
        _args.flag("return_lse", return_lse)
        threads = _args.num_threads(num_threads)
        states.extend(_Rows(problem, piece, threads) for piece in problem.own_queries)

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
    results = [rows.state.result(return_lse=True) for rows in states]
    out = _joined([out for out, _ in results], -2)
    return (out, _joined([lse for _, lse in results], -1)) if return_lse else out


class _Rows:
    """A piece of this rank's queries, and attention over the keys so far."""

    def __init__(self, problem: RingProblem, piece: Piece, num_threads: int) -> None:
        self._problem, self._piece = problem, piece
        self.state = AttentionState(
            problem.rows_of(piece),
            **problem.options_of_rows(piece),
            first_query=piece.begin,
            num_threads=num_threads,
        )
        # No keys, of the right shape: for queries that see none.
        empty = [x[along(x.ndim, axis, (0, 0))] for x, (_, _, axis) in problem.some_keys()]
        self._update(empty, 0, 0)

    def attend(self, piece: Piece, arrays: Arrays, move_on: Callable[[], None]) -> None:
        """Add a piece of keys, if any of these queries sees any of it."""
        if not self._problem.sees(self._piece, piece):
            return
        self.state.skip(piece.begin - self.state.num_keys)
        like = self._problem.like_keys
        for begin in range(piece.begin, piece.end, KEYS_AT_ONCE):
            end = min(begin + KEYS_AT_ONCE, piece.end)
            span = (begin - piece.begin, end - piece.begin)
            self._update(
                [
                    x[along(x.ndim, axis, span)]
                    for x, (_, _, axis) in zip(arrays, like, strict=True)
                ],
                begin,
                end,
            )
            move_on()

    def _update(self, arrays: Arrays, begin: int, end: int) -> None:
        key, value, *ids = arrays
        options = self._problem.options_of_keys(self._piece, begin, end)
        if ids:
            options["segment_ids"] = ids[0]
        self.state.update(key, value, **options)


def _joined(pieces: list[np.ndarray], axis: int) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis)
