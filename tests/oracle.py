"""Attention in a type longer than the kernels': what errors are measured against.

Written apart from selfattn/reference.py, which test_reference.py compares with plain Python. The
mask comes as an array of bools; the scale is the float64 that the contract rounds 1 / sqrt(E) to.
"""

import math

import numpy as np
import pytest

needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 60, reason="long double is no longer than float64 here"
)


def wider(dtype):
    """float64 for float32, the machine's long double for float64."""
    return np.float64 if dtype == np.float32 else np.longdouble


@np.errstate(divide="ignore", invalid="ignore")
def attention(query, key, value, mask=None, scale=None):
    """out and lse, in the wider type: (..., L, Ev), (..., L)."""
    wide = wider(query.dtype)
    query, key, value = (x.astype(wide) for x in (query, key, value))
    scale = wide(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scores = scale * (query @ key.swapaxes(-1, -2))
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(-1, keepdims=True)
    out = (weights @ value) / np.where(total == 0, 1, total)
    return out, (top + np.log(total))[..., 0]
