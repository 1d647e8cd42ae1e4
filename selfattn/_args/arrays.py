"""Arrays: which dtypes there are, what counts as an array, where a result goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import _core
from .foreign import to_numpy

_FLOAT16, _FLOAT32, _FLOAT64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)

# The real dtypes, in which is computed, and the largest number of each: constants, because NumPy
# before 2.4 computes `finfo` when it is first asked, by the rounding mode of that moment, and keeps
# the result for the whole process.
LARGEST = {
    _FLOAT32: (2.0 - 2.0**-23) * 2.0**127,
    _FLOAT64: sys.float_info.max,
}
EXPECTED = "float16, bfloat16, float32 or float64"


def is_dtype(dtype: np.dtype) -> bool:
    """Whether arrays of it are taken: one of `EXPECTED`, in native byte order."""
    return dtype in LARGEST or dtype == _FLOAT16 or is_bfloat16(dtype)


def is_bfloat16(dtype: np.dtype) -> bool:
    """Whether it is that of ml_dtypes, or of another library that gives NumPy one.

    One in the other byte order has the same number and name.
    """
    if dtype.num < 256 or dtype.name != "bfloat16" or not dtype.isnative:
        return False  # NumPy's own have lower numbers
    _core.know_bfloat16(dtype.num)
    return True


def real_dtype(dtype: np.dtype) -> np.dtype:
    """What elements of `dtype` are computed in: float32, or float64."""
    return _FLOAT64 if dtype == _FLOAT64 else _FLOAT32


def array(name: str, x: Any) -> np.ndarray:
    """`x` as a NumPy array of one of our dtypes, without a copy."""
    y: np.ndarray = x if type(x) is np.ndarray else as_array(name, x)
    if is_dtype(y.dtype):
        return y
    raise TypeError(f"{name}: expected {EXPECTED} in native byte order, got {y.dtype!r}")


def as_array(name: str, x: Any, expected: str = "an array") -> np.ndarray:
    """`x` as a NumPy array of any dtype, without a copy."""
    if type(x) is np.ndarray:
        return x
    given = type(x).__name__
    if _is_masked(x):
        raise TypeError(f"{name}: expected {expected} without a mask of its own, got {given}")
    if isinstance(x, np.ndarray):
        return x.view(np.ndarray)
    if isinstance(x, (list, tuple, str, bytes, int, float, complex)) or x is None:
        raise TypeError(f"{name}: expected {expected}, got {given}")
    y = to_numpy(name, x, expected)
    if y.dtype == object:
        raise TypeError(f"{name}: expected {expected}, got {given}")
    return y


def _is_masked(x: object) -> bool:
    """Whether it is a masked array that masks an element.

    `numpy.ma` is not imported for it: without it there are none, and importing it asks `finfo`.
    """
    ma = sys.modules.get("numpy.ma")
    return ma is not None and isinstance(x, ma.MaskedArray) and bool(ma.is_masked(x))


def same_dtype(name: str, x: np.ndarray, other_name: str, other: np.ndarray) -> None:
    if x.dtype != other.dtype:
        raise TypeError(f"{name}: expected {other.dtype}, {other_name}'s dtype, got {x.dtype}")


def lse_dtype(name: str, lse: np.ndarray, other_name: str, other: np.ndarray) -> None:
    """The lse of `other`: of its real dtype."""
    expected = real_dtype(other.dtype)
    if lse.dtype != expected:
        raise TypeError(
            f"{name}: expected {expected}, that of the lse where {other_name} is {other.dtype}, "
            f"got {lse.dtype}"
        )


def compute_into(
    out: np.ndarray | None,
    shape: tuple[int, ...],
    like: np.ndarray,
    inputs: Iterable[np.ndarray],
    compute: Callable[[np.ndarray], None],
) -> np.ndarray:
    """The result of `compute(target)`, which fills an array of `shape` and of like's dtype.

    `target` is `out`, a new array with the layout of `like`, or a temporary where `out` overlaps
    one of the `inputs`.
    """
    if out is None:
        new = _new(shape, like)
        compute(new)
        return new
    target = _checked(out, shape, like, inputs)
    compute(target)
    if target is not out:
        out[...] = target
    return out


def _new(shape: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    if like.flags.c_contiguous or like.ndim != len(shape):
        return np.empty(shape, like.dtype)
    return np.empty_like(like, shape=shape, subok=False)


def _checked(
    out: Any, shape: tuple[int, ...], like: np.ndarray, inputs: Iterable[np.ndarray]
) -> np.ndarray:
    """`out`, or a temporary where it overlaps an input."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a NumPy array, got {type(out).__name__}")
    if out.dtype != like.dtype:
        raise TypeError(f"out: expected {like.dtype!r}, got {out.dtype!r}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writeable array, got a read-only one")
    overlaps_itself = not out.flags.c_contiguous and _may_overlap_itself(out)
    if overlaps_itself or _core.may_overlap(out, inputs):
        return np.empty(shape, like.dtype)
    return out


def _may_overlap_itself(x: np.ndarray) -> bool:
    """Whether two elements could share a byte: each stride must step over all that is inside it."""
    reach = x.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(x.strides, x.shape, strict=True)):
        if length > 1:
            if stride < reach:
                return True
            reach += stride * (length - 1)
    return False
