"""Print what a pause before a call costs: how much faster two threads are than one, after each.

    python bench/pauses.py [--rows minilm,small] [--threads N] [--repeats N] [--json FILE]

    speed-up = median time with one thread / median time with N, of a call after a pause

A pause is a sleep, or a product of NumPy's, whose threads are another library's and may spin on. A
call after a long sleep waits for its helpers to wake, on cores that may have gone to sleep too; a
program that calls once in a while sees no other. Beside selfattn stand PyTorch and onnxruntime,
where they are installed. Every measurement is: some calls, the pause, then the one call that is
timed. Contestants and numbers of threads take turns (harness.py), each in a process of its own,
where nobody else's threads spin. Run by whoever changes the pool (csrc/pool.c).
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from functools import partial

import command
import numpy as np
from suites.shapes import PAUSES_PEERS

from selfattn.bench import harness, machine, peers
from selfattn.bench.shapes import PAUSES as ROWS
from selfattn.bench.shapes import pick

SLEEPS = (0.0, 0.001, 0.005, 0.02, 0.1)
MATMUL = "matmul"
PAUSES = (*SLEEPS, MATMUL)
MATRIX = 768  # of the product in between: some milliseconds


# ------------------------------------------------------------------ a contestant's own process


def serve(name, num_threads):
    """Read "row pause" from stdin, a line each; write the seconds of the call after the pause."""
    peer = {peer.name: peer for peer in peers.PEERS}[name]
    known = {row.name: row for row in ROWS}
    matrix = np.random.default_rng(0).standard_normal((MATRIX, MATRIX), np.float32)
    calls = {}
    for line in sys.stdin:
        row, pause = line.split()
        if row not in calls:
            calls[row] = peer.prepare(known[row], known[row].arrays(), num_threads).run
        print(seconds_after(calls[row], pause, matrix), flush=True)


def seconds_after(run, pause, matrix):
    for _ in range(3):
        run()
    if pause == MATMUL:
        matrix @ matrix
    elif float(pause):
        time.sleep(float(pause))
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Process:
    """A contestant with so many threads."""

    def __init__(self, name, num_threads):
        self.name, self.num_threads = name, num_threads
        command = [sys.executable, __file__, "--serve", name, "--threads", str(num_threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self, row, pause):
        """The harness's turn: one call after the pause."""
        self._process.stdin.write(f"{row} {pause}\n")
        self._process.stdin.flush()
        seconds = float(self._process.stdout.readline())
        return harness.Sample(seconds, seconds, seconds, cpu=math.nan)

    def close(self):
        self._process.stdin.close()
        self._process.wait()


# ------------------------------------------------------------------ the report


def measure(row, processes, num_threads, repeats):
    """The median seconds of each process after each pause, by name, threads and pause.

    There is a race for each pause, so that the times of a speed-up are of the same rounds.
    """
    seconds = {}
    for process in processes:
        process.turn(row.name, 0.0)
    for pause in PAUSES:
        turns = {
            (p.name, p.num_threads, pause): partial(p.turn, row.name, pause) for p in processes
        }
        _, outcomes = harness.race(turns, repeats, machine.fma_loop(num_threads))
        seconds |= {key: outcome.seconds for key, outcome in outcomes.items()}
    return seconds


def summary(row, seconds, num_threads):
    """A plain dict of the row: per contestant, the times and the speed-ups."""
    entries = []
    for name in dict.fromkeys(name for name, *_ in seconds):
        one = [seconds[name, 1, pause] for pause in PAUSES]
        many = [seconds[name, num_threads, pause] for pause in PAUSES]
        entries.append(
            {
                "name": name,
                "seconds_one_thread": one,
                "seconds": many,
                "speed_up": [a / b for a, b in zip(one, many, strict=True)],
            }
        )
    return {"row": row.name, "shape": str(row), "pauses": list(PAUSES), "contestants": entries}


def table(result):
    """The result of a row, to be read."""
    heads = [p if p == MATMUL else f"{p * 1e3:g} ms" for p in result["pauses"]]
    lines = [f"{result['shape']}", f"  {'after':24}" + "".join(f"{head:>10}" for head in heads)]
    for entry in result["contestants"]:
        times = "".join(f"{seconds * 1e3:7.2f} ms" for seconds in entry["seconds"])
        ratios = "".join(f"{ratio:9.2f}×" for ratio in entry["speed_up"])
        lines += [f"  {entry['name']:24}{times}", f"  {'  over its one thread':24}{ratios}"]
        if any(map(math.isnan, entry["speed_up"])):
            lines.append("  The machine was busy: after some pauses no round counts.")
    return "\n".join(lines)


def main():
    parser = command.parser(__doc__, repeats=15, repeats_help="calls after each pause that count")
    parser.add_argument("--rows", type=command.names, help="names, by commas")
    parser.add_argument("--serve", choices=PAUSES_PEERS, help=argparse.SUPPRESS)
    arguments = command.parse(parser)
    if arguments.serve:
        serve(arguments.serve, arguments.threads)
        return
    if arguments.threads < 2:
        parser.error("--threads must be at least 2")
    try:
        chosen = pick("pauses", arguments.rows)
    except ValueError as error:
        raise SystemExit(f"pauses.py: {error}") from None
    about = command.announce(arguments.threads)
    installed = [peer.name for peer in peers.contenders() if peer.name in PAUSES_PEERS]
    processes = [Process(name, n) for name in installed for n in (1, arguments.threads)]
    results = []
    for row in chosen:
        seconds = measure(row, processes, arguments.threads, arguments.repeats)
        results.append(summary(row, seconds, arguments.threads))
        print(f"\n{table(results[-1])}", flush=True)
    for process in processes:
        process.close()
    command.write_json(arguments.json, about, repeats=arguments.repeats, rows=results)


if __name__ == "__main__":
    main()
