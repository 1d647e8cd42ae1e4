"""Maxima and sums of this rank's rows over all keys, found again: keys travel once more.

For rows whose `lse` is so large that it has lost bits (gradient_rows.inc.h), and for sinks, whose
part of a row is computed from them. Called by `backward.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import _core
from ..state import heads_of_state
from .agreement import in_step
from .layout import Piece
from .problem import RingProblem
from .ring import Arrays, travel
from .row_pieces import RowPiece
from .rows_given import RowsGiven
from .transport import Transport


def states_of_rows(comm: Transport, problem: RingProblem, given: RowsGiven) -> np.ndarray:
    """Each row's maximum, sum and factor, in the rows' order: (..., Hq, L, STATE_HEAD)."""
    rows: list[RowPiece] = []

    def visit(keys: Piece, arrays: Arrays, move_on: Callable[[], None]) -> None:
        key, *ids = arrays
        for piece in rows or begin():
            piece.attend(keys, [key, key[..., :0], *ids], move_on)  # values of no columns

    def begin() -> list[RowPiece]:
        rows.extend(RowPiece(problem, piece, given.threads) for piece in problem.own_queries)
        return rows

    travel(
        comm,
        problem.key_pieces,
        problem.readers_of_keys,
        {number: [x[0], *x[2:]] for number, x in problem.own_keys.items()},
        [problem.like_keys[0], *problem.like_keys[2:]],
        visit,
    )
    heads = problem.lse_shape[:-1]

    def states() -> np.ndarray:
        of_pieces = [
            heads_of_state(row.state, (*heads, row.piece.end - row.piece.begin, _core.STATE_HEAD))
            for row in rows or begin()
        ]
        return np.concatenate(of_pieces, -2)

    found: np.ndarray = in_step(comm, states)
    return found
