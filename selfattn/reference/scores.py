"""The scores and the masks, rule by rule, in the order that the semantics pin."""

from __future__ import annotations

import math

import numpy as np

from .axes import fitting, over_heads, pair, per_head, wide


@np.errstate(all="ignore")
def masked_scores(
    query,
    key,
    attn_mask=None,
    is_causal=False,
    *,
    scale=None,
    attn_bias=None,
    query_offset=0,
    query_lengths=None,
    kv_starts=None,
    kv_lengths=None,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    segment_ids=None,
):
    """Scores with -inf where masked, and the mask itself: True where the query sees the key.

    What is -inf in a float mask or in the bias is masked. What arithmetic makes -inf is not, except
    in a row where there is nothing else.
    """
    i, j = np.arange(query.shape[-2])[:, None], np.arange(key.shape[-2])
    position = i + over_heads(query_offset)

    scores = _scaled(query, key, scale)
    scores = _capped(scores, softcap)
    scores = _sloped(scores, alibi_slopes, np.abs(position - j))
    scores = _biased(scores, attn_mask, attn_bias)

    visible = np.ones(scores.shape, bool)
    visible &= _in_mask(attn_mask) & _in_mask(attn_bias)
    visible &= _in_range(position, j, is_causal, window_size)
    visible &= _in_lengths(i, j, query_lengths, kv_starts, kv_lengths)
    visible &= _in_segment(segment_ids, scores)

    scores = np.where(visible, scores, -np.inf)
    return scores, visible & (scores != -np.inf).any(-1, keepdims=True)


@np.errstate(all="ignore")
def derivative_of_cap(query, key, *, scale=None, softcap=0.0, **_):
    """The derivative of what `softcap` makes of a score t: 1 - tanh(t / softcap)^2."""
    if not softcap:
        return 1.0
    return 1.0 - np.tanh(_scaled(query, key, scale) / softcap) ** 2


def factor(query, scale=None):
    """What multiplies the scores: `scale`, or 1 / sqrt(head_dim)."""
    head_dim = query.shape[-1]
    if scale is None:
        scale = 1.0 / math.sqrt(head_dim) if head_dim else 1.0
    return scale


def _scaled(query, key, scale):
    return factor(query, scale) * (query @ key.swapaxes(-1, -2))


def _capped(scores, softcap):
    return softcap * np.tanh(scores / softcap) if softcap else scores


def _sloped(scores, alibi_slopes, distance):
    if alibi_slopes is None:
        return scores
    return scores - per_head(alibi_slopes, scores) * distance


def _biased(scores, *biases):
    """Plus the numbers of a float mask and of a bias; their sum first, as in one array of both."""
    given = [wide(x) for x in biases if x is not None and x.dtype != bool]
    return scores + sum(given) if given else scores


def _in_mask(attn_mask):
    if attn_mask is None:
        return True
    return attn_mask if attn_mask.dtype == bool else attn_mask != -np.inf


def _in_range(position, j, is_causal, window_size):
    """Which query sees which key, by the rules about positions: (..., 1, L, S) or (L, S).

    With p = i + query_offset the position of query i: causal is j <= p, a window (l, r) is
    p - l <= j <= p + r.
    """
    left, right = window_size
    visible = np.True_
    if is_causal:
        visible = visible & (j <= position)
    if left >= 0:
        visible = visible & (j >= position - left)
    if right >= 0:
        visible = visible & (j <= position + right)
    return visible


def _in_lengths(i, j, query_lengths, kv_starts, kv_lengths):
    """Which query and which key is no padding, whatever the positions: the same shapes."""
    visible = np.True_
    if query_lengths is not None:
        visible = visible & (i < over_heads(query_lengths))
    if kv_starts is not None:
        visible = visible & (j >= over_heads(kv_starts))
    if kv_lengths is not None:
        visible = visible & (j < over_heads(kv_lengths))
    return visible


def _in_segment(segment_ids, scores):
    """Where the key's id is the query's: (..., 1, L, S)."""
    if segment_ids is None:
        return True
    ids_q, ids_k = pair(segment_ids)
    return fitting(ids_q[..., None, :, None] == ids_k[..., None, None, :], scores)
