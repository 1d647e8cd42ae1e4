"""Packed sequences, each as a call of its own, forward and backward."""

from __future__ import annotations

import numpy as np

from ..gradients import AttentionGradients
from .attention import attend
from .axes import aligned, narrow, pair, summed_over_groups, wide
from .backward import gradients, of_bias, sum_by_head
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
    """Packed sequences, each as a call of its own: (total_q, Hq, Ev), and lse (Hq, total_q).

    Queries of no sequence have output 0 and lse -inf. A row of keys may be of several sequences.
    """
    by_head = (x.swapaxes(0, 1) for x in (query, key, value))
    q, k, v = aligned(*by_head, enable_gqa=enable_gqa)
    out, lse = np.zeros((*q.shape[:2], v.shape[2])), np.full(q.shape[:2], -np.inf)
    for b, (rows, keys, own) in enumerate(
        _sequences(q.shape[:2], cu_seqlens_q, cu_seqlens_k, attn_mask, **options)
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
    bias_grad=False,
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
    dq, dk, dv = (np.zeros(x.shape) for x in (q, k, v))
    all_dscores = np.zeros((*q.shape[:2], _lengths(cu_seqlens_k).max(initial=0)))
    dsinks = np.zeros((*q.shape[:2], 1))
    for b, (rows, keys, own) in enumerate(
        _sequences(q.shape[:2], cu_seqlens_q, cu_seqlens_k, attn_mask, **options)
    ):
        q_b, k_b, v_b = q[:, rows], k[:, keys], v[:, keys]
        scores_shape = *q_b.shape[:2], k_b.shape[1]
        dropout = dropout_factor(scores_shape, dropout_p, dropout_seed, sequence=b)
        dq[:, rows], dk_b, dv_b, dscores, dsinks_b = gradients(
            *(g[:, rows], q_b, k_b, v_b, dropout),
            is_causal=is_causal,
            grad_lse=None if grad_lse is None else wide(grad_lse)[:, rows],
            **own,
        )
        dk[:, keys] += dk_b
        dv[:, keys] += dv_b
        all_dscores[:, rows, : k_b.shape[1]] = dscores
        if dsinks_b is not None:
            dsinks[:, rows] = dsinks_b
    return AttentionGradients(
        *(
            narrow(summed_over_groups(gradient, of_heads.shape).swapaxes(0, 1), x.dtype)
            for gradient, of_heads, x in zip((dq, dk, dv), by_head, inputs, strict=True)
        ),
        of_bias(all_dscores, attn_mask) if mask_grad else None,
        narrow(sum_by_head(dsinks), options["sinks"].dtype) if sinks_grad else None,
        of_bias(all_dscores, options["attn_bias"]) if bias_grad else None,
    )


def _sequences(
    shape,
    cu_seqlens_q,
    cu_seqlens_k,
    attn_mask=None,
    *,
    attn_bias=None,
    query_offset=0,
    query_lengths=None,
    kv_starts=None,
    kv_lengths=None,
    alibi_slopes=None,
    segment_ids=None,
    **options,
):
    """For each sequence: its slices of the queries and of the keys, and its own options."""
    heads, total_q = shape
    lengths_q, lengths_k = _lengths(cu_seqlens_q), _lengths(cu_seqlens_k)
    batch, longest = len(lengths_q), lengths_k.max(initial=0)

    def of_scores(x, rows, count):
        if x is None:
            return None
        return np.broadcast_to(x, (heads, total_q, longest))[:, rows, :count]

    def of_sequence(x, b):
        return None if x is None else np.broadcast_to(x, batch)[b]

    if alibi_slopes is not None:
        alibi_slopes = np.broadcast_to(alibi_slopes, (batch, heads))
    ids_q, ids_k = pair(segment_ids)
    for b, (q_start, q_count, k_start, k_count) in enumerate(
        zip(_starts(cu_seqlens_q), lengths_q, _starts(cu_seqlens_k), lengths_k, strict=True)
    ):
        rows, keys = slice(q_start, q_start + q_count), slice(k_start, k_start + k_count)
        yield (
            rows,
            keys,
            {
                **options,
                "attn_mask": of_scores(attn_mask, rows, k_count),
                "attn_bias": of_scores(attn_bias, rows, k_count),
                "query_offset": of_sequence(query_offset, b),
                "query_lengths": of_sequence(query_lengths, b),
                "kv_starts": of_sequence(kv_starts, b),
                "kv_lengths": of_sequence(kv_lengths, b),
                "alibi_slopes": None if alibi_slopes is None else alibi_slopes[b],
                "segment_ids": None if segment_ids is None else (ids_q[rows], ids_k[keys]),
            },
        )


def _starts(cu_seqlens):
    """Each sequence's first row, of where all begin and end, or of a pair (starts, lengths)."""
    return cu_seqlens[0] if isinstance(cu_seqlens, tuple) else cu_seqlens[:-1]


def _lengths(cu_seqlens):
    return cu_seqlens[1] if isinstance(cu_seqlens, tuple) else np.diff(cu_seqlens)
