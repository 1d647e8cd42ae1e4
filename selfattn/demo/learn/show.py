"""The training in a terminal, by rich: the task, the progress, what "it" attends to, the result.

Called by `__init__.py`; cells are shaded by `tables.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from .. import tables
from ..show import heading, say, terminal
from ..words import printable
from .sentences import Sentence
from .training import Trainer

__all__ = ["attention", "progress", "result", "task", "terminal"]

_CELL = 10


def task(console: Console, trainer: Trainer, test: list[Sentence]) -> None:
    """Say what is to be learned, from what, and what it is tested on."""
    console.print(Text("Learning what “it” means", "bold"))
    parameters = sum(x.size for x in trainer.model.params.values())
    say(
        console,
        f"Embedding, positions, three layers of attention, a linear read-out: {parameters:,} "
        "random numbers, trained by Adam in NumPy; attention, forward and backward, by selfattn.",
    )
    heading(console, "", "It trains on", "sentences of made-up nouns, in any role")
    _examples(console, trainer.sentences(0)[:2])
    heading(console, "", "It is tested on", "sentences of real nouns, none of which it trained on")
    _examples(console, test[:2])
    console.print()


def _examples(console, some):
    for sentence in some:
        line = Text("    ")
        for place, word in enumerate(str(sentence).split()):
            line.append(word, _style(sentence, place)).append(" ")
        console.print(line)


def _style(sentence, place):
    return {sentence.it: "bold", sentence.antecedent: "bold green"}.get(place, "")


@contextmanager
def progress(console: Console, steps: int) -> Iterator[Callable[[float], None]]:
    """A bar, and the time that is left; the function that it gives takes the loss of each step."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as bar:
        task_id = bar.add_task("", total=steps, loss=float("nan"))
        smooth = None

        def advance(loss: float) -> None:
            nonlocal smooth
            smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
            bar.update(task_id, advance=1, loss=smooth)

        yield advance


def attention(
    console: Console,
    looked_at: list[Sentence],
    before: list[tuple[np.ndarray, int]],
    after: list[tuple[np.ndarray, int]],
) -> None:
    """Show, down the words of each sentence, how much "it" attends to them, before and after."""
    what = "of the last layer, before training and after it"
    heading(console, "", "What “it” attends to", what)
    for sentence, first, last in zip(looked_at, before, after, strict=True):
        console.print()
        console.print(Text(str(sentence), "bold"))
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("", no_wrap=True)
        for name in ("before", "after"):
            table.add_column(Text(f"{name} "), justify="right", width=_CELL, no_wrap=True)
        for place, word in enumerate(sentence.words):
            cells = (tables.shaded(weights[place], _CELL) for weights, _ in (first, last))
            table.add_row(Text(word, _style(sentence, place)), *cells)
        answers = (tables.short(sentence.words[answer]) for _, answer in (first, last))
        table.add_row(Text("answers", "dim"), *(Text(f"{answer} ") for answer in answers))
        console.print(table)


def result(
    console: Console,
    before: float,
    after: float,
    tested: int,
    seconds: float,
    trained: int,
    png: str,
) -> None:
    """Say how often it is right, measured on sentences of words held out."""
    console.print()
    line = Text.assemble(
        f"Right on {tested:,} sentences of real nouns, never trained on: before ",
        (f"{before:.1%}", "bold"),
        ", after ",
        (f"{after:.1%}", "bold green"),
        ".",
    )
    console.print(line)
    say(console, f"Trained {seconds:.0f} s on {trained:,} sentences. The maps: {printable(png)}")
