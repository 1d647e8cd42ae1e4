"""Packed sequences: which rows of an array each of them is.

Either they follow one another, and are given by where each begins and ends; or they lie anywhere,
and are given by where each begins and how long it is: with gaps between them, in any order, and
of keys also over one another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .options import ints_in

_EXPECTED = "an array or list of ints, or a pair of them"
_PIECE = 2**16  # elements that are looked at at once where there may be very many


class Sequences(NamedTuple):
    """B sequences among the rows of an array."""

    cumulative: np.ndarray  # (B + 1,) int64: how many rows the sequences before each one have
    starts: np.ndarray | None  # (B,) int64: each one's first row, where that is not `cumulative`
    longest: int
    total: int  # rows of the array
    has_gaps: bool  # whether a row is of no sequence
    overlaps: bool  # whether a row is of more than one

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.cumulative)

    def gaps(self) -> slice | np.ndarray:
        """An index of the rows that are of no sequence, where sequences do not overlap."""
        if self.starts is None:
            return slice(int(self.cumulative[-1]), None)
        begin, end = _ends(self.starts, self.lengths)
        step = np.zeros(self.total + 1, np.int8)
        step[begin] += 1
        step[end] -= 1
        is_gap: np.ndarray = np.cumsum(step[:-1], dtype=np.int8) == 0
        return is_gap


def sequences(name: str, x: Any, total: int) -> Sequences:
    """Those of `total` rows, of an array (B + 1,) or of a pair of arrays (B,); lists will do."""
    if isinstance(x, (tuple, list)) and len(x) > 0 and not _is_number(x[0]):
        return _anywhere(name, x, total)
    numbers = ints_in(name, x, _EXPECTED)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"{name}: expected shape (number of sequences + 1,), got {numbers.shape}")
    # Our own: the user's may change while the kernels read it. A number beyond int64 is negative
    # here, and so less than the one before it.
    cumulative = np.array(numbers, np.int64)
    end = int(cumulative[-1])
    longest = _longest_step(cumulative) if cumulative[0] == 0 and end <= total else None
    if longest is None:
        raise ValueError(
            f"{name}: expected numbers that start at 0, never decrease and end at {total}, the "
            f"number of rows, or before, got {numbers}"
        )
    return Sequences(cumulative, None, longest, total, end < total, False)


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) or getattr(x, "ndim", 1) == 0


def _longest_step(x: np.ndarray) -> int | None:
    """The largest difference of neighbours; None where numbers decrease.

    Piece by piece: there may be so many sequences that arrays beside them would be large.
    """
    longest = 0
    for at in range(0, len(x) - 1, _PIECE):
        first, second = x[at : at + _PIECE], x[at + 1 : at + _PIECE + 1]
        first = first[: len(second)]
        if (second < first).any():
            return None
        longest = max(longest, int((second - first).max()))
    return longest


def _anywhere(name: str, pair: Any, total: int) -> Sequences:
    """Those of a pair (starts, lengths)."""
    if len(pair) != 2:
        got = f"a {type(pair).__name__} of {len(pair)}"
        raise TypeError(f"{name}: expected {_EXPECTED}, got {got}")
    given = [ints_in(name, x, _EXPECTED) for x in pair]
    if given[0].ndim != 1 or given[0].shape != given[1].shape:
        shapes = " and ".join(str(x.shape) for x in given)
        raise ValueError(f"{name}: expected a pair of shape (number of sequences,), got {shapes}")
    starts, lengths = (np.array(x, np.int64) for x in given)
    is_beyond = (starts < 0) | (lengths < 0) | (starts > total - lengths)
    if is_beyond.any():
        start, length = (x[is_beyond][0] for x in given)
        raise ValueError(
            f"{name}: expected starts and lengths of sequences within {total} rows, got one of "
            f"{length} rows from {start} on"
        )
    begin, end = _ends(starts, lengths)
    order = np.argsort(begin)
    begin, reach = begin[order], np.maximum.accumulate(end[order])
    before = np.concatenate(([0], reach))  # how far the sequences before each one reach
    return Sequences(
        cumulative=np.concatenate(([0], np.cumsum(lengths))),
        starts=starts,
        longest=int(lengths.max(initial=0)),
        total=total,
        has_gaps=bool((np.append(begin, total) > before).any()),
        overlaps=bool((begin < before[:-1]).any()),
    )


def _ends(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each sequence that has any, and the row behind its last one."""
    begin = starts[lengths > 0]
    return begin, begin + lengths[lengths > 0]
