"""The softmax table of rows.py: a group per shape, a bar per contestant, into a given output.

    pytest bench/test_softmax.py

Times are printed, never asserted. Run by whoever changes the kernels.
"""

from __future__ import annotations

from itertools import product

import pytest
from peers import contenders
from rows import SOFTMAX


@pytest.mark.benchmark(disable_gc=True, max_time=0.7)
@pytest.mark.parametrize(
    ("row", "peer"), tuple(product(SOFTMAX, contenders())), ids=lambda x: x.name
)
def test_softmax(race, row, peer):
    race(row, peer)
