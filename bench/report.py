"""Print how fast selfattn is: against the machine's limit in the same run, and against its peers.

    python bench/report.py [--table forward|forward_more|backward|…] [--rows bert,long,llama]
                           [--dtype float64] [--threads N] [--repeats N] [--json FILE]

Per row and contestant: the time of a call in a burst, that of a cold one after a pause, GF (or
GB/s) and its fraction of the FMA peak (or of the memory-read loop), and how many times as fast
selfattn is. The limit's loop and the contestants take turns (sampling.py); a figure is the median
over the turns in rounds that no other process disturbed, a ratio that of two such medians. Rows of
a single query run over several sets of arrays in turn, more than the caches hold: in a model, a
layer's keys are not in the cache either. A shape of the backward has two rows: the gradients alone,
of a forward that is not timed, and with the forward. The instruction set is the one that
SELFATTN_ISA asks for. Run by whoever wants figures to quote.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from pathlib import Path

import contest
import machine
import numpy as np
import peers
import rows
import sampling

import selfattn


def main():
    arguments = _parse_arguments()
    try:
        chosen = rows.pick(arguments.table, arguments.rows, arguments.dtype)
    except ValueError as error:
        raise SystemExit(f"report.py: {error}") from None
    about = describe(arguments.threads)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results = []
    for row in chosen:
        result = measure(row, arguments.threads, arguments.repeats)
        print(f"\n{table(result)}", flush=True)
        results.append(result)
    if arguments.json:
        text = json.dumps({"machine": about, "rows": results}, indent=1, allow_nan=False)
        arguments.json.write_text(text + "\n")


def measure(row, num_threads, repeats):
    """All contestants on one row: a dict of plain values, None where nothing was measured."""
    sets = contest.array_sets(row)
    contestants, ways, absent = [], {}, {}
    for peer in peers.contenders():
        if reason := peer.unfit(row):
            absent[peer.name] = reason
            continue
        way = peer.choose(row, sets[0], num_threads)
        runs = [way.bind(arrays).run for arrays in sets]
        contestants.append(sampling.Contestant(peer.name, runs))
        ways[peer.name] = way.name
    loop = contest.limit(row, num_threads)
    limit, *outcomes = sampling.in_turn(
        sampling.LoopContestant(loop), contestants, num_threads, repeats
    )
    ceiling = loop.amount / limit.seconds / 1e9
    entries = []
    for contestant, outcome in zip(contestants, outcomes, strict=True):
        rate = row.amount / outcome.seconds / 1e9
        entries.append(
            {
                "name": contestant.name,
                "way": ways[contestant.name],
                "seconds": _plain(outcome.seconds),
                "cold_seconds": _plain(outcome.cold),
                "rate": _plain(rate),
                "of_limit": _plain(rate / ceiling),
                "selfattn_faster": _plain(outcome.seconds / outcomes[0].seconds),
                "cores": _plain(outcome.cores),
                "samples": len(outcome.kept),
                "discarded": outcome.discarded,
            }
        )
    return {
        "row": row.name,
        "shape": str(row),
        "amount": row.amount,
        "rate_unit": contest.rate_unit(row),
        "repeats": repeats,
        "limit": {
            "name": loop.name,
            "rate": _plain(ceiling),
            "samples": len(limit.kept),
            "discarded": limit.discarded,
        },
        "contestants": entries,
        "absent": absent,
    }


def table(result):
    """The result of a row, to be read."""
    limit = result["limit"]
    unit = result["rate_unit"]
    lines = [
        f"{result['shape']}    {limit['name']}: {_number(limit['rate'], '.1f')} {unit} "
        f"({limit['samples']} samples, {limit['discarded']} discarded)",
        f"  {'':13}{'time':>10}{'cold':>11}{unit:>8}{'of limit':>10}{'selfattn is':>13}{'cores':>7}"
        f"{'samples':>9}{'discarded':>11}   way",
    ]
    for entry in result["contestants"]:
        is_us = entry["name"] == "selfattn"
        faster = "" if is_us else _number(entry["selfattn_faster"], ".2f", "×")
        lines.append(
            f"  {entry['name']:13}{_time(entry['seconds']):>10}{_time(entry['cold_seconds']):>11}"
            f"{_number(entry['rate'], '.1f'):>8}"
            f"{_number(entry['of_limit'], '.3f'):>10}{faster:>13}"
            f"{_number(entry['cores'], '.2f'):>7}{entry['samples']:>9}{entry['discarded']:>11}"
            f"   {entry['way']}"
        )
    if limit["samples"] < result["repeats"]:
        lines.append("  The machine was busy: fewer samples count than were asked for.")
    lines += [f"  {name:13}sits out: {reason}" for name, reason in result["absent"].items()]
    return "\n".join(lines)


def describe(num_threads):
    """The machine and the software that the figures are of."""
    config = selfattn.show_config(mode="dicts")
    versions = {
        peer.name: peer.version() for peer in peers.contenders() if peer.name != "reference"
    }
    return {
        "cpu": machine.cpu_name(),
        "cores": os.cpu_count(),
        "threads": num_threads,
        "isa": config["isa"],
        "compiler": config["compiler"],
        "system": " ".join((platform.system(), platform.release().partition("-")[0])),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **versions,
    }


def _plain(x):
    """A number for JSON, rounded to what was measured; None where nothing was."""
    return float(f"{x:.5g}") if math.isfinite(x) else None


def _number(x, form, unit=""):
    return "-" if x is None else format(x, form) + unit


def _time(seconds):
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.2f} µs"


def _parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", choices=sorted(rows.TABLES), default="forward")
    parser.add_argument("--rows", type=lambda text: text.split(","), help="names, by commas")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=int, default=machine.available_threads())
    parser.add_argument("--repeats", type=int, default=15, help="samples of each that count")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    arguments = parser.parse_args()
    if arguments.threads < 1 or arguments.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    return arguments


if __name__ == "__main__":
    main()
