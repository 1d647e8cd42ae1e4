"""Attention in a type longer than the kernels': what errors are measured against.

Written apart from selfattn/reference/, which test_reference.py compares with plain Python. The
mask comes as an array, of bools or of numbers to add; the scale is 1 / sqrt(E), rounded
to float64, as docs/semantics.md has it.
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
def attention(query, key, value, mask=None, scale=None, *, softcap=0.0, sinks=None):
    """out and lse, in the wider type: (..., L, Ev), (..., L)."""
    wide = wider(query.dtype)
    query, key, value = (x.astype(wide) for x in (query, key, value))
    scale = wide(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scores = scale * (query @ key.swapaxes(-1, -2))
    if softcap:
        scores = wide(softcap) * np.tanh(scores / wide(softcap))
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    top = scores.max(-1, keepdims=True)
    sink = wide(-np.inf) if sinks is None else sinks.astype(wide)[..., None, None]
    top = np.maximum(top, sink)
    shift = np.where(np.isfinite(top), top, 0)
    weights = np.exp(scores - shift)
    total = weights.sum(-1, keepdims=True) + np.exp(sink - shift)
    out = (weights @ value) / np.where(total == 0, 1, total)
    return out, (top + np.log(total))[..., 0]
