"""The demo's pictures as PNG files: by `selfattn.plot`, without a display.

Called by `__init__.py` and `learn/picture.py`.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from selfattn import plot

from .heads import Sharpest
from .walk import Walk

INK = "#1b1f3b"
_DPI = 150


def check(path: Path) -> None:
    """OSError where no picture can be written to `path`; nothing is changed."""
    target = Path(os.path.realpath(path))
    is_new = not target.exists()
    with open(path, "ab"):
        pass
    if is_new:
        target.unlink()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, the same bytes each time."""
    with warnings.catch_warnings():
        # Characters that no installed font has are boxes: the page has said so.
        warnings.filterwarnings("ignore", message="Glyph .* missing from ")
        figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})


def walk(path: Path, result: Walk, focus: int | None) -> None:
    """Write the map of a walk, or where the word at `focus` looks."""
    figure = Figure()
    plot.attention_map(result.weights, result.example.words, word=focus, figure=figure)
    save(figure, path)


def heads(path: Path, found: Sharpest) -> None:
    """Write where the word looks in each of the heads; of one that was chosen, its map."""
    figure = Figure()
    titles = [f"layer {head.layer + 1}, head {head.head + 1}" for head in found.heads]
    if found.is_chosen:
        (only,) = found.heads
        plot.attention_map(only.map, found.labels, titles=titles, figure=figure)
    else:
        maps = np.stack([head.map for head in found.heads])
        plot.attention_map(maps, found.labels, word=found.focus, titles=titles, figure=figure)
    save(figure, path)
