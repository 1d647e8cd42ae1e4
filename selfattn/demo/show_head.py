"""The heads of MiniLM in which a word attends most sharply, in a terminal, by rich.

Called by `__init__.py`; the tables and heat maps are those of `tables.py`.
"""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import tables
from .heads import Sharpest
from .minilm import MiniLM
from .show import footer, heading, say, words
from .words import printable

_ROWS = 20  # words of the table of several heads
_CELL = 8


def show(console: Console, word: str | None, found: Sharpest) -> None:
    """Show the heads that were found: the map of the first, where the word looks in each."""
    labels = [printable(label) for label in found.labels]
    first = found.heads[0]
    row = first.map[found.focus]

    console.print(Text(f"Self-attention on “{printable(found.sentence)}”", "bold"))
    _, heads, length, _ = found.shape
    say(
        console,
        f"The sentence encoder all-MiniLM-L6-v2, its real weights: {MiniLM.num_layers} layers of "
        f"{heads} heads, {length} tokens.",
    )
    if found.left_out:
        limit = f"the {MiniLM.max_tokens} tokens that it reads"
        say(console, f"Left out, past {limit}: {words(found.left_out)}.")
    console.print()
    _say_which(console, word, found, labels)
    heading(console, "", f"Map of head {first.name}", "how much each row attends to each column")
    plan = tables.plan(console, labels, (4,), row, found.focus, first=0)
    tables.heat_map(console, plan, first.map)
    if plan.is_cut:
        say(console, tables.said_left_out(console, plan, labels))
    if len(found.heads) > 1:
        _compare(console, found, labels)
    else:
        console.print()
        say(console, f"“{labels[found.focus]}” attends to")
        tables.bars(console, labels, row)
    shape = f"a layer's {heads} heads of {length} tokens"
    footer(console, found.seconds, found.calls, shape, {"fused": found.difference})


def _say_which(console: Console, word: str | None, found: Sharpest, labels: list[str]) -> None:
    first = found.heads[0]
    focus, target = labels[found.focus], labels[first.target]
    among = ""
    if word is None and found.candidates > 1:
        among = f"Of all {words(found.candidates)}, "
    elif found.candidates > 1:
        among = f"Of {found.candidates} places where it stands, at {found.focus} "
    does = " attends in " if found.is_chosen else " attends most sharply in "
    console.print(
        Text.assemble(
            among,
            (f"“{focus}”", "bold"),
            does,
            (f"layer {first.layer + 1}, head {first.head + 1}", "bold"),
            f": {first.map[found.focus, first.target]:.2f} of its weight goes to ",
            (f"“{target}”", "bold"),
            ".",
        )
    )
    if found.is_chosen:
        return
    most = "anything else, for want of another word" if found.has_no_other else "one other word"
    aside = "" if found.has_no_other else "itself, [CLS], [SEP], punctuation, and "
    neighbourly = " and ".join(f"{layer + 1}.{head + 1}" for layer, head in found.by_position)
    say(
        console,
        f"Sharpest: the most weight on {most}. Not counted: {aside}the heads {neighbourly} "
        "(layer.head), which look at a neighbouring token, whatever it is.",
    )
    say(
        console,
        "Sharpest is not coreference: heads point from one word to different words, and none was "
        f"taught to find what “{focus}” means.",
    )


def _compare(console: Console, found: Sharpest, labels: list[str]) -> None:
    """Where the word looks in each of the heads, down the words of the sentence."""
    heading(
        console,
        "",
        f"What “{labels[found.focus]}” attends to",
        "in the heads that are sharpest on different words",
    )
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for head in found.heads:
        table.add_column(Text(f"{head.name} "), justify="right", width=_CELL, no_wrap=True)
    rows = np.stack([head.map[found.focus] for head in found.heads], 1)
    shown = range(len(labels))
    if len(labels) > _ROWS:
        shown = sorted(np.argsort(-rows.max(1), kind="stable")[:_ROWS])
    for i in shown:
        cells = (tables.shaded(weight, _CELL) for weight in rows[i])
        is_focus = i == found.focus
        name = Text(tables.short(labels[i]), "bold" if is_focus else "")
        table.add_row(name, *cells)
    if len(labels) > _ROWS:
        rest = 1.0 - rows[list(shown)].sum(0)
        table.add_row(Text("rest", "dim"), *(tables.shaded(x, _CELL) for x in rest))
    console.print(table)
    say(console, f"The map of another head: --head {found.heads[1].name}")
