"""The harness: contestants take turns, in bursts, and disturbed rounds do not count.

    for each round:
        the limit's loop, and on only if it had all its cores
        each contestant's turn: a pause, one call, then a burst of calls for 12 ms or more
        the limit's loop again, or the round does not count

    race({"selfattn": Burst(run), "torch": Burst(other)}, repeats, loop) -> limit, {name: Outcome}

A turn is what one contestant does in one round: a function that returns a Sample. The first call of
a burst's turn is cold: its threads must wake, and it is a figure of its own; the burst is what a
program sees that calls again and again. A figure is the median over the turns in the rounds that
count, and a ratio is that of two such medians. The limit's loop is machine.py's. `selfattn bench`,
and every command of the repository's bench/ that times anything, times it here; nothing but the
standard library is needed.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median

# Threads of a library spin for a while after a call, and would take a core from the next turn.
# OpenBLAS's spin longest, for 2**26 cycles of the clock.
PAUSE_SECONDS = 0.03
BURST_SECONDS = 0.012
# The limit's loop starts its threads anew in each run, and must find the cores idle.
REST_SECONDS = 0.06
# The share of its threads' time that the limit's loop must have had of the cores.
FULL_SHARE = 0.9
# Rounds at most per round that is to count.
PATIENCE = 3
# Tries at most to find the machine quiet before a round.
QUIET_TRIES = 10


@dataclass(frozen=True)
class Sample:
    """What one turn measured, in seconds."""

    seconds: float  # per call of the burst
    cold: float  # the call before the burst
    elapsed: float  # the whole burst
    cpu: float  # of all threads in the burst; NaN where it is not known
    part: float = math.nan  # of `seconds`, what the contestant's meter counted


@dataclass(frozen=True)
class Outcome:
    """The samples of one contestant that count, and how many were taken."""

    kept: tuple[Sample, ...]
    taken: int

    @property
    def seconds(self):
        """The median time of a call in a burst; NaN if every round was disturbed."""
        return self._median("seconds")

    @property
    def cold(self):
        """The median time of a call after a pause."""
        return self._median("cold")

    @property
    def part(self):
        """The median of what the meter counted in a call."""
        return self._median("part")

    @property
    def cores(self):
        """The cores in use over all bursts together: CPU time is too coarse to tell for one."""
        elapsed = sum(s.elapsed for s in self.kept)
        return sum(s.cpu for s in self.kept) / elapsed if elapsed else math.nan

    @property
    def discarded(self):
        """How many samples were taken and do not count."""
        return self.taken - len(self.kept)

    def _median(self, field):
        return median(getattr(s, field) for s in self.kept) if self.kept else math.nan


class Burst:
    """The usual turn: a pause, one call, then as many calls as are likely to fill BURST_SECONDS.

    Several callables are called one after the other: the same work on other arrays. A `meter`
    returns the seconds that some part of the calls has taken so far.
    """

    def __init__(self, *runs, meter=None):
        self._runs = cycle(runs)
        self._meter = meter
        self._calls = 2

    def __call__(self):
        time.sleep(PAUSE_SECONDS)
        collecting = gc.isenabled()
        gc.disable()
        try:
            cold, _ = self._time_calls(1)
            before = self._read_meter()
            elapsed, cpu = self._time_calls(self._calls)
            part = self._read_meter() - before
        finally:
            if collecting:
                gc.enable()
        seconds = elapsed / self._calls
        sample = Sample(seconds, cold, elapsed, cpu, part / self._calls)
        self._calls = max(2, math.ceil(BURST_SECONDS / seconds))
        return sample

    def _time_calls(self, n):
        cpu = time.process_time()
        start = time.perf_counter()
        for run in islice(self._runs, n):
            run()
        elapsed = time.perf_counter() - start
        return elapsed, time.process_time() - cpu

    def _read_meter(self):
        return self._meter() if self._meter else math.nan


class Limit:
    """A loop of machine.py: what contestants are held against, and a probe for disturbances."""

    def __init__(self, loop):
        self._loop = loop
        self._samples = []

    def is_quiet(self, tries):
        """Run the loop until one run has all its cores; False if none of `tries` has."""
        return any(self._has_cores(self._run()) for _ in range(tries))

    def outcome(self):
        """The runs that had all their cores."""
        return Outcome(tuple(filter(self._has_cores, self._samples)), len(self._samples))

    def _run(self):
        time.sleep(REST_SECONDS)
        seconds, cpu = self._loop.run()
        self._samples.append(Sample(seconds, seconds, seconds, cpu))
        return self._samples[-1]

    def _has_cores(self, sample):
        return sample.cpu >= FULL_SHARE * self._loop.num_threads * sample.elapsed


class NoLimit:
    """In a Limit's place where no loop is given: every round counts."""

    def is_quiet(self, tries):
        """Whether the machine is quiet is not asked."""
        return True

    def outcome(self):
        """No samples."""
        return Outcome((), 0)


def race(turns, repeats, loop=None, seconds=0.0, at_most=math.inf, tick=None):
    """Let all take their turns until `repeats` rounds count and `seconds` have passed.

    `turns` is {name: turn}. Returns the Outcome of the limit's loop, and {name: Outcome}. Without a
    loop every round counts; with one, the race gives up after PATIENCE * repeats rounds, and fewer
    count. No round begins after `at_most` seconds, but the first. `tick(name)` is called before
    each turn.
    """
    limit = Limit(loop) if loop else NoLimit()
    patience = PATIENCE * repeats if loop else math.inf
    kept = {name: [] for name in turns}
    names = list(turns)
    rounds = counted = 0
    begin = time.perf_counter()
    while rounds < patience and (counted < repeats or time.perf_counter() < begin + seconds):
        if rounds and time.perf_counter() > begin + at_most:
            break
        rounds += 1
        if not limit.is_quiet(QUIET_TRIES):
            continue
        # Another one begins each round, so that none always follows the same one.
        order = [names[(rounds + i) % len(names)] for i in range(len(names))]
        samples = {}
        for name in order:
            if tick is not None:
                tick(name)
            samples[name] = turns[name]()
        if limit.is_quiet(1):
            counted += 1
            for name, sample in samples.items():
                kept[name].append(sample)
    return limit.outcome(), {name: Outcome(tuple(s), rounds) for name, s in kept.items()}


def quickest(run, turns=2):
    """Seconds of a call in the fastest of a few turns: to choose between ways, not to report."""
    turn = Burst(run)
    return min(turn().seconds for _ in range(turns))
