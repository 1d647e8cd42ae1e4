"""Half types: what a call in float16 or bfloat16 must give, bit for bit.

That is the result of the same call in float32, which other tests compare with the reference: on the
inputs converted to float32, which is exact, and rounded once, by NumPy's or ml_dtypes' own cast.
"""

import numpy as np
import pytest

from support.arrays import HALF_DTYPES, same_bits

# The two of them, as the argument `half` of a test.
each_half = pytest.mark.parametrize("half", HALF_DTYPES, ids=lambda dtype: np.dtype(dtype).name)


def is_half(x):
    return isinstance(x, np.ndarray) and x.dtype in HALF_DTYPES


def widened(x):
    """Arrays of halves as float32, in tuples and dictionaries too; all else as it is."""
    if isinstance(x, dict):
        return {name: widened(y) for name, y in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(map(widened, x)) if not hasattr(x, "_fields") else tuple(map(widened, x))
    return x.astype(np.float32) if is_half(x) else x


def rounded(x, dtype):
    """As another dtype; what overflows becomes infinite, and that is no warning here."""
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def flat(results):
    """The arrays of a result: one, a tuple of them, a dictionary; without those not asked for."""
    if isinstance(results, np.ndarray):
        return [results]
    if isinstance(results, dict):
        results = results.values()
    return [x for part in results if part is not None for x in flat(part)]


def assert_rounded(got, want, context=""):
    """Each array of `got` has the bits of float32's result, rounded once to its dtype."""
    got, want = flat(got), flat(want)
    assert len(got) == len(want), context
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        assert y.dtype == np.float32, (i, context)
        y = rounded(y, x.dtype)
        if same_bits(x, y):
            continue
        assert x.shape == y.shape, (i, context)
        wide = x.astype(np.float64), y.astype(np.float64)
        differ = (wide[0] != wide[1]) & ~(np.isnan(wide[0]) & np.isnan(wide[1]))
        at = tuple(map(int, np.argwhere(differ)[0])) if differ.any() else "a zero's sign"
        values = [w[at] for w in wide] if differ.any() else ""
        raise AssertionError(
            f"{context} result {i}, {x.dtype}: {differ.sum()} of {x.size} differ, "
            f"first at {at}: {values}"
        )


def check(f, *arguments, dtypes=None, context="", **options):
    """f gives float32's results rounded once, of `dtypes`; returned."""
    got = f(*arguments, **options)
    want = f(*widened(arguments), **widened(options))
    assert_rounded(got, want, f"{context} {getattr(f, '__name__', f)}")
    if dtypes is not None:
        assert [x.dtype for x in flat(got)] == [np.dtype(d) for d in dtypes], context
    return got
