"""Arrays of .safetensors files: their dtypes here and there, and those that cannot be had here.

The package safetensors looks at the bytes of a file, and takes none that is damaged; which arrays
they are is said here. ml_dtypes, which need not be installed, is asked only where a file holds a
dtype that NumPy lacks. Called by `files.py`.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np

_OF_NUMPY = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}
_OF_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_REAL = frozenset(_OF_NUMPY.values()) - {"complex64"}
_ALWAYS = frozenset(_OF_NUMPY) - {"C64"}  # what every version of the package safetensors knows


def is_kept(dtype: np.dtype, suffix: str) -> bool:
    """Whether arrays of it are saved in files of that kind: those that come back as they were."""
    of_others = dtype.name in _OF_ML_DTYPES.values()
    return dtype.name in _REAL or (of_others and suffix == ".safetensors")


def read(library: Any, content: bytes, strict: bool) -> dict[str, np.ndarray]:
    """The arrays of a file, by name; TypeError for one of no dtype here, if `strict`.

    ValueError, or the library's own, where it is no such file.
    """
    newer: dict[str, tuple[str, list[int]]] = {}
    try:
        entries = library.deserialize(content)
    except library.SafetensorError:
        # It may be for a dtype that this version of it does not know: once more, as bytes.
        as_bytes, newer = _without_newer_dtypes(content)
        if not newer:
            raise
        entries = library.deserialize(as_bytes)
    arrays, unread = {}, []
    for name, entry in entries:
        code, shape = newer.get(name, (entry["dtype"], entry["shape"]))
        dtype = _dtype_of(code)
        if dtype is None:
            unread.append((name, code))
        else:
            arrays[name] = _array(entry["data"], dtype, shape)
    if unread and strict:
        name, code = unread[0]
        more = f", and {len(unread) - 1} more such arrays" if len(unread) > 1 else ""
        raise TypeError(
            f"{name}: expected a dtype that NumPy or, where it is installed, ml_dtypes has, got "
            f"{code}{more} (strict=False leaves out what cannot be read)"
        )
    return arrays


def _without_newer_dtypes(content: bytes) -> tuple[bytes, dict[str, tuple[str, list[int]]]]:
    """The file with arrays of such dtypes as bytes; and what they are, by name: dtype, shape."""
    start = 8 + int.from_bytes(content[:8], "little")
    newer = {}
    try:
        header = json.loads(content[8:start])
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] in _ALWAYS:
                continue
            newer[name] = entry["dtype"], entry["shape"]
            begin, end = entry["data_offsets"]
            header[name] = {**entry, "dtype": "U8", "shape": [end - begin]}
    except (ValueError, TypeError, KeyError, AttributeError):  # it is no such file
        return content, {}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:], newer


def _array(data: bytes, dtype: np.dtype, shape: list[int]) -> np.ndarray:
    try:
        return np.frombuffer(data, dtype).reshape(shape)
    except TypeError as error:  # a shape that is none
        raise ValueError(str(error)) from error


def _dtype_of(code: str) -> np.dtype | None:
    """The dtype that a file calls `code`; None where there is none here.

    F4 and F6, of which several numbers share a byte, have none anywhere.
    """
    if code in _OF_NUMPY:
        return np.dtype(_OF_NUMPY[code])
    if code not in _OF_ML_DTYPES:
        return None
    try:
        found = getattr(importlib.import_module("ml_dtypes"), _OF_ML_DTYPES[code], None)
    except ModuleNotFoundError:
        return None
    return None if found is None else np.dtype(found)  # older versions have fewer
