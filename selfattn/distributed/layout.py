"""Which positions of a sequence each rank holds: cuts at the ends of blocks that fix the bits.

Called by users, and by `attention.py` and `backward.py`, which know every rank's positions by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Layout = Literal["contiguous", "zigzag"]

# Keys are folded into a result 512 at a time, and rows into the gradients of keys 96 at a time. At
# their common multiples a cut changes no sum: of the forward pass alone, at those of 512.
FORWARD_BLOCK, BLOCK = 512, 1536


class Piece(NamedTuple):
    """A run of positions, of one rank."""

    number: int  # in the order of positions
    owner: int
    begin: int
    end: int


def pieces(
    length: int, ranks: int, layout: Layout = "contiguous", block: int = BLOCK
) -> list[Piece]:
    """The pieces of a sequence, in its order.

    Parameters
    ----------
    length : int
        Of the whole sequence.
    ranks : int
    layout : {"contiguous", "zigzag"}
        Contiguous: one piece for each rank, in the ranks' order. Zigzag: two, rank r has the pieces
        r and 2 * ranks - 1 - r, so that causal attention is as much work for each rank.
    block : int
        Pieces end at multiples of it, and the last at the end: a multiple of 512. Gradients have
        one machine's bits at multiples of 1536.

    Returns
    -------
    list of Piece
        Named (number, owner, begin, end). Their sizes differ by one block at most; of a short
        sequence, some are empty.

    Examples
    --------
    >>> from selfattn import distributed
    >>> for piece in distributed.pieces(10000, 2, "zigzag"):
    ...     print(piece.owner, piece.begin, piece.end)
    0 0 1536
    1 1536 4608
    1 4608 7680
    0 7680 10000
    """
    if layout not in ("contiguous", "zigzag"):
        raise ValueError(f"layout: expected 'contiguous' or 'zigzag', got {layout!r}")
    if block < 1 or block % FORWARD_BLOCK:
        raise ValueError(f"block: expected a multiple of {FORWARD_BLOCK}, got {block}")
    if ranks < 1:
        raise ValueError(f"ranks: expected 1 or more, got {ranks}")
    count = ranks if layout == "contiguous" else 2 * ranks
    blocks = -(-length // block)
    ends = [min(length, i * blocks // count * block) for i in range(count + 1)]
    return [Piece(i, min(i, 2 * ranks - 1 - i), ends[i], ends[i + 1]) for i in range(count)]


def shard(
    x: np.ndarray,
    ranks: int,
    rank: int,
    axis: int = -2,
    layout: Layout = "contiguous",
    block: int = BLOCK,
) -> np.ndarray:
    """The positions of `x` that a rank holds.

    Parameters
    ----------
    x : array
        Of the whole sequence: a query, a key, a value; or ids, lse or rows of a mask, with `axis`.
    ranks, rank : int
        How many there are, and which one.
    axis : int
        That of the positions.
    layout, block
        As in `pieces`, which says where the cuts are.

    Returns
    -------
    array
        A view; in the layout "zigzag" a copy, of two pieces behind one another.

    Examples
    --------
    >>> import numpy as np
    >>> from selfattn import distributed
    >>> distributed.shard(np.zeros((4000, 8)), 2, 1).shape
    (2464, 8)
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank: expected 0 to {ranks - 1}, got {rank}")
    x = np.asarray(x)
    rows = [
        x[along(x.ndim, axis, piece)] for piece in own(x.shape[axis], ranks, rank, layout, block)
    ]
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis)


def unshard(
    shards: Sequence[np.ndarray],
    axis: int = -2,
    layout: Layout = "contiguous",
    block: int = BLOCK,
) -> np.ndarray:
    """The whole, of all ranks' shards in the ranks' order.

    Examples
    --------
    >>> import numpy as np
    >>> from selfattn import distributed
    >>> x = np.arange(9000)
    >>> shards = [distributed.shard(x, 3, rank, 0, "zigzag") for rank in range(3)]
    >>> np.array_equal(distributed.unshard(shards, 0, "zigzag"), x)
    True
    """
    length = sum(x.shape[axis] for x in shards)
    found = pieces(length, len(shards), layout, block)
    check_lengths("shards", [x.shape[axis] for x in shards], found)
    starts = [0] * len(shards)
    rows = []
    for piece in found:
        begin = starts[piece.owner]
        starts[piece.owner] = end = begin + piece.end - piece.begin
        x = shards[piece.owner]
        rows.append(x[along(x.ndim, axis, (begin, end))])
    return np.concatenate(rows, axis)


def own(length: int, ranks: int, rank: int, layout: Layout, block: int) -> list[Piece]:
    """The rank's pieces."""
    return [piece for piece in pieces(length, ranks, layout, block) if piece.owner == rank]


def along(ndim: int, axis: int | None, span: Piece | tuple[int, int]) -> tuple[slice, ...]:
    """The index of positions [begin, end) of an axis; of all that there is without one."""
    index = [slice(None)] * ndim
    if axis is not None:
        index[axis] = slice(*span[-2:])
    return tuple(index)


def check_lengths(name: str, lengths: Sequence[int], found: Sequence[Piece]) -> None:
    """Each rank must hold the positions of its pieces."""
    for rank, got in enumerate(lengths):
        want = sum(piece.end - piece.begin for piece in found if piece.owner == rank)
        if got != want:
            raise ValueError(
                f"{name}: expected {want} positions on rank {rank}, as `shard` cuts "
                f"{found[-1].end} for {len(lengths)} ranks, got {got}"
            )
