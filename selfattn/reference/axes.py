"""Axes that broadcast, repeated forward and summed backward; and dtypes: float64 inside."""

from __future__ import annotations

import numpy as np


def aligned(query, *others, enable_gqa):
    """All in float64, with the same axes before the last two: (..., Hq).

    Each key or value head is repeated for its group of query heads (`repeat_interleave` order);
    what is 1 or missing broadcasts.
    """
    arrays = [wide(x) for x in (query, *others)]
    if enable_gqa and query.ndim > 2:
        heads = query.shape[-3]
        for n, x in enumerate(arrays):
            if x.ndim > 2 and x.shape[-3] and heads % x.shape[-3] == 0:
                arrays[n] = np.repeat(x, heads // x.shape[-3], axis=-3)
    leading = np.broadcast_shapes(*(x.shape[:-2] for x in arrays))
    return [np.broadcast_to(x, leading + x.shape[-2:]) for x in arrays]


@np.errstate(all="ignore")
def summed_over_groups(gradient, shape):
    """What `aligned` repeated, summed: from (..., Hq, n, e) to `shape`, that of the input."""
    heads = gradient.shape[-3] if gradient.ndim > 2 else 1
    if len(shape) > 2 and shape[-3] and heads % shape[-3] == 0:
        groups = shape[-3], heads // shape[-3]
        gradient = gradient.reshape(*gradient.shape[:-3], *groups, *gradient.shape[-2:]).sum(-3)
    return summed_to(gradient, shape)


@np.errstate(all="ignore")
def summed_to(gradient, shape):
    """What broadcasting repeated, summed: back to `shape`."""
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    ones = tuple(a for a, n in enumerate(shape) if n == 1)
    return np.asarray(gradient.sum(ones, keepdims=True))


def over_heads(x):
    """An option given per batch entry, with axes for the head, the query and the key appended."""
    x = np.asarray(x)
    return x[..., None, None, None] if x.ndim else x


def per_head(x, scores):
    """An option given per head, with axes for the query and the key appended."""
    return fitting(wide(x)[..., None, None], scores)


def fitting(x, scores):
    """`x` without a head axis where the scores have none: those of 2-D inputs are one head."""
    return x.reshape(x.shape[-scores.ndim :])


def pair(segment_ids):
    """The ids of the queries and of the keys: one array stands for both."""
    return segment_ids if isinstance(segment_ids, (tuple, list)) else (segment_ids, segment_ids)


def wide(x):
    return np.asarray(x, np.float64)


def narrow(x, dtype):
    with np.errstate(over="ignore"):
        return x.astype(dtype)
