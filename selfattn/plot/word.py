"""A panel of one word: an arc and a bar to each word that it attends to, in the sentence's order.

    arcs, as strong as the weight  |  the words, one below the other  |  bars and numbers

Called by `attention.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from . import heat, labels

ARCS, BARS = 1.0, 1.5  # inches
ROW = 0.29  # inches, where nothing asks for smaller ones
_CURVE = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]


def width(words: Sequence[str], row: float = ROW) -> float:
    """Inches that a panel takes."""
    return ARCS + _words(words, _size(row)) + BARS


def draw(
    axes: Any,
    weights: np.ndarray,
    words: Sequence[str],
    focus: int | None,
    name: str,
    *,
    norm: Any,
    cmap: Any,
) -> None:
    """Draw where the word `name`, which stands at `focus` among the words or elsewhere, looks."""
    inches = axes.get_window_extent().width / axes.figure.dpi
    row = axes.get_window_extent().height / axes.figure.dpi / max(len(words), 1)
    size = _size(row)
    arcs, middle = ARCS, _words(words, size)
    bars = max(inches - arcs - middle, 0.4)
    full = max(bars - 0.42, 0.1)  # the number stands behind the bar
    axes.set(xlim=(-arcs, middle + bars), ylim=(max(len(words), 1) - 0.5, -0.5), aspect="auto")
    axes.axis("off")
    family = labels.families([*words, name])
    start = (len(words) - 1) / 2 if focus is None else focus
    begin = labels.inches(name, size) + 0.06 - arcs  # of lines from a word that is not among them
    for i, (word, weight) in enumerate(zip(words, weights, strict=True)):
        share = float(np.clip(norm(weight), 0.0, 1.0)) if np.isfinite(weight) else 0.0
        colour = cmap(0.35 + 0.6 * share)
        bold = i == focus
        text = axes.text(0.0, i, word, ha="left", va="center")
        labels.write(
            text,
            family,
            fontsize=size,
            color=labels.ACCENT if bold else labels.INK,
            fontweight="bold" if bold else "normal",
        )
        axes.barh(i, share * full, height=0.62, left=middle, color=colour)
        axes.text(
            middle + share * full + 0.06,
            i,
            heat.share(weight) if np.isfinite(weight) else "NaN",
            ha="left",
            va="center",
            fontsize=0.85 * size,
            color=labels.INK if share > 0.15 else labels.QUIET,
        )
        if share > 0.01:
            path = _loop(focus, i, arcs) if focus is not None else _line(begin, start, i)
            _arc(axes, path, share, colour)
    if focus is None:
        text = axes.text(-arcs, start, name, ha="left", va="center")
        labels.write(text, family, fontsize=size, color=labels.ACCENT, fontweight="bold")


def _loop(start: int, end: int, arcs: float) -> Path:
    """From a word's place to another's, or to its own, around the left."""
    reach = -min(0.3 + 0.12 * abs(end - start), 1.3 * arcs - 0.1)
    low, high = (start, end) if start != end else (start - 0.3, start + 0.3)
    return Path([(-0.06, low), (reach, low), (reach, high), (-0.06, high)], _CURVE)


def _line(begin: float, start: float, end: int) -> Path:
    """From a word that is not among them to one that is."""
    middle = (begin - 0.06) / 2
    return Path([(begin, start), (middle, start), (middle, end), (-0.06, end)], _CURVE)


def _arc(axes: Any, path: Path, share: float, colour: Any) -> None:
    axes.add_patch(
        PathPatch(
            path,
            fill=False,
            edgecolor=colour,
            linewidth=0.5 + 5.0 * share,
            alpha=0.25 + 0.75 * share,
            capstyle="round",
            zorder=1.0 + share,
        )
    )


def _size(row: float) -> float:
    return min(max(0.5 * row * labels.POINTS, 4.0), 11.0)


def _words(words: Sequence[str], size: float) -> float:
    return max((labels.inches(word, size) for word in words), default=0.0) + 0.12
