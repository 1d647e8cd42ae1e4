"""Print how fast selfattn is: against the machine's limit in the same run, and against its peers.

    python bench/report.py [--table forward|forward_more|backward|…] [--rows bert,long,llama]
                           [--dtype float64] [--threads N] [--repeats N] [--json FILE]

Per row and contestant: the time of a call in a burst, that of a cold one after a pause, GF (or
GB/s) and its fraction of the FMA peak (or of the memory-read loop), and how many times as fast
selfattn is. The limit's loop and the contestants take turns (harness.py); a figure is the median
over the turns in rounds that no other process disturbed, a ratio that of two such medians. Rows of
a single query run over several sets of arrays in turn, more than the caches hold: in a model, a
layer's keys are not in the cache either. A shape of the backward has two rows: the gradients alone,
of a forward that is not timed, and with the forward. Rows of a cache are of attending alone, and
have tokens a second, of one layer. The instruction set is the one that SELFATTN_ISA asks for. Run
by whoever wants figures to quote.
"""

from __future__ import annotations

import command

from selfattn.bench import peers, shapes
from selfattn.bench.measure import measure
from selfattn.bench.rows import HALF


def main():
    parser = command.parser(__doc__, repeats=15)
    parser.add_argument("--table", choices=sorted(shapes.SUITES), default="forward")
    parser.add_argument("--rows", type=command.names, help="names, by commas")
    parser.add_argument("--dtype", choices=("float32", "float64", *HALF), default="float32")
    arguments = command.parse(parser)
    try:
        chosen = shapes.pick(arguments.table, arguments.rows, arguments.dtype)
    except ValueError as error:
        raise SystemExit(f"report.py: {error}") from None
    about = command.announce(arguments.threads)
    rivals = peers.contenders(arguments.table)
    results = []
    for row in chosen:
        result, _ = measure(row, rivals, arguments.threads, arguments.repeats)
        print(f"\n{table(result)}", flush=True)
        results.append(result)
    command.write_json(arguments.json, about, rows=results)


def table(result):
    """The result of a row, to be read."""
    limit = result["limit"]
    unit = result["rate_unit"]
    has_tokens = any("tokens_per_second" in entry for entry in result["contestants"])
    tokens = f"{'tokens/s':>10}" if has_tokens else ""
    lines = [
        f"{result['shape']}    {limit['name']}: {_number(limit['rate'], '.1f')} {unit} "
        f"({limit['samples']} samples, {limit['discarded']} discarded)",
        f"  {'':13}{'time':>10}{'cold':>11}{unit:>8}{'of limit':>10}{'selfattn is':>13}{'cores':>7}"
        f"{'samples':>9}{'discarded':>11}{tokens}   way",
    ]
    for entry in result["contestants"]:
        is_us = entry["name"] == "selfattn"
        faster = "" if is_us else _number(entry["selfattn_faster"], ".2f", "×")
        lines.append(
            f"  {entry['name']:13}{_time(entry['seconds']):>10}{_time(entry['cold_seconds']):>11}"
            f"{_number(entry['rate'], '.1f'):>8}"
            f"{_number(entry['of_limit'], '.3f'):>10}{faster:>13}"
            f"{_number(entry['cores'], '.2f'):>7}{entry['samples']:>9}{entry['discarded']:>11}"
            f"{_tokens(entry)}   {entry['way']}"
        )
    if limit["samples"] < result["repeats"]:
        lines.append("  The machine was busy: fewer samples count than were asked for.")
    lines += [f"  {name:13}sits out: {reason}" for name, reason in result["absent"].items()]
    return "\n".join(lines)


def _number(x, form, unit=""):
    return "-" if x is None else format(x, form) + unit


def _tokens(entry):
    """A column that rows of caches have."""
    if "tokens_per_second" not in entry:
        return ""
    return f"{_number(entry['tokens_per_second'], ',.0f'):>10}"


def _time(seconds):
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.2f} µs"


if __name__ == "__main__":
    main()
