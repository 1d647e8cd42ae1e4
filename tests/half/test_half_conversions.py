"""csrc/half.h against the casts of NumPy's float16 and of ml_dtypes' bfloat16, bit for bit.

The sets' own conversions are compared with half.h in test_simd.py.
"""

import ctypes
import os
import shutil

import numpy as np
import pytest

from support.arrays import HALF_DTYPES, same_bits
from support.c_core import CSRC, compiled

HERE = os.path.dirname(__file__)
COMPILER = next(filter(shutil.which, ("gcc", "clang", "cc")), None)
pytestmark = pytest.mark.skipif(
    COMPILER is None or not CSRC.exists() or os.name != "posix",
    reason="no C compiler, or no source folder beside the tests",
)
EVERY_PATTERN = np.arange(2**16, dtype=np.uint16)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    built = tmp_path_factory.mktemp("half") / "half_conversions.so"
    compiled(COMPILER, "-O2", "-shared", "-fPIC", f"{HERE}/half_conversions.c", "-o", built)
    return ctypes.CDLL(str(built))


@pytest.fixture(params=HALF_DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def half(request):
    return request.param


def converted(library, half, x):
    """float32 to half, or the other way around."""
    name = "f16" if half is np.float16 else "bf16"
    way = "from" if x.dtype == np.float32 else "to"
    y = np.empty(x.shape, half if way == "from" else np.float32)
    function = getattr(library, f"{name}_{way}_floats")
    function(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), x.size)
    return y


def test_every_pattern_to_float(library, half):
    x = EVERY_PATTERN.view(half)
    assert same_bits(converted(library, half, x), x.astype(np.float32))


def test_and_back(library, half):
    """A number that is a half already is not changed."""
    x = EVERY_PATTERN.view(half)
    assert same_bits(converted(library, half, x.astype(np.float32)), x)


def ties(half):
    """The floats halfway between neighbours, of both signs, those next to each, and the numbers."""
    largest = 0x7BFF if half is np.float16 else 0x7F7F
    low = EVERY_PATTERN[: largest + 1].view(half).astype(np.float64)
    high = np.append(low[1:], 2 * low[-1] - low[-2])  # what would come next, were it not inf
    tie = ((low + high) / 2).astype(np.float32).view(np.int32)
    near = np.concatenate([tie + step for step in (-2, -1, 0, 1, 2)]).view(np.float32)
    near = near[~np.isnan(near)]  # below 0
    return np.concatenate([near, -near])


def rounded(x, half):
    with np.errstate(all="ignore"):
        return x.astype(half)


def test_floats_beside_every_tie(library, half):
    x = ties(half)
    assert x.size > 300_000
    assert same_bits(converted(library, half, x), rounded(x, half))


def test_special_and_any_floats(library, half):
    """Subnormals, infinities, the largest, NaNs whose upper half would be an infinity."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 2_000_000, dtype=np.uint32)
    low = rng.integers(0, 2**16, 4096, dtype=np.uint32)
    specials = np.concatenate([low, low << 9, 0x7F800000 - low, 0x7F800000 + low])
    x = np.concatenate([bits, specials, specials | 0x80000000]).view(np.float32)
    got = converted(library, half, x)
    assert same_bits(got, rounded(x, half))
    assert np.array_equal(np.isnan(got), np.isnan(x))
    assert np.array_equal(np.signbit(got), np.signbit(x))


@pytest.mark.long
def test_every_float(library, half):
    for high in range(2**8):
        bits = np.arange(high << 24, (high + 1) << 24, dtype=np.int64).astype(np.uint32)
        x = bits.view(np.float32)
        assert same_bits(converted(library, half, x), rounded(x, half)), high
