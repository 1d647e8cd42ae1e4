"""Print how the time of attention grows with the length, and with which rule it stops doing so.

    python bench/growth.py [--max-length 16384] [--threads N] [--repeats N] [--out FILE.json]
                           [--plot FILE.png]

Per length: the time of a call, the time of one visible score, and how many times the time and the
visible scores are those of half the length: where a rule empties tiles, the two agree once tiles
are small beside what is visible. All calls take turns in one race (harness.py), the long ones too,
so that ratios between lengths hold on a machine that drifts. The rules are in suites/rules.py. Run
by whoever changes masks or plans.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import command
import numpy as np
from suites.rules import DOCUMENT, HEAD_DIM, NUM_HEADS, RULES, SHORTEST, shape

import selfattn
from selfattn import reference
from selfattn.bench import contest, harness, machine

# Up to here the result is compared with the reference, which holds all the scores.
CHECKED = 1024


def bind(rule, arrays, num_threads):
    """The call to time, on (1, H, L, E) arrays, and what makes its result (1, H, L, E) again."""
    if not rule.is_packed:
        arguments = rule.arguments(arrays[0].shape[2])
        call = partial(
            selfattn.scaled_dot_product_attention, *arrays, **arguments, num_threads=num_threads
        )
        return call, lambda out: out
    query, key, value = (contest.positions_first(x)[0] for x in arrays)
    starts = np.append(np.arange(0, len(query), DOCUMENT), len(query))
    call = partial(
        selfattn.varlen_attention, query, key, value, starts, starts, num_threads=num_threads
    )
    return call, lambda out: out.swapaxes(0, 1)[None]


def calls(lengths, num_threads):
    """(rule's name, length) -> call, the shorter ones compared with the reference."""
    runs = {}
    for length in lengths:
        arrays = shape(length).arrays()
        for rule in RULES:
            run, as_heads_first = bind(rule, arrays, num_threads)
            runs[rule.name, length] = run
            if length <= CHECKED:
                want = reference.scaled_dot_product_attention(*arrays, **rule.arguments(length))
                error = np.abs(as_heads_first(run()) - want).max()
                if not error <= contest.TOLERANCE["float32"]:
                    raise RuntimeError(f"{rule.name}: off by {error:.1e} at length {length}")
    return runs


def measure(lengths, num_threads, repeats):
    """Every rule at every length: a dict of plain values."""
    runs = calls(lengths, num_threads)
    loop = machine.fma_loop(num_threads)
    turns = {key: harness.Burst(run) for key, run in runs.items()}
    limit, outcomes = harness.race(turns, repeats, loop)

    def point(rule, length):
        outcome, half = outcomes[rule.name, length], outcomes.get((rule.name, length // 2))
        scores = rule.scores(length)
        return {
            "length": length,
            "seconds": outcome.seconds,
            "scores": NUM_HEADS * scores,
            "ns_per_score": outcome.seconds * 1e9 / (NUM_HEADS * scores),
            "times_half": half and outcome.seconds / half.seconds,
            "scores_times_half": half and scores / rule.scores(length // 2),
            "samples": len(outcome.kept),
            "discarded": outcome.discarded,
        }

    return {
        "batch": 1,
        "num_heads": NUM_HEADS,
        "head_dim": HEAD_DIM,
        "dtype": "float32",
        "repeats": repeats,
        "fma_peak": loop.rate(limit.seconds),
        "rules": [
            {"name": rule.name, "points": [point(rule, length) for length in lengths]}
            for rule in RULES
        ],
    }


def table(result):
    """The result, to be read."""
    lines = []
    for rule in result["rules"]:
        lines.append(
            f"\n{rule['name']:34}{'time':>10}{'a score':>15}{'time, × L/2':>14}"
            f"{'scores, × L/2':>15}{'samples':>9}{'discarded':>11}"
        )
        for point in rule["points"]:
            lines.append(
                f"{point['length']:>14}{point['seconds'] * 1e3:27.3f} ms"
                f"{point['ns_per_score']:12.3f} ns{_times(point['times_half']):>14}"
                f"{_times(point['scores_times_half']):>15}{point['samples']:9}"
                f"{point['discarded']:11}"
            )
            if point["samples"] < result["repeats"]:
                lines[-1] += "   busy"
    return "\n".join(lines)


def draw(pyplot, result, file):
    """Time against length, both axes logarithmic: a square rises twice as steeply as a line."""
    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for rule in result["rules"]:
        points = rule["points"]
        axes.loglog(
            [point["length"] for point in points],
            [point["seconds"] * 1e3 for point in points],
            marker="o",
            # The two ways to give documents lie close together: let both be seen.
            linestyle="--" if rule["name"].endswith("varlen_attention") else "-",
            label=rule["name"],
        )
    lengths = [point["length"] for point in result["rules"][0]["points"]]
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_xlabel("length L (queries and keys)")
    axes.set_ylabel("time of a call, ms")
    axes.set_title(f"selfattn: 1, {result['num_heads']}, L², {result['head_dim']}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)


def _pyplot():
    """matplotlib, drawing to files; it is needed by --plot alone."""
    if not importlib.util.find_spec("matplotlib"):
        raise SystemExit("growth.py: --plot needs matplotlib, which is not installed")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _times(x):
    return "-" if x is None else f"{x:.2f}"


def main():
    parser = command.parser(__doc__, repeats=5, json_flag="--out")
    parser.add_argument("--max-length", type=int, default=16384, metavar="N")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw time against length")
    arguments = command.parse(parser)
    if arguments.max_length < SHORTEST:
        parser.error(f"--max-length must be at least {SHORTEST}")
    pyplot = _pyplot() if arguments.plot else None  # missing: say so now, not after minutes
    about = command.announce(arguments.threads)
    doublings = (arguments.max_length // SHORTEST).bit_length()
    lengths = [SHORTEST << n for n in range(doublings)]
    result = measure(lengths, arguments.threads, arguments.repeats)
    print(table(result), flush=True)
    command.write_json(arguments.json, about, **result)
    if pyplot:
        draw(pyplot, result, arguments.plot)


if __name__ == "__main__":
    main()
