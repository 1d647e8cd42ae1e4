"""A panel that is an attention map: a row attends to columns, and a shade says how much.

    weights[i, j]  ->  the cell of row i and column j, with its number where it has room

0 is white. What is exactly 0, as masked keys are, has no number. Called by `attention.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize

from . import labels

# White to dark blue by way of green. Each is darker than the one before it, for eyes that lack one
# kind of cone too, and in print.
SHADES = LinearSegmentedColormap.from_list(
    "selfattn", ["#ffffff", "#d9ecc8", "#8fd0bb", "#3d9fb8", "#2462a0", "#0e1f5b"]
).with_extremes(bad="#d7d7dc")

_SMALLEST, _LARGEST = 5.0, 12.0  # points, of labels
NUMBER = 0.3  # inches: a cell that has room for a number


def cell_size(rows: int, columns: int, room: float) -> float:
    """How many inches a cell is wide and high, so that the longer side takes `room` at most."""
    return min(max(room / max(rows, columns, 1), 0.03), 0.82)


def font_size(cell: float) -> float:
    """Points of a label beside a cell of so many inches."""
    return min(max(0.62 * cell * labels.POINTS, _SMALLEST), _LARGEST)


def margins(row_labels: Sequence[str], column_labels: Sequence[str], cell: float) -> Any:
    """Inches that labels take at the left, and at the top."""
    size = font_size(cell)
    left = max((labels.inches(text, size) for text in row_labels), default=0.0) + 0.15
    widest = max((labels.inches(text, size) for text in column_labels), default=0.0)
    return left, (size / labels.POINTS if widest <= 0.95 * cell else widest) + 0.15


def draw(
    axes: Any,
    weights: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    cell: float,
    norm: Normalize,
    cmap: Colormap,
    with_numbers: bool,
    with_rows: bool = True,
    with_columns: bool = True,
) -> Any:
    """Draw the map; return the image, of which a colour bar can be made."""
    image = axes.imshow(weights, cmap=cmap, norm=norm, aspect="equal", interpolation="nearest")
    axes.tick_params(length=0, pad=4, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set(color="#c4c6d0", linewidth=0.8)
    size = font_size(cell)
    _name(axes.yaxis, rows if with_rows else (), cell, size)
    _name(axes.xaxis, columns if with_columns else (), cell, size)
    if with_columns and any(labels.inches(text, size) > 0.95 * cell for text in columns):
        for text in axes.get_xticklabels():
            text.set(rotation=90, ha="center", va="bottom")
    if cell >= 0.2:
        axes.set_xticks(np.arange(1, weights.shape[1]) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, weights.shape[0]) - 0.5, minor=True)
        axes.grid(which="minor", color="#ffffff", linewidth=1.2)
        axes.tick_params(which="minor", length=0)
    if with_numbers:
        _numbers(axes, weights, cell, norm, cmap)
    return image


def _name(axis: Any, names: Sequence[str], cell: float, size: float) -> None:
    """Label the cells of an axis: each, or where they are too small each second, third, …"""
    step = max(1, round(np.ceil(1.15 * size / labels.POINTS / cell)))
    shown = range(0, len(names), step)
    axis.set_ticks(list(shown), [names[i] for i in shown])
    family = labels.families(names)
    for text in axis.get_ticklabels():
        labels.write(text, family, fontsize=size, color=labels.INK)


def _numbers(axes: Any, weights: np.ndarray, cell: float, norm: Normalize, cmap: Colormap) -> None:
    size = min(0.28 * cell * labels.POINTS, _LARGEST)
    for (i, j), weight in np.ndenumerate(weights):
        if weight == 0 or not np.isfinite(weight):
            continue
        red, green, blue, _ = cmap(norm(weight))
        is_dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
        ink = "#ffffff" if is_dark else labels.QUIET if norm(weight) < 0.1 else labels.INK
        axes.text(j, i, share(weight), ha="center", va="center", color=ink, fontsize=size)


def share(weight: float) -> str:
    """A weight as it is written in a cell: .29, 1.0."""
    text = f"{max(float(weight), 0.0):.2f}"
    return text[1:] if text.startswith("0") else text[:-1] if text == "1.00" else text
