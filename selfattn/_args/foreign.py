"""Arrays of other libraries: what an object offers NumPy, and by what words it is refused.

A tensor is known by its attributes; no other library is imported. Called by `arrays.py`, and by
those who copy numbers: `layers.py`, `nn/files.py`.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from .. import _core

_DLPACK_DTYPES = {(2, 16): "float16", (4, 16): "bfloat16"}  # by its codes and numbers of bits
_DLPACK_CPU = 1


def to_numpy(name: str, x: Any, expected: str) -> np.ndarray:
    """`x` as a NumPy array, by `__array__`, the buffer protocol or DLPack, without a copy."""
    try:
        if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
            return np.from_dlpack(x)
        return np.asarray(x)
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        y = _of_bfloat16(name, x)
        if y is not None:
            return y
        raise _refusal(name, x, expected, error) from error


def _of_bfloat16(name: str, x: Any) -> np.ndarray | None:
    """`x` as an array of ml_dtypes' bfloat16, if it offers that by DLPack, which NumPy refuses."""
    if not hasattr(x, "__dlpack__") or _dtype_of(x) != "bfloat16" or _device_of(x) is not None:
        return None
    try:
        bits = _core.dlpack_uint16(x.__dlpack__())
    except (TypeError, ValueError, BufferError, RuntimeError):
        return None  # why is told by the error that NumPy met
    try:
        dtype = importlib.import_module("ml_dtypes").bfloat16
    except ImportError:
        raise TypeError(
            f"{name}: expected ml_dtypes to be installed, whose bfloat16 is NumPy's, got "
            f"{type(x).__name__} of bfloat16"
        ) from None
    y: np.ndarray = bits.view(dtype)
    return y


def without_gradient(x: Any) -> Any:
    """`x`, or the numbers of a tensor that requires grad: for those who copy them."""
    return x.detach() if getattr(x, "requires_grad", False) is True else x


def numbers_of(x: Any) -> Any:
    """The same, in a dtype that NumPy has: bfloat16 widens to float32, which holds all of it."""
    x = without_gradient(x)
    if isinstance(x, np.ndarray):
        return x
    if _dtype_of(x) == "bfloat16" and hasattr(x, "float"):
        x = x.float()
    return x


def _refusal(name: str, x: Any, expected: str, error: Exception) -> Exception:
    """The exception that says why `x` could not be read: by our words where the reason is known."""
    given, dtype = type(x).__name__, _dtype_of(x)
    if getattr(x, "requires_grad", False) is True:
        return TypeError(
            f"{name}: expected a tensor that does not require grad (call .detach()), got one that "
            "does"
        )
    if (device := _device_of(x)) is not None:
        return TypeError(f"{name}: expected {expected} on the CPU, got {given} on {device}")
    if dtype is not None and not _is_of_numpy(dtype):
        return TypeError(
            f"{name}: expected {expected} of a dtype that NumPy has, got {given} of {dtype}"
        )
    kind = RuntimeError if isinstance(error, RuntimeError) else TypeError
    return kind(f"{name}: expected {expected} that NumPy can read, got {given}: {error}")


def _dtype_of(x: Any) -> str | None:
    """The name of x's dtype, None if it has none: of `torch.bfloat16` the last word."""
    dtype = getattr(x, "dtype", None)
    if dtype is not None:
        return str(dtype).rpartition(".")[-1]
    if not hasattr(x, "__dlpack__") or hasattr(x, "__array__") or _device_of(x) is not None:
        return None
    try:
        code, bits = _core.dlpack_dtype(x.__dlpack__())
    except Exception:  # what it raises is what has been raised before
        return None
    return _DLPACK_DTYPES.get((code, bits), f"DLPack's type {code} of {bits} bits")


def _is_of_numpy(dtype: str) -> bool:
    """Whether NumPy itself has a dtype of that name; others may have registered theirs."""
    try:
        return np.dtype(dtype).isbuiltin == 1
    except TypeError:
        return False


def _device_of(x: Any) -> str | None:
    """Where x is, None if on the CPU or if that is not known."""
    device = getattr(x, "device", None)
    if device is not None:
        return None if "cpu" in str(device).lower() else str(device)
    if not hasattr(x, "__dlpack_device__"):
        return None
    kind, _ = x.__dlpack_device__()
    return None if kind == _DLPACK_CPU else f"DLPack's device {int(kind)}"
