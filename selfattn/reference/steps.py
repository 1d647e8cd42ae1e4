"""The steps of attention, each on its own."""

from __future__ import annotations

import numpy as np

from .axes import aligned, narrow, wide
from .distribution import distribution, with_sinks
from .scores import masked_scores


def project(x, weight, bias=None):
    """`x @ weight.T + bias`: (..., n_in), (n_out, n_in), (n_out,) -> (..., n_out)."""
    y = wide(x) @ wide(weight).T
    if bias is not None:
        y = y + wide(bias)
    return narrow(y, x.dtype)


def softmax(x, axis=-1):
    """`exp(x - max) / sum(exp(x - max))` along `axis`; a slice of nothing but -inf gives 0."""
    return narrow(distribution(wide(x), axis)[0], x.dtype)


@np.errstate(all="ignore")
def weighted_sum(weights, value, *, enable_gqa=False):
    """`weights @ value`: (..., Hq, L, S), (..., Hkv, S, Ev) -> (..., Hq, L, Ev)."""
    wide_weights, wide_value = aligned(weights, value, enable_gqa=enable_gqa)
    return narrow(wide_weights @ wide_value, value.dtype)


def scaled_dot_product(query, key, attn_mask=None, is_causal=False, *, enable_gqa=False, **options):
    """The scores as the softmax sees them, -inf where masked: (..., Hq, L, S)."""
    q, k = aligned(query, key, enable_gqa=enable_gqa)
    return narrow(masked_scores(q, k, attn_mask, is_causal, **options)[0], query.dtype)


def attention_weights(
    query, key, attn_mask=None, is_causal=False, *, enable_gqa=False, sinks=None, **options
):
    """The distribution over the keys, 0 in a row that sees no key: (..., Hq, L, S)."""
    q, k = aligned(query, key, enable_gqa=enable_gqa)
    scores, _ = masked_scores(q, k, attn_mask, is_causal, **options)
    return narrow(with_sinks(scores, sinks)[0], query.dtype)
