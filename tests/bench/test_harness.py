"""The harness itself, on a clock of its own: which rounds count, in which order, of how many calls.

Nothing is really timed.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from selfattn.bench import harness


@pytest.fixture
def clock(monkeypatch):
    """A clock that `work(seconds)` moves; CPU time goes twice as fast; sleeps are noted."""
    clock = SimpleNamespace(now=0.0, slept=[])

    def work(seconds):
        clock.now += seconds

    clock.work = work
    time = SimpleNamespace(
        sleep=clock.slept.append,
        perf_counter=lambda: clock.now,
        process_time=lambda: 2 * clock.now,
    )
    monkeypatch.setattr(harness, "time", time)
    return clock


class Loop:
    """A loop of two threads, which has the given shares of its cores, then all of them."""

    num_threads = 2

    def __init__(self, *shares):
        self._shares = list(shares)

    def run(self):
        share = self._shares.pop(0) if self._shares else 1.0
        return 0.03, 0.03 * 2 * share


def numbered(calls, name):
    """A turn that notes its name, and whose time is the number of the turn."""

    def turn():
        calls.append(name)
        seconds = float(calls.count(name))
        return harness.Sample(seconds, 10 * seconds, seconds, seconds)

    return turn


def race_of(calls, *arguments, **options):
    return harness.race({name: numbered(calls, name) for name in "abc"}, *arguments, **options)


def test_another_one_begins_each_round(clock):
    calls = []
    _, outcomes = race_of(calls, 3, Loop())
    rounds = ["".join(calls[i : i + 3]) for i in (0, 3, 6)]
    assert sorted(rounds) == ["abc", "bca", "cab"]
    assert all(outcome.seconds == 2.0 and outcome.cold == 20.0 for outcome in outcomes.values())
    assert all(outcome.discarded == 0 for outcome in outcomes.values())


def test_a_round_that_ends_disturbed_does_not_count(clock):
    calls = []
    # Round 1: quiet before, busy after. Round 2: busy twice, then quiet; quiet after.
    limit, outcomes = race_of(calls, 1, Loop(1.0, 0.5, 0.5, 0.89, 0.91))
    assert len(calls) == 6
    assert outcomes["a"].seconds == 2.0
    assert outcomes["a"].discarded == 1
    assert (len(limit.kept), limit.taken) == (3, 6)


def test_no_turns_while_the_machine_is_busy(clock):
    calls = []
    limit, outcomes = race_of(calls, 2, Loop(*[0.5] * 1000))
    assert calls == []
    assert math.isnan(outcomes["a"].seconds)
    assert math.isnan(limit.seconds)
    assert outcomes["a"].discarded == harness.PATIENCE * 2


def test_without_a_loop_every_round_counts_until_the_time_is_up(clock):
    calls = []
    assert len(race_of(calls, 2)[1]["a"].kept) == 2

    def turn():
        clock.work(1.0)
        return harness.Sample(1.0, 1.0, 1.0, math.nan)

    _, outcomes = harness.race({"a": turn}, 2, seconds=4.5)
    assert len(outcomes["a"].kept) == 5


def test_a_burst_fills_its_time(clock):
    ran = []

    def run(name):
        ran.append(name)
        clock.work(0.005 if len(ran) == 1 else 0.001)

    spent = []

    def meter():
        spent.append(len(ran))
        return 0.25 * len(ran)

    burst = harness.Burst(lambda: run("x"), lambda: run("y"), meter=meter)
    first, second = burst(), burst()
    assert "".join(ran[:4]) == "xyxy"
    assert first.cold == pytest.approx(0.005)
    assert first.seconds == pytest.approx(0.001)
    assert len(ran) == 3 + 1 + math.ceil(harness.BURST_SECONDS / first.seconds)
    assert second.elapsed == pytest.approx(harness.BURST_SECONDS, abs=0.001)
    assert second.cpu == pytest.approx(2 * second.elapsed)
    assert first.part == second.part == 0.25
    assert clock.slept == [harness.PAUSE_SECONDS] * 2
    assert harness.Outcome((first, second), 2).cores == pytest.approx(2.0)


def test_a_slow_call_is_made_twice_a_burst(clock):
    ran = []

    def run():
        ran.append(1)
        clock.work(1.0)

    burst = harness.Burst(run)
    burst(), burst()
    assert len(ran) == 6
    assert harness.quickest(run) == 1.0
