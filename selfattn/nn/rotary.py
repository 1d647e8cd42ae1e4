"""Rotary positions: each pair of elements of a row is rotated by an angle that its position gives.

    (a, b) -> (a cos t - b sin t, b cos t + a sin t),   t = position * frequency of the pair

so that a query's product with a key depends on the distance between the two, not on where they
stand. Its backward is the rotation by -t. The kernel rotates, by a table of cosines and sines that
NumPy makes or the user gives. Called by users and by `multihead.py`; the truth it is tested against
is `reference/rotary.py`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _args, _core
from .._args.rotary import rotary

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
    cos: Array | None = None,
    sin: Array | None = None,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Rotate queries or keys by their positions: rotary position embedding.

    Parameters
    ----------
    x : array, shape (..., H, L, E)
        float32, float64, float16 or bfloat16, any strides; 2-D is one head.
    offset : int, or int array (or list) over the axes before the heads
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
    cos, sin : array, shape (positions, columns) or (..., positions, columns), optional
        Tables in place of `theta` and `frequencies`, of x's dtype, float32 or float64: a row at
        position p takes row p. The axes before the last two broadcast to x's before the heads. With
        `rotary_dim / 2` columns (flash-attn) there is a number for each pair. With `rotary_dim` of
        them (Hugging Face, whose two halves are the same) there is one for each element, and the
        result is `x * cos + rotate_half(x) * sin`. They may be any numbers.
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
    layers of a model ask for the same. Tables that are given are read in place if they are of that
    dtype, and x's rows follow one another.

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

    With the tables of a model of Hugging Face's, `cos, sin = rotary_emb(x, position_ids)`:

    >>> angles = np.arange(3)[:, None] * np.array([1.0, 0.1, 1.0, 0.1])
    >>> x = np.ones((2, 3, 4))
    >>> rotated = nn.rope(x, cos=np.cos(angles), sin=np.sin(angles))
    >>> np.allclose(rotated, nn.rope(x, frequencies=np.array([1.0, 0.1])))
    True
    """
    pairing = offset, positions, layout, theta, rotary_dim, frequencies, cos, sin
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
    cos: Array | None = None,
    sin: Array | None = None,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """The gradient of `sum(grad_out * rope(x, ...))` by x: the rotation back.

    Parameters and errors are those of `rope`, and must be what that call was given. Where `cos` and
    `sin` are no cosines and sines, as with YaRN's factor in them, it is the transpose of what
    `rope` does, as a gradient is, and not its inverse.

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
    pairing = offset, positions, layout, theta, rotary_dim, frequencies, cos, sin
    return _rope("grad_out", grad_out, pairing, out, num_threads, is_backward=True)


def _rope(
    name: str, given: Any, pairing: tuple[Any, ...], out: Any, num_threads: Any, is_backward: bool
) -> np.ndarray:
    x = _args.array(name, given)
    rotation = rotary(name, x, *pairing)
    num_threads = _args.num_threads(num_threads)
    inputs = () if out is x else (x,)
    # Rows in the order of memory: heads may lie side by side.
    axes = (*sorted(range(x.ndim - 1), key=lambda axis: -abs(x.strides[axis])), x.ndim - 1)

    def of_rows(table: np.ndarray) -> np.ndarray:
        return np.broadcast_to(table, (*x.shape[:-1], table.shape[-1])).transpose(axes)

    if rotation.tables is not None:
        cos, sin = map(of_rows, rotation.tables)
        inputs = (*inputs, *rotation.tables)
    elif rotation.positions is not None and rotation.frequencies is not None:
        real = _args.real_dtype(x.dtype)
        table = of_rows(_angles(rotation.positions, rotation.frequencies, real))
        cos, sin = table[..., : rotation.pairs], table[..., rotation.pairs :]
    else:  # nothing to rotate
        return _args.compute_into(out, x.shape, x, inputs, lambda target: None)
    step, first, second = (1, 0, rotation.pairs) if rotation.is_half else (2, 0, 1)
    if is_backward:  # with its elements in the other order a pair rotates by -t
        first, second = second, first
    seconds = 0, 0
    if cos.shape[-1] != rotation.pairs:  # a number for each element; the transpose keeps the sines
        cos, cos_second = _of_firsts(cos, rotation.pairs, step, first, second)
        at = (second, first) if is_backward else (first, second)
        sin, sin_second = _of_firsts(sin, rotation.pairs, step, *at)
        seconds = cos_second, sin_second
    rows = x.transpose(axes)
    return _args.compute_into(
        out,
        x.shape,
        x,
        inputs,
        lambda target: _core.rope(
            rows, cos, sin, target.transpose(axes), (step, first, second), seconds, num_threads
        ),
    )


def _of_firsts(
    table: np.ndarray, pairs: int, step: int, first: int, second: int
) -> tuple[np.ndarray, int]:
    """The columns of pairs' first elements; and how many bytes behind are those of their second."""
    view = table[..., first::step][..., :pairs]
    return view, (second - first) * table.strides[-1]


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
