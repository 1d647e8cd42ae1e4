"""What this machine could do at most: its FMA peak and its memory-read bandwidth, measured.

    fma_loop(num_threads, dtype)    multiply-adds on registers alone
    read_loop(num_threads)          one pass over a buffer far larger than the caches

Every fraction that the benchmarks print is a fraction of one of these, run between the contestants'
turns by harness.py, which calls a round disturbed where the loop did not have all its cores.
The loops are C: the peak is a kernel of each set (csrc/kernels/peak.inc.h), of which the best that
this machine runs is taken, whichever is in use; the other one stands in csrc/machine.c. Called by
the other files here and by the repository's bench/.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np

from selfattn import _core

PEAK_SECONDS = 0.03
MIB = 1 << 20


class Loop:
    """One of the two loops, cut to a length. `amount` is what a run does: operations or bytes."""

    def __init__(self, name, num_threads, amount, run):
        self.name = name
        self.num_threads = num_threads
        self.amount = amount
        self.run = run  # () -> (seconds, CPU seconds of all threads), timed on the inside

    def rate(self, seconds):
        """1e9 operations, or bytes, a second, where a run takes so many seconds."""
        return self.amount / seconds / 1e9


def available_threads():
    """Cores that this process may use."""
    return _core.num_cores() or os.cpu_count() or 1


@functools.cache
def fma_loop(num_threads, dtype="float32"):
    """The FMA loop, its length set so that a run takes some 30 ms."""
    is_f64 = dtype == "float64"  # half types are computed in float32
    flops = _core.peak_flops(is_f64) * num_threads
    name = f"FMA peak ({fma_isa()}, {'float64' if is_f64 else 'float32'})"

    def cut(steps):
        run = functools.partial(_core.time_peak, is_f64, num_threads, steps)
        return Loop(name, num_threads, flops * steps, run)

    steps = 100_000
    trial = cut(steps)
    # The fastest of a few: a run that was disturbed would make the loop too short.
    seconds = min(trial.run()[0] for _ in range(5))
    return cut(int(steps * PEAK_SECONDS / seconds))


@functools.cache
def read_loop(num_threads):
    """The read loop, over a buffer of four times the last-level cache and 256 MiB at least."""
    buffer = _aligned_ones(max(256 * MIB, 4 * last_level_cache()))
    return Loop(
        "memory read",
        num_threads,
        _core.read_bytes(buffer.nbytes, num_threads),
        functools.partial(_core.time_read, buffer, num_threads),
    )


def fma_isa():
    """The set whose multiply-adds the FMA loop does."""
    return _core.isas()[0]


def last_level_cache():
    """Bytes of the largest cache that Linux names; 32 MiB where it names none."""
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text.rstrip("KM")) * units.get(text[-1], 1))
    return max(sizes, default=32 * MIB)


def _aligned_ones(nbytes):
    """Bytes at the start of a cache line, written once: untouched pages are no memory traffic."""
    raw = np.ones(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]
