"""The kernels' own exp2, exp and log: at most 1 ulp, special values, the same bits in every set.

Fault 17. exp2 is compared with a correctly rounded result over a slice of all float32 numbers, and,
marked long, over every one of them; the error counted in units of the last place of the true value.
"""

import numpy as np
import oracle
import pytest
from arrays import same_bits

from selfattn._core import apply

SPECIAL = [
    0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, -0.5, 1.5, -1.5, 2.5, 126.0, 127.0, 127.5,
    128.0, -125.0, -126.0, -126.5, -127.0, -140.3, -148.9, -149.0, -149.5, -150.0, -151.0, -160.0,
    -1021.0, -1022.0, -1022.5, -1070.3, -1074.0, -1074.9, -1075.0, -1076.0, -1100.0, 1022.9, 1023.0,
    1023.9, 1024.0, 1100.0, 1e300, -1e300, 1e-300, -1e-300, 5e-324, 2.2250738585072014e-308, 1e-40,
    1e-45, 1.1754944e-38, 0.75, 0.7499999, 1.4999999, 1.5, 0.99999994, 1.0000001, 3e38, -3e38,
]  # fmt: skip


@np.errstate(over="ignore")
def special(dtype):
    """Those, and the 50 numbers on either side of each."""
    x = np.array(SPECIAL, dtype)
    around = [x]
    for towards in (-np.inf, np.inf):
        y = x
        for _ in range(50):
            y = np.nextafter(y, dtype(towards))
            around.append(y)
    return np.concatenate(around)


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


def worst(function, x, true):
    with np.errstate(all="ignore"):
        want = true(x.astype(oracle.wider(x.dtype)))
    return float(error_in_ulps(apply(function, x), want).max())


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


@pytest.mark.parametrize("sign", [0, 2**31])
def test_exp2_of_a_slice_of_all_floats(isa, sign):
    """Every 61st float32 of [2^-30, 256) and of its negative, every 6001st of the rest."""
    small, large = 97 << 23, 135 << 23
    for x in (
        floats(sign + small, (large - small) // 61, 61),
        floats(sign, 2**31 // 6001, 6001),
    ):
        assert worst("exp2", x, np.exp2) <= 1
        if sign:
            assert worst("exp2_of_negative", x, np.exp2) <= 1


@pytest.mark.long
@pytest.mark.parametrize("part", range(64))
def test_exp2_of_every_float(isa, part):
    """All 2^32."""
    for first in range(part * 2**26, (part + 1) * 2**26, 2**22):
        x = floats(first, 2**22)
        assert worst("exp2", x, np.exp2) <= 1, hex(first)
        if first >= 2**31:
            assert worst("exp2_of_negative", x, np.exp2) <= 1, hex(first)


@oracle.needs_long_double
@pytest.mark.parametrize("function", ["exp2", "exp", "log"])
def test_dense_samples(isa, dtype, function):
    """exp2, exp over the whole range of results, subnormal ones included; log over all numbers.

    exp is granted 2: the softmax's own step, nothing else is promised of it.
    """
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    low, high = float(info.minexp - info.nmant - 3), float(info.maxexp + 1)
    if function == "exp":
        low, high = low * np.log(2), high * np.log(2)
    near_zero = rng.uniform(-2, 2, 200_000)
    if function == "log":
        # Every exponent, and near 1, where the result goes to 0.
        exponents = rng.uniform(info.minexp - info.nmant, info.maxexp, 300_000)
        parts = [np.exp2(exponents.astype(np.longdouble)), 1 + near_zero / 20]
        parts += [1 + near_zero * info.eps * 50, np.abs(special(dtype))]
    else:
        parts = [rng.uniform(low, high, 300_000), near_zero, near_zero * 1e-5, special(dtype)]
    x = np.concatenate([part.astype(dtype) for part in parts])
    x = x[np.isfinite(x)]
    assert worst(function, x, getattr(np, function)) <= (2 if function == "exp" else 1)


def test_special_values(isa, dtype):
    inf, nan = np.inf, np.nan
    of_negative = [(0.0, 1), (-0.0, 1), (-inf, 0), (nan, nan), (-1e30, 0), (-1000, 0)]
    of_all = [*of_negative, (inf, inf), (1e30, inf)]
    if dtype == np.float64:
        of_negative, of_all = (
            [p for p in pairs if p[0] != -1000] for pairs in (of_negative, of_all)
        )
    table = {
        "exp2": [*of_all, (1, 2), (-1, 0.5), (10, 1024)],
        "exp2_of_negative": [*of_negative, (-1, 0.5), (-10, 2.0**-10)],
        "exp": of_all,
        "log": [(1, 0), (0.0, -inf), (-0.0, -inf), (inf, inf), (nan, nan), (-1, nan), (-inf, nan),
                (-1e-40, nan)],
    }  # fmt: skip
    for function, pairs in table.items():
        # Each value in each lane, with others beside it.
        for shift in range(17):
            x, want = (
                np.roll(np.resize(np.array(y, dtype), 64), shift) for y in zip(*pairs, strict=True)
            )
            got = apply(function, x)
            assert np.array_equal(got, want, equal_nan=True), (function, x, got)


def test_exp2_of_whole_numbers_is_exact(isa, dtype):
    """exp2(0) above all, since a rescale by 2^0 must change nothing."""
    info = np.finfo(dtype)
    n = np.arange(info.minexp - info.nmant, info.maxexp).astype(dtype)
    with np.errstate(under="ignore"):
        assert same_bits(apply("exp2", n), np.ldexp(dtype(1), n.astype(int)).astype(dtype))


def test_the_sets_agree(each_isa, dtype):
    rng = np.random.default_rng(1)
    scale = 200 if dtype == np.float32 else 1500
    x = np.concatenate([rng.uniform(-scale, scale, 100_001), special(dtype)]).astype(dtype)
    for function in ("exp2", "exp2_of_negative", "exp", "log"):
        if function == "exp2_of_negative":
            x = np.where(x > 0, -x, x)
        if function == "log":
            x = np.abs(x)
        results = [(isa, apply(function, x)) for isa in each_isa()]
        for isa, result in results[1:]:
            assert same_bits(result, results[0][1]), (function, isa)


def test_every_length(isa, dtype):
    """Tails shorter than a vector."""
    x = np.linspace(-3, 3, 40, dtype=dtype)
    want = apply("exp2", x)
    for n in range(41):
        assert same_bits(apply("exp2", x[:n].copy()), want[:n])
