"""The attention of "it" as a PNG: a panel for each sentence, before training and after it.

The panels are `selfattn.plot`'s. Called by `__init__.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from selfattn import plot

from ..picture import INK, check, save
from .sentences import Sentence

__all__ = ["check", "draw"]

_QUIET, _MEANT = "#6b7086", "#157f5b"


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
    figure = Figure(figsize=(3.6 * len(panels), 1.3 + 0.3 * longest))
    places = np.atleast_1d(figure.subplots(1, len(panels)))
    figure.subplots_adjust(left=0.02, right=0.99, top=0.83, bottom=0.08, wspace=0.06)
    for axes, (sentence, (weights, answer), when) in zip(places, panels, strict=True):
        _panel(axes, sentence, weights, answer, when)
    figure.suptitle("What “it” attends to, in the last layer", color=INK, weight="bold")
    save(figure, path)


def _panel(axes, sentence, weights, answer, when):
    # Of the map only the row of "it" is looked at.
    rows = np.zeros((len(sentence.words),) * 2)
    rows[sentence.it] = weights
    title = f"… too {sentence.words[-1]}: {when}"
    plot.attention_map(rows, sentence.words, word=sentence.it, titles=title, vmax=1.0, ax=axes)
    colour = _MEANT if answer == sentence.antecedent else _QUIET
    said = f"it = {sentence.words[answer]}"
    where = {"transform": axes.transAxes, "ha": "center", "va": "top"}
    axes.text(0.5, -0.02, said, color=colour, weight="bold", **where)
