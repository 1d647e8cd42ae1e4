"""What the ranks attend to together: agreed upon, checked, and cut into pieces.

Called by `attention.py` and `backward.py`. The values of options are checked where those of one
machine are, by `_args`, as of a problem over the keys of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _args
from .agreement import check_same, summary, together
from .layout import Layout, Piece, along, check_lengths, own, pieces
from .ring import Arrays, Like
from .transport import Transport

Masks = dict[str, np.ndarray]  # by the names of `MASKS`

MASKS = ("attn_mask", "attn_bias")
_OF_ROWS = (*MASKS, "segment_ids")  # options of which each rank has its part
_BOUNDS = ("kv_starts", "kv_lengths")
_OF_KEYS = (*_OF_ROWS, *_BOUNDS)  # those that a piece of keys has its part of


class RingProblem:
    """A problem over all ranks, of which this one holds some queries and some keys.

    Parameters
    ----------
    comm
    arrays
        query, key and value as they were given.
    options
        Of `scaled_dot_product_attention`, by their names.
    layout, block
        As in `shard`.
    start
        What can fail on this rank alone and ought to before data moves: called with the problem.
    """

    def __init__(
        self,
        comm: Transport,
        arrays: tuple[Any, Any, Any],
        options: dict[str, Any],
        layout: Layout,
        block: int,
        start: Callable[[RingProblem], None],
    ) -> None:
        self.options = options
        answers = together(comm, lambda: self._describe(arrays, layout, block))
        rows = [answer.pop("rows") for answer in answers]
        check_same(answers)
        seqlen_q, self.seqlen_k = (sum(lengths) for lengths in zip(*rows, strict=True))
        self._seqlen_q = seqlen_q
        self.query_pieces = pieces(seqlen_q, comm.ranks, layout, block)
        self.key_pieces = pieces(self.seqlen_k, comm.ranks, layout, block)
        check_lengths("query", [lengths[0] for lengths in rows], self.query_pieces)
        check_lengths("key", [lengths[1] for lengths in rows], self.key_pieces)
        self.own_queries = own(seqlen_q, comm.ranks, comm.rank, layout, block)
        self.own_key_pieces = own(self.seqlen_k, comm.ranks, comm.rank, layout, block)

        def check() -> None:
            self._check()
            start(self)

        together(comm, check)

    # ------------------------------------------------------------------ together

    def _describe(self, arrays: tuple[Any, Any, Any], layout: Layout, block: int) -> dict[str, Any]:
        """This rank's words on what all must agree on; `rows` are its own."""
        names = ("query", "key", "value")
        self.query, self.key, self.value = (
            _args.array(name, x) for name, x in zip(names, arrays, strict=True)
        )
        local = _args.attention_problem(
            self.query, self.key, self.value, self.options["enable_gqa"]
        )
        self.out_shape, self.lse_shape = local.out_shape, local.lse_shape
        block = _args.integer("block", block)
        pieces(0, 1, layout, block)
        described: dict[str, Any] = {
            "rows": [self.query.shape[-2], self.key.shape[-2]],
            "layout": layout,
            "block": block,
            "dtype": str(self.query.dtype),
        }
        for name, x in zip(names, (self.query, self.key, self.value), strict=True):
            described[f"{name}'s shape but for its rows"] = [*x.shape[:-2], x.shape[-1]]
        self.ids: tuple[np.ndarray, np.ndarray] | None = None
        ids = self.options["segment_ids"]
        if ids is not None:
            _args.set_options(local, {"segment_ids": ids})
            of_both = ids if isinstance(ids, (tuple, list)) else (ids, ids)
            of_query, of_key = (np.asarray(x) for x in of_both)
            self.ids = of_query, of_key
            described["segment_ids"] = [f"{x.dtype} {x.shape[:-1]}" for x in (of_query, of_key)]
        else:
            described["segment_ids"] = None
        for name in MASKS:
            described[name] = mask = self.options[name]
            if mask is not None:
                mask = self.options[name] = _args.as_array(name, mask)
                described[name] = [str(mask.dtype), *mask.shape[:-2], *mask.shape[-1:]]
        for name, x in self.options.items():
            if name not in _OF_ROWS:
                described[name] = summary(x)
        return described

    def _check(self) -> None:
        """Every option, as of one problem over the keys of all ranks, whose rows are not here."""
        grouped = self.options["enable_gqa"]
        no_keys = self.no_keys(self.query.dtype)
        query_lengths = self.options["query_lengths"]  # of all queries
        all_queries = _zeros(self.query, self._seqlen_q, self.query.dtype)
        _args.attention_problem(all_queries, *no_keys, grouped, query_lengths=query_lengths)
        apart = ("segment_ids", "query_lengths")  # the ids have been checked
        values = {name: x for name, x in self.options.items() if name not in apart}
        _args.attention_problem(self.query, *no_keys, **values)

        self._left, self._right = _sides(self.options["window_size"])
        if self.options["is_causal"]:
            self._right = 0
        offsets = np.asarray(self.options["query_offset"])
        self._offsets = (int(offsets.min()), int(offsets.max())) if offsets.size else (0, 0)
        lengths, starts = self.options["kv_lengths"], self.options["kv_starts"]
        self._end_k = self.seqlen_k if lengths is None else int(np.max(lengths, initial=0))
        self._begin_k = 0 if starts is None else int(np.min(starts, initial=self.seqlen_k))
        self._end_q = (
            self._seqlen_q if query_lengths is None else int(np.max(query_lengths, initial=0))
        )

        like: list[Like] = [(x.shape, x.dtype, -2) for x in (self.key, self.value)]
        if self.ids is not None:
            like.append((self.ids[1].shape, self.ids[1].dtype, -1))
        self.like_keys = like
        self.own_keys = self.own_arrays(self.own_key_pieces, self.some_keys())

    @staticmethod
    def own_arrays(
        own_pieces: list[Piece], arrays: list[tuple[np.ndarray, Like]]
    ) -> dict[int, Arrays]:
        """Contiguous arrays of this rank's pieces, which lie behind one another in its shards."""
        found, begin = {}, 0
        for piece in own_pieces:
            end = begin + piece.end - piece.begin
            found[piece.number] = [
                np.ascontiguousarray(x[along(x.ndim, axis, (begin, end))])
                for x, (_, _, axis) in arrays
            ]
            begin = end
        return found

    # ------------------------------------------------------------------ keys that travel

    def some_keys(self) -> list[tuple[np.ndarray, Like]]:
        """This rank's keys, values and ids of keys, and what those of others are like."""
        arrays = [self.key, self.value]
        if self.ids is not None:
            arrays.append(self.ids[1])
        return list(zip(arrays, self.like_keys, strict=True))

    def readers_of_keys(self, keys: Piece) -> list[int]:
        """The ranks whose queries see a piece of keys."""
        return sorted({q.owner for q in self.query_pieces if self.sees(q, keys)})

    def readers_of_rows(self, queries: Piece) -> list[int]:
        """The ranks whose keys a piece of queries sees."""
        return sorted({k.owner for k in self.key_pieces if self.sees(queries, k)})

    def sees(self, queries: Piece, keys: Piece) -> bool:
        """Whether any of the queries may see any of the keys, by their positions."""
        if queries.begin >= min(queries.end, self._end_q):
            return False
        if max(keys.begin, self._begin_k) >= min(keys.end, self._end_k):
            return False
        first, last = queries.begin + self._offsets[0], queries.end - 1 + self._offsets[1]
        is_early = self._right >= 0 and keys.begin > last + self._right
        is_late = self._left >= 0 and keys.end - 1 < first - self._left
        return not is_early and not is_late

    # ------------------------------------------------------------------ rows that stay

    def rows_of(self, queries: Piece) -> np.ndarray:
        """The query's rows of a piece of this rank's."""
        return self.query[along(self.query.ndim, -2, self.span(queries))]

    def options_of_rows(self, queries: Piece) -> dict[str, Any]:
        """Options of a problem with these queries alone, over all keys."""
        options = self.options_of_any_rows(queries)
        if self.ids is not None:
            options["segment_ids"] = self.ids[0][..., slice(*self.span(queries))]
        return options

    def options_of_any_rows(self, queries: Piece) -> dict[str, Any]:
        """The same of queries of any rank; the ids of queries are with them."""
        options = {name: x for name, x in self.options.items() if name not in _OF_KEYS}
        options["query_offset"] = _moved(options["query_offset"], queries.begin)
        options["query_lengths"] = _within(options["query_lengths"], queries.begin, queries.end)
        return options

    def masks_of_rows(self, queries: Piece) -> Masks:
        """Their rows of the mask and of the bias, over all keys."""
        span = self.span(queries)
        return {
            name: mask[along(mask.ndim, -2, span)] if has_rows(mask) else mask
            for name, mask in self.masks().items()
        }

    def masks(self) -> Masks:
        """The mask and the bias, those that there are."""
        return {name: self.options[name] for name in MASKS if self.options[name] is not None}

    def options_of_keys(self, queries: Piece, begin: int, end: int) -> dict[str, Any]:
        """Those of keys [begin, end) beside them; the ids of keys travel."""
        return self.options_of_any_keys(begin, end, self.masks_of_rows(queries))

    def options_of_any_keys(self, begin: int, end: int, masks: Masks) -> dict[str, Any]:
        """The same beside queries of any rank, whose rows of the masks are given."""
        options: dict[str, Any] = {
            name: _within(self.options[name], begin, end) for name in _BOUNDS
        }
        for name, mask in masks.items():
            has_columns = mask.ndim and (mask.shape[-1] > 1 or self.seqlen_k == 1)
            options[name] = mask[..., begin:end] if has_columns else mask
        return options

    def no_keys(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Zeros for the keys and values of all ranks, where only their positions are asked for."""
        return _zeros(self.key, self.seqlen_k, dtype), _zeros(self.value, self.seqlen_k, dtype)

    def span(self, queries: Piece) -> tuple[int, int]:
        """Where they are in this rank's shards."""
        begin = sum(p.end - p.begin for p in self.own_queries if p.number < queries.number)
        return begin, begin + queries.end - queries.begin


def has_rows(mask: np.ndarray) -> bool:
    """Whether it has rows of this rank's queries; else it broadcasts."""
    return mask.ndim > 1 and mask.shape[-2] != 1


def _zeros(x: np.ndarray, rows: int, dtype: np.dtype) -> np.ndarray:
    """Like x, with so many rows, in no memory."""
    return np.broadcast_to(np.zeros((), dtype), (*x.shape[:-2], rows, x.shape[-1]))


def _within(positions: Any, begin: int, end: int) -> np.ndarray | None:
    """Of each batch entry a position in a piece, of those in the whole."""
    if positions is None:
        return None
    within: np.ndarray = np.clip(np.asarray(positions) - begin, 0, end - begin)
    return within


def _sides(window: Any) -> tuple[int, int]:
    left, right = (-1, -1) if window is None else window
    return int(left), int(right)


def _moved(offset: Any, by: int) -> Any:
    return offset + by if isinstance(offset, int) else np.asarray(offset) + by
