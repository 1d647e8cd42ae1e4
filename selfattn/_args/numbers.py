"""Numbers: what counts as an int, and as a finite float."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np


def integer(name: str, x: Any) -> int:
    """`x` as an int; a bool is none."""
    try:
        if isinstance(x, (bool, np.bool_)):
            raise TypeError
        return operator.index(x)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {type(x).__name__}") from None


def size(name: str, x: Any) -> int:
    """`x` as an int of 1 or more."""
    n = integer(name, x)
    if n < 1:
        raise ValueError(f"{name}: expected 1 or more, got {n}")
    return n


def finite(name: str, x: Any) -> float:
    """`x` as a float that is neither infinite nor NaN; a bool or a text is none."""
    try:
        if isinstance(x, (str, bytes, bytearray, bool, np.bool_)):
            raise TypeError
        if isinstance(x, np.ndarray) and x.dtype == bool:
            raise TypeError
        number = float(x)
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number, got one beyond float64") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(x).__name__}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number
