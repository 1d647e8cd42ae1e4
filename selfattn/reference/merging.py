"""States of attention over disjoint sets of keys, merged, and the gradients of that.

It is attention once more: over keys that are the states, whose scores are the lse, whose values are
the outputs.
"""

from __future__ import annotations

import numpy as np

from ..gradients import MergeGradients
from .axes import narrow, wide
from .distribution import distribution, sum_over_visible


def merge_states(out_a, lse_a, out_b, lse_b):
    """Attention over two disjoint sets of keys, from that over each: (..., L, E), (..., L)."""
    return merge_states_many([out_a, out_b], [lse_a, lse_b])


def merge_states_many(outs, lses, axis=0, *, lse_heads_first=False):
    """Of any number of sets, which are an axis of both arrays, or sequences of arrays."""
    values, scores = _keys(outs, lses, axis, lse_heads_first)
    scores = scores[..., None, :]
    weights, lse = distribution(scores)
    out = sum_over_visible(weights, scores != -np.inf, values)
    lse = _lse_order(lse[..., 0], lse_heads_first)
    return narrow(out[..., 0, :], _dtype(outs)), narrow(lse, _dtype(lses))


@np.errstate(all="ignore")
def merge_states_backward(grad_out, grad_lse, outs, lses, axis=0, *, lse_heads_first=False):
    """The gradients of outs and lses: stacked arrays, whatever they were given as."""
    values, scores = _keys(outs, lses, axis, lse_heads_first)
    is_empty = scores == -np.inf
    p, _ = distribution(scores)
    of_out = wide(grad_out)[..., None, :]
    of_lse = 0.0 if grad_lse is None else _lse_order(wide(grad_lse), lse_heads_first)[..., None]
    dots = np.where(is_empty, 0.0, (of_out * np.where(is_empty[..., None], 0.0, values)).sum(-1))
    mean = np.where(is_empty, 0.0, p * dots).sum(-1, keepdims=True)
    of_outs = np.where(is_empty[..., None], 0.0, p[..., None] * of_out)
    of_lses = np.where(is_empty, 0.0, p * (of_lse + (dots - mean)))
    of_outs = np.moveaxis(of_outs, -2, axis)
    of_lses = np.moveaxis(_lse_order(np.moveaxis(of_lses, -1, 0), lse_heads_first), 0, axis)
    return MergeGradients(narrow(of_outs, _dtype(outs)), narrow(of_lses, _dtype(lses)))


def _keys(outs, lses, axis, lse_heads_first):
    """Values (..., n, E) and scores (..., n) of n states."""
    values, scores = (
        np.moveaxis(wide(x), axis, 0) if isinstance(x, np.ndarray) else np.stack(list(map(wide, x)))
        for x in (outs, lses)
    )
    scores = _lse_order(scores, lse_heads_first)
    return np.moveaxis(values, 0, -2), np.moveaxis(scores, 0, -1)


def _dtype(states):
    return states.dtype if isinstance(states, np.ndarray) else states[0].dtype


def _lse_order(lse, lse_heads_first):
    """The rows of lse in the order of out's, and back."""
    return np.swapaxes(lse, -1, -2) if lse_heads_first else lse
