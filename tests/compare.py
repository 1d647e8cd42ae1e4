"""How far a result may be from the reference, and the checks that say so.

The bound. With u the unit roundoff (2^-24, 2^-53) and A = max over query, key of
|scale| * sum(|q| * |k|), rounding moves a score by about u * A, a weight by that part of itself, an
average of the values by u * A * max|V|. The sums, exp2, the division and the product add some
u * max|V| more, the most where all values are alike and each step of a sum rounds the same way.
Measured against a longer oracle, over 30,000 random calls of the shapes where it is largest and
over values all alike at every S up to 600: the error of `out` is at most 2.1 u A max|V| for large
A, 5.1 u max|V| for small; that of a weight 4.8 u (1 + A) times itself. Allowed are 8 + 3 A and
8 (1 + A). `lse` adds a last place of log and half a one of its own, 3 u |lse|, to 6 u (1 + A).
The reference, in float64, may have as much of its own, and S / 2 units more of its plain sums over
S values, alike or not. The tighter promise, on the median for N(0, 1), is tested in
test_accuracy.py, of float64 too against a longer type.
"""

import math

import numpy as np

import selfattn
from selfattn import reference

UNIT = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-53}


def unit_of(dtype):
    """u, counted twice for float64, where the reference rounds as much as the kernels."""
    return UNIT[np.dtype(dtype)] * (2 if dtype == np.float64 else 1)


def largest(x):
    return float(np.abs(x).max()) if x.size else 0.0


def score_size(query, key, scale=None):
    """A of the bound."""
    if not query.size or not key.size:
        return 0.0
    if key.ndim > 2 and query.ndim > 2 and key.shape[-3] != 1 and query.shape[-3] != 1:
        key = np.repeat(key, query.shape[-3] // key.shape[-3], axis=-3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    sizes = np.abs(query).astype(np.float64) @ np.abs(key).astype(np.float64).swapaxes(-1, -2)
    return abs(scale) * float(sizes.max())


def wide(f, *inputs, **options):
    """The reference's result in float64: not rounded to the inputs' dtype."""
    return f(*(x.astype(np.float64) for x in inputs), **options)


def assert_close(got, want, bound, context=""):
    """Equal where either is not finite, else within `bound`, a number or an array."""
    assert got.shape == want.shape, (context, got.shape, want.shape)
    got, want = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        same = (got == want) | (np.isnan(got) & np.isnan(want))
        off = np.where(same, 0.0, np.abs(got - want))
    bound = np.broadcast_to(bound, off.shape)
    wrong = ~(off <= bound)  # a NaN is wrong
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{context}: {int(wrong.sum())} of {wrong.size} differ, first at {at}: got {got[at]}, "
            f"expected {want[at]}, off by {off[at]:.3g}, allowed {bound[at]:.3g}"
        )


def check_attention(query, key, value, context="", **options):
    """out and lse of the fused call against the reference."""
    out, lse = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
    want, want_lse = wide(
        reference.scaled_dot_product_attention, query, key, value, return_lse=True, **options
    )
    context = f"{context} {query.dtype} {query.shape} {key.shape} {value.shape} {options}"
    assert out.dtype == lse.dtype == query.dtype, context
    want_lse = np.broadcast_to(want_lse, want.shape[:-1])  # an axis may be value's alone
    u, size = unit_of(query.dtype), score_size(query, key, options.get("scale"))
    plain_sum = key.shape[-2] / 4 if query.dtype == np.float64 else 0  # u is counted twice there
    bound = u * (8 + 3 * size + plain_sum) * largest(value)
    assert_close(out, want, bound, f"out {context}")
    with np.errstate(invalid="ignore"):
        lse_bound = u * (6 * (1 + size) + 3 * np.abs(want_lse))
    assert_close(lse, want_lse, lse_bound, f"lse {context}")


def check_scores(query, key, context="", **options):
    """The scores and the weights against the reference."""
    context = f"{context} {query.dtype} {query.shape} {key.shape} {options}"
    u, size = unit_of(query.dtype), score_size(query, key, options.get("scale"))
    scores = selfattn.scaled_dot_product(query, key, **options)
    want = wide(reference.scaled_dot_product, query, key, **options)
    assert scores.dtype == query.dtype, context
    # Scale is rounded, then each scaled element of q, then each step of the sum; what underflows
    # in q is off by half the smallest number, times the keys.
    least = float(np.finfo(query.dtype).smallest_subnormal)
    bound = 3 * u * size + least * (1 + query.shape[-1] * (1 + largest(key)))
    assert_close(scores, want, bound, f"scores {context}")
    weights = selfattn.attention_weights(query, key, **options)
    want = wide(reference.attention_weights, query, key, **options)
    assert weights.dtype == query.dtype, context
    # A weight is moved by a part of itself, and by its own rounding where it is subnormal.
    bound = 8 * u * (1 + size) * want + least
    assert_close(weights, want, bound, f"weights {context}")
