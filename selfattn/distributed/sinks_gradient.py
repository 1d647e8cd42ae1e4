"""The gradient of the sinks: one sum over batch entries and all ranks' rows, in their order.

A few numbers go from rank to rank: each adds a batch entry's rows of a piece and passes them on.
What a row adds is one product of out and its gradient, nothing beside its scores, so that it costs
little that one rank at a time does it. Called by `backward.py`.
"""

from __future__ import annotations

from math import prod

import numpy as np

from .. import _args
from .._core import AttentionProblem
from .agreement import SUMS, settle
from .layout import Piece
from .problem import RingProblem
from .rows_given import RowsGiven
from .transport import Transport, as_bytes, wait_all


def sinks_gradient(comm: Transport, problem: RingProblem, given: RowsGiven) -> np.ndarray:
    """The whole gradient, on every rank, of the sinks' shape and dtype."""
    sums = np.zeros(problem.lse_shape[-2] if len(problem.lse_shape) > 1 else 1)
    entries = prod(problem.lse_shape[:-2])
    pieces = [piece for piece in problem.query_pieces if piece.end > piece.begin]
    stops = [(entry, piece) for entry in range(entries) for piece in pieces]
    owners = [piece.owner for _, piece in stops]
    add = _Adder(problem, given)
    failure: BaseException | None = None
    for i, (entry, piece) in enumerate(stops):
        if piece.owner != comm.rank:
            continue
        if i and owners[i - 1] != comm.rank:
            comm.receive(as_bytes(sums), owners[i - 1], SUMS).wait()
        if failure is None:
            try:
                add(sums, entry, piece)
            except BaseException as error:
                failure = error
        if i + 1 < len(stops) and owners[i + 1] != comm.rank:
            comm.send(as_bytes(sums), owners[i + 1], SUMS).wait()
    if owners and owners[-1] == comm.rank:
        others = [rank for rank in range(comm.ranks) if rank != comm.rank]
        wait_all([comm.send(as_bytes(sums), rank, SUMS) for rank in others])
    elif owners:
        comm.receive(as_bytes(sums), owners[-1], SUMS).wait()
    settle(comm, failure)
    in_reals = _args.in_dtype_of(sums, np.empty(sums.shape, given.real))  # as one machine has them
    return _args.in_dtype_of(in_reals, problem.options["sinks"])


class _Adder:
    """Adds a batch entry's rows of one of this rank's pieces to the sums."""

    def __init__(self, problem: RingProblem, given: RowsGiven) -> None:
        self._problem, self._given = problem, given
        self._parts: dict[int, tuple[AttentionProblem, tuple[np.ndarray | None, ...]]] = {}

    def __call__(self, sums: np.ndarray, entry: int, piece: Piece) -> None:
        if piece.number not in self._parts:
            self._parts[piece.number] = self._part(piece)
        part, rows = self._parts[piece.number]
        part.differentiate_sinks(rows, sums, entry)

    def _part(self, piece: Piece) -> tuple[AttentionProblem, tuple[np.ndarray | None, ...]]:
        """The rows beside all keys, whose positions say which rows see none; ids and masks that
        hide all keys from a row show in its state."""
        problem, given = self._problem, self._given
        rows, state = given.parts(problem.span(piece))
        options = problem.options_of_any_rows(piece) | problem.options_of_any_keys(
            0, problem.seqlen_k, problem.masks_of_rows(piece)
        )
        key, value = problem.no_keys(given.real)
        part = given.problem_of(rows[0], key, value, options, (piece.begin, 0))
        return part, given.given(rows, state)
