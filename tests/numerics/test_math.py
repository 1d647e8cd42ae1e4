"""The kernels' own 2^x, e^x, log and tanh: at most 1 ulp, special values, equal bits in each set.

Faults 14, 17 and 43. Every function that a kernel calls is compared with a longer result, the error
counted in units of the last place of the true value: over a slice of all float32 numbers and,
marked long, over every one of them; over dense samples in float64.
"""

from collections.abc import Callable
from math import e, frexp, ldexp, log2
from typing import NamedTuple

import numpy as np
import pytest

from selfattn._core import apply
from support import oracle
from support.arrays import same_bits

SPECIAL = [
    0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, -0.5, 1.5, -1.5, 2.5, 126.0, 127.0, 127.5,
    128.0, -125.0, -126.0, -126.5, -127.0, -140.3, -148.9, -149.0, -149.5, -150.0, -151.0, -160.0,
    -1021.0, -1022.0, -1022.5, -1070.3, -1074.0, -1074.9, -1075.0, -1076.0, -1100.0, 1022.9, 1023.0,
    1023.9, 1024.0, 1100.0, 1e300, -1e300, 1e-300, -1e-300, 5e-324, 2.2250738585072014e-308, 1e-40,
    1e-45, 1.1754944e-38, 0.75, 0.7499999, 1.4999999, 1.5, 0.99999994, 1.0000001, 3e38, -3e38,
    88.7, -87.3, -103.9, 709.7, -708.3, -745.1, 0.55, -0.55, 9.01, -9.01, 19.06, -19.06, 20.0,
]  # fmt: skip


def power_of_2(x, unit):
    """2^(unit x). Of float32 numbers the product is exact in float64. Of float64 ones that of the
    unit's first ten bits is exact in a long double, and what is left of it is small."""
    if x.dtype == np.float64:
        return np.exp2(x * unit)
    mantissa, exponent = frexp(unit)
    high = ldexp(int(mantissa * 2**10), exponent - 10)
    return np.exp2(x * high) * np.exp2(x * (unit - high))


class Function(NamedTuple):
    """One of those that `apply` knows, and what is true."""

    name: str
    true: Callable
    of_negative: bool = False  # no positive number is given to it
    unit: float | None = None

    def __call__(self, x):
        return apply(self.name, x) if self.unit is None else apply(self.name, x, self.unit)

    def truth(self, x):
        """The same in a longer type."""
        with np.errstate(all="ignore"):
            longer = x.astype(oracle.wider(x.dtype))
            return self.true(longer, x.dtype.type(self.unit)) if self.unit else self.true(longer)

    def domain(self, x):
        """x, or what the function may be asked about in its place."""
        return -np.abs(x) if self.of_negative else x


# The fused softmax has 2^(unit x), where unit is scale log2 e: here of head_dims of 64 and of 80.
FUNCTIONS = {
    "exp2": Function("exp2_scaled", power_of_2, True, 1.0),
    "exp2_natural": Function("exp2_scaled", power_of_2, True, log2(e)),
    "exp2_head_64": Function("exp2_scaled", power_of_2, True, log2(e) / 8),
    "exp2_head_80": Function("exp2_scaled", power_of_2, True, log2(e) / 80**0.5),
    "exp_of_negative": Function("exp_of_negative", np.exp, True),
    "exp": Function("exp", np.exp),
    "log": Function("log", np.log),
    "tanh": Function("tanh", np.tanh),
}
each_function = pytest.mark.parametrize("function", FUNCTIONS)
# Of 64 parts of all floats, of which the last 32 are negative. Two units of 2^(unit x) do.
PARTS = [
    (function, part)
    for function in ("exp2", "exp2_head_80", "exp_of_negative", "exp", "log", "tanh")
    for part in range(32 if FUNCTIONS[function].of_negative else 0, 64)
]

# Where functions are hardest to get right: off by most, or by more than 1 ulp once.
HARD = {
    "exp2": [-126.496498, -0.499999, -700.4993],
    "exp2_natural": [-87.657402],
    "exp2_head_64": [-701.259216, -2.6989108620577382],
    "exp2_head_80": [-248.030701],
    "exp_of_negative": [-8.63830948, -34.9712219, -62.7033463, -121.65620250041275],
    "exp": [3.8533783, 5.19979858, 23.9593754, 50.2870445, -8.63830948, -34.9712219, -62.7033463,
            0.35448287040682125],
    "log": [0.746474445, 0.72832525039422735],
    "tanh": [0.518961787, 0.552722991, 0.552814543, 0.5530828, 0.55651249924756208, 0.55820322],
}  # fmt: skip


@np.errstate(over="ignore")
def around(numbers, dtype):
    """Those, and the 50 numbers on either side of each."""
    x = np.array(numbers, dtype)
    all_of_them = [x]
    for towards in (-np.inf, np.inf):
        y = x
        for _ in range(50):
            y = np.nextafter(y, dtype(towards))
            all_of_them.append(y)
    return np.concatenate(all_of_them)


@np.errstate(all="ignore")
def error_in_ulps(y, want):
    """abs(y - want) in last places of y's dtype at `want`, a longer number; 0 where both are NaN or
    the same infinity, or `want` overflows to it; inf where they are not numbers alike."""
    rounded = want.astype(y.dtype)
    ulp = np.spacing(np.abs(rounded))
    ulp = np.where(np.isfinite(ulp), ulp, np.finfo(y.dtype).max)
    off = np.abs(y.astype(want.dtype) - want) / ulp
    same = (np.isnan(y) & np.isnan(want)) | (np.isinf(y) & (y == rounded))
    return np.where(same, 0, np.where(np.isnan(off), np.inf, off))


def check_each(each_isa, function, x):
    """Off by at most 1 ulp over x in the first kernel set; the others have its bits."""
    f, want = FUNCTIONS[function], None
    for isa in each_isa():
        if want is None:
            want = f(x)
            assert error_in_ulps(want, f.truth(x)).max() <= 1, (isa, x[:1])
            continue
        assert same_bits(f(x), want), (isa, x[:1])


def floats(first, count, step=1):
    """Float32 numbers by their bits."""
    last = min(first + count * step, 2**32)
    return np.arange(first, last, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


def test_errors_are_counted_right():
    """The yardstick: 1 ulp is 1, below the smallest normal number too; a wrong infinity is no 0."""
    x = np.array([1.0, 1e-40, np.inf, 1.0, np.nan, np.nan], np.float32)
    want = np.array([1 + 2.0**-23, 1e-40 + 2.0**-149, np.inf, np.inf, np.nan, 1.0])
    errors = error_in_ulps(x, want)
    np.testing.assert_allclose(errors[:3], [1, 1, 0], atol=0.51)
    assert errors[0] == 1
    assert errors[3] > 0
    assert errors[4] == 0
    assert errors[5] == np.inf


@each_function
def test_a_slice_of_all_floats(each_isa, function):
    """Every 61st float32 of [2^-30, 256) and of its negative, every 6001st of the rest."""
    small, large = 97 << 23, 135 << 23
    for sign in [2**31] if FUNCTIONS[function].of_negative else [0, 2**31]:
        check_each(each_isa, function, floats(sign + small, (large - small) // 61, 61))
        check_each(each_isa, function, floats(sign, 2**31 // 6001, 6001))


@pytest.mark.long
@pytest.mark.parametrize(("function", "part"), PARTS)
def test_every_float(each_isa, function, part):
    """All 2^32, or the negative half of them."""
    for first in range(part * 2**26, (part + 1) * 2**26, 2**16):
        check_each(each_isa, function, floats(first, 2**16))


@oracle.needs_long_double
@each_function
def test_hard_numbers(each_isa, dtype, function):
    check_each(each_isa, function, around(HARD[function], dtype))


@oracle.needs_long_double
@each_function
def test_dense_samples(each_isa, dtype, function):
    """Over the whole range of results, subnormal ones included; near 0 and 1, and where one formula
    follows another; log over all numbers."""
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    near_zero = rng.uniform(-2, 2, 200_000)
    if function == "log":
        # Every exponent, and near 1, where the result goes to 0.
        exponents = rng.uniform(info.minexp - info.nmant, info.maxexp, 300_000)
        parts = [np.exp2(exponents.astype(np.longdouble)), 1 + near_zero / 20]
        parts += [1 + near_zero * info.eps * 50, np.abs(around(SPECIAL, dtype))]
    elif function == "tanh":
        parts = [rng.uniform(-22, 22, 300_000), near_zero, 0.55 + near_zero / 40]
        parts += [near_zero * 1e-5, around(SPECIAL, dtype)]
    else:
        powers = rng.uniform(float(info.minexp - info.nmant - 3), float(info.maxexp + 1), 300_000)
        unit = FUNCTIONS[function].unit or log2(e)
        parts = [powers / unit, near_zero, near_zero * 1e-5, around(SPECIAL, dtype)]
    x = np.concatenate([part.astype(dtype) for part in parts])
    check_each(each_isa, function, FUNCTIONS[function].domain(x[np.isfinite(x)]))


INF, NAN = np.inf, np.nan
OF_NEGATIVE = [(0.0, 1), (-0.0, 1), (-INF, 0), (NAN, NAN), (-1e30, 0), (-1100, 0)]
POWERS = [*OF_NEGATIVE, (-1, 0.5), (-10, 2.0**-10)]
SPECIAL_VALUES = {
    "exp2_scaled": POWERS,
    "exp_of_negative": OF_NEGATIVE,
    "exp": [*OF_NEGATIVE, (INF, INF), (1e30, INF), (720, INF)],
    "log": [(1, 0), (0.0, -INF), (-0.0, -INF), (INF, INF), (NAN, NAN), (-1, NAN), (-INF, NAN),
            (-1e-40, NAN)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1), (NAN, NAN), (1e30, 1), (-1e30, -1),
             (20, 1), (-20, -1), (5e-324, 5e-324), (-1e-40, -1e-40)],
}  # fmt: skip


@pytest.mark.parametrize("function", SPECIAL_VALUES)
def test_special_values(isa, dtype, function):
    """Each in each lane, with others beside it."""
    pairs = np.array(SPECIAL_VALUES[function], dtype)
    for shift in range(17):
        x, want = np.roll(np.resize(pairs, (64, 2)), shift, axis=0).T.copy()
        assert same_bits(apply(function, x), want), (x, apply(function, x))


def test_powers_of_whole_numbers_are_exact(isa, dtype):
    """That of 0 above all, since a rescale by 2^0 must change nothing."""
    info = np.finfo(dtype)
    n = np.arange(info.minexp - info.nmant, 1)
    with np.errstate(under="ignore"):
        want = np.ldexp(dtype(1), n).astype(dtype)
    assert same_bits(apply("exp2_scaled", n.astype(dtype)), want)
    assert same_bits(apply("exp2_scaled", n.astype(dtype) / 8, 8.0), want)


def test_tanh_is_odd_and_never_falls_or_exceeds_1(isa, dtype):
    """Numbers in a row where a formula ends, where the result comes to 1, and sparse ones between:
    1 - tanh^2, the derivative of a soft cap, is never negative."""
    ends = np.array([0.55, 9.0109, 19.0615, 20.0], dtype)
    whole = ends.view(f"i{ends.itemsize}")[:, None] + np.arange(-(2**15), 2**15)
    x = np.concatenate([whole.view(dtype).ravel(), np.linspace(0, 25, 2**18, dtype=dtype)])
    x.sort()
    y = apply("tanh", x)
    assert (np.diff(y) >= 0).all()
    assert y.max() == 1
    assert same_bits(apply("tanh", -x), -y)


def test_the_sets_agree(each_isa, dtype):
    rng = np.random.default_rng(1)
    scale = 200 if dtype == np.float32 else 1500
    x = np.concatenate([rng.uniform(-scale, scale, 100_001), rng.uniform(-3, 3, 100_001)])
    x = np.concatenate([x.astype(dtype), around(SPECIAL, dtype)])
    for name, function in FUNCTIONS.items():
        results = [(isa, function(function.domain(x))) for isa in each_isa()]
        for isa, result in results[1:]:
            assert same_bits(result, results[0][1]), (name, isa)


def test_every_length(isa, dtype):
    """Tails shorter than a vector."""
    x = np.linspace(-3, 0, 40, dtype=dtype)
    want = apply("exp2_scaled", x)
    for n in range(41):
        assert same_bits(apply("exp2_scaled", x[:n].copy()), want[:n])
