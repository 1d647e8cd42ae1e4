"""The steps of attention, each on its own, and the gradients of the first."""

from __future__ import annotations

import math

import numpy as np

from ..gradients import ProjectionGradients
from .axes import aligned, narrow, wide
from .distribution import distribution, with_sinks
from .dropout import dropout_factor
from .scores import masked_scores


def project(x, weight, bias=None):
    """`x @ weight.T + bias`: (..., n_in), (n_out, n_in), (n_out,) -> (..., n_out)."""
    y = wide(x) @ wide(weight).T
    if bias is not None:
        y = y + wide(bias)
    return narrow(y, x.dtype)


def project_backward(grad_out, x, weight, bias=None):
    """The gradients of x, weight and, where there is one, bias."""
    wide_grad, wide_x = wide(grad_out), wide(x)
    of_x = wide_grad @ wide(weight)
    rows = math.prod(x.shape[:-1])  # which -1 does not tell where there are no columns
    rows_grad, rows_x = wide_grad.reshape(rows, len(weight)), wide_x.reshape(rows, x.shape[-1])
    rows_x = np.where(rows_grad.any(-1, keepdims=True), rows_x, 0)
    of_weight = np.einsum("ni,nj->ij", rows_grad, rows_x)
    of_bias = None if bias is None else narrow(rows_grad.sum(0), x.dtype)
    return ProjectionGradients(narrow(of_x, x.dtype), narrow(of_weight, x.dtype), of_bias)


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
    query,
    key,
    attn_mask=None,
    is_causal=False,
    *,
    dropout_p=0.0,
    enable_gqa=False,
    sinks=None,
    dropout_seed=0,
    **options,
):
    """The distribution over the keys, 0 in a row that sees no key: (..., Hq, L, S)."""
    q, k = aligned(query, key, enable_gqa=enable_gqa)
    scores, _ = masked_scores(q, k, attn_mask, is_causal, **options)
    dropout = dropout_factor(scores.shape, dropout_p, dropout_seed)
    weights, _ = with_sinks(scores, sinks, options.get("query_lengths"))
    return narrow(dropout * weights, query.dtype)
