"""The demo in a terminal, by rich: the walk, a head of MiniLM, or bits; and how it ran.

Called by `__init__.py` and `learn/show.py`; the tables and heat maps are those of `tables.py`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

import selfattn

from . import tables
from .bits import LENGTH, SENTENCES, SIZES, Way, example, hexadecimal, largest
from .heads import Sharpest
from .minilm import INSTALL, MiniLM
from .walk import Walk
from .words import printable


def terminal() -> Console:
    """The terminal that the demo shows itself in."""
    return Console(highlight=False)


def walk(console: Console, result: Walk, focus: int | None, is_hashed: bool) -> None:
    """Show every step of a walk; `focus` is the word to look at."""
    words, x = [printable(word) for word in result.example.words], result.example.x
    importance = result.weights.sum(0) if focus is None else result.weights[focus]
    plan = tables.plan(console, words, 7, importance, focus)
    d_model, d_k = x.shape[1], result.query.shape[1]

    console.print(Text(f"Self-attention on “{printable(result.example.sentence)}”", "bold"))
    if is_hashed:
        say(
            console,
            "These vectors come from a hash of each word, the weights are the example's: nothing "
            "here is learned. For the attention of a real sentence encoder:",
        )
        console.print(Text(f"    {INSTALL}", "bold"))
    heading(console, "x", "Words", f"a vector of {d_model} numbers each")
    tables.numbers(console, plan, {"": x})
    heading(console, "1", "Project", "query = x·Wqᵀ + bq   key = x·Wkᵀ + bk   value = x·Wvᵀ + bv")
    parts = {"query": result.query, "key": result.key, "value": result.value}
    tables.numbers(console, plan, parts)
    heading(console, "2", "Score", f"query · key / √{d_k}, each word (row) against each (column)")
    tables.scores(console, plan, result.scores)
    heading(console, "3", "Softmax", "the attention map: how much each row attends to each column")
    tables.heat_map(console, plan, result.weights)
    if focus is not None:
        console.print()
        say(console, f"“{words[focus]}” attends to")
        tables.bars(console, words, result.weights[focus])
    heading(console, "4", "Weighted sum", "of the values, by the map: what each word becomes")
    tables.numbers(console, plan, {"": result.out})
    shape = f"one head of {_words(len(words))}"
    _footer(console, result.seconds, result.calls, shape, result.differences)


def head(console: Console, word: str | None, found: Sharpest) -> None:
    """Show the head in which a word attends most sharply."""
    row = found.map[found.focus]
    labels = [printable(label) for label in found.labels]
    focus, target = labels[found.focus], labels[found.target]

    console.print(Text(f"Self-attention on “{printable(found.sentence)}”", "bold"))
    _, heads, length, _ = found.shape
    say(
        console,
        f"The sentence encoder all-MiniLM-L6-v2, its real weights: {MiniLM.num_layers} layers of "
        f"{heads} heads, {length} tokens.",
    )
    if found.left_out:
        limit = f"the {MiniLM.max_tokens} tokens that it reads"
        say(console, f"Left out, past {limit}: {_words(found.left_out)}.")
    console.print()
    among = ""
    if word is None and found.candidates > 1:
        among = f"Of all {_words(found.candidates)}, "
    elif found.candidates > 1:
        among = f"Of {found.candidates} places where it stands, at {found.focus} "
    console.print(
        Text.assemble(
            among,
            (f"“{focus}”", "bold"),
            " attends most sharply in ",
            (f"layer {found.layer + 1}, head {found.head + 1}", "bold"),
            f": {row[found.target]:.2f} of its weight goes to ",
            (f"“{target}”", "bold"),
            ".",
        )
    )
    most = "anything else, for want of another word" if found.has_no_other else "one other word"
    aside = "" if found.has_no_other else "itself, [CLS], [SEP], punctuation, and "
    neighbourly = " and ".join(f"{layer + 1}.{head + 1}" for layer, head in found.by_position)
    say(
        console,
        f"Sharpest: the most weight on {most}. Not counted: {aside}the heads {neighbourly} "
        "(layer.head), which look at a neighbouring token, whatever it is.",
    )
    heading(console, "", "Map of that head", "how much each row attends to each column")
    plan = tables.plan(console, labels, 4, row, found.focus, first=0)
    tables.heat_map(console, plan, found.map)
    console.print()
    say(console, f"“{focus}” attends to")
    tables.bars(console, labels, row)
    shape = f"a layer's {heads} heads of {length} tokens"
    _footer(console, found.seconds, found.calls, shape, {"fused": found.difference})


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


def _footer(
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


def _words(count: int) -> str:
    return f"{count} word" if count == 1 else f"{count} words"
