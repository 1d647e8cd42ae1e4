"""The NumPy truth: what every kernel of selfattn must compute, written to be read.

    attention(q, k, v) = softmax(bias + cap(scale * q @ k.T), masked) @ v

Everything is computed in float64 and returned in the dtype of the inputs, one plain step after
another, the whole L x S matrix in memory. Slow on purpose: the tests compare the kernels with it,
and nothing in the package's fast path calls it. Arguments are taken as valid; shapes, names and
meanings are those of the public functions in `attention.py` and `steps.py`.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

# ------------------------------------------------------------------ the public functions


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
    wide_weights, wide_value = _aligned(weights, value, enable_gqa=enable_gqa)
    return _narrow(wide_weights @ wide_value, value.dtype)


def scaled_dot_product(query, key, attn_mask=None, is_causal=False, *, enable_gqa=False, **options):
    """The scores as the softmax sees them, -inf where masked: (..., Hq, L, S)."""
    q, k = _aligned(query, key, enable_gqa=enable_gqa)
    return _narrow(_scores(q, k, attn_mask, is_causal, **options)[0], query.dtype)


def attention_weights(
    query, key, attn_mask=None, is_causal=False, *, enable_gqa=False, sinks=None, **options
):
    """The distribution over the keys, 0 in a row that sees no key: (..., Hq, L, S)."""
    q, k = _aligned(query, key, enable_gqa=enable_gqa)
    scores, _ = _scores(q, k, attn_mask, is_causal, **options)
    return _narrow(_with_sinks(scores, sinks)[0], query.dtype)


def scaled_dot_product_attention(
    query,
    key,
    value,
    attn_mask=None,
    is_causal=False,
    *,
    enable_gqa=False,
    sinks=None,
    return_lse=False,
    **options,
):
    """The attended values (..., Hq, L, Ev); if asked for, the scores' log-sum-exp (..., Hq, L)."""
    q, k, v = _aligned(query, key, value, enable_gqa=enable_gqa)
    scores, visible = _scores(q, k, attn_mask, is_causal, **options)
    weights, lse = _with_sinks(scores, sinks)
    out = _narrow(_sum_over_visible(weights, visible, v), query.dtype)
    return (out, _narrow(lse, query.dtype)) if return_lse else out


def varlen_attention(
    query,
    key,
    value,
    cu_seqlens_q,
    cu_seqlens_k,
    attn_mask=None,
    is_causal=False,
    *,
    enable_gqa=False,
    query_offset=0,
    kv_lengths=None,
    alibi_slopes=None,
    segment_ids=None,
    return_lse=False,
    **options,
):
    """Packed sequences, each as a call of its own: (total_q, Hq, Ev), and lse (Hq, total_q)."""
    by_head = (x.swapaxes(0, 1) for x in (query, key, value))
    q, k, v = _aligned(*by_head, enable_gqa=enable_gqa)
    heads, batch = len(q), len(cu_seqlens_q) - 1
    out, lse = np.empty((*q.shape[:2], v.shape[2])), np.empty(q.shape[:2])
    if attn_mask is not None:
        longest = np.diff(cu_seqlens_k).max(initial=0)
        attn_mask = np.broadcast_to(attn_mask, (*q.shape[:2], longest))
    if alibi_slopes is not None:
        alibi_slopes = np.broadcast_to(alibi_slopes, (batch, heads))
    ids_q, ids_k = _pair(segment_ids)
    for b, ((q0, q1), (k0, k1)) in enumerate(
        zip(pairwise(cu_seqlens_q), pairwise(cu_seqlens_k), strict=True)
    ):
        out[:, q0:q1], lse[:, q0:q1] = scaled_dot_product_attention(
            q[:, q0:q1],
            k[:, k0:k1],
            v[:, k0:k1],
            None if attn_mask is None else attn_mask[:, q0:q1, : k1 - k0],
            is_causal,
            query_offset=np.broadcast_to(query_offset, batch)[b],
            kv_lengths=None if kv_lengths is None else np.broadcast_to(kv_lengths, batch)[b],
            alibi_slopes=None if alibi_slopes is None else alibi_slopes[b],
            segment_ids=None if segment_ids is None else (ids_q[q0:q1], ids_k[k0:k1]),
            return_lse=True,
            **options,
        )
    out = _narrow(out.swapaxes(0, 1), query.dtype)
    return (out, _narrow(lse, query.dtype)) if return_lse else out


def merge_states(out_a, lse_a, out_b, lse_b):
    """Attention over two disjoint sets of keys, from that over each: (..., L, E), (..., L).

    It is attention once more, over two keys: their scores are the lse, their values the outputs.
    """
    scores = np.stack([_wide(lse_a), _wide(lse_b)], -1)[..., None, :]
    values = np.stack([_wide(out_a), _wide(out_b)], -2)
    weights, lse = _distribution(scores)
    out = _sum_over_visible(weights, scores != -np.inf, values)
    return _narrow(out[..., 0, :], out_a.dtype), _narrow(lse[..., 0], lse_a.dtype)


# ------------------------------------------------------------------ scores, rule by rule


@np.errstate(all="ignore")
def _scores(
    query,
    key,
    attn_mask=None,
    is_causal=False,
    *,
    scale=None,
    query_offset=0,
    kv_lengths=None,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    segment_ids=None,
):
    """Scores with -inf where masked, and the mask itself: True where the query sees the key.

    What is -inf in a float mask is masked. What arithmetic makes -inf is not, except in a row
    where there is nothing else.
    """
    position = np.arange(query.shape[-2])[:, None] + _over_heads(query_offset)
    j = np.arange(key.shape[-2])

    scores = _scaled(query, key, scale)
    scores = _capped(scores, softcap)
    scores = _sloped(scores, alibi_slopes, np.abs(position - j))
    scores = _biased(scores, attn_mask)

    visible = np.ones(scores.shape, bool)
    visible &= _in_mask(attn_mask)
    visible &= _in_range(position, j, is_causal, window_size, kv_lengths)
    visible &= _in_segment(segment_ids, scores)

    scores = np.where(visible, scores, -np.inf)
    return scores, visible & (scores != -np.inf).any(-1, keepdims=True)


def _scaled(query, key, scale):
    head_dim = query.shape[-1]
    if scale is None:
        scale = 1.0 / math.sqrt(head_dim) if head_dim else 1.0
    return scale * (query @ key.swapaxes(-1, -2))


def _capped(scores, softcap):
    return softcap * np.tanh(scores / softcap) if softcap else scores


def _sloped(scores, alibi_slopes, distance):
    if alibi_slopes is None:
        return scores
    return scores - _per_head(alibi_slopes, scores) * distance


def _biased(scores, attn_mask):
    if attn_mask is None or attn_mask.dtype == bool:
        return scores
    return scores + attn_mask


def _in_mask(attn_mask):
    if attn_mask is None:
        return True
    return attn_mask if attn_mask.dtype == bool else attn_mask != -np.inf


def _in_range(position, j, is_causal, window_size, kv_lengths):
    """Which query sees which key, by the rules that are a range of keys: (..., 1, L, S) or (L, S).

    With p = i + query_offset the position of query i: causal is j <= p, a window (l, r) is
    p - l <= j <= p + r, a length n is j < n.
    """
    left, right = window_size
    visible = np.True_
    if is_causal:
        visible = visible & (j <= position)
    if left >= 0:
        visible = visible & (j >= position - left)
    if right >= 0:
        visible = visible & (j <= position + right)
    if kv_lengths is not None:
        visible = visible & (j < _over_heads(kv_lengths))
    return visible


def _in_segment(segment_ids, scores):
    """Where the key's id is the query's: (..., 1, L, S)."""
    if segment_ids is None:
        return True
    ids_q, ids_k = _pair(segment_ids)
    return _fitting(ids_q[..., None, :, None] == ids_k[..., None, None, :], scores)


# ------------------------------------------------------------------ softmax and sum


@np.errstate(all="ignore")
def _distribution(scores, axis=-1, sink=-np.inf):
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


def _with_sinks(scores, sinks):
    return _distribution(scores, sink=-np.inf if sinks is None else _per_head(sinks, scores))


@np.errstate(all="ignore")
def _sum_over_visible(weights, visible, value):
    """`weights @ value`, but a masked value adds nothing even where it is NaN or inf."""
    finite = np.isfinite(value)
    out = weights @ np.where(finite, value, 0.0)
    if not finite.all():
        terms = weights[..., None] * np.where(finite, 0.0, value)[..., None, :, :]
        out = out + np.where(visible[..., None], terms, 0.0).sum(-2)
    return out


# ------------------------------------------------------------------ axes and dtypes


def _aligned(query, *others, enable_gqa):
    """All in float64, with the same axes before the last two: (..., Hq).

    Each key or value head is repeated for its group of query heads (`repeat_interleave` order);
    what is 1 or missing broadcasts.
    """
    arrays = [_wide(x) for x in (query, *others)]
    if enable_gqa and query.ndim > 2:
        heads = query.shape[-3]
        for n, x in enumerate(arrays):
            if x.ndim > 2 and x.shape[-3] and heads % x.shape[-3] == 0:
                arrays[n] = np.repeat(x, heads // x.shape[-3], axis=-3)
    leading = np.broadcast_shapes(*(x.shape[:-2] for x in arrays))
    return [np.broadcast_to(x, leading + x.shape[-2:]) for x in arrays]


def _over_heads(x):
    """An option given per batch entry, with axes for the head, the query and the key appended."""
    x = np.asarray(x)
    return x[..., None, None, None] if x.ndim else x


def _per_head(x, scores):
    """An option given per head, with axes for the query and the key appended."""
    return _fitting(_wide(x)[..., None, None], scores)


def _fitting(x, scores):
    """`x` without a head axis where the scores have none: those of 2-D inputs are one head."""
    return x.reshape(x.shape[-scores.ndim :])


def _pair(segment_ids):
    """The ids of the queries and of the keys: one array stands for both."""
    return segment_ids if isinstance(segment_ids, (tuple, list)) else (segment_ids, segment_ids)


def _wide(x):
    return np.asarray(x, np.float64)


def _narrow(x, dtype):
    with np.errstate(over="ignore"):
        return x.astype(dtype)
