"""How far a contestant's result is from the reference: of parts that are enough to tell.

    attention    out, strips of queries of all heads
    backward     dQ, dK, dV, whole heads
    softmax      everything
    linear       rows, over the largest number
    cache        the first and the last key head's queries, over the largest number

Used by contest.py, before anything is timed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from selfattn import reference

# Queries that the reference's backward gets at once: it holds their scores against all keys, often.
STRIP = 512


def difference(row, arrays, result):
    """The largest difference of a result on `row.arrays()`; of gradients, a relative one."""
    compare = {
        "attention": _of_attention,
        "backward": _of_gradients,
        "softmax": _of_softmax,
        "linear": _of_projection,
        "cache": _of_cache,
    }
    return compare[row.task](row, arrays, result)


def _of_softmax(row, arrays, result):
    return np.abs(result - reference.softmax(arrays[0])).max()


def _of_projection(row, arrays, result):
    x, weight, _ = arrays
    if result.shape != (row.num_rows, row.n_out):
        return np.inf
    some = sorted({0, row.num_rows // 2, row.num_rows - 1})
    want = reference.project(x[some], weight)
    return np.abs(result[some] - want).max() / np.abs(want).max()


def _of_attention(row, arrays, result):
    """Of three strips of queries, of the first and the last batch entry, all heads.

    The whole would take the reference minutes.
    """
    query, key, value = arrays
    if result.shape != query.shape:
        return np.inf
    worst = 0.0
    for b in {0, row.batch - 1}:
        for start in {0, row.seqlen_q // 2, max(row.seqlen_q - 8, 0)}:
            strip = slice(start, start + 8)
            want = reference.scaled_dot_product_attention(
                query[b, :, strip],
                key[b],
                value[b],
                is_causal=row.is_causal,
                enable_gqa=row.is_gqa,
                query_offset=start + row.query_offset,
            )
            worst = np.maximum(worst, np.abs(result[b, :, strip] - want).max())
    return worst


def _of_cache(row, arrays, result):
    query, key, value = arrays
    if result.shape != query.shape:
        return np.inf
    worst, group = 0.0, row.num_heads_q // row.num_heads_kv
    for head in {0, row.num_heads_kv - 1}:
        queries = slice(head * group, (head + 1) * group)
        rows = query[0, queries, 0]  # a group's queries are rows of the head they share
        want = reference.scaled_dot_product_attention(rows, key[0, head], value[0, head])
        error = np.abs(result[0, queries, 0] - want).max() / np.abs(want).max()
        worst = np.maximum(worst, error)
    return worst


def _of_gradients(row, arrays, result):
    """Of the gradients of the first and the last key head of the first and the last batch entry.

    Over the largest number of each: those of long sequences are small ones.
    """
    if [x.shape for x in result] != [x.shape for x in arrays[:3]]:
        return np.inf
    worst = 0.0
    for places, wants in _true_gradients(replace(row, name="", with_forward=False)):
        for gradient, place, want in zip(result, places, wants, strict=True):
            error = np.abs(gradient[place] - want).max() / np.abs(want).max()
            worst = np.maximum(worst, error)
    return worst


@lru_cache(maxsize=1)
def _true_gradients(row):
    """[(places in dQ, dK and dV), (what stands there)], the same for all contestants and ways."""
    group = row.num_heads_q // row.num_heads_kv
    query, key, value, grad_out = row.arrays()
    entries = []
    for b in {0, row.batch - 1}:
        for head in {0, row.num_heads_kv - 1}:
            group_place = b, slice(head * group, (head + 1) * group)
            head_place = b, slice(head, head + 1)
            inputs = query[group_place], key[head_place], value[head_place]
            wants = _in_strips(row, *inputs, grad_out[group_place])
            entries.append(((group_place, head_place, head_place), wants))
    return entries


def _in_strips(row, query, key, value, grad_out):
    """Gradients of a group of heads, some queries at a time; dK and dV are sums over queries."""
    dq, dk, dv = (np.zeros(x.shape) for x in (query, key, value))
    for start in range(0, row.seqlen_q, STRIP):
        strip = np.s_[:, start : start + STRIP]
        part = reference.scaled_dot_product_attention_backward(
            grad_out[strip],
            query[strip],
            key,
            value,
            None,  # out and lse: the reference makes its own
            None,
            is_causal=row.is_causal,
            enable_gqa=row.is_gqa,
            query_offset=start,
        )
        dq[strip] = part.query
        dk += part.key
        dv += part.value
    return dq, dk, dv
