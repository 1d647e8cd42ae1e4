"""How rows of keys or values lie in memory: elements of a dtype, or int8 with a scale for each row.

    x[j] = scale * q[j],   scale = max|x| / 127,   q = x / scale, rounded, from -127 to 127

The error of an element is half a scale at most, 1 / 254 of the row's largest. Called by the two
caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _args

_INT8 = np.dtype(np.int8)
_FLOAT32 = np.dtype(np.float32)
LARGEST = 127
TINY = np.float32(2.0**-126)  # the smallest normal number

Encoded = tuple[np.ndarray, np.ndarray | None]  # rows, and of int8 their scales


def storage_dtype(dtype: Any) -> np.dtype:
    """One of the dtypes that attention takes, or int8."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found == _INT8:
        return _INT8
    if found is None or not _args.is_dtype(found):
        raise TypeError(
            "dtype: expected float32, float64, float16, bfloat16 (ml_dtypes') or int8, got "
            f"{dtype!r}"
        )
    assert isinstance(found, np.dtype)
    return found


class Rows:
    """An array of rows, (..., rows, length), and, of int8, one of scales, (..., rows)."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.rows = np.zeros(shape, dtype)
        self.scales = np.zeros(shape[:-1], _FLOAT32) if dtype == _INT8 else None

    def write(self, where: tuple[Any, ...], given: Encoded, part: tuple[Any, ...]) -> None:
        """Part of what is given goes to the places that `where` indexes, but for the last axis."""
        x, scales = given
        self.rows[where] = x[part]
        if self.scales is not None and scales is not None:
            self.scales[where] = scales[part]

    @np.errstate(all="ignore")
    def decoded(self, where: tuple[Any, ...]) -> np.ndarray:
        """What rows stand for: a view of themselves, or of int8 an array of float32."""
        rows: np.ndarray = self.rows[where]
        if self.scales is None:
            return rows
        scales: np.ndarray = self.scales[where]
        decoded: np.ndarray = np.multiply(rows, scales[..., None], dtype=_FLOAT32)
        return decoded

    def copy(self, to: int, source: int) -> None:
        """Entry `source` of the first axis also becomes entry `to`."""
        self.rows[to] = self.rows[source]
        if self.scales is not None:
            self.scales[to] = self.scales[source]


@np.errstate(all="ignore")  # what is beyond float32 is told of; what is subnormal is no mistake
def encoded(name: str, x: np.ndarray, dtype: np.dtype) -> Encoded:
    """What `Rows.write` takes of rows of floats: these themselves, or int8 and scales."""
    if dtype != _INT8:
        _same(name, x, dtype)
        return x, None
    x = x.astype(_FLOAT32, copy=False)
    largest = np.abs(x).max(-1, initial=0)
    if not np.isfinite(largest).all():
        raise ValueError(f"{name}: expected finite numbers, which int8 with a scale can hold")
    scales = largest / np.float32(LARGEST)
    # Rounded so that 127 of it reach the largest where it is subnormal, and are no infinity.
    is_low = (scales < TINY) & (scales * np.float32(LARGEST) < largest)
    is_high = np.isinf(scales * np.float32(LARGEST))
    towards = np.where(is_high, np.float32(0), np.float32(np.inf))
    scales = np.where(is_low | is_high, np.nextafter(scales, towards), scales)
    divisor = np.where(scales > 0, scales, 1)[..., None]
    steps = np.clip(np.rint(x / divisor), -LARGEST, LARGEST)
    return steps.astype(_INT8), scales


def _same(name: str, x: np.ndarray, dtype: np.dtype) -> None:
    if x.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, the cache's dtype, got {x.dtype}")


def checked_rows(
    name: str, x: Any, expected: tuple[int | None, ...], axes: str, dtype: np.dtype
) -> np.ndarray:
    """An array of floats of the expected shape, in which None is any length.

    Of the cache's dtype; of any that attention takes, where that is int8.
    """
    y = _args.array(name, x)
    fits = y.ndim == len(expected) and all(
        want in (None, got) for want, got in zip(expected, y.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("t" if n is None else str(n) for n in expected)
        raise ValueError(f"{name}: expected shape ({wanted}), {axes}, got {y.shape}")
    if dtype != _INT8:
        _same(name, y, dtype)
    return y
