"""The gradients of this rank's rows, of query, mask and bias: sums over keys, which travel.

Made by `backward.py`, once for each call.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .layout import Piece, along
from .problem import RingProblem
from .ring import Arrays
from .row_pieces import KEYS_AT_ONCE
from .rows_given import RowsGiven


class QueryGradient:
    """Sums in reals, that each piece of keys adds to.

    Attributes
    ----------
    query : array, shape (..., Hq, L, E)
    masks : dict of arrays
        Of the mask and of the bias, those that are asked for: each of its own shape.
    """

    def __init__(self, problem: RingProblem, rows: RowsGiven) -> None:
        self._problem, self._rows = problem, rows
        self.query = np.zeros(problem.query.shape, rows.real)
        self.masks = rows.masks
        self._begun: set[int] = set()  # pieces of rows whose sum has begun

    def visit(self, keys: Piece, arrays: Arrays, move_on: Callable[[], None]) -> None:
        """Add the part of a piece of keys."""
        for queries in self._problem.own_queries:
            if self._problem.sees(queries, keys):
                self._add(queries, keys, arrays, move_on)

    def _add(
        self, queries: Piece, keys: Piece, arrays: Arrays, move_on: Callable[[], None]
    ) -> None:
        problem, given = self._problem, self._rows
        key, value, *ids = arrays
        last = max(p.number for p in problem.key_pieces if problem.sees(queries, p))
        span = problem.span(queries)
        rows, state = given.parts(span)
        options = problem.options_of_rows(queries)
        for begin in range(keys.begin, keys.end, KEYS_AT_ONCE):
            end = min(begin + KEYS_AT_ONCE, keys.end)
            of_piece = (begin - keys.begin, end - keys.begin)
            more = problem.options_of_keys(queries, begin, end)
            if ids:
                more["segment_ids"] = (options["segment_ids"], ids[0][..., slice(*of_piece)])
            part = given.problem_of(
                rows[0],
                given.part(key, -2, of_piece),
                given.part(value, -2, of_piece),
                options | more,
                (queries.begin, begin),
            )
            part.differentiate_rows(
                given.given(rows, state),
                self.query[along(self.query.ndim, -2, span)],
                queries.number in self._begun,
                keys.number < last or end < keys.end,
                self._of_mask("attn_mask", span, begin, end),
                self._of_mask("attn_bias", span, begin, end),
                given.threads,
            )
            self._begun.add(queries.number)
            move_on()

    def _of_mask(self, name: str, span: tuple[int, int], begin: int, end: int) -> np.ndarray | None:
        """Where the gradient of these rows and keys goes, or None."""
        gradient = self.masks.get(name)
        return None if gradient is None else gradient[..., slice(*span), begin:end]
