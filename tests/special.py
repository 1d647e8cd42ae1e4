"""What tests of NaN, infinity and masked rows share."""

import math

import numpy as np
from arrays import same_bits

import selfattn

NAN, INF = math.nan, math.inf
POISON = [NAN, INF, -INF]
# Few rows and many: the two shapes of kernel.
ROWS = [1, 3, 40]


def attend(*arrays, **options):
    return selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)


def is_masked(out, lse):
    """The row is 0 (not -0), and its lse -inf."""
    zero = np.zeros_like(out)
    return same_bits(np.ascontiguousarray(out), zero) and bool((lse == -INF).all())


def expected(scores, values):
    """softmax(scores) @ values of one row and its lse, in plain Python; scores may be anything."""
    if any(math.isnan(s) or s == INF for s in scores):
        return NAN, NAN  # inf - inf
    top = max(scores, default=-INF)
    if top == -INF:
        return 0.0, -INF
    weights = [math.exp(s - top) for s in scores]
    total = sum(weights)
    return sum(w * v for w, v in zip(weights, values, strict=True)) / total, top + math.log(total)
