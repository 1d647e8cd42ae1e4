"""Fair samples: contestants in turn, in bursts, and without those that another process disturbed.

    for each round:
        the limit's loop, and on only if it had all its cores
        for each contestant, a turn: a pause, one call, then a burst of calls for 12 ms or more
        the limit's loop again

The first call of a turn is cold: it waits for its own threads to wake, and is a figure of its own.
The burst is what a program sees that calls again and again. A contestant's figures are the medians
over its turns in quiet rounds. Used by report.py, options.py and growth.py.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median

# The threads of a library spin for a while after a call; nobody is timed while another's still do.
# OpenBLAS's spin longest, for 2**26 cycles of the clock, and take a core from whoever is next.
PAUSE_SECONDS = 0.03
BURST_SECONDS = 0.012
# The limit's threads are started by each run, and must find the cores idle.
REST_SECONDS = 0.06
# Of its threads' time, what the limit's loop must have had of the cores.
FULL_SHARE = 0.9
# Rounds at most per sample wanted.
PATIENCE = 3
# Tries at most to find the machine quiet before a round.
QUIET_TRIES = 10


@dataclass(frozen=True)
class Sample:
    """Seconds per call of a burst and of the cold call before it; the burst's time and CPU time."""

    seconds: float
    cold: float
    elapsed: float
    cpu: float


class Contestant:
    """Something to call: several callables are called in turn (the same work on other arrays)."""

    def __init__(self, name, runs):
        self.name = name
        self._runs = cycle(runs)
        self._calls = 2

    def turn(self):
        """Pause, one call, then a burst of as many as are likely to fill BURST_SECONDS."""
        time.sleep(PAUSE_SECONDS)
        collecting = gc.isenabled()
        gc.disable()
        try:
            cold, _ = self._time_calls(1)
            elapsed, cpu = self._time_calls(self._calls)
        finally:
            if collecting:
                gc.enable()
        sample = Sample(elapsed / self._calls, cold, elapsed, cpu)
        self._calls = max(2, math.ceil(BURST_SECONDS / sample.seconds))
        return sample

    def _time_calls(self, n):
        cpu = time.process_time()
        start = time.perf_counter()
        for run in islice(self._runs, n):
            run()
        elapsed = time.perf_counter() - start
        return elapsed, time.process_time() - cpu


class LoopContestant:
    """A loop of machine.py, which times itself; the limit that the others are held against."""

    def __init__(self, loop):
        self.name = loop.name
        self._loop = loop

    def turn(self):
        """One run of the loop, whose threads are always started anew."""
        seconds, cpu_seconds = self._loop.run()
        return Sample(seconds, seconds, seconds, cpu_seconds)


@dataclass(frozen=True)
class Outcome:
    """The samples of one contestant that count, and how many were taken."""

    kept: tuple[Sample, ...]
    taken: int

    @property
    def seconds(self):
        """The median time of a call in a burst; NaN if every round was disturbed."""
        return median(s.seconds for s in self.kept) if self.kept else math.nan

    @property
    def cold(self):
        """That of a call after a pause."""
        return median(s.cold for s in self.kept) if self.kept else math.nan

    @property
    def cores(self):
        """The cores in use during all bursts together: of one, the system tells too roughly."""
        elapsed = sum(s.elapsed for s in self.kept)
        return sum(s.cpu for s in self.kept) / elapsed if elapsed else math.nan

    @property
    def discarded(self):
        """Samples that were taken and do not count."""
        return self.taken - len(self.kept)


def in_turn(limit, contestants, num_threads, repeats):
    """Sample the limit and all contestants in turn, until there are `repeats` quiet rounds.

    Returns their Outcomes, the limit's first. The limit's loop tells, before and after a round,
    whether the machine is quiet; if it is not, the round does not count. After PATIENCE * repeats
    rounds it gives up, and there are fewer.
    """
    limits = []
    samples = [[] for _ in contestants]

    def has_cores(sample):
        return sample.cpu >= FULL_SHARE * num_threads * sample.elapsed

    def is_quiet(tries):
        for _ in range(tries):
            time.sleep(REST_SECONDS)
            limits.append(limit.turn())
            if has_cores(limits[-1]):
                return True
        return False

    rounds, quiet = 0, 0
    for rounds in range(1, PATIENCE * repeats + 1):
        if not is_quiet(QUIET_TRIES):
            continue
        # Another one begins each round: nobody always follows the same contestant.
        order = [(rounds + i) % len(contestants) for i in range(len(contestants))]
        turns = {who: contestants[who].turn() for who in order}
        if is_quiet(1):
            quiet += 1
            for who, sample in turns.items():
                samples[who].append(sample)
        if quiet == repeats:
            break
    kept = tuple(sample for sample in limits if has_cores(sample))
    return [Outcome(kept, len(limits)), *(Outcome(tuple(s), rounds) for s in samples)]


def plain(x):
    """`x` for JSON: floats in it rounded to what was measured, None where nothing was."""
    if isinstance(x, dict):
        return {name: plain(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, float):
        return float(f"{x:.5g}") if math.isfinite(x) else None
    return x
