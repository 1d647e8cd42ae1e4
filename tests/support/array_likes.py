"""What is not NumPy's own array and yet counts as one, and how to make each of an array."""

import array

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
