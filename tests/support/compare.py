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

Options that change scores add roundings of their own, each u times what is rounded, score by score
(`rounded_by_options`). With x the scaled score:

    softcap   y = c tanh(x / c)    6 |y|: c, 1 / c and the product with it are rounded, which moves
                                   y by no more than that part of |y|; tanh has 1 ulp, or 2 u, and
                                   the product with c 1 u. What x is off by, y is by no more
    ALiBi     y - slope * d        3 |slope * d|: slope, distance, product; and the size of the sum
    mask      y + mask             the size of the sum; of mask + bias too, where there are both
    sinks                          2 |sink|: the constant and the product that change its base
    all       exp(s - top)         3 (lse - s) = -3 log w: the difference, the constant log2(e), the
                                   product. (Scores in base 2 from the start have none of it)

With d_j what moves the score of key j, and w_j its weight, `lse` moves by e = sum of w_j d_j, a
weight by (d_j + e) of itself, `out` by the sum of w_j d_j (v_j - out), at most 2 e max|V|. So a key
that weighs nothing adds nothing, however large the number that masks it, and a row of nothing but
large numbers may be as far off as they are rough: where d is not small, "d of itself" stands for
exp(d) - 1. A sink is one more key, whose value is 0.
"""

import math

import numpy as np

import selfattn
from selfattn import reference
from support.arrays import same_bits
from support.option_arrays import described, without_sinks

UNIT = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-53}


def unit_roundoff(dtype):
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


@np.errstate(all="ignore")
def rounded_by_options(
    query,
    key,
    *,
    scale=None,
    enable_gqa=False,
    query_offset=0,
    softcap=0.0,
    alibi_slopes=None,
    attn_mask=None,
    attn_bias=None,
    **_,
):
    """By how many u rounding moves each score for these options' sake: (..., Hq, L, S)."""
    score = wide(reference.scaled_dot_product, query, key, scale=scale, enable_gqa=enable_gqa)
    moved = np.zeros_like(score)
    if softcap:
        score = softcap * np.tanh(score / softcap)
        moved += 6 * np.abs(score)
    if alibi_slopes is not None:
        offset = np.asarray(query_offset)
        offset = offset[..., None, None, None] if offset.ndim else offset
        distance = np.arange(query.shape[-2])[:, None] + offset - np.arange(key.shape[-2])
        bias = _of_heads(alibi_slopes, score) * np.abs(distance)
        score = score - bias
        moved = moved + 3 * np.abs(bias) + np.abs(score)
    added = [x for x in (attn_mask, attn_bias) if x is not None and x.dtype != bool]
    if added:
        total = sum(x.astype(np.float64) for x in added)
        moved = moved + np.abs(score + total) + (np.abs(total) if len(added) > 1 else 0)
    return moved


def _of_heads(x, scores):
    """What is given for each head, as it stands beside scores (..., Hq, L, S), or (L, S)."""
    x = np.asarray(x, np.float64)[..., None, None]
    return x.reshape(x.shape[-scores.ndim :])


@np.errstate(all="ignore")
def moves(query, key, **options):
    """In u, by options: what moves a score, a weight by that part of itself, and lse: d, d + e, e.

    The last is (..., Hq, L, 1), or of ones that broadcast. All 0 where no option changes a number.
    """
    sinks, mask = options.get("sinks"), options.get("attn_mask")
    changed = bool(options.get("softcap")) or options.get("alibi_slopes") is not None
    changed |= sinks is not None or (mask is not None and mask.dtype != bool)
    changed |= options.get("attn_bias") is not None
    if not changed:
        return np.zeros(()), np.zeros(()), np.zeros((1, 1))
    moved = rounded_by_options(query, key, **options)
    weights = wide(reference.attention_weights, query, key, **options)
    differences = np.where(weights > 0, moved - 3 * np.log(weights), 0.0)
    total = (weights * differences).sum(-1, keepdims=True)
    if sinks is not None:
        share = 1 - weights.sum(-1, keepdims=True)
        of_sink = share * (2 * np.abs(_of_heads(sinks, moved)) - 3 * np.log(share))
        total = total + np.where(share < 2.0**-48, 0.0, of_sink)  # what 64 bits cannot tell from 0
    # A NaN is attended: its row must be NaN, and no bound is asked for.
    results = moved, differences + total, total
    return tuple(np.nan_to_num(x, nan=0.0, posinf=np.inf) for x in results)


def check_attention(query, key, value, context="", **options):
    """out and lse of the fused call against the reference."""
    out, lse = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
    want, want_lse = wide(
        reference.scaled_dot_product_attention, query, key, value, return_lse=True, **options
    )
    shapes = f"{query.shape} {key.shape} {value.shape}"
    context = f"{context} {query.dtype} {shapes} {described(options)}"
    assert out.dtype == lse.dtype == query.dtype, context
    want_lse = np.broadcast_to(want_lse, want.shape[:-1])  # an axis may be value's alone
    u, size = unit_roundoff(query.dtype), score_size(query, key, options.get("scale"))
    plain_sum = key.shape[-2] / 4 if query.dtype == np.float64 else 0  # u is counted twice there
    all_axes = np.broadcast_to(query, (*want.shape[:-1], query.shape[-1]))
    moved = moves(all_axes, key, **options)[2]
    bound = u * (8 + 3 * size + plain_sum + 2 * moved) * largest(value)
    assert_close(out, want, bound, f"out {context}")
    with np.errstate(invalid="ignore"):
        lse_bound = u * (6 * (1 + size) + 3 * np.abs(want_lse) + moved[..., 0])
    assert_close(lse, want_lse, np.nan_to_num(lse_bound, nan=0.0), f"lse {context}")


def check_scores(query, key, context="", **options):
    """The scores and the weights against the reference."""
    context = f"{context} {query.dtype} {query.shape} {key.shape} {described(options)}"
    u, size = unit_roundoff(query.dtype), score_size(query, key, options.get("scale"))
    moved, weight_moved, _ = moves(query, key, **options)
    scores = selfattn.scaled_dot_product(query, key, **without_sinks(options))
    want = wide(reference.scaled_dot_product, query, key, **without_sinks(options))
    assert scores.dtype == query.dtype, context
    # Scale is rounded, then each step of the sum, then the product. (Elements of one sign round
    # the most: 3.8 u A was seen for 64 of them; none are drawn.) What underflows in q is off by
    # half the smallest number, times the keys; in x / softcap, times that.
    least = float(np.finfo(query.dtype).smallest_subnormal)
    steps = 1 + query.shape[-1] * (1 + largest(key)) + options.get("softcap", 0)
    bound = u * (3 * size + moved) + least * steps
    assert_close(scores, want, bound, f"scores {context}")
    weights = selfattn.attention_weights(query, key, **options)
    want = wide(reference.attention_weights, query, key, **options)
    assert weights.dtype == query.dtype, context
    # A weight is moved by a part of itself, and by its own rounding where it is subnormal.
    with np.errstate(all="ignore"):
        bound = np.nan_to_num(np.expm1(u * (8 * (1 + size) + weight_moved)) * want, nan=0.0)
        bound += least
    assert_close(weights, want, bound, f"weights {context}")


def check_each(each_isa, query, key, value, context="", *, scores=True, **options):
    """All of it under every set of kernels: the first is compared, the others have its bits."""
    want = None
    for isa in each_isa():
        got = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
        if scores:
            no_sinks = without_sinks(options)
            got += (
                selfattn.scaled_dot_product(query, key, **no_sinks),
                selfattn.attention_weights(query, key, **options),
            )
        if want is None:
            want = got
            check_attention(query, key, value, context, **options)
            if scores:
                check_scores(query, key, context, **options)
        shapes = f"{query.shape} {key.shape} {value.shape}"
        assert same_bits(got, want), (isa, context, query.dtype, shapes, described(options))
