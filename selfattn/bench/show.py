"""What `selfattn bench` shows: the machine, a block of lines for each row, and how far it is.

    bert: 8, 12, 512×512, 64                     FMA peak (avx512, float32) 228 GF
      selfattn      14.21 ms   227 GF  ████████████████▊    .84
      torch         20.90 ms   154 GF  ███████████▍         .57   selfattn is 1.47×

The bar is the fraction of the limit, of the whole width. Progress goes to stderr, and only to a
terminal: by rich where it is installed, else a line that is written again and again. Called by
run.py.
"""

from __future__ import annotations

import contextlib
import math
import sys

WIDTH = 20  # of a bar
EIGHTHS = " ▏▎▍▌▋▊▉█"


def machine(about):
    """Print what the figures are of."""
    cpu, threads, isa = about["cpu"], about["threads"], about["isa"]
    print(f"{cpu}: {threads} thread{'s' if threads != 1 else ''}, {isa} kernels")
    names = ("python", "numpy", "torch", "onnxruntime", "openvino")
    print(", ".join(f"{name} {about[name]}" for name in names if name in about))


def row(result):
    """The lines of a row's result."""
    limit, unit = result["limit"], result["rate_unit"]
    lines = [f"\n{result['shape']:44} {limit['name']} {_rate(limit['rate'])} {unit}"]
    for entry in result["contestants"]:
        line = (
            f"  {entry['name']:12}{_time(entry['seconds']):>11} {_rate(entry['rate']):>6} {unit:4} "
            f" {bar(entry['of_limit'])} {_fraction(entry['of_limit']):>4}"
        )
        if entry["name"] != "selfattn" and entry["selfattn_faster"]:
            line += f"   selfattn is {entry['selfattn_faster']:.2f}×"
        lines.append(line)
    lines += [f"  {name:12}sits out: {reason}" for name, reason in result["absent"].items()]
    if result["busy"]:
        lines.append("  Other processes had the cores: these are rough figures.")
    return "\n".join(lines)


def summary(results):
    """Print, of each library, how many times as fast selfattn is: least, mean, most."""
    ratios = {}
    for result in results:
        for entry in result["contestants"]:
            if entry["name"] != "selfattn" and entry["selfattn_faster"]:
                ratios.setdefault(entry["name"], []).append(entry["selfattn_faster"])
    print()
    for name, found in ratios.items():
        mean = math.exp(sum(map(math.log, found)) / len(found))
        span = f", from {min(found):.2f}× to {max(found):.2f}×" if len(found) > 1 else ""
        print(f"selfattn is {mean:.2f}× as fast as {name}{span}")


def bar(fraction):
    """A bar of WIDTH characters, to an eighth of one."""
    eighths = round(8 * WIDTH * min(max(fraction or 0.0, 0.0), 1.0))
    full, rest = divmod(eighths, 8)
    return (EIGHTHS[8] * full + (EIGHTHS[rest] if rest else "")).ljust(WIDTH)


def _fraction(x):
    return "-" if x is None else f"{x:.2f}".removeprefix("0")


def _rate(x):
    return "-" if x is None else f"{x:.1f}" if x < 100 else f"{x:.0f}"


def _time(seconds):
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.2f} µs"


# ------------------------------------------------------------------ how far it is


@contextlib.contextmanager
def progress(num_rows, turns):
    """What is told how far a run of so many rows is, each of so many turns."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield Silent()
        return
    try:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield from _closing(Line(num_rows, turns))
        return
    from rich.console import Console

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        yield Rich(shown, num_rows, turns)


def _closing(line):
    try:
        yield line
    finally:
        line.clear()


class Silent:
    """No terminal: nothing is shown."""

    def begin(self, name):
        """A row begins."""

    def tick(self, name):
        """A contestant's turn begins."""

    def above(self, text):
        """Print a row's lines, not into the bar."""
        print(text, flush=True)


class Line(Silent):
    """A line of stderr that is written anew."""

    def __init__(self, num_rows, turns):
        self._num_rows, self._turns = num_rows, turns
        self._row = self._done = 0
        self._name = ""

    def begin(self, name):
        self._row, self._done, self._name = self._row + 1, 0, name
        self._show("preparing")

    def tick(self, name):
        self._done += 1
        self._show(name)

    def above(self, text):
        self.clear()
        super().above(text)

    def clear(self):
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()

    def _show(self, what):
        done = bar((self._row - 1 + min(self._done / self._turns, 1.0)) / self._num_rows)
        sys.stderr.write(f"\r\x1b[K{done} {self._name}: {what}")
        sys.stderr.flush()


class Rich(Silent):
    """rich's bar."""

    def __init__(self, shown, num_rows, turns):
        self._shown, self._turns, self._row, self._done = shown, turns, 0, 0
        self._task = shown.add_task("", total=num_rows)
        self._name = ""

    def begin(self, name):
        self._row, self._done, self._name = self._row + 1, 0, name
        self._update("preparing")

    def tick(self, name):
        self._done += 1
        self._update(name)

    def above(self, text):
        if sys.stdout.isatty():
            self._shown.console.file = sys.stderr
            self._shown.stop()
            print(text, flush=True)
            self._shown.start()
        else:
            print(text, flush=True)

    def _update(self, what):
        done = self._row - 1 + min(self._done / self._turns, 1.0)
        self._shown.update(self._task, completed=done, description=f"{self._name}: {what}")
