"""`selfattn bench`: how fast attention is on this machine, beside the libraries installed here.

Called by `cli.py`, which has checked what a user gave.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from . import measure, peers, picture, shapes, show
from .rows import HALF, Row

DTYPES = ("float32", "float64", *HALF)
# Of a table: models' shapes, a causal one, one with groups, and decoding. A minute or so.
DEFAULT_ROWS = ("minilm", "bert", "gpt", "decode")
REPEATS = 7
ROW_SECONDS = 12.0  # after so many, no round of a row begins


class BenchError(ValueError):
    """What a user asked for cannot be measured; the message is one line that says why."""


def rows(table: str, names: Sequence[str], dtype: str) -> tuple[Row, ...]:
    """The rows of a table that are named, or a few of it."""
    if not names:
        names = DEFAULT_ROWS if table == "forward" else [row.name for row in shapes.SUITES[table]]
    try:
        return shapes.pick(table, names, dtype)
    except ValueError as error:
        raise BenchError(str(error)) from None


def row_of_shape(text: str, dtype: str, is_causal: bool) -> Row:
    """The row of B,H,L,S,E, where H may be "32/8": query heads and key/value heads."""
    words = [word.strip() for word in text.split(",")]
    if len(words) != 5:
        raise BenchError(f"--shape: expected B,H,L,S,E, got {text!r}")
    try:
        heads_q, _, heads_kv = words[1].partition("/")
        batch, length, keys, head_dim = (int(words[i]) for i in (0, 2, 3, 4))
        numbers = (batch, int(heads_q), int(heads_kv or heads_q), length, keys, head_dim)
    except ValueError:
        raise BenchError(f"--shape: expected ints B,H,L,S,E, got {text!r}") from None
    if min(numbers) < 1 or numbers[1] % numbers[2]:
        raise BenchError(
            "--shape: expected lengths of 1 or more, query heads a multiple of key/value heads, "
            f"got {text!r}"
        )
    return Row("shape", *numbers, is_causal=is_causal, dtype=dtype)


def contenders(names: Sequence[str] | None) -> tuple[peers.Peer, ...]:
    """selfattn, and the libraries that are installed, or those of them that are named."""
    unknown = [name for name in names or () if name not in peers.LIBRARIES]
    if unknown:
        raise BenchError(f"--peers: expected {', '.join(peers.LIBRARIES)}, got {unknown[0]!r}")
    wanted = ("selfattn", *(peers.LIBRARIES if names is None else names))
    found = tuple(peer for peer in peers.contenders() if peer.name in wanted)
    missing = set(names or ()) - {peer.name for peer in found}
    if missing:
        raise BenchError(f"--peers: {sorted(missing)[0]} is not installed")
    return found


def run(
    chosen: Sequence[Row],
    rivals: Sequence[peers.Peer],
    num_threads: int,
    as_json: bool = False,
    plot: str | None = None,
) -> None:
    """Measure the rows; print each as it is done, or JSON of all; draw a picture if asked to."""
    if plot is not None:
        picture.check(plot)  # before minutes are spent
    about = measure.about(num_threads)
    if not as_json:
        show.machine(about)
    results = []
    with show.progress(len(chosen), REPEATS * len(rivals)) as bar:
        for row in chosen:
            bar.begin(row.name)
            result, _ = measure.measure(
                row, rivals, num_threads, REPEATS, ROW_SECONDS, bar.tick, insist=False
            )
            results.append(result)
            if not as_json:
                bar.above(show.row(result))
    if as_json:
        print(json.dumps(measure.plain({"machine": about, "rows": results}), indent=1))
    else:
        show.summary(results)
    if plot is not None:
        picture.draw(results, about, plot)
        print(f"the picture is in {os.path.abspath(plot)}", file=sys.stderr)
