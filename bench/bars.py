"""Samples of the harness as pytest-benchmark's bars.

pytest-benchmark has a way of its own to time a call: again and again, without a pause and without
its rivals in between. Here it is given a clock that shows the harness's time instead, and calls
that are as long as the samples, so that its bars and files are of bursts in turns. Used by
test_suites.py.
"""

from __future__ import annotations

_now = 0.0


def clock():
    """The timer of the `benchmark` mark: it stands still, but for replay."""
    return _now


def replay(benchmark, outcome):
    """Let `benchmark` see the samples of an Outcome, of which there is at least one."""
    samples = iter(outcome.kept)

    def call():
        global _now
        _now += next(samples).seconds

    benchmark.pedantic(call, rounds=len(outcome.kept))
