"""Tables and heat maps for a terminal, by rich.

A heat map's cells carry their number, so that it reads without colour too. What is too wide for
the terminal is cut to the words that matter most, and the rest of a row's weight is summed up.
Called by `show_walk.py`, `show_head.py` and `learn/show.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDEST = 100  # columns: wider is harder to read
_LABEL = 16  # cells of a row's label, at most
_REST = 7  # cells of the column that sums up what is left out
_BARS = 6
_LISTED = 8  # words that are left out, by name
_BAR = 40
_RAMP = np.array(  # where, red, green, blue
    [
        (0.0, 16, 18, 40),
        (0.3, 36, 62, 128),
        (0.6, 34, 139, 141),
        (0.8, 122, 196, 96),
        (1.0, 253, 231, 86),
    ]
)


@dataclass(frozen=True)
class Plan:
    """Which words are shown, under which names, and how wide a column is."""

    shown: list[int]
    is_cut: bool
    rows: list[Text]
    columns: list[str]
    cell: int
    label: int


def plan(
    console: Console,
    labels: Sequence[str],
    cells: Sequence[int],
    importance: np.ndarray,
    focus: int | None,
    first: int = 1,
) -> Plan:
    """Lay out a map over `labels`: by words where they fit, else by numbers from `first`, else
    only the most important of them, with `focus` among them.

    A column is as wide as the first of `cells` with which all of them fit, or the last.
    """
    width = min(console.width, _WIDEST)
    longest = min(max(cell_len(label) for label in labels), _LABEL)
    number = len(str(len(labels)))
    named = 2 + longest + 1
    label = 2 + number + 1 + longest + 1
    cell = next((cell for cell in cells if cell * len(labels) <= width - label), cells[-1])
    room = (width - label) // cell
    is_cut = len(labels) > room
    shown = list(range(len(labels)))
    if is_cut:
        room = (width - label - _REST) // cell
        order = [int(i) for i in np.argsort(-importance, kind="stable")]
        order.sort(key=lambda i: i != focus)
        shown = sorted(order[:room])
    widened = max(cells[0], longest + 2)
    are_named = not is_cut and widened * len(labels) <= width - named
    if are_named:
        cell, label = widened, named
        columns = [short(labels[i]) for i in shown]
    else:
        columns = [str(i + first) for i in shown]
    rows = []
    for i in shown:
        count = "" if are_named else f"{i + first:{number}} "
        is_focus = i == focus
        name = ("> " if is_focus else "  ") + count + short(labels[i])
        rows.append(Text(name, "bold" if is_focus else ""))
    return Plan(shown, is_cut, rows, columns, cell, label)


def numbers(
    console: Console,
    plan: Plan,
    parts: dict[str, np.ndarray],
    names: dict[str, Sequence[str]] | None = None,
) -> None:
    """Print rows of numbers, a group of columns for each part: side by side as far as they fit.

    `names` has those of the columns of a part.
    """
    digits, gap = 6, 1
    names = names or {}
    room = min(console.width, _WIDEST) - plan.label - gap
    lines: list[list[str]] = [[]]
    for name, part in parts.items():
        beside = sum(digits * parts[other].shape[1] + gap for other in lines[-1])
        if lines[-1] and beside + digits * part.shape[1] > room:
            lines.append([])
        lines[-1].append(name)
    for line in lines:
        table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim")
        table.show_header = any(name or name in names for name in line)
        table.add_column("", width=plan.label, no_wrap=True)
        for name in line:
            columns = "".join(f"{column:>{digits}}" for column in names.get(name, ()))
            header = "\n".join(part for part in (name, columns) if part)
            table.add_column(Text(header), justify="right", no_wrap=True)
        for row, i in zip(plan.rows, plan.shown, strict=True):
            numbers = ("".join(f"{x:{digits}.2f}" for x in parts[name][i]) for name in line)
            table.add_row(row, *numbers)
        console.print(table)


def _grid(
    plan: Plan, values: np.ndarray, cell: Callable[[float, int], Text], rest: bool = False
) -> Table:
    """Words against words, a column a word."""
    table = Table(box=None, padding=0, pad_edge=False, header_style="dim")
    table.add_column("", width=plan.label, no_wrap=True)
    for name in plan.columns:
        table.add_column(Text(_right(name, plan.cell)), width=plan.cell, no_wrap=True)
    if rest:
        table.add_column(Text(_right("rest", _REST)), width=_REST, no_wrap=True)
    for row, i in zip(plan.rows, plan.shown, strict=True):
        cells = [cell(values[i, j], plan.cell) for j in plan.shown]
        if rest:
            cells.append(Text(" ") + shaded(1.0 - values[i, plan.shown].sum(), _REST - 1))
        table.add_row(row, *cells)
    return table


def scores(console: Console, plan: Plan, values: np.ndarray) -> None:
    """Print a number for each pair of words."""
    console.print(_grid(plan, values, _signed))


def heat_map(console: Console, plan: Plan, weights: np.ndarray) -> None:
    """Print a map of weights from 0 to 1, its cells shaded."""
    console.print(_grid(plan, weights, shaded, rest=plan.is_cut))


def _signed(value: float, width: int) -> Text:
    text = f"{value:.2f}"
    return Text(_right(text if len(text) < width else f"{value:.1f}", width))


def shaded(weight: float, width: int) -> Text:
    """A weight from 0 to 1 on a background from dark to bright."""
    red, green, blue = _colour(float(weight))
    is_bright = 0.3 * red + 0.59 * green + 0.11 * blue > 110
    ink = "#000000" if is_bright else "#ffffff"
    return Text(_right(share(weight), width), f"{ink} on rgb({red},{green},{blue})")


def _right(text: str, width: int) -> str:
    """Text at the right of a cell, with a space behind it: rich would leave that unshaded."""
    return " " * (width - 1 - cell_len(text)) + text + " "


def said_left_out(console: Console, plan: Plan, labels: Sequence[str]) -> str:
    """Which words a plan has no room for, in a sentence; nothing where it has."""
    left = [short(label) for i, label in enumerate(labels) if i not in set(plan.shown)]
    if not left:
        return ""
    listed = ", ".join(left[:_LISTED]) + (", …" if len(left) > _LISTED else "")
    return (
        f"{console.width} columns have no room for {len(left)} of the {len(labels)}, which get the "
        f"least weight and are summed up as “rest”: {listed}."
    )


def share(weight: float) -> str:
    """A weight from 0 to 1 in three characters; a rounding's worth below 0 is 0."""
    text = f"{max(float(weight), 0.0):.2f}"
    return text[1:] if text.startswith("0") else "1.0"


def _colour(weight: float) -> tuple[int, int, int]:
    where = min(max(weight, 0.0), 1.0) ** 0.6  # small weights differ visibly too
    red, green, blue = (int(np.interp(where, _RAMP[:, 0], _RAMP[:, k])) for k in (1, 2, 3))
    return red, green, blue


def bars(console: Console, labels: Sequence[str], row: np.ndarray) -> None:
    """Print where one word's weight goes, the largest shares first."""
    block = "█" if console.encoding.lower().startswith("utf") else "#"
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for i in np.argsort(-row, kind="stable")[:_BARS]:
        red, green, blue = _colour(float(row[i]))
        bar = Text(block * round(float(row[i]) * _BAR), f"rgb({red},{green},{blue})")
        table.add_row(Text(short(labels[i])), share(row[i]), bar)
    console.print(table)


def short(label: str) -> str:
    """A label, cut to what a table has room for."""
    return label if cell_len(label) <= _LABEL else set_cell_size(label, _LABEL - 1) + "…"
