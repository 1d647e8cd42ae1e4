"""The gradients of attention, by the formulas alone, in float64.

With g = grad_out, D what dropout multiplies the weights P by, y(t) the capped score:

    out   = (P D) v                       delta = sum over e of g out, less the gradient of lse
    dv    = (P D)' g                      dmask = dbias = dS = P (D (g v') - delta)
    dq    = scale (dS y'(t)) k            dk    = scale (dS y'(t))' q
    dsink = - sum over i of P_sink delta

A masked pair has no part in any sum, whatever q, k, v or g hold there; a row that sees no key has
gradients of exactly 0.
"""

from __future__ import annotations

import numpy as np

from ..gradients import AttentionGradients
from .axes import aligned, narrow, summed_over_groups, summed_to, wide
from .distribution import is_query, share_of_sinks, sum_over_visible, with_sinks
from .dropout import dropout_factor
from .scores import derivative_of_cap, factor, masked_scores


def scaled_dot_product_attention_backward(
    grad_out,
    query,
    key,
    value,
    out,
    lse,
    attn_mask=None,
    is_causal=False,
    *,
    enable_gqa=False,
    dropout_p=0.0,
    dropout_seed=0,
    grad_lse=None,
    mask_grad=False,
    bias_grad=False,
    sinks_grad=False,
    sinks=None,
    **options,
):
    """The gradients of `sum(grad_out * out)`, each of the shape and dtype of its input.

    With `grad_lse`, those of that plus `sum(grad_lse * lse)`. `out` and `lse` are there for the
    signature's sake: as they are rounded to the inputs' dtype, they are not looked at, and all is
    computed from the inputs.
    """
    q, k, v = aligned(query, key, value, enable_gqa=enable_gqa)
    scores_shape = *q.shape[:-1], k.shape[-2]
    dropout = dropout_factor(scores_shape, dropout_p, dropout_seed)
    dq, dk, dv, dscores, dsinks = gradients(
        *(wide(grad_out), q, k, v, dropout, attn_mask, is_causal),
        sinks=sinks,
        grad_lse=None if grad_lse is None else wide(grad_lse),
        **options,
    )
    return AttentionGradients(
        *(
            narrow(summed_over_groups(gradient, x.shape), x.dtype)
            for gradient, x in ((dq, query), (dk, key), (dv, value))
        ),
        of_bias(dscores, attn_mask) if mask_grad else None,
        narrow(sum_by_head(dsinks), sinks.dtype) if sinks_grad else None,
        of_bias(dscores, options["attn_bias"]) if bias_grad else None,
    )


@np.errstate(all="ignore")
def gradients(
    g, q, k, v, dropout, attn_mask=None, is_causal=False, *, sinks=None, grad_lse=None, **options
):
    """Those of `aligned` q, k, v, of the scores and of each row's sink; nothing summed, float64."""
    scores, visible = masked_scores(q, k, attn_mask, is_causal, **options)
    query_lengths = options.get("query_lengths")
    weights, _ = with_sinks(scores, sinks, query_lengths)
    kept = dropout * weights
    out = sum_over_visible(kept, visible, v)
    delta = (g * out).sum(-1, keepdims=True)
    if grad_lse is not None:
        delta = delta - grad_lse[..., None]
    dweights = dropout * (g @ v.swapaxes(-1, -2))
    dscores = np.where(visible, weights * (dweights - delta), 0.0)
    dproduct = factor(q, options.get("scale")) * (dscores * derivative_of_cap(q, k, **options))

    dq = sum_over_visible(dproduct, visible, k)
    dk = sum_over_visible(dproduct.swapaxes(-1, -2), visible.swapaxes(-1, -2), q)
    dv = sum_over_visible(kept.swapaxes(-1, -2), visible.swapaxes(-1, -2), g)
    dsinks = None
    if sinks is not None:
        attended = visible.any(-1, keepdims=True)
        # Where no key is seen, lse is the sink; of padding it is not.
        alone = 0.0 if grad_lse is None else grad_lse[..., None]
        alone = np.where(is_query(scores, query_lengths), alone, 0.0)
        share = share_of_sinks(scores, sinks, query_lengths)
        dsinks = np.where(attended, -share * delta, alone)
    return dq, dk, dv, dscores, dsinks


def of_bias(dscores, bias):
    """The gradient of what is added to the scores, a float mask or a bias, from theirs."""
    return narrow(summed_to(dscores, bias.shape), bias.dtype)


@np.errstate(all="ignore")
def sum_by_head(dsinks):
    """(..., Hq, L, 1) -> (Hq,); that of 2-D inputs is one head."""
    by_head = dsinks.sum((-2, -1))
    return by_head.sum(tuple(range(by_head.ndim - 1))).reshape(by_head.shape[-1:] or (1,))
