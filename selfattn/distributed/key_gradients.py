"""The gradients of this rank's keys and values: sums over rows, which travel.

Made by `backward.py`, once for each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from .layout import Piece, along
from .problem import RingProblem
from .ring import Arrays, Like
from .rows_given import RowsGiven


class KeyGradients:
    """Sums in reals, that each piece of rows adds to.

    Attributes
    ----------
    key : array, shape (..., Hkv, S, E)
    value : array, shape (..., Hkv, S, Ev)
    """

    def __init__(self, problem: RingProblem, rows: RowsGiven) -> None:
        self._problem, self._rows = problem, rows
        self.key, self.value = (np.zeros(x.shape, rows.real) for x in (problem.key, problem.value))

    def rows_that_travel(
        self, masks_of_rows: Iterable[str]
    ) -> tuple[dict[int, Arrays], list[Like]]:
        """This rank's rows and all that belongs to them, and what those of others are like.

        A mask, whose rows some rank has, travels by its rows; another one, which is the same of all
        rows, as it is.
        """
        problem, given = self._problem, self._rows
        arrays: list[tuple[np.ndarray, int | None]] = [(x, -2) for x in given.arrays[:3]]
        arrays += [(x, -1) for x in given.arrays[3:]]
        if given.state is not None:
            arrays.append((given.state, -2))
        if problem.ids is not None:
            arrays.append((problem.ids[0], -1))
        seqlen_q = problem.query.shape[-2]
        for name, mask in problem.masks().items():
            if name in masks_of_rows:
                rows = np.broadcast_to(mask, (*mask.shape[:-2], seqlen_q, mask.shape[-1]))
                arrays.append((rows, -2))
            else:
                arrays.append((mask, None))
        some: list[tuple[np.ndarray, Like]] = [(x, (x.shape, x.dtype, axis)) for x, axis in arrays]
        return problem.own_arrays(problem.own_queries, some), [like for _, like in some]

    def visit(self, queries: Piece, arrays: Arrays, move_on: Callable[[], None]) -> None:
        """Add the part of a piece of rows."""
        problem, given = self._problem, self._rows
        rest = list(arrays)
        rows = [given.in_reals(rest.pop(0)) for _ in given.arrays]
        state = None if given.state is None else rest.pop(0)
        ids = None if problem.ids is None else rest.pop(0)
        masks = dict(zip(problem.masks(), rest, strict=True))
        of_rows = problem.options_of_any_rows(queries)
        begin = 0
        for keys in problem.own_key_pieces:
            span = (begin, begin + keys.end - keys.begin)
            begin = span[1]
            if not problem.sees(queries, keys):
                continue
            options = of_rows | problem.options_of_any_keys(keys.begin, keys.end, masks)
            if problem.ids is not None:
                options["segment_ids"] = (ids, problem.ids[1][..., slice(*span)])
            part = given.problem_of(
                rows[0],
                given.part(problem.key, -2, span),
                given.part(problem.value, -2, span),
                options,
                (queries.begin, keys.begin),
            )
            part.differentiate_keys(
                given.given(rows, state),
                self.key[along(self.key.ndim, -2, span)],
                self.value[along(self.value.ndim, -2, span)],
                given.threads,
            )
            move_on()
