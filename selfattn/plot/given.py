"""What is given to attention_map, read and checked: arrays, words, titles -> Panels.

Called by `attention.py`.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np

from .._args.arrays import as_array
from . import labels

COLUMNS = 4  # panels side by side, unless the array says otherwise


class Panels(NamedTuple):
    """What is drawn: maps (n, L, S) or rows (n, S), their labels and titles, by `columns`."""

    weights: np.ndarray
    rows: list[str]
    keys: list[str]
    titles: list[str]
    columns: int
    shape: tuple[int, ...]
    focus: int | None


def read(weights: Any, tokens: Any, key_tokens: Any, word: Any, titles: Any) -> Panels:
    array = as_array("weights", weights)
    if array.dtype.kind in "cOSUMm":
        raise TypeError(f"weights: expected real numbers, got {array.dtype!r}")
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(f"weights: expected shape (..., L, S), none of them 0, got {array.shape}")
    array = array.astype(np.float64)
    if np.nanmin(array, initial=0.0) < -1e-6:
        raise ValueError(f"weights: expected 0 or more, got {np.nanmin(array)}: are they scores?")
    shape, (length, keys) = array.shape[:-2], array.shape[-2:]
    row_tokens = _tokens("tokens", tokens, length, "row")
    if key_tokens is None and length != keys:
        raise ValueError(f"key_tokens: expected {keys}, one for each column of weights, got None")
    columns = row_tokens
    if key_tokens is not None:
        columns = _tokens("key_tokens", key_tokens, keys, "column")
    array = array.reshape(-1, length, keys)
    focus = None
    if word is not None:
        row = _place(word, row_tokens)
        array = array[:, row]
        focus = row if key_tokens is None else None
        row_tokens = [row_tokens[row]]
    side_by_side = len(array)
    if len(shape) > 1 and shape[-1] < len(array):
        side_by_side = shape[-1]
    elif len(array) > COLUMNS:
        side_by_side = COLUMNS
    return Panels(
        weights=array,
        rows=[labels.label(token) for token in row_tokens],
        keys=[labels.label(token) for token in columns],
        titles=_titles(titles, shape, None if word is None else row_tokens[0]),
        columns=side_by_side,
        shape=shape,
        focus=focus,
    )


def _tokens(name: str, tokens: Any, count: int, what: str) -> list[str]:
    if isinstance(tokens, (str, bytes)) or not hasattr(tokens, "__iter__"):
        raise TypeError(f"{name}: expected a sequence of str, got {type(tokens).__name__}")
    read: list[str] = list(tokens)
    for token in read:
        if not isinstance(token, str):
            raise TypeError(f"{name}: expected str throughout, got {type(token).__name__}")
    if len(read) != count:
        raise ValueError(
            f"{name}: expected {count}, one for each {what} of weights, got {len(read)}"
        )
    return read


def _place(word: Any, tokens: list[str]) -> int:
    if isinstance(word, str):
        for same in (str, str.casefold):
            for i, token in enumerate(tokens):
                if same(token) == same(word):
                    return i
        raise ValueError(f"word: expected one of tokens, got {word!r}")
    try:
        return range(len(tokens))[operator.index(word)]
    except TypeError:
        raise TypeError(f"word: expected str or int, got {type(word).__name__}") from None
    except IndexError:
        raise ValueError(f"word: expected an index of {len(tokens)} tokens, got {word}") from None


def _titles(titles: Any, shape: tuple[int, ...], word: str | None) -> list[str]:
    count = int(np.prod(shape, dtype=int))
    if titles is None:
        if not shape:
            return ["" if word is None else f"“{word}” attends to"]
        numbered = [tuple(i + 1 for i in index) for index in np.ndindex(*shape)]
        if len(shape) == 1:
            return [f"head {index[0]}" for index in numbered]
        return ["head " + ".".join(map(str, index)) for index in numbered]
    read: list[str] = [titles] if isinstance(titles, str) else list(titles)
    if len(read) != count or not all(isinstance(title, str) for title in read):
        raise ValueError(f"titles: expected {count} str, one for each head, got {read!r}")
    return read


def positive(vmax: Any) -> float:
    value = float(vmax)
    if not 0.0 < value < np.inf:
        raise ValueError(f"vmax: expected a finite number above 0, got {vmax}")
    return value


def colormap(cmap: Any) -> Any:
    if not isinstance(cmap, str):
        return cmap
    if cmap not in mpl.colormaps:
        raise ValueError(f"cmap: expected the name of one of Matplotlib's, got {cmap!r}")
    return mpl.colormaps[cmap]
