"""Rotary positions: where rows stand, which elements are a pair, frequencies or tables."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from .arrays import as_array
from .numbers import finite, integer
from .options import ints, per_batch
from .rotary_tables import are_given, tables_of
from .shapes import broadcast, unrepeated

_LAYOUTS = ("half", "interleaved")
_THETA = 10000.0
_MAX_POSITION = 2**53  # the integers up to here are float64s, as angles need
_MAX_FREQUENCY = 2.0**900  # radians a position: the angles of all positions are finite then


class Rotation(NamedTuple):
    """What `rope` needs: tables, or of what to make them; which elements are a pair.

    Positions and frequencies are float64, and positions broadcast to (..., H, L). Where x has no
    elements nothing is rotated: all arrays are None, for there may be no memory for so many.
    """

    pairs: int
    is_half: bool
    positions: np.ndarray | None = None
    frequencies: np.ndarray | None = None
    tables: tuple[np.ndarray, np.ndarray] | None = None  # cosines, sines


def rotary(
    name: str,
    x: np.ndarray,
    offset: Any,
    positions: Any,
    layout: Any,
    theta: Any,
    rotary_dim: Any,
    frequencies: Any,
    cos: Any,
    sin: Any,
) -> Rotation:
    """The rotation of `x`, of the arguments of `rope`."""
    if x.ndim < 2:
        raise ValueError(f"{name}: expected 2 or more axes, got shape {x.shape}")
    if not isinstance(layout, str):
        raise TypeError(f"layout: expected a str, got {type(layout).__name__}")
    if layout not in _LAYOUTS:
        raise ValueError(f"layout: expected 'half' or 'interleaved', got {layout!r}")
    rotary_dim = _rotary_dim(name, rotary_dim, x.shape[-1])
    pairs, is_half, is_empty = rotary_dim // 2, layout == "half", x.size == 0
    has_tables = are_given(cos, sin)
    if has_tables:
        _check_no_frequencies(theta, frequencies)
    else:
        frequencies = _frequencies(frequencies, theta, rotary_dim, is_empty)
    places = _positions(offset, positions, x)
    if has_tables:
        rows = None if is_empty else places().astype(np.int64)
        rows_name = "offset" if positions is None else "positions"
        tables = tables_of(x, cos, sin, rotary_dim, rows, rows_name)
        return Rotation(pairs, is_half, tables=tables)
    if is_empty:
        return Rotation(pairs, is_half)
    return Rotation(pairs, is_half, places(), frequencies)


def rotary_offset(
    name: str, offset: Any, batch_shape: tuple[int, ...], length: int = 1
) -> np.ndarray:
    """Positions of the first of `length` rows: one int for all, or one for each batch entry."""
    if isinstance(offset, int):
        batch_shape = ()
    return per_batch(name, offset, batch_shape, -_MAX_POSITION, _MAX_POSITION + 1 - max(length, 1))


def _rotary_dim(name: str, rotary_dim: Any, head_dim: int) -> int:
    if rotary_dim is None:
        if head_dim % 2:
            raise ValueError(
                f"{name}: expected an even head_dim, its last axis, got {head_dim} "
                "(rotary_dim turns a part of it)"
            )
        return head_dim
    number = integer("rotary_dim", rotary_dim)
    if not 0 <= number <= head_dim or number % 2:
        raise ValueError(
            f"rotary_dim: expected an even number from 0 to head_dim, {head_dim}, got {number}"
        )
    return number


def _check_no_frequencies(theta: Any, frequencies: Any) -> None:
    if frequencies is not None:
        raise ValueError("frequencies: expected none beside cos and sin, got some")
    if finite("theta", theta) != _THETA:
        raise ValueError(f"theta: expected none beside cos and sin, got {theta}")


def _frequencies(frequencies: Any, theta: Any, rotary_dim: int, is_empty: bool) -> np.ndarray:
    """Those of all pairs, float64; of the last pair alone where they are only to be checked."""
    theta = finite("theta", theta)
    if theta <= 0:
        raise ValueError(f"theta: expected a number above 0, got {theta}")
    if frequencies is None:
        powers = _geometric(theta, rotary_dim, rotary_dim - 2 if is_empty else 0)
        if powers.max(initial=0) > _MAX_FREQUENCY:
            raise ValueError(f"theta: expected a number not so close to 0, got {theta}")
        return powers
    own = as_array("frequencies", frequencies)
    if own.dtype not in (np.float32, np.float64):
        raise TypeError(f"frequencies: expected float32 or float64, got {own.dtype!r}")
    if own.shape != (rotary_dim // 2,):
        raise ValueError(
            f"frequencies: expected shape ({rotary_dim // 2},), one for each pair, got {own.shape}"
        )
    own = own.astype(np.float64)
    if not (np.abs(own) <= _MAX_FREQUENCY).all():
        raise ValueError(f"frequencies: expected finite numbers up to 2**900, got {own}")
    return own


@functools.lru_cache(maxsize=16)
def _geometric(theta: float, rotary_dim: int, first: int) -> np.ndarray:
    return _core.in_default_environment(_powers, theta, rotary_dim, first)


def _powers(theta: float, rotary_dim: int, first: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        powers: np.ndarray = theta ** (
            -np.arange(max(first, 0), rotary_dim, 2) / max(rotary_dim, 1)
        )
    return powers


def _positions(offset: Any, positions: Any, x: np.ndarray) -> Callable[[], np.ndarray]:
    """A function that makes them, checked, if they are needed.

    float64, (L,), or (..., 1, L) with one axis for all heads: no more than what differs.
    """
    batch_shape, length = x.shape[:-3], x.shape[-2]
    if type(offset) is int and positions is None and abs(offset) <= _MAX_POSITION - length:
        return lambda: np.arange(offset, offset + length, dtype=np.float64)
    starts = rotary_offset("offset", offset, batch_shape, length)
    if positions is None:
        return lambda: _over_heads(starts[..., None] + np.arange(length))
    if unrepeated(starts).any():
        raise ValueError(f"offset: expected none beside positions, got {offset}")
    positions = ints("positions", positions, "an array of ints")
    beyond = (positions < -_MAX_POSITION) | (positions > _MAX_POSITION)
    if beyond.any():
        raise ValueError(
            f"positions: expected values from {-_MAX_POSITION} to {_MAX_POSITION}, got "
            f"{positions[beyond][0]}"
        )
    broadcast("positions", positions, (*batch_shape, length), "one for each row", last=True)
    return lambda: _over_heads(positions)


def _over_heads(positions: np.ndarray) -> np.ndarray:
    positions = positions.astype(np.float64)
    return positions if positions.ndim == 1 else positions[..., None, :]
