"""Pieces that travel from rank to rank, each rank seeing them in the order of their positions.

A piece starts at the rank that holds it, goes to the first of the ranks that read it, and from each
to the next: a rank passes on what it has read, so that every link carries each piece once, as in a
ring. But all begin with piece 0, because a sum's bits depend on its order: rank r is r messages
behind rank 0, and otherwise as busy. A rank's next piece comes, and the last one goes, while it
computes. Called by `attention.py` and `backward.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from .agreement import TAGS, settle
from .layout import Piece
from .transport import Request, Transport, as_bytes, wait_all

Arrays = list[np.ndarray]
# Of an array of a piece: shape, dtype, the axis of its rows, None if pieces are of one shape.
Like = tuple[tuple[int, ...], np.dtype, int | None]

_ARRAYS = 9  # of a piece, at most: the tags of one piece


def travel(
    comm: Transport,
    pieces: Sequence[Piece],
    readers: Callable[[Piece], Sequence[int]],
    own: dict[int, Arrays],
    like: Sequence[Like],
    visit: Callable[[Piece, Arrays, Callable[[], None]], None],
) -> None:
    """Visit those of the pieces that this rank reads, in order.

    Parameters
    ----------
    readers
        The ranks that read a piece, in ascending order; the same on all ranks.
    own
        Contiguous arrays of this rank's pieces, by their numbers.
    like
        What each of a piece's arrays is like, but for its number of rows.
    visit
        Called with a piece, its arrays, and what it should call now and then to move messages on.

    Raises
    ------
    RankError
        If `visit` failed on another rank. One that fails goes on passing pieces, so that none
        waits for it; all raise at the end.
    """
    chains = {
        p.number: [p.owner, *(r for r in readers(p) if r != p.owner)]
        for p in pieces
        if p.end > p.begin
    }
    mine = [p for p in pieces if p.number in chains and comm.rank in readers(p)]
    foreign = iter([p for p in mine if p.owner != comm.rank])
    failure: BaseException | None = None
    try:
        buffers = _buffers(like, [p for p in mine if p.owner != comm.rank])
    except MemoryError as error:
        failure = error
    settle(comm, failure)

    sends: list[Request] = []
    for number, arrays in own.items():
        if number in chains and len(chains[number]) > 1:
            sends += _send(comm, arrays, chains[number][1], number)

    def expect() -> tuple[Arrays, list[Request]]:
        """Start to receive the next piece of another rank, if there is one."""
        piece = next(foreign, None)
        if piece is None:
            return [], []
        buffers.reverse()
        arrays = _arrays(buffers[0], like, piece)
        chain = chains[piece.number]
        source = chain[chain.index(comm.rank) - 1]
        return arrays, [
            comm.receive(as_bytes(x), source, _tag(piece.number, i))
            for i, x in enumerate(arrays)
            if x.size
        ]

    arrays, arriving = expect()
    for piece in mine:
        passing: list[Request] = []
        if piece.owner == comm.rank:
            current = own[piece.number]
        else:
            wait_all(arriving)
            current = arrays
            arrays, arriving = expect()
            rest = chains[piece.number][chains[piece.number].index(comm.rank) + 1 :]
            if rest:
                passing = _send(comm, current, rest[0], piece.number)
        if failure is None:
            try:
                visit(piece, current, _MoveOn([*passing, *arriving, *sends]))
            except BaseException as error:
                failure = error
        wait_all(passing)
    wait_all(sends)
    settle(comm, failure)


class _MoveOn:
    """Moves on the messages that are under way."""

    def __init__(self, requests: list[Request]) -> None:
        self._requests = requests

    def __call__(self) -> None:
        self._requests = [request for request in self._requests if not request.test()]


def _tag(number: int, i: int) -> int:
    return TAGS + number * _ARRAYS + i


def _send(comm: Transport, arrays: Arrays, to: int, number: int) -> list[Request]:
    return [comm.send(as_bytes(x), to, _tag(number, i)) for i, x in enumerate(arrays) if x.size]


def _shape(like: Like, rows: int) -> tuple[int, ...]:
    shape, _, axis = like
    if axis is None:
        return shape
    return (*shape[:axis], rows, *shape[len(shape) + axis + 1 :])


def _buffers(like: Sequence[Like], pieces: Sequence[Piece]) -> list[list[np.ndarray]]:
    """Room for two pieces: one that is read and passed on, one that arrives."""
    rows = max((p.end - p.begin for p in pieces), default=0)
    sizes = [prod(_shape(x, rows)) * x[1].itemsize for x in like]
    return [[np.empty(size, np.uint8) for size in sizes] for _ in range(min(len(pieces), 2))]


def _arrays(buffers: list[np.ndarray], like: Sequence[Like], piece: Piece) -> Arrays:
    """The piece's arrays in a buffer."""
    arrays = []
    for buffer, x in zip(buffers, like, strict=True):
        shape = _shape(x, piece.end - piece.begin)
        arrays.append(buffer[: prod(shape) * x[1].itemsize].view(x[1]).reshape(shape))
    return arrays
