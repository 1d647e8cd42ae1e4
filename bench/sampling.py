"""Fair samples: contestants in turn, rested, and without those that another process disturbed.

    for each round:
        the limit's loop, and on only if it had all its cores
        for each contestant: rest, one untimed call, then timed calls for 50 ms or more
        the limit's loop again

A contestant's figure is the median of its samples. Used by report.py, options.py and growth.py.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median

# The threads of a library spin for a while after a call; nobody is timed while another's still do.
REST_SECONDS = 0.06
# The system adds up the CPU time of running threads every few milliseconds: a sample must be long
# beside that, or its CPU time says nothing.
SAMPLE_SECONDS = 0.05
# Of its threads' time, what a sample must have had of the cores.
FULL_SHARE = 0.9
# Rounds at most per sample wanted.
PATIENCE = 3
# Tries at most to find the machine quiet before a round.
QUIET_TRIES = 10


@dataclass(frozen=True)
class Sample:
    """Seconds per call, and how many cores the process had meanwhile, on average."""

    seconds: float
    cores: float


class Contestant:
    """Something to call: several callables are called in turn (the same work on other arrays)."""

    def __init__(self, name, runs):
        self.name = name
        self._runs = cycle(runs)
        self._calls = 1

    def sample(self):
        """Wake it by one untimed call, then time enough calls to fill SAMPLE_SECONDS."""
        next(self._runs)()
        while True:
            sample, elapsed = self._time_calls()
            if elapsed >= SAMPLE_SECONDS:
                return sample
            # Too short to judge: sure to suffice next time, unless this was a slow start.
            self._calls = math.ceil(self._calls * min(1.2 * SAMPLE_SECONDS / elapsed, 100.0))

    def _time_calls(self):
        collecting = gc.isenabled()
        gc.disable()
        try:
            cpu = time.process_time()
            start = time.perf_counter()
            for run in islice(self._runs, self._calls):
                run()
            elapsed = time.perf_counter() - start
            cpu = time.process_time() - cpu
        finally:
            if collecting:
                gc.enable()
        return Sample(elapsed / self._calls, cpu / elapsed), elapsed


class LoopContestant:
    """A loop of machine.py, which times itself; the limit that the others are held against."""

    def __init__(self, loop):
        self.name = loop.name
        self._loop = loop

    def sample(self):
        """One run of the loop."""
        seconds, cpu_seconds = self._loop.run()
        return Sample(seconds, cpu_seconds / seconds)


@dataclass(frozen=True)
class Outcome:
    """The samples of one contestant that count, and how many were taken."""

    kept: tuple[Sample, ...]
    taken: int

    @property
    def seconds(self):
        """The median time of a call; NaN if every sample was disturbed."""
        return median(s.seconds for s in self.kept) if self.kept else math.nan

    @property
    def cores(self):
        """The cores in use, the median; NaN likewise."""
        return median(s.cores for s in self.kept) if self.kept else math.nan

    @property
    def discarded(self):
        """Samples that were taken and do not count."""
        return self.taken - len(self.kept)


def in_turn(limit, contestants, num_threads, repeats):
    """Sample the limit and all contestants in turn, until each has `repeats` samples that count.

    Returns their Outcomes, the limit's first. A round starts with the limit, which says whether
    the machine is quiet, and is dropped where it is not. After PATIENCE * repeats rounds it gives
    up, and whoever was disturbed all along has fewer.
    """
    enough = FULL_SHARE * num_threads
    limits = []
    samples = [[] for _ in contestants]

    def is_quiet(tries):
        for _ in range(tries):
            time.sleep(REST_SECONDS)
            limits.append(limit.sample())
            if limits[-1].cores >= enough:
                return True
        return False

    for turn in range(PATIENCE * repeats):
        if is_quiet(QUIET_TRIES):
            sampled = []
            for i in range(len(contestants)):
                # Another one begins each round: nobody always follows the same contestant.
                who = (turn + i) % len(contestants)
                time.sleep(REST_SECONDS)
                sampled.append((who, contestants[who].sample()))
            stayed_quiet = is_quiet(1)
            for who, sample in sampled:
                samples[who].append((sample, stayed_quiet))
        outcomes = [Outcome(tuple(s for s in limits if s.cores >= enough), len(limits))]
        outcomes += [_outcome(taken, enough) for taken in samples]
        if all(len(outcome.kept) >= repeats for outcome in outcomes):
            break
    return outcomes


def plain(x):
    """`x` for JSON: floats in it rounded to what was measured, None where nothing was."""
    if isinstance(x, dict):
        return {name: plain(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, float):
        return float(f"{x:.5g}") if math.isfinite(x) else None
    return x


def _outcome(taken, enough):
    """Keep what was not disturbed: the samples in which the contestant had its cores.

    One that never fills the cores (serial code, a tiny call) cannot be judged by its CPU time
    alone: its sample counts if it had one core, and the machine was quiet after the round too.
    """
    if any(sample.cores >= enough for sample, _ in taken):
        kept = (sample for sample, _ in taken if sample.cores >= enough)
    else:
        kept = (sample for sample, quiet in taken if quiet and sample.cores >= FULL_SHARE)
    return Outcome(tuple(kept), len(taken))
