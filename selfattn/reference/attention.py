"""Attention at once."""

from __future__ import annotations

from .axes import aligned, narrow
from .distribution import sum_over_visible, with_sinks
from .dropout import dropout_factor
from .scores import masked_scores


def scaled_dot_product_attention(
    query,
    key,
    value,
    attn_mask=None,
    is_causal=False,
    *,
    enable_gqa=False,
    dropout_p=0.0,
    dropout_seed=0,
    return_lse=False,
    **options,
):
    """The attended values (..., Hq, L, Ev); if asked for, the scores' log-sum-exp (..., Hq, L)."""
    q, k, v = aligned(query, key, value, enable_gqa=enable_gqa)
    scores_shape = *q.shape[:-1], k.shape[-2]
    dropout = dropout_factor(scores_shape, dropout_p, dropout_seed)
    out, lse = attend(q, k, v, dropout, attn_mask, is_causal, **options)
    out = narrow(out, query.dtype)
    return (out, narrow(lse, query.dtype)) if return_lse else out


def attend(q, k, v, dropout, attn_mask=None, is_causal=False, *, sinks=None, **options):
    """out and lse of `aligned` arrays, the weights multiplied by `dropout`; in float64."""
    scores, visible = masked_scores(q, k, attn_mask, is_causal, **options)
    weights, lse = with_sinks(scores, sinks, options.get("query_lengths"))
    return sum_over_visible(dropout * weights, visible, v), lse
