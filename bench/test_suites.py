"""The suites as bars: a group for each row, a bar for each contestant; and one for each option.

    pytest bench                            every row
    pytest bench -k "forward-bert"          one of them
    pytest bench -k "backward-square512 and not with_forward"
    pytest bench -k "bare or alibi"         options
    pytest bench -k "linear-rows8 and not openvino" --benchmark-json=FILE
    pytest bench --benchmark-disable        every call once, compared with the reference

The first test of a row holds the race of all its selected contestants, with as many rounds as
--benchmark-min-rounds says; each test draws its own contestant's bar. Times are printed, never
asserted. report.py and options.py print the same without bars.
"""

from __future__ import annotations

import options
import pytest
import report
from bars import clock, replay
from suites.options import BARE, BASE, OPTIONS

import selfattn
from selfattn.bench import machine
from selfattn.bench.peers import contenders
from selfattn.bench.shapes import SUITES

THREADS = machine.available_threads()
KEYS = {"GF": "gf", "GB/s": "gb_per_s"}


def cases():
    for suite in ("forward", "backward", "softmax", "linear", "half", "caches"):
        for row in SUITES[suite]:
            name = row.name.replace("+forward", "-with_forward")
            for peer in contenders(suite):
                yield pytest.param(row, peer, id=f"{suite}-{name}-{peer.name}")


@pytest.fixture(scope="session")
def race(request, show):
    """(row) -> its race's result as of report.py, and Outcomes; held at the first call."""
    races = {}

    def hold(row):
        if row not in races:
            rivals = selected(request, "peer", row=row)
            result, outcomes = report.measure(row, rivals, THREADS, repeats(request))
            show(report.table(result))
            races[row] = result, outcomes
        return races[row]

    return hold


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(("row", "peer"), tuple(cases()))
def test_row(benchmark, race, row, peer):
    if reason := peer.unfit(row):
        pytest.skip(f"{peer.name}: {reason}")
    if benchmark.disabled:
        benchmark(peer.prepare(row, row.arrays(), THREADS).run)
        return
    result, outcomes = race(row)
    entry = next(entry for entry in result["contestants"] if entry["name"] == peer.name)
    unit = KEYS[result["rate_unit"]]
    benchmark.group = str(row)
    benchmark.extra_info.update(
        {
            unit: entry["rate"],
            f"limit_{unit}": result["limit"]["rate"],
            "of_limit": entry["of_limit"],
            "limit": result["limit"]["name"],
            "way": entry["way"],
            "threads": THREADS,
            "isa": selfattn.show_config(mode="dicts")["isa"],
        }
    )
    draw(benchmark, outcomes[peer.name])


@pytest.fixture(scope="session")
def option_race(request, show):
    """() -> the Outcomes of the selected options; the race is held at the first call."""
    held = []

    def hold():
        if not held:
            chosen = [option for option in selected(request, "option") if option is not BARE]
            result, outcomes = options.measure(BASE, chosen, THREADS, repeats(request))
            show(options.table(result))
            held.append(outcomes)
        return held[0]

    return hold


@pytest.mark.benchmark(group=str(BASE), timer=clock)
@pytest.mark.parametrize("option", [BARE, *OPTIONS], ids=lambda option: option.name)
def test_option(benchmark, option_race, option):
    benchmark.extra_info.update({"what": option.what, "limit": option.limit})
    if benchmark.disabled:
        arrays, arguments = BASE.arrays(), option.arguments(BASE)
        result = benchmark(options.selfattn_call(arrays, arguments, THREADS))
        options.check(option.name, BASE, arrays, arguments, result)
        return
    draw(benchmark, option_race()["selfattn", option.name])


def selected(request, parameter, **others):
    """The values of a parameter in the selected tests whose other parameters are these."""
    items = request.session.items
    parameters = [item.callspec.params for item in items if hasattr(item, "callspec")]
    return [p[parameter] for p in parameters if parameter in p and others.items() <= p.items()]


def repeats(request):
    """How many rounds are to count."""
    return request.config.getoption("benchmark_min_rounds")


def draw(benchmark, outcome):
    """The bar of a contestant."""
    if not outcome.kept:
        pytest.skip("another process disturbed every round")
    replay(benchmark, outcome)
