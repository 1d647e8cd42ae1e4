"""What is not NumPy's own array and yet counts as one, and how to make each of an array."""

import array
import ctypes
import sys

import numpy as np


class OfArray:
    """Offers __array__ and nothing else."""

    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return self.x


class OfDLPack:
    """Offers DLPack and nothing else."""

    def __init__(self, x):
        self.x = x

    def __dlpack__(self, **options):
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


def buffer_of(x):
    return (
        memoryview(array.array(x.dtype.char, x.ravel().tolist()))
        .cast("B")
        .cast(x.dtype.char, x.shape)
    )


class Subclass(np.ndarray):
    """One whose results must not depend on what it overrides."""

    def __getitem__(self, index):
        raise AssertionError("an input is read by its own rules")


KINDS = {
    "__array__": OfArray,
    "DLPack": OfDLPack,
    "buffer": buffer_of,
    "subclass": lambda x: x.view(Subclass),
    "masked array without a mask": np.ma.asarray,
}


class _DLTensor(ctypes.Structure):
    """DLPack's DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


class Bfloat16Capsules:
    """A tensor of bfloat16 that lends its elements by DLPack alone, as PyTorch's do.

    `x` holds their bits, of any dtype of 16; `changes` are fields of the capsules' tensors. Counts
    the capsules that it has made.
    """

    def __init__(self, x, **changes):
        self.bits, self.changes, self.made = x.view(np.float16), changes, 0
        self._references = sys.getrefcount(self.bits)

    @property
    def lent(self):
        """How many capsules' deleters have not run yet; less than 0 if one has run twice.

        They are NumPy's, each of which gives back its reference to the array.
        """
        return sys.getrefcount(self.bits) - self._references

    def __dlpack__(self, **options):
        capsule = self.bits.__dlpack__()
        tensor = _DLTensor.from_address(_pointer_of(capsule, b"dltensor"))
        for name, value in {"code": 4, **self.changes}.items():
            setattr(tensor, name, value)
        self.made += 1
        return capsule

    def __dlpack_device__(self):
        return (self.changes.get("device_type", 1), 0)
