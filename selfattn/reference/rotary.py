"""Rotary positions: a pair of elements is a complex number, and its position rotates it.

    (a + ib) -> (a + ib) e^{it},   t = position * theta^(-2 pair / rotary_dim)

The gradient is rotated back, by -t.
"""

from __future__ import annotations

import numpy as np

from .axes import narrow, over_heads, wide


def rope(
    x,
    offset=0,
    *,
    positions=None,
    layout="half",
    theta=10000.0,
    rotary_dim=None,
    frequencies=None,
):
    """Queries or keys (..., H, L, E), rotated by their positions."""
    count = (x.shape[-1] if rotary_dim is None else rotary_dim) // 2
    if positions is None:
        at = over_heads(offset)[..., 0] if np.ndim(offset) else offset
        positions = at + np.arange(x.shape[-2])
    elif np.ndim(positions) > 1:
        positions = np.expand_dims(positions, -2)
    if frequencies is None:
        frequencies = theta ** (-np.arange(count) / max(count, 1))
    rotation = np.exp(1j * wide(positions)[..., None] * wide(frequencies))
    first, second = _pairs(count, layout)
    y = wide(x).copy()
    rotated = (y[..., first] + 1j * y[..., second]) * rotation
    y[..., first], y[..., second] = rotated.real, rotated.imag
    return narrow(y, x.dtype)


def rope_backward(
    grad_out,
    offset=0,
    *,
    positions=None,
    layout="half",
    theta=10000.0,
    rotary_dim=None,
    frequencies=None,
):
    """The gradient of `sum(grad_out * rope(x, ...))` by x."""
    count = (grad_out.shape[-1] if rotary_dim is None else rotary_dim) // 2
    if frequencies is None:
        frequencies = theta ** (-np.arange(count) / max(count, 1))
    return rope(
        grad_out,
        offset,
        positions=positions,
        layout=layout,
        rotary_dim=rotary_dim,
        frequencies=-wide(frequencies),
    )


def _pairs(count, layout):
    """Which elements are the first, and which the second, of all pairs."""
    if layout == "half":
        return slice(0, count), slice(count, 2 * count)
    return slice(0, 2 * count, 2), slice(1, 2 * count, 2)
