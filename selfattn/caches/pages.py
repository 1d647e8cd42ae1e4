"""The pages of a pool: which are free, which sequence has which, which are shared.

A page is shared by reference: it is in use as long as any sequence has it. Nothing here looks at
what pages hold. Called by paged.py, under its lock; what a sequence's `pages` is, stays as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Growth(NamedTuple):
    """What appending to a sequence takes: found first, then done."""

    first: int  # position
    added: int  # positions
    copied: int | None  # the index of its last page, if that is shared and must become its own
    new: int  # pages, without the copied one


class PagesOfSequence:
    """Pages and number of positions of one sequence."""

    def __init__(self, pages: np.ndarray, length: int) -> None:
        self.pages = pages
        self.length = length


class Pages:
    """`num_pages` pages of `size` positions each."""

    def __init__(self, num_pages: int, size: int) -> None:
        self.size = size
        self.users = np.zeros(num_pages, np.int64)  # sequences that have the page
        self._free = list(range(num_pages - 1, -1, -1))  # the last one is taken first

    @property
    def num_free(self) -> int:
        return len(self._free)

    def prefix(self, sequence: PagesOfSequence, length: int) -> PagesOfSequence:
        """A sequence that shares the first `length` positions of another one."""
        pages = sequence.pages[: -(-length // self.size)].copy()
        self.users[pages] += 1
        return PagesOfSequence(pages, length)

    def growth(self, sequence: PagesOfSequence, count: int) -> Growth:
        """What `count` more positions take."""
        length, size = sequence.length, self.size
        last = length // size  # the page of the next position
        shared = count > 0 and length % size > 0 and self.users[sequence.pages[last]] > 1
        new = -(-(length + count) // size) - len(sequence.pages)
        return Growth(length, count, last if shared else None, max(new, 0))

    def candidates(self, count: int) -> list[int]:
        """The pages that `grow` will take: they may be written to, being nobody's."""
        return self._free[len(self._free) - count :][::-1]

    def grow(
        self,
        sequences: list[PagesOfSequence],
        growths: list[Growth],
        given: list[list[int]],
    ) -> None:
        """Give the sequences their candidates in order, the first one for a page that is copied."""
        taken = [page for pages in given for page in pages]
        if self.candidates(len(taken)) == taken:
            del self._free[len(self._free) - len(taken) :]
        else:  # some pages became free in the meantime
            numbers = set(taken)
            self._free = [page for page in self._free if page not in numbers]
        for sequence, growth, pages in zip(sequences, growths, given, strict=True):
            self.users[pages] += 1
            own = sequence.pages.copy()
            if growth.copied is not None:
                left = own[[growth.copied]]
                own[growth.copied], pages = pages[0], pages[1:]
                self._leave(left)
            sequence.pages = np.concatenate([own, np.array(pages, np.int64)])
            sequence.length += growth.added

    def truncate(self, sequence: PagesOfSequence, length: int) -> None:
        """Keep the first positions; what no sequence has any longer is free."""
        kept = -(-length // self.size)
        dropped = sequence.pages[kept:]
        sequence.pages, sequence.length = sequence.pages[:kept], length
        self._leave(dropped)

    def _leave(self, pages: np.ndarray) -> None:
        """One sequence less has these pages; those that none has are free."""
        self.users[pages] -= 1
        self._free.extend(int(page) for page in pages[::-1] if self.users[page] == 0)
