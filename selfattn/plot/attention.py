"""attention_map: what is given -> how large each panel is and where -> panels drawn.

    weights (L, S)          one head
    weights (…, L, S)       a grid of heads
    with `word`             of each head one row: where that word looks

Sizes are in inches, since words have to be read: a figure of this module's own is as large as its
words want it to be. Called by users and by `selfattn demo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize

from . import heat, labels
from . import word as words
from .given import COLUMNS, Panels, colormap, positive, read

_ONE, _MANY, _SMALL = 6.0, 2.4, 1.5  # inches of a map: alone, among others, among very many
_EDGE, _GAP, _TITLE, _CAPTION, _BAR = 0.15, 0.25, 0.34, 0.2, 0.75


def attention_map(
    weights: Any,
    tokens: Sequence[str],
    key_tokens: Sequence[str] | None = None,
    *,
    word: str | int | None = None,
    titles: str | Sequence[str] | None = None,
    values: bool | None = None,
    vmax: float | None = None,
    cmap: Any = None,
    ax: Any = None,
    figure: Any = None,
) -> Any:
    """Draw attention weights: one head's map, a grid of heads, or where one word looks.

    Parameters
    ----------
    weights : array, shape (L, S), (heads, L, S) or (layers, heads, L, S)
        As `attention_weights` returns them; of any dtype of real numbers, 0 or more. NaN is drawn
        grey. Further axes are heads too.
    tokens : sequence of L str
        The words that attend, one for each row.
    key_tokens : sequence of S str, optional
        The words that are attended to; `tokens` unless given.
    word : str or int, optional
        Draw where this word looks, in place of the whole map: one of `tokens`, the first of those
        that are equal, or its index.
    titles : str, or sequence of str, optional
        One for each head. Several heads are numbered from 1 unless given.
    values : bool, optional
        Whether a map's cells carry their numbers; where these have room unless given. Cells of
        exactly 0, which masks make, carry none.
    vmax : float, optional
        The weight that is darkest: the largest one unless given. All heads share it.
    cmap : str or Colormap, optional
        Of Matplotlib's. Unless given one from white to dark blue, which grows darker all the way
        for every kind of eyes.
    ax : Axes, or array of as many Axes as heads, optional
        Where to draw. A new figure of pyplot's unless given, which notebooks show.
    figure : Figure, optional
        An empty figure to draw in instead, without pyplot. Its size is set.

    Returns
    -------
    Axes, or array of Axes
        One for (L, S); otherwise an array of the shape of the axes before the last two.

    Raises
    ------
    TypeError, ValueError
        When an argument is of a wrong kind, or its shape or value does not fit.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> from selfattn import plot
    >>> x = np.random.default_rng(0).standard_normal((4, 8))
    >>> weights = selfattn.attention_weights(x, x)
    >>> axes = plot.attention_map(weights, ["I", "am", "a", "student"])
    >>> axes.figure.savefig("map.png")  # doctest: +SKIP

    Two heads, and where "student" looks in each:

    >>> heads = x.reshape(4, 2, 4).swapaxes(0, 1)
    >>> weights = selfattn.attention_weights(heads, heads)
    >>> plot.attention_map(weights, ["I", "am", "a", "student"], word="student").shape
    (2,)
    """
    panels = read(weights, tokens, key_tokens, word, titles)
    top = float(np.nanmax(panels.weights, initial=0.0)) if vmax is None else positive(vmax)
    norm = Normalize(0.0, top or 1.0)
    shades = heat.SHADES if cmap is None else colormap(cmap)
    if ax is not None and figure is not None:
        raise ValueError("figure: expected none beside ax, got both")
    where = _given(ax, panels) if ax is not None else _new(figure, panels)
    draw = _draw_map if panels.weights.ndim == 3 else _draw_word
    for n, axes in enumerate(where):
        draw(axes, panels, n, norm, shades, values, ax is None)
        if panels.titles[n]:
            title = axes.set_title(panels.titles[n], pad=8)
            family = labels.families(panels.titles[n])
            labels.write(title, family, fontsize=11, color=labels.INK, fontweight="bold")
    if ax is None and panels.weights.ndim == 3:
        _bar(where, panels)
    if ax is None and _has_caption(panels):
        where[0].set_xlabel("each row attends to the columns", color=labels.QUIET, fontsize=8.5)
    if not panels.shape:
        return where[0]
    result = np.empty(len(where), object)
    result[:] = where
    return result.reshape(panels.shape)


# ------------------------------------------------------------------ where it is drawn


def _given(ax: Any, panels: Panels) -> list[Any]:
    axes = list(np.ravel(np.asarray(ax, dtype=object)))
    if len(axes) != len(panels.weights) or not all(hasattr(one, "imshow") for one in axes):
        raise ValueError(
            f"ax: expected {len(panels.weights)} Axes, one for each head, got {len(axes)}"
        )
    return axes


def _new(figure: Any, panels: Panels) -> list[Any]:
    """Axes of exact sizes in a figure that is as large as they are together."""
    count, across = len(panels.weights), panels.columns
    down = -(-count // across)
    titles = _TITLE if any(panels.titles) else 0.0
    if panels.weights.ndim == 3:
        cell = _cell(panels)
        left, top = heat.margins(panels.rows, panels.keys, cell)
        wide, high = cell * len(panels.keys), cell * len(panels.rows)
        right = _EDGE + (0.0 if _has_numbers(panels, cell, None) else _BAR)
    else:
        left, top, right = 0.0, 0.0, _EDGE
        row = _row(panels)
        wide, high = words.width(panels.keys, row), row * len(panels.keys)
    above, below = top + titles + _EDGE, _EDGE + (_CAPTION if _has_caption(panels) else 0.0)
    size = (
        _EDGE + left + across * wide + (across - 1) * _GAP + right,
        above + down * high + (down - 1) * (_GAP + titles) + below,
    )
    if figure is None:
        from matplotlib import pyplot

        figure = pyplot.figure()
    if figure.axes:
        raise ValueError(f"figure: expected an empty one, got one of {len(figure.axes)} Axes")
    figure.set_size_inches(*size)
    where = []
    for n in range(count):
        x = _EDGE + left + (n % across) * (wide + _GAP)
        y = size[1] - above - high - (n // across) * (high + _GAP + titles)
        where.append(figure.add_axes((x / size[0], y / size[1], wide / size[0], high / size[1])))
    return where


def _cell(panels: Panels) -> float:
    room = _ONE if len(panels.weights) == 1 else _MANY if panels.columns <= COLUMNS else _SMALL
    return heat.cell_size(len(panels.rows), len(panels.keys), room)


def _row(panels: Panels) -> float:
    return min(words.ROW, 12.0 / len(panels.keys))


def _has_caption(panels: Panels) -> bool:
    """Whether it is said how to read it: below a map that stands alone."""
    return panels.weights.ndim == 3 and len(panels.weights) == 1


def _has_numbers(panels: Panels, cell: float, values: bool | None) -> bool:
    return cell >= heat.NUMBER if values is None else values


def _draw_map(
    axes: Any, panels: Panels, n: int, norm: Any, shades: Any, values: bool | None, is_ours: bool
) -> None:
    rows, keys = panels.weights.shape[1:]
    if is_ours:
        cell = _cell(panels)
    else:
        box, dpi = axes.get_window_extent(), axes.figure.dpi
        cell = min(box.width / dpi / keys, box.height / dpi / rows)
    heat.draw(
        axes,
        panels.weights[n],
        panels.rows,
        panels.keys,
        cell=cell,
        norm=norm,
        cmap=shades,
        with_numbers=_has_numbers(panels, cell, values),
        with_rows=not is_ours or n % panels.columns == 0,
        with_columns=not is_ours or n < panels.columns,
    )


def _draw_word(
    axes: Any, panels: Panels, n: int, norm: Any, shades: Any, values: bool | None, is_ours: bool
) -> None:
    del values, is_ours
    words.draw(
        axes, panels.weights[n], panels.keys, panels.focus, panels.rows[0], norm=norm, cmap=shades
    )


def _bar(where: list[Any], panels: Panels) -> None:
    """A colour bar beside the first row of maps whose cells have no room for numbers."""
    if _has_numbers(panels, _cell(panels), None):
        return
    last = where[panels.columns - 1]
    figure, box = last.figure, last.get_position()
    width, gap = (x / figure.get_size_inches()[0] for x in (0.12, 0.15))
    axes = figure.add_axes((box.x1 + gap, box.y0, width, box.height))
    figure.colorbar(last.images[0], cax=axes)
    axes.tick_params(length=2, labelsize=8, colors=labels.QUIET)
    axes.spines[:].set_visible(False)
