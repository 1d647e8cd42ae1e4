"""Rotary positions: each pair of elements of a row is rotated by an angle that its position gives.

    (a, b) -> (a cos t - b sin t, b cos t + a sin t),   t = position * frequency of the pair

so that a query's product with a key depends on the distance between the two, not on where they
stand. Its backward is the rotation by -t. The kernel rotates; NumPy makes the table of cosines and
sines. Called by users and by `multihead.py`; the truth it is tested against is
`reference/rotary.py`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _args, _core

if TYPE_CHECKING:
    from .._typing import Array, Ints, Number

_KEPT_PAIRS = 2**18  # of positions and frequencies: tables of up to 4 MB are kept


def rope(
    x: Array,
    offset: Ints = 0,
    *,
    positions: Array | None = None,
    layout: str = "half",
    theta: Number = 10000.0,
    rotary_dim: int | None = None,
    frequencies: Array | None = None,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Rotate queries or keys by their positions: rotary position embedding.

    Parameters
    ----------
    x : array, shape (..., H, L, E)
        float32, float64, float16 or bfloat16, any strides; 2-D is one head.
    offset : int, or int array over the axes before the heads
        Position of the first row; row i has position `offset + i`. With a cache this is its
        `lengths` before the rows are appended.
    positions : int array, shape (..., L), optional
        Positions of all rows, in place of `offset`: packed documents begin again at 0.
    layout : "half" or "interleaved"
        Which elements make a pair: i and `i + rotary_dim / 2` (GPT-NeoX, Llama in Hugging Face's
        transformers), or 2i and 2i + 1 (GPT-J, Llama as published).
    theta : float
        Pair i rotates by `theta ** (-2 i / rotary_dim)` radians a position.
    rotary_dim : int, optional
        Rotate only the first so many elements of a row, an even number; E unless given.
    frequencies : array, shape (rotary_dim / 2,), optional
        Radians a position of each pair, in place of `theta`: for a scaled context.
    out : array of x's shape and dtype, optional
        It may be `x` itself.
    num_threads : int, optional

    Returns
    -------
    array of x's shape, dtype and memory layout
        A row has the same bits whatever else is in the call.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype or kind; for a wrong shape or value.

    Notes
    -----
    Su et al., "RoFormer: Enhanced transformer with rotary position embedding" (2021). Angles, sines
    and cosines are float64, whatever x is, and rounded at the end: to x's dtype, for half types to
    float32, in which they are computed. The angle is off by
    its size times 1e-16: in float32 that shows from positions of about 10**9 on; beyond 2**53
    positions are refused. The last few tables are kept, those of up to 2**18 pairs (4 MB): the
    layers of a model ask for the same.

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
    pairing = offset, positions, layout, theta, rotary_dim, frequencies
    return _rope("x", x, pairing, out, num_threads, is_backward=False)


def rope_backward(
    grad_out: Array,
    offset: Ints = 0,
    *,
    positions: Array | None = None,
    layout: str = "half",
    theta: Number = 10000.0,
    rotary_dim: int | None = None,
    frequencies: Array | None = None,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """The gradient of `sum(grad_out * rope(x, ...))` by x: the rotation back.

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
    pairing = offset, positions, layout, theta, rotary_dim, frequencies
    return _rope("grad_out", grad_out, pairing, out, num_threads, is_backward=True)


def _rope(
    name: str, given: Any, pairing: tuple[Any, ...], out: Any, num_threads: Any, is_backward: bool
) -> np.ndarray:
    x = _args.array(name, given)
    positions, frequencies, is_half = _args.rotary(name, x, *pairing)
    num_threads = _args.num_threads(num_threads)
    inputs = () if out is x else (x,)
    if positions is None or frequencies is None:  # nothing to rotate
        return _args.compute_into(out, x.shape, x, inputs, lambda target: None)
    pairs = frequencies.size
    step, first, second = (1, 0, pairs) if is_half else (2, 0, 1)
    if is_backward:  # with its elements in the other order a pair rotates by -t
        first, second = second, first
    angles = _angles(positions, frequencies, _args.real_dtype(x.dtype))
    angles = np.broadcast_to(angles, (*x.shape[:-1], 2 * pairs))
    # Rows in the order of memory: heads may lie side by side.
    axes = (*sorted(range(x.ndim - 1), key=lambda axis: -abs(x.strides[axis])), x.ndim - 1)
    rows, angles = x.transpose(axes), angles.transpose(axes)
    return _args.compute_into(
        out,
        x.shape,
        x,
        inputs,
        lambda target: _core.rope(
            rows, angles, target.transpose(axes), pairs, step, first, second, num_threads
        ),
    )


def _angles(positions: np.ndarray, frequencies: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The cosines of all pairs, then the sines, for each position: (..., L, 2 * pairs)."""
    if positions.size * max(frequencies.size, 1) > _KEPT_PAIRS:
        return _computed_angles(positions, frequencies, dtype)
    return _kept_angles(positions.tobytes(), positions.shape, frequencies.tobytes(), dtype)


@functools.lru_cache(maxsize=4)
def _kept_angles(
    positions: bytes, shape: tuple[int, ...], frequencies: bytes, dtype: np.dtype
) -> np.ndarray:
    return _computed_angles(
        np.frombuffer(positions).reshape(shape), np.frombuffer(frequencies), dtype
    )


def _computed_angles(positions: np.ndarray, frequencies: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return _core.in_default_environment(_table, positions, frequencies, dtype)


def _table(positions: np.ndarray, frequencies: np.ndarray, dtype: np.dtype) -> np.ndarray:
    angles = positions[..., None] * frequencies
    table = np.empty((*positions.shape, 2 * frequencies.size), dtype)
    table[..., : frequencies.size] = np.cos(angles)
    table[..., frequencies.size :] = np.sin(angles)
    return table
