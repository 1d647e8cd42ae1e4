"""The NumPy truth: what every kernel of selfattn must compute, written to be read.

    attention(q, k, v) = softmax(scale * q @ k.T, masked) @ v

Everything is computed in float64 and returned in the dtype of the inputs, one plain step after
another, the whole L x S matrix in memory. Slow on purpose: the tests compare the kernels with it,
and nothing in the package's fast path calls it. Arguments are taken as valid; shapes, names and
meanings are those of the public functions in `attention.py` and `steps.py`.
"""

from __future__ import annotations

import math

import numpy as np


def project(x, weight, bias=None):
    """`x @ weight.T + bias`: (..., n_in), (n_out, n_in), (n_out,) -> (..., n_out)."""
    y = _wide(x) @ _wide(weight).T
    if bias is not None:
        y = y + _wide(bias)
    return _narrow(y, x.dtype)


def softmax(x, axis=-1):
    """`exp(x - max) / sum(exp(x - max))` along `axis`; a slice of nothing but -inf gives 0."""
    return _narrow(_distribution(_wide(x), axis)[0], x.dtype)


@np.errstate(all="ignore")
def weighted_sum(weights, value, *, enable_gqa=False):
    """`weights @ value`: (..., Hq, L, S), (..., Hkv, S, Ev) -> (..., Hq, L, Ev)."""
    if enable_gqa:
        value = _per_query_head(value, weights.shape[-3])
    return _narrow(_wide(weights) @ _wide(value), value.dtype)


def scaled_dot_product(query, key, is_causal=False, **options):
    """The scores `scale * q @ k.T`, -inf where a query does not see a key: (..., Hq, L, S)."""
    return _narrow(_scores(query, key, is_causal, **options)[0], query.dtype)


def attention_weights(query, key, is_causal=False, **options):
    """The distribution over the keys, 0 in a row that sees no key: (..., Hq, L, S)."""
    scores, _ = _scores(query, key, is_causal, **options)
    return _narrow(_distribution(scores, -1)[0], query.dtype)


def scaled_dot_product_attention(
    query, key, value, is_causal=False, *, enable_gqa=False, return_lse=False, **options
):
    """The attended values (..., Hq, L, Ev); if asked for, the scores' log-sum-exp (..., Hq, L)."""
    scores, visible = _scores(query, key, is_causal, enable_gqa=enable_gqa, **options)
    weights, lse = _distribution(scores, -1)
    visible = visible & (lse != -np.inf)[..., None]  # what is -inf by arithmetic is as masked
    if enable_gqa:
        value = _per_query_head(value, query.shape[-3])
    out = _narrow(_sum_over_visible(weights, visible, _wide(value)), query.dtype)
    return (out, _narrow(lse, query.dtype)) if return_lse else out


@np.errstate(all="ignore")
def _scores(
    query,
    key,
    is_causal=False,
    *,
    scale=None,
    enable_gqa=False,
    query_offset=0,
    kv_lengths=None,
    window_size=(-1, -1),
):
    """Scores with -inf where masked, and the mask itself: True where the query sees the key."""
    seqlen_q, head_dim = query.shape[-2:]
    if scale is None:
        scale = 1.0 / math.sqrt(head_dim) if head_dim else 1.0
    if enable_gqa:
        key = _per_query_head(key, query.shape[-3])
    scores = scale * (_wide(query) @ _wide(key).swapaxes(-1, -2))
    visible = _visible(seqlen_q, key.shape[-2], is_causal, query_offset, kv_lengths, window_size)
    visible = np.broadcast_to(visible, scores.shape)
    return np.where(visible, scores, -np.inf), visible


def _visible(seqlen_q, seqlen_k, is_causal, query_offset, kv_lengths, window_size):
    """Which query sees which key, by the rules that are a range of keys: (..., 1, L, S) or (L, S).

    With p = i + query_offset the position of query i: causal is j <= p, a window (l, r) is
    p - l <= j <= p + r, a length n is j < n.
    """
    i = np.arange(seqlen_q)[:, None]
    j = np.arange(seqlen_k)
    position = i + _over_heads(query_offset)
    left, right = window_size
    visible = np.ones((seqlen_q, seqlen_k), bool)
    if is_causal:
        visible = visible & (j <= position)
    if left >= 0:
        visible = visible & (j >= position - left)
    if right >= 0:
        visible = visible & (j <= position + right)
    if kv_lengths is not None:
        visible = visible & (j < _over_heads(kv_lengths))
    return visible


@np.errstate(all="ignore")
def _distribution(scores, axis):
    """Stable softmax of float64 scores, and log(sum(exp(scores))); a masked row is 0 and -inf."""
    if scores.shape[axis] == 0:
        return scores, np.full(np.delete(scores.shape, axis), -np.inf)
    top = scores.max(axis, keepdims=True)
    weights = np.exp(scores - np.where(top == -np.inf, 0.0, top))
    total = weights.sum(axis, keepdims=True)
    lse = np.squeeze(top + np.log(total), axis)
    return weights / np.where(total == 0.0, 1.0, total), lse


@np.errstate(all="ignore")
def _sum_over_visible(weights, visible, value):
    """`weights @ value`, but a masked value adds nothing even where it is NaN or inf."""
    finite = np.isfinite(value)
    out = weights @ np.where(finite, value, 0.0)
    if not finite.all():
        terms = weights[..., None] * np.where(finite, 0.0, value)[..., None, :, :]
        out = out + np.where(visible[..., None], terms, 0.0).sum(-2)
    return out


def _per_query_head(x, num_heads_q):
    """Repeat each key or value head for its group of query heads (`repeat_interleave` order)."""
    return np.repeat(x, num_heads_q // x.shape[-3], axis=-3) if x.shape[-3] else x


def _over_heads(x):
    """An option given per batch entry, with axes for the head, the query and the key appended."""
    x = np.asarray(x)
    return x[..., None, None, None] if x.ndim else x


def _wide(x):
    return np.asarray(x, np.float64)


def _narrow(x, dtype):
    with np.errstate(over="ignore"):
        return x.astype(dtype)
