"""Packed sequences, each as a call of its own, forward and backward."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ..gradients import AttentionGradients
from .attention import attend
from .axes import aligned, narrow, pair, summed_over_groups, summed_to, wide
from .backward import gradients, sum_by_head
from .dropout import dropout_factor


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
    dropout_p=0.0,
    dropout_seed=0,
    return_lse=False,
    **options,
):
    """Packed sequences, each as a call of its own: (total_q, Hq, Ev), and lse (Hq, total_q)."""
    by_head = (x.swapaxes(0, 1) for x in (query, key, value))
    q, k, v = aligned(*by_head, enable_gqa=enable_gqa)
    out, lse = np.empty((*q.shape[:2], v.shape[2])), np.empty(q.shape[:2])
    for b, (rows, keys, own) in enumerate(
        _sequences(len(q), cu_seqlens_q, cu_seqlens_k, attn_mask, **options)
    ):
        q_b, k_b, v_b = q[:, rows], k[:, keys], v[:, keys]
        scores_shape = *q_b.shape[:2], k_b.shape[1]
        dropout = dropout_factor(scores_shape, dropout_p, dropout_seed, sequence=b)
        out[:, rows], lse[:, rows] = attend(q_b, k_b, v_b, dropout, is_causal=is_causal, **own)
    out = narrow(out.swapaxes(0, 1), query.dtype)
    return (out, narrow(lse, query.dtype)) if return_lse else out


def varlen_attention_backward(
    grad_out,
    query,
    key,
    value,
    out,
    lse,
    cu_seqlens_q,
    cu_seqlens_k,
    attn_mask=None,
    is_causal=False,
    *,
    enable_gqa=False,
    dropout_p=0.0,
    dropout_seed=0,
    grad_lse=None,
    mask_grad=False,
    sinks_grad=False,
    **options,
):
    """The gradients of `sum(grad_out * out)`, each of the shape and dtype of its input.

    `out` and `lse` are not looked at, as in `scaled_dot_product_attention_backward`.
    """
    inputs = query, key, value
    by_head = [x.swapaxes(0, 1) for x in inputs]
    q, k, v = aligned(*by_head, enable_gqa=enable_gqa)
    g = wide(grad_out).swapaxes(0, 1)
    dq, dk, dv = (np.empty(x.shape) for x in (q, k, v))
    dmask = np.zeros((*q.shape[:2], np.diff(cu_seqlens_k).max(initial=0)))
    dsinks = np.zeros((*q.shape[:2], 1))
    for b, (rows, keys, own) in enumerate(
        _sequences(len(q), cu_seqlens_q, cu_seqlens_k, attn_mask, **options)
    ):
        q_b, k_b, v_b = q[:, rows], k[:, keys], v[:, keys]
        scores_shape = *q_b.shape[:2], k_b.shape[1]
        dropout = dropout_factor(scores_shape, dropout_p, dropout_seed, sequence=b)
        dq[:, rows], dk[:, keys], dv[:, keys], dscores, dsinks_b = gradients(
            *(g[:, rows], q_b, k_b, v_b, dropout),
            is_causal=is_causal,
            grad_lse=None if grad_lse is None else wide(grad_lse)[:, rows],
            **own,
        )
        dmask[:, rows, : k_b.shape[1]] = dscores
        if dsinks_b is not None:
            dsinks[:, rows] = dsinks_b
    return AttentionGradients(
        *(
            narrow(summed_over_groups(gradient, of_heads.shape).swapaxes(0, 1), x.dtype)
            for gradient, of_heads, x in zip((dq, dk, dv), by_head, inputs, strict=True)
        ),
        narrow(summed_to(dmask, attn_mask.shape), attn_mask.dtype) if mask_grad else None,
        narrow(sum_by_head(dsinks), options["sinks"].dtype) if sinks_grad else None,
    )


def _sequences(
    heads,
    cu_seqlens_q,
    cu_seqlens_k,
    attn_mask=None,
    *,
    query_offset=0,
    kv_lengths=None,
    alibi_slopes=None,
    segment_ids=None,
    **options,
):
    """For each sequence: its slices of the queries and of the keys, and its own options."""
    batch = len(cu_seqlens_q) - 1
    if attn_mask is not None:
        longest = np.diff(cu_seqlens_k).max(initial=0)
        attn_mask = np.broadcast_to(attn_mask, (heads, cu_seqlens_q[-1], longest))
    if alibi_slopes is not None:
        alibi_slopes = np.broadcast_to(alibi_slopes, (batch, heads))
    ids_q, ids_k = pair(segment_ids)
    for b, (q_ends, k_ends) in enumerate(
        zip(pairwise(cu_seqlens_q), pairwise(cu_seqlens_k), strict=True)
    ):
        rows, keys = slice(*q_ends), slice(*k_ends)
        count = keys.stop - keys.start
        yield (
            rows,
            keys,
            {
                **options,
                "attn_mask": None if attn_mask is None else attn_mask[:, rows, :count],
                "query_offset": np.broadcast_to(query_offset, batch)[b],
                "kv_lengths": None if kv_lengths is None else np.broadcast_to(kv_lengths, batch)[b],
                "alibi_slopes": None if alibi_slopes is None else alibi_slopes[b],
                "segment_ids": None if segment_ids is None else (ids_q[rows], ids_k[keys]),
            },
        )
