"""What the tests of forward, backward and softmax share: a timed bar, a table of ratios at the end.

pytest-benchmark times the contestants of a row one after the other and draws a bar for each. The
limit's loop is measured before and after each, so that the rate and its fraction of the limit
stand beside the time, in `extra_info` and in the table. It is for a quiet machine: report.py is
stricter, it takes the contestants in turn and throws disturbed samples away.
"""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import cycle
from statistics import median

import contest
import machine
import pytest

import selfattn

RESULTS = pytest.StashKey[dict]()
KEYS = {"GF": "gf", "GB": "gb_per_s"}


def pytest_configure(config):
    config.stash[RESULTS] = defaultdict(list)


@pytest.fixture
def race(benchmark, request):
    """A function that runs one contestant on one row and files the result."""

    def run(row, peer):
        if reason := peer.unfit(row):
            pytest.skip(f"{peer.name}: {reason}")
        num_threads = machine.available_threads()
        sets = contest.array_sets(row)
        way = peer.choose(row, sets[0], num_threads)
        runs = [way.bind(arrays).run for arrays in sets]
        turns = cycle(runs)
        loop = contest.limit(row, num_threads)
        before = loop.rate()
        time.sleep(contest.REST_SECONDS)
        benchmark.group = str(row)
        benchmark(runs[0] if len(runs) == 1 else lambda: next(turns)())
        time.sleep(contest.REST_SECONDS)
        ceiling = median((before, loop.rate()))
        if not benchmark.stats:
            return  # --benchmark-disable: called once, not timed
        seconds = benchmark.stats["median"]
        rate = row.amount / seconds / 1e9
        benchmark.extra_info.update(
            {
                KEYS[row.unit]: rate,
                f"limit_{KEYS[row.unit]}": ceiling,
                "of_limit": rate / ceiling,
                "limit": loop.name,
                "way": way.name,
                "threads": num_threads,
                "isa": selfattn.show_config(mode="dicts")["isa"],
            }
        )
        request.config.stash[RESULTS][row].append((peer.name, seconds, rate, rate / ceiling))

    return run


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[RESULTS]
    if not results:
        return
    terminalreporter.section("rates, fractions of the limit, ratios (medians)")
    for row, entries in results.items():
        unit = contest.rate_unit(row)
        ours = next((seconds for name, seconds, *_ in entries if name == "selfattn"), None)
        terminalreporter.write_line(str(row))
        for name, seconds, rate, of_limit in entries:
            line = f"    {name:13}{rate:8.1f} {unit}{of_limit:8.3f} of the limit"
            if ours and name != "selfattn":
                line += f"   selfattn is {seconds / ours:.2f}×"
            terminalreporter.write_line(line)
