"""Tables of cosines and sines that a user gives, and the rows of them that rows of x take."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from .arrays import as_array, real_dtype
from .shapes import broadcast, broadcast_shapes

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def are_given(cos: Any, sin: Any) -> bool:
    """Whether there are tables: both or neither."""
    if (cos is None) != (sin is None):
        name = "cos" if cos is None else "sin"
        raise ValueError(f"{name}: expected cos and sin, or neither, got one of them")
    return cos is not None


def tables_of(
    x: np.ndarray, cos: Any, sin: Any, rotary_dim: int, rows: np.ndarray | None, rows_name: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Cosines and sines of x's real dtype that broadcast to (..., H, L, columns).

    `rows` are the positions (L,) or (..., 1, L); without any, None is returned for valid tables.
    """
    tables = {"cos": as_array("cos", cos), "sin": as_array("sin", sin)}
    for name, table in tables.items():
        _check(name, table, x, rotary_dim)
    cos, sin = tables.values()
    if sin.shape != cos.shape:
        raise ValueError(f"sin: expected shape {cos.shape}, that of cos, got {sin.shape}")
    if rows is None:
        return None
    length = cos.shape[-2]
    beyond = (rows < 0) | (rows >= length)
    if beyond.any():
        raise ValueError(
            f"{rows_name}: expected positions from 0 to {length - 1}, rows of cos and sin, got "
            f"{rows[beyond][0]}"
        )
    real = real_dtype(x.dtype)
    cos, sin = (_in_dtype(_rows_at(table, rows), real) for table in (cos, sin))
    return cos, sin


def _check(name: str, table: np.ndarray, x: np.ndarray, rotary_dim: int) -> None:
    if table.dtype not in (*_FLOATS, x.dtype):
        expected = " or ".join(dict.fromkeys(map(str, (x.dtype, *_FLOATS))))
        raise TypeError(f"{name}: expected {expected} in native byte order, got {table.dtype!r}")
    widths = rotary_dim // 2, rotary_dim
    if table.ndim < 2 or table.shape[-1] not in widths:
        raise ValueError(
            f"{name}: expected shape (..., positions, {widths[0]}), one number for each pair, or "
            f"(..., positions, {widths[1]}), one for each of the first {widths[1]} elements, got "
            f"{table.shape} (rotary_dim rotates less than a row)"
        )
    shape = (*x.shape[:-3], *table.shape[-2:])
    broadcast(name, table, shape, "the axes before the heads, positions and columns", last=True)


def _rows_at(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows of the table at these numbers: a view where they follow one another."""
    if table.ndim > 2:
        table = table[..., None, :, :]  # the heads
    if rows.ndim == 1:
        first = int(rows[0])
        is_slice = bool((np.diff(rows) == 1).all())
        at: Any = slice(first, first + rows.size) if is_slice else rows
        table = table[..., at, :]
        return table
    shape = broadcast_shapes(table.shape[:-2], rows.shape[:-1])
    table = np.broadcast_to(table, (*shape, *table.shape[-2:]))
    numbers = np.broadcast_to(rows, (*shape, rows.shape[-1]))
    table = np.take_along_axis(table, numbers[..., None], -2)
    return table


def _in_dtype(table: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded to nearest, whatever mode the caller has set."""
    if table.dtype == dtype:
        return table
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        table = _core.in_default_environment(table.astype, dtype)
    return table
