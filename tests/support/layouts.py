"""Copies of an array that lie otherwise in memory."""

import numpy as np

# Rows for the decode kernels and for the prefill kernels.
SHAPES = [(2, 3, 2, 13), (2, 3, 37, 13)]


def bits_at(address_offset, x):
    """A copy of x whose first byte lies `address_offset` bytes past an aligned address."""
    memory = np.zeros(x.nbytes + 128 + address_offset, np.uint8)
    start = -memory.ctypes.data % 64 + address_offset
    y = np.ndarray(x.shape, x.dtype, memory, start)
    y[...] = x
    return y


def packed(x):
    """A copy of x as a field of packed structs: a stride of 9 bytes, or 13, along the last axis."""
    fields = [("before", "u1"), ("x", x.dtype), ("after", "u4")]
    structs = np.full(x.shape, np.zeros((), fields), fields)
    structs["x"] = x
    return structs["x"]


LAYOUTS = {
    "transposed": lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "Fortran": np.asfortranarray,
    "BSHD": lambda x: x.swapaxes(1, 2).copy().swapaxes(1, 2),
    "heads last": lambda x: x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
    "every other column": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "every third row": lambda x: np.repeat(x, 3, -2)[..., ::3, :],
    "columns reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
    "rows reversed": lambda x: x[..., ::-1, :].copy()[..., ::-1, :],
    "all reversed": lambda x: x[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1],
    "by minus two": lambda x: np.repeat(x[..., ::-1], 2, -1)[..., ::-2],
    "packed structs": packed,
    "part of a larger array": lambda x: np.pad(x, 2)[2:-2, 2:-2, 2:-2, 2:-2],
}
