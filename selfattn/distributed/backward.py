"""Gradients of attention over many ranks, with the bits of one machine.

The gradient of the query is a sum over keys, those of key and value are sums over rows: two rings.
In the first one keys and values travel, as forward, and each rank adds each piece's part to its
rows. In the second one rows travel, with their results and the gradients of these, and each rank
adds each piece's part to its keys. Scores are computed twice, as one machine does where it has few
heads (csrc/backward_schedule.h); what would have to be passed on with one ring, a sum that all
ranks add to, is never waited for. Called by users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _args, _core
from .._core import AttentionProblem
from ..gradients import AttentionGradients
from ..state import AttentionState, heads_of_state
from .agreement import check_same, together
from .attention import KEYS_AT_ONCE
from .layout import BLOCK, Layout, Piece, along
from .problem import RingProblem
from .ring import Arrays, Like, travel
from .transport import transport_of

if TYPE_CHECKING:
    from .._typing import Array, Ints, Number, Window


def ring_attention_backward(
    grad_out: Array,
    query: Array,
    key: Array,
    value: Array,
    out: Array,
    lse: Array,
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
    grad_lse: Array | None = None,
    layout: Layout = "contiguous",
    block: int = BLOCK,
    num_threads: int | None = None,
) -> AttentionGradients:
    """The gradients of `sum(grad_out * out)` over all ranks, for `out` of `ring_attention`.

    Every rank calls it with its shards, and gets its shards of the gradients: those of one call of
    `scaled_dot_product_attention_backward` over the whole, to the last bit, whatever the number of
    ranks and the layout, if `block` is a multiple of 1536, as it is by default.

    Parameters
    ----------
    grad_out : array, shape (..., Hq, L, Ev)
        The gradient of this rank's `out`, of query's dtype.
    query, key, value, comm
        As `ring_attention` was given them. The axes before the heads are the same of all three,
        and so are the heads of key and value.
    out : array, shape (..., Hq, L, Ev)
    lse : array, shape (..., Hq, L)
        What it returned on this rank, with `return_lse=True`.
    grad_lse : array, shape (..., Hq, L), optional
        The gradient of `lse`, where it is used too; on all ranks or on none.
    layout, block, and the options
        As `ring_attention` was given them.

    Returns
    -------
    AttentionGradients
        Named (query, key, value, attn_mask, sinks), of this rank's positions; the last two are
        None: those gradients are not computed here.

    Raises
    ------
    TypeError, ValueError
        As `ring_attention`, and as `scaled_dot_product_attention_backward`.
    RankError
        If another rank failed.

    Notes
    -----
    Of half types, sums are kept in float32, and each gradient is rounded once, at its end.

    A mask of rows travels with its rows, over the keys of all ranks. Where some row's `lse` is
    large, its maximum and its sum are found again, as on one machine: keys travel once more.

    Examples
    --------
    >>> import numpy as np
    >>> from selfattn import distributed, scaled_dot_product_attention
    >>> from selfattn import scaled_dot_product_attention_backward
    >>> query, key, value, grad = np.random.default_rng(0).standard_normal((4, 2, 3500, 8))
    >>> def differentiate(comm):
    ...     mine = [distributed.shard(x, comm.ranks, comm.rank) for x in (query, key, value, grad)]
    ...     *qkv, grad_out = mine
    ...     out, lse = distributed.ring_attention(*qkv, comm, return_lse=True)
    ...     return distributed.ring_attention_backward(grad_out, *qkv, out, lse, comm)
    >>> shards = distributed.run_ranks(3, differentiate)
    >>> out, lse = scaled_dot_product_attention(query, key, value, return_lse=True)
    >>> want = scaled_dot_product_attention_backward(grad, query, key, value, out, lse)
    >>> [
    ...     np.array_equal(distributed.unshard([shard[i] for shard in shards]), want[i])
    ...     for i in range(3)
    ... ]
    [True, True, True]
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
    found: list[_Gradients] = []

    def start(problem: RingProblem) -> None:
        found.append(_Gradients(problem, (grad_out, out, lse, grad_lse), num_threads))

    problem = RingProblem(transport, (query, key, value), options, layout, block, start)
    gradients = found[0]
    answers = together(transport, lambda: gradients.words)
    check_same([{"grad_lse": words["has_grad_lse"]} for words in answers])
    if any(words["needs_states"] for words in answers):
        travel(
            transport,
            problem.key_pieces,
            problem.readers_of_keys,
            {number: [x[0], *x[2:]] for number, x in problem.own_keys.items()},
            [problem.like_keys[0], *problem.like_keys[2:]],
            gradients.visit_for_states,
        )
        gradients.keep_states()
    travel(
        transport,
        problem.key_pieces,
        problem.readers_of_keys,
        problem.own_keys,
        problem.like_keys,
        gradients.visit_keys,
    )
    travel(
        transport,
        problem.query_pieces,
        problem.readers_of_rows,
        *gradients.rows_that_travel(any(words["mask_has_rows"] for words in answers)),
        gradients.visit_rows,
    )
    return gradients.result()


class _Gradients:
    """This rank's gradients, and the parts of them that pieces add."""

    def __init__(
        self, problem: RingProblem, given: tuple[Any, Any, Any, Any], num_threads: int | None
    ) -> None:
        self._problem = problem
        self._threads = _args.num_threads(num_threads)
        query, key, value = problem.query, problem.key, problem.value
        batch = {x.shape[:-3] for x in (query, key, value)}
        heads = [x.shape[-3] if x.ndim > 2 else 1 for x in (query, key, value)]
        if len(batch) > 1 or heads[1] != heads[2] or heads[0] < heads[1]:
            raise ValueError(
                "key: expected, with value, query's axes before the heads and no more heads, got "
                f"query {query.shape}, key {key.shape}, value {value.shape}"
            )
        grad_out, out, lse, grad_lse = given
        local = _args.attention_problem(query, key, value, problem.options["enable_gqa"])
        arrays = _args.backward_inputs(local, local.out_shape, grad_out, out, lse)
        of_lse = _args.lse_gradient(local, grad_lse)
        self._rows: Arrays = [query, *arrays, *([] if of_lse is None else [of_lse])]
        self._has_grad_lse = of_lse is not None
        self._real = _args.real_dtype(query.dtype)
        self._query = np.zeros(query.shape, self._real)
        self._key, self._value = (np.zeros(x.shape, self._real) for x in (key, value))
        self._seen: dict[int, bool] = {}  # rows whose sum has begun
        self._states: list[tuple[Piece, AttentionState]] = []
        self._state: np.ndarray | None = None
        mask = problem.options["attn_mask"]
        self.words = {
            "has_grad_lse": self._has_grad_lse,
            "needs_states": self._has_large_lse(),
            "mask_has_rows": mask is not None and mask.ndim > 1 and mask.shape[-2] > 1,
        }

    def _has_large_lse(self) -> bool:
        """Whether weights of some row may not be taken from its lse (gradient_rows.inc.h)."""
        lse = np.asarray(self._rows[3])
        is_usable = np.abs(lse) < (32 if self._real.itemsize == 4 else 256)
        return not is_usable.all() or self._problem.options["sinks"] is not None

    # ------------------------------------------------------------------ states of large lse

    def visit_for_states(self, piece: Piece, arrays: Arrays, move_on: Callable[[], None]) -> None:
        """Add keys to the maxima and sums of this rank's rows."""
        problem = self._problem
        key, *ids = arrays
        for queries, state in self._states or self._new_states():
            if not problem.sees(queries, piece):
                continue
            state.skip(piece.begin - state.num_keys)
            options = problem.options_of_keys(queries, piece.begin, piece.end)
            if ids:
                options["segment_ids"] = ids[0]
            state.update(key, key[..., :0], **options)
            move_on()

    def _new_states(self) -> list[tuple[Piece, AttentionState]]:
        problem = self._problem
        for queries in problem.own_queries:
            options = problem.options_of_rows(queries)
            state = AttentionState(
                problem.rows_of(queries),
                **options,
                first_query=queries.begin,
                num_threads=self._threads,
            )
            self._states.append((queries, state))
        return self._states

    def keep_states(self) -> None:
        """The maxima and sums, in the rows' order."""
        shape = (*self._rows[3].shape, _core.STATE_HEAD)
        parts = [
            heads_of_state(state, (*shape[:-2], queries.end - queries.begin, shape[-1]))
            for queries, state in self._states or self._new_states()
        ]
        self._state = np.concatenate(parts, -2)

    # ------------------------------------------------------------------ keys travel

    def visit_keys(self, piece: Piece, arrays: Arrays, move_on: Callable[[], None]) -> None:
        """Add the part of a piece of keys to the gradients of this rank's rows."""
        problem = self._problem
        key, value, *ids = arrays
        for queries in problem.own_queries:
            if not problem.sees(queries, piece):
                continue
            last = max(p.number for p in problem.key_pieces if problem.sees(queries, p))
            span = problem.span(queries)
            rows = [self._part(x, -2, span) for x in self._rows[:3]]
            rows += [self._part(x, -1, span) for x in self._rows[3:]]
            state = None if self._state is None else self._part(self._state, -2, span)
            options = problem.options_of_rows(queries)
            gradient = self._query[along(self._query.ndim, -2, span)]
            for begin in range(piece.begin, piece.end, KEYS_AT_ONCE):
                end = min(begin + KEYS_AT_ONCE, piece.end)
                of_piece = (begin - piece.begin, end - piece.begin)
                more = problem.options_of_keys(queries, begin, end)
                if ids:
                    of_keys = ids[0][..., slice(*of_piece)]
                    more["segment_ids"] = (options["segment_ids"], of_keys)
                part = self._piece(
                    rows[0],
                    self._part(key, -2, of_piece),
                    self._part(value, -2, of_piece),
                    options | more,
                    (queries.begin, begin),
                )
                part.differentiate_rows(
                    self._given(rows, state),
                    gradient,
                    self._seen.get(queries.number, False),
                    piece.number < last or end < piece.end,
                    self._threads,
                )
                self._seen[queries.number] = True
                move_on()

    # ------------------------------------------------------------------ rows travel

    def rows_that_travel(self, mask_has_rows: bool) -> tuple[dict[int, Arrays], list[Like]]:
        """This rank's rows and all that belongs to them, and what those of others are like."""
        problem = self._problem
        arrays: list[tuple[np.ndarray, int | None]] = [(x, -2) for x in self._rows[:3]]
        arrays += [(x, -1) for x in self._rows[3:]]
        if self._state is not None:
            arrays.append((self._state, -2))
        if problem.ids is not None:
            arrays.append((problem.ids[0], -1))
        mask = problem.options["attn_mask"]
        axis: int | None = None
        if mask is not None:
            if mask_has_rows:
                axis, seqlen_q = -2, self._rows[0].shape[-2]
                mask = np.broadcast_to(mask, (*mask.shape[:-2], seqlen_q, mask.shape[-1]))
            arrays.append((mask, axis))
        some: list[tuple[np.ndarray, Like]] = [(x, (x.shape, x.dtype, axis)) for x, axis in arrays]
        return problem.own_arrays(problem.own_queries, some), [like for _, like in some]

    def visit_rows(self, piece: Piece, arrays: Arrays, move_on: Callable[[], None]) -> None:
        """Add the part of a piece of rows to the gradients of this rank's keys."""
        problem = self._problem
        rest = list(arrays)
        rows = [self._in_reals(rest.pop(0)) for _ in self._rows]
        state = None if self._state is None else rest.pop(0)
        ids = None if problem.ids is None else rest.pop(0)
        mask = rest.pop(0) if rest else None
        begin_here = 0
        for keys in problem.own_key_pieces:
            span = (begin_here, begin_here + keys.end - keys.begin)
            begin_here = span[1]
            if not problem.sees(piece, keys):
                continue
            options = problem.options_of_any_rows(piece) | problem.options_of_any_keys(
                keys.begin, keys.end, mask
            )
            if problem.ids is not None:
                options["segment_ids"] = (ids, problem.ids[1][..., slice(*span)])
            part = self._piece(
                rows[0],
                self._part(problem.key, -2, span),
                self._part(problem.value, -2, span),
                options,
                (piece.begin, keys.begin),
            )
            part.differentiate_keys(
                self._given(rows, state),
                self._key[along(self._key.ndim, -2, span)],
                self._value[along(self._value.ndim, -2, span)],
                self._threads,
            )
            move_on()

    # ------------------------------------------------------------------ both

    def _in_reals(self, x: np.ndarray) -> np.ndarray:
        return x if x.dtype == self._real else x.astype(self._real)

    def _part(self, x: np.ndarray, axis: int, span: tuple[int, int]) -> np.ndarray:
        return self._in_reals(x[along(x.ndim, axis, span)])

    def _given(self, rows: Arrays, state: np.ndarray | None) -> tuple[np.ndarray | None, ...]:
        """grad_out, out, lse, grad_lse and the rows' state."""
        return (*rows[1:4], rows[4] if self._has_grad_lse else None, state)

    def _piece(
        self,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        options: dict[str, Any],
        first: tuple[int, int],
    ) -> AttentionProblem:
        """The problem of some rows and some keys; `first` is of each the position in the whole."""
        options = options | {"query_offset": options["query_offset"] - first[1]}
        for name in ("attn_mask", "alibi_slopes", "sinks"):
            x = options.get(name)
            if x is not None and np.asarray(x).dtype != bool:
                options[name] = self._in_reals(np.asarray(x))
        problem = _args.attention_problem(query, key, value, **options)
        problem.set_place(*first)
        return problem

    def result(self) -> AttentionGradients:
        problem = self._problem
        return AttentionGradients(
            _args.in_dtype_of(self._query, problem.query),
            _args.in_dtype_of(self._key, problem.key),
            _args.in_dtype_of(self._value, problem.value),
            None,
            None,
        )
