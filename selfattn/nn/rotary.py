"""Rotary positions: each pair of elements of a row is turned by an angle that its position gives.

    (a, b) -> (a cos t - b sin t, b cos t + a sin t),   t = position * frequency of the pair

so that a query's product with a key depends on the distance between the two, not on where they
stand. Its backward is the turn the other way. Called by users and by `multihead.py`; the truth it
is tested against is `reference/rotary.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import _args

if TYPE_CHECKING:
    from .._typing import Array, Ints


def rope(
    x: Array,
    offset: Ints = 0,
    *,
    positions: Array | None = None,
    layout: str = "half",
    theta: float = 10000.0,
    rotary_dim: int | None = None,
    frequencies: Array | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Turn queries or keys by their positions: rotary position embedding.

    Parameters
    ----------
    x : array, shape (..., H, L, E)
        float32 or float64, any strides; 2-D is one head.
    offset : int, or int array over the axes before the heads
        Position of the first row; row i has position `offset + i`. With a cache this is its
        `lengths` before the rows are appended.
    positions : int array, shape (..., L), optional
        Positions of all rows, in place of `offset`: packed documents begin again at 0.
    layout : "half" or "interleaved"
        Which elements make a pair: i and `i + rotary_dim / 2` (GPT-NeoX, Llama in Hugging Face's
        transformers), or 2i and 2i + 1 (GPT-J, Llama as published).
    theta : float
        Pair i turns by `theta ** (-2 i / rotary_dim)` radians a position.
    rotary_dim : int, optional
        Turn only the first so many elements of a row, an even number; E unless given.
    frequencies : array, shape (rotary_dim / 2,), optional
        Radians a position of each pair, in place of `theta`: for a scaled context.
    out : array of x's shape and dtype, optional
        It may be `x` itself.

    Returns
    -------
    array of x's shape, dtype and memory layout

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype or kind; for a wrong shape or value.

    Notes
    -----
    Su et al., "RoFormer: Enhanced transformer with rotary position embedding" (2021). Angles, sines
    and cosines are float64, whatever x is, and rounded to its dtype at the end: positions far from
    0 are as exact as those near it.

    Examples
    --------
    >>> import numpy as np
    >>> from selfattn import nn
    >>> nn.rope(np.array([[1.0, 0.0], [1.0, 0.0]])).round(3)
    array([[1.   , 0.   ],
           [0.54 , 0.841]])
    >>> query, key = np.random.default_rng(0).standard_normal((2, 1, 8))
    >>> near, far = ((nn.rope(query, n + 5) @ nn.rope(key, n).T).item() for n in (0, 1000))
    >>> np.isclose(near, far)
    np.True_
    """
    return _turned(x, "x", 1.0, offset, positions, layout, theta, rotary_dim, frequencies, out)


def rope_backward(
    grad_out: Array,
    offset: Ints = 0,
    *,
    positions: Array | None = None,
    layout: str = "half",
    theta: float = 10000.0,
    rotary_dim: int | None = None,
    frequencies: Array | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The gradient of `sum(grad_out * rope(x, ...))` by x: the turn back.

    Parameters and errors are those of `rope`, and must be what that call was given.

    Parameters
    ----------
    grad_out : array, shape (..., H, L, E)
        The gradient of what `rope` returned.

    Returns
    -------
    array of grad_out's shape, dtype and memory layout

    Examples
    --------
    >>> import numpy as np
    >>> from selfattn import nn
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 8))
    >>> np.allclose(nn.rope_backward(nn.rope(x, 7), 7), x)
    True
    """
    return _turned(
        grad_out, "grad_out", -1.0, offset, positions, layout, theta, rotary_dim, frequencies, out
    )


def _turned(x, name, sign, offset, positions, layout, theta, rotary_dim, frequencies, out):
    x = _args.array(name, x)
    positions, frequencies, rotary_dim, is_half = _args.rotary(
        name, x, offset, positions, layout, theta, rotary_dim, frequencies
    )
    angles = positions[..., None] * (sign * frequencies)
    cos, sin = (f(angles).astype(x.dtype) for f in (np.cos, np.sin))

    def turn(target):
        (a, b), (out_a, out_b) = (_pairs(rows, rotary_dim, is_half) for rows in (x, target))
        across = np.empty_like(a)
        np.multiply(b, sin, out=across)
        np.multiply(a, cos, out=out_a)
        out_a -= across
        np.multiply(a, sin, out=across)
        np.multiply(b, cos, out=out_b)
        out_b += across
        target[..., rotary_dim:] = x[..., rotary_dim:]

    return _args.compute_into(out, x.shape, x, (x,), turn)


def _pairs(x, rotary_dim, is_half):
    """Views of the first and of the second elements of all pairs."""
    if is_half:
        return x[..., : rotary_dim // 2], x[..., rotary_dim // 2 : rotary_dim]
    return x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]
