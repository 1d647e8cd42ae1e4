"""The backward table of rows.py: a group per row, a bar per contestant.

    pytest bench/test_backward.py
    pytest bench/test_backward.py -k "square512 and not forward"    the backward alone

Times are printed, never asserted. Run by whoever changes the kernels.
"""

from __future__ import annotations

from itertools import product

import pytest
from peers import contenders
from rows import BACKWARD


@pytest.mark.benchmark(disable_gc=True, max_time=0.7)
@pytest.mark.parametrize(
    ("row", "peer"), tuple(product(BACKWARD, contenders())), ids=lambda x: x.name
)
def test_backward(race, row, peer):
    race(row, peer)
