"""Softmax of scores, with sinks or without, and sums that leave out what is masked."""

from __future__ import annotations

import numpy as np

from .axes import fitting, over_heads, per_head


@np.errstate(all="ignore")
def distribution(scores, axis=-1, sink=-np.inf):
    """Stable softmax of float64 scores, and log(sum(exp(scores))); a masked row is 0 and -inf.

    A sink is one more score that has a share of the sum, but no weight of its own to return. In a
    masked row it is the whole sum, and the weights are 0 whatever it is.
    """
    masked = (scores == -np.inf).all(axis, keepdims=True)
    top = np.maximum(scores.max(axis, keepdims=True, initial=-np.inf), sink)
    shift = np.where(top == -np.inf, 0.0, top)
    weights = np.exp(scores - shift)
    total = weights.sum(axis, keepdims=True) + np.exp(sink - shift)
    lse = np.squeeze(np.where(masked, sink, top + np.log(total)), axis)
    return np.where(masked, 0.0, weights / np.where(total == 0.0, 1.0, total)), lse


def with_sinks(scores, sinks, query_lengths=None):
    sink = -np.inf if sinks is None else _sink_of_rows(scores, sinks, query_lengths)
    return distribution(scores, sink=sink)


def share_of_sinks(scores, sinks, query_lengths=None):
    """The weight of the sink itself, as one more key, in each row: (..., Hq, L, 1)."""
    column = np.broadcast_to(_sink_of_rows(scores, sinks, query_lengths), (*scores.shape[:-1], 1))
    return distribution(np.concatenate([scores, column], -1))[0][..., -1:]


def _sink_of_rows(scores, sinks, query_lengths):
    """Each row's sink; a query that is padding has none."""
    return np.where(is_query(scores, query_lengths), per_head(sinks, scores), -np.inf)


def is_query(scores, query_lengths):
    """Whether a row is a query, and not padding past `query_lengths`: (..., 1, L, 1) or True."""
    if query_lengths is None:
        return np.True_
    is_within = np.arange(scores.shape[-2])[:, None] < over_heads(query_lengths)
    return fitting(is_within, scores) if is_within.ndim > scores.ndim else is_within


@np.errstate(all="ignore")
def sum_over_visible(weights, visible, value):
    """`weights @ value`, but what is masked adds nothing even where it is NaN or inf.

    (..., m, n), (..., m, n), (..., n, e) -> (..., m, e). The product takes the finite numbers;
    what is left are the terms with another in them, each added where it is visible.
    """
    weights = np.where(visible, weights, 0.0)
    finite, finite_value = np.isfinite(weights), np.isfinite(value)
    out = np.where(finite, weights, 0.0) @ np.where(finite_value, value, 0.0)
    leading = tuple(range(value.ndim - 2))
    others = ~finite.all((*leading, -2)) | ~finite_value.all((*leading, -1))
    for n in np.flatnonzero(others):
        left = visible[..., n, None] & ~(finite[..., n, None] & finite_value[..., n, None, :])
        out = out + np.where(left, weights[..., n, None] * value[..., n, None, :], 0.0)
    return out
