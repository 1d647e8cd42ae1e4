"""A piece of this rank's queries, and attention over the keys that have come so far.

Made by `attention.py`, and by `row_states.py` for maxima and sums alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..state import BorrowingState
from .layout import Piece, along
from .problem import RingProblem
from .ring import Arrays

# Keys of a piece that are attended to between two looks at the messages: a multiple of 512.
KEYS_AT_ONCE = 3072


class RowPiece:
    """Rows, and the state that each piece of keys is added to."""

    def __init__(self, problem: RingProblem, piece: Piece, num_threads: int) -> None:
        self._problem, self.piece = problem, piece
        self.state = BorrowingState(
            problem.rows_of(piece),
            **problem.options_of_rows(piece),
            first_query=piece.begin,
            num_threads=num_threads,
        )

    def attend(self, keys: Piece, arrays: Arrays, move_on: Callable[[], None]) -> None:
        """Add a piece of keys, if any of these queries sees any of it.

        Its arrays are its keys, its values and, where there are ids, theirs; after some keys
        move_on is called.
        """
        if not self._problem.sees(self.piece, keys):
            return
        self.state.skip(keys.begin - self.state.num_keys)
        for begin in range(keys.begin, keys.end, KEYS_AT_ONCE):
            end = min(begin + KEYS_AT_ONCE, keys.end)
            span = (begin - keys.begin, end - keys.begin)
            key, value, *ids = arrays
            options = self._problem.options_of_keys(self.piece, begin, end)
            if ids:
                options["segment_ids"] = ids[0][..., slice(*span)]
            self.state.update(
                key[along(key.ndim, -2, span)], value[along(value.ndim, -2, span)], **options
            )
            move_on()

    def write_result(self, out: np.ndarray) -> np.ndarray:
        """Write these rows of this rank's result; returns their lse."""
        if not self.state.num_keys:  # none was seen, and the result has the shape of values
            value = self._problem.value
            self.state.update(self._problem.key[..., :0, :], value[..., :0, :], **self._no_ids())
        rows = out[along(out.ndim, -2, self._problem.span(self.piece))]
        _, lse = self.state.result(rows, return_lse=True)
        return lse

    def _no_ids(self) -> dict[str, np.ndarray]:
        ids = self._problem.ids
        return {} if ids is None else {"segment_ids": ids[1][..., :0]}
