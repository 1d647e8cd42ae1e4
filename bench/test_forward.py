"""The forward table of rows.py: a group per row, a bar per contestant.

    pytest bench/                    every row
    pytest bench/ -k bert            one of them
    pytest bench/ -k "llama and not openvino" --benchmark-json=FILE

Times are printed, never asserted. Run by whoever changes the kernels.
"""

from __future__ import annotations

from itertools import product

import pytest
from peers import contenders
from rows import FORWARD


@pytest.mark.benchmark(disable_gc=True, max_time=0.7)
@pytest.mark.parametrize(
    ("row", "peer"), tuple(product(FORWARD, contenders())), ids=lambda x: x.name
)
def test_forward(race, row, peer):
    race(row, peer)
