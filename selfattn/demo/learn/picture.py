"""The attention of "it" as a PNG, by matplotlib: a line to each word, as strong as its weight.

A panel for each sentence, before training and after it. Called by `__init__.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .sentences import Sentence

_INK, _QUIET, _MEANT, _LINE = "#1b1f3b", "#8a8fa3", "#157f5b", "#228b8d"
_LEFT, _RIGHT = 0.36, 0.72  # where the words end, and where "it" stands


def check(path: Path) -> None:
    """OSError where no picture can be written to `path`; nothing is changed."""
    target = Path(os.path.realpath(path))
    is_new = not target.exists()
    with open(path, "ab"):
        pass
    if is_new:
        target.unlink()


def draw(
    path: Path,
    looked_at: list[Sentence],
    before: list[tuple[np.ndarray, int]],
    after: list[tuple[np.ndarray, int]],
) -> None:
    """Write the picture to `path`."""
    panels = [
        (sentence, look, when)
        for sentence, *looks in zip(looked_at, before, after, strict=True)
        for look, when in zip(looks, ("before training", "after training"), strict=True)
    ]
    longest = max(len(sentence.words) for sentence in looked_at)
    figure = Figure(figsize=(3.2 * len(panels), 0.9 + 0.34 * longest), dpi=150)
    FigureCanvasAgg(figure)
    for n, (sentence, (weights, answer), when) in enumerate(panels, 1):
        _panel(figure.add_subplot(1, len(panels), n), sentence, weights, answer, when)
    figure.suptitle("What “it” attends to, in the last layer", color=_INK, weight="bold")
    figure.tight_layout()
    figure.savefig(path, format="png")


def _panel(axes, sentence, weights, answer, when):
    heights = -np.arange(len(sentence.words), dtype=float)
    for place, (word, height, weight) in enumerate(
        zip(sentence.words, heights, weights, strict=True)
    ):
        weight = float(weight)
        meant = place == sentence.antecedent
        axes.plot(
            [_LEFT + 0.02, _RIGHT - 0.02],
            [height, heights[sentence.it]],
            color=_LINE,
            alpha=weight,
            linewidth=0.5 + 4.5 * weight,
            solid_capstyle="round",
        )
        colour, bold = (_MEANT if meant else _INK), ("bold" if meant else "normal")
        axes.text(_LEFT, height, word, ha="right", va="center", color=colour, weight=bold)
        share = f"{weight:.2f}"
        axes.text(0.0, height, share, ha="left", va="center", color=_QUIET, fontsize=8)
    it = heights[sentence.it]
    axes.text(_RIGHT, it, "it", ha="left", va="center", color=_INK, weight="bold")
    said = sentence.words[answer]
    is_right = answer == sentence.antecedent
    axes.set_title(f"… too {sentence.words[-1]}: {when}", fontsize=10, color=_INK)
    axes.text(
        0.0,
        heights[-1] - 1.1,
        f"it = {said}",
        color=_MEANT if is_right else _QUIET,
        weight="bold",
    )
    axes.set_xlim(0, 0.85)
    axes.set_ylim(heights[-1] - 1.6, 0.7)
    axes.axis("off")
