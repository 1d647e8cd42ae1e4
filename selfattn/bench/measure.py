"""A row, raced: every contestant's figures beside the machine's limit, as plain values.

    result, outcomes = measure(row, contenders, num_threads, repeats)

`about` says on what machine, by what software. Used by `run.py`, which is `selfattn bench`, and by
the repository's bench/report.py and its pytest-benchmark bars.
"""

from __future__ import annotations

import math
import os
import platform

import numpy as np

from selfattn import _config, _report

from . import contest, harness, peers

# Rounds of a race on a machine that is never quiet, which the command runs rather than say nothing.
BUSY_ROUNDS = 5


def measure(row, contenders, num_threads, repeats, at_most=math.inf, tick=None, insist=True):
    """The contenders on one row.

    A dict of plain values, None where nothing was measured; and the Outcomes that they are of.
    `at_most` is after how many seconds no round begins; `tick`, if given, is called before each
    turn. Without `insist`, rounds on a busy machine count where there are no others: "busy" then.
    """
    sets = contest.array_sets(row)
    turns, ways, absent = {}, {}, {}
    for peer in contenders:
        if reason := peer.unfit(row):
            absent[peer.name] = reason
            continue
        way = peer.choose(row, sets[0], num_threads)
        turns[peer.name] = harness.Burst(*(way.bind(arrays).run for arrays in sets))
        ways[peer.name] = way.name
    loop = contest.limit(row, num_threads)
    limit, outcomes = harness.race(turns, repeats, loop, at_most=at_most, tick=tick)
    is_busy = not insist and not all(outcome.kept for outcome in outcomes.values())
    if is_busy:
        _, outcomes = harness.race(turns, BUSY_ROUNDS, tick=tick)
    ceiling = loop.rate(min(loop.run()[0] for _ in range(10)) if is_busy else limit.seconds)
    ours = outcomes.get("selfattn")

    def entry(name, outcome):
        rate = row.amount / outcome.seconds / 1e9
        return {
            "name": name,
            "way": ways[name],
            "seconds": outcome.seconds,
            "cold_seconds": outcome.cold,
            "rate": rate,
            **({"tokens_per_second": row.batch / outcome.seconds} if row.task == "cache" else {}),
            "of_limit": rate / ceiling,
            "selfattn_faster": ours and outcome.seconds / ours.seconds,
            "cores": outcome.cores,
            "samples": len(outcome.kept),
            "discarded": outcome.discarded,
        }

    result = {
        "row": row.name,
        "shape": str(row),
        "amount": row.amount,
        "rate_unit": contest.rate_unit(row),
        "repeats": repeats,
        "busy": is_busy,
        "limit": {
            "name": loop.name,
            "rate": ceiling,
            "samples": len(limit.kept),
            "discarded": limit.discarded,
        },
        "contestants": [entry(*pair) for pair in outcomes.items()],
        "absent": absent,
    }
    return plain(result), outcomes


def about(num_threads):
    """The machine and the software that figures are of, by name."""
    config = _config.show_config("dicts")
    versions = {
        peer.name: peer.version() for peer in peers.contenders() if peer.name in peers.LIBRARIES
    }
    return {
        "cpu": _report.cpu_name(),
        "cores": os.cpu_count(),
        "threads": num_threads,
        "isa": config["isa"],
        "compiler": config["compiler"],
        "system": " ".join((platform.system(), platform.release().partition("-")[0])),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **versions,
    }


def plain(x):
    """`x` for JSON: floats in it rounded to what was measured, None where nothing was."""
    if isinstance(x, dict):
        return {name: plain(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, float):
        return float(f"{x:.5g}") if math.isfinite(x) else None
    return x
