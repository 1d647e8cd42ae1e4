"""How long a call takes, and how far a result lies from the truth. Called by walk.py, heads.py."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

_WARM_UP_CALLS = 3
_CALLS = (7, 501)  # at least, at most
_ENOUGH_SECONDS = 0.2


def median_seconds(call: Callable[[], object]) -> tuple[float, int]:
    """The median time of a call, and of how many calls: as many as fit in a fifth of a second."""
    for _ in range(_WARM_UP_CALLS):
        call()
    took: list[float] = []
    fewest, most = _CALLS
    while len(took) < fewest or (len(took) < most and sum(took) < _ENOUGH_SECONDS):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return statistics.median(took), len(took)


def largest_difference(result: np.ndarray, truth: np.ndarray) -> float:
    """The largest absolute difference, in float64."""
    return float(np.abs(result.astype(np.float64) - truth).max())
