"""Rotary positions: each pair of elements is rotated by an angle that its position gives.

    (a, b) -> (a cos t - b sin t, b cos t + a sin t),   t = position * theta^(-2 pair / rotary_dim)

Cosines and sines may be given instead, and be any numbers: then those of a's column make the first
result, those of b's the second. The gradient is the transpose.
"""

from __future__ import annotations

import numpy as np

from .axes import narrow, over_heads, wide


def rope(x, offset=0, *, layout="half", **options):
    """Queries or keys (..., H, L, E), rotated by their positions."""
    (cos, sin), count = _tables(x, offset, layout=layout, **options)
    first, second = _pairs(count, layout)
    y = wide(x).copy()
    a, b = y[..., first].copy(), y[..., second].copy()
    y[..., first] = a * cos[..., first] - b * sin[..., first]
    y[..., second] = b * cos[..., second] + a * sin[..., second]
    return narrow(y, x.dtype)


def rope_backward(grad_out, offset=0, *, layout="half", **options):
    """The gradient of `sum(grad_out * rope(x, ...))` by x."""
    (cos, sin), count = _tables(grad_out, offset, layout=layout, **options)
    first, second = _pairs(count, layout)
    y = wide(grad_out).copy()
    a, b = y[..., first].copy(), y[..., second].copy()
    y[..., first] = a * cos[..., first] + b * sin[..., second]
    y[..., second] = b * cos[..., second] - a * sin[..., first]
    return narrow(y, grad_out.dtype)


def _tables(
    x,
    offset,
    *,
    layout,
    positions=None,
    theta=10000.0,
    rotary_dim=None,
    frequencies=None,
    cos=None,
    sin=None,
):
    """Cosines and sines (..., H, L, 2 * pairs), a column for each element; the number of pairs."""
    count = (x.shape[-1] if rotary_dim is None else rotary_dim) // 2
    if positions is None:
        at = over_heads(offset)[..., 0] if np.ndim(offset) else offset
        positions = at + np.arange(x.shape[-2])
    elif np.ndim(positions) > 1:
        positions = np.expand_dims(positions, -2)
    if cos is None:
        if frequencies is None:
            frequencies = theta ** (-np.arange(count) / max(count, 1))
        angles = wide(positions)[..., None] * wide(frequencies)
        tables = np.cos(angles), np.sin(angles)
    else:
        tables = (_rows_at(wide(table), np.asarray(positions, np.int64)) for table in (cos, sin))
    return [_of_elements(table, count, layout) for table in tables], count


def _rows_at(table, positions):
    """(..., P, columns) at (L,) or (..., 1, L): (..., L, columns), with an axis for the heads."""
    if table.ndim == 2:
        return table[positions]
    table = np.expand_dims(table, -3)
    leading = np.broadcast_shapes(table.shape[:-2], positions.shape[:-1])
    at = np.broadcast_to(positions, leading + positions.shape[-1:])
    return np.take_along_axis(np.broadcast_to(table, leading + table.shape[-2:]), at[..., None], -2)


def _of_elements(table, count, layout):
    """A column for each element, of a table with one for each pair or with these already."""
    if table.shape[-1] == 2 * count:
        return table
    return np.concatenate([table, table], -1) if layout == "half" else np.repeat(table, 2, -1)


def _pairs(count, layout):
    """Which elements are the first, and which the second, of all pairs."""
    if layout == "half":
        return slice(0, count), slice(count, 2 * count)
    return slice(0, 2 * count, 2), slice(1, 2 * count, 2)
