"""Attention of one head in Python's floats and math.fsum, written as docs/semantics.md reads.

What selfattn/reference/ itself is compared with, by the tests test_reference*.py.
"""

import math


def sees(
    i,
    j,
    is_causal=False,
    query_offset=0,
    kv_length=None,
    window_size=(-1, -1),
    kv_start=0,
    query_length=math.inf,
):
    """Whether query i sees key j: docs/semantics.md, ranges of keys, rule by rule."""
    position = i + query_offset
    left, right = window_size
    if is_causal and j > position:
        return False
    if left != -1 and j < position - left:
        return False
    if right != -1 and j > position + right:
        return False
    if i >= query_length or j < kv_start:
        return False
    return kv_length is None or j < kv_length


def attention(
    query,
    key,
    value,
    scale=None,
    *,
    softcap=0.0,
    slope=0.0,
    attn_mask=None,
    attn_bias=None,
    ids=None,
    sink=-math.inf,
    **ranges,
):
    """out, lse, weights and scores of one head, as lists of Python floats."""
    scale = 1 / math.sqrt(query.shape[1]) if scale is None else scale
    queries, keys, columns = query.tolist(), key.tolist(), value.T.tolist()
    mask = None if attn_mask is None else attn_mask.tolist()
    bias = None if attn_bias is None else attn_bias.tolist()

    def score(i, j):
        t = scale * math.fsum(x * y for x, y in zip(queries[i], keys[j], strict=True))
        if softcap:
            t = softcap * math.tanh(t / softcap)
        t -= slope * abs(i + ranges.get("query_offset", 0) - j)
        if mask is not None and mask[i][j] is not True:
            t += -math.inf if mask[i][j] is False else mask[i][j]
        if bias is not None:
            t += bias[i][j]
        seen = sees(i, j, **ranges) and (ids is None or ids[0][i] == ids[1][j])
        return t if seen else -math.inf

    outs, lses, all_weights, all_scores = [], [], [], []
    for i in range(len(queries)):
        scores = [score(i, j) for j in range(len(keys))]
        own_sink = sink if i < ranges.get("query_length", math.inf) else -math.inf
        top = max([*scores, own_sink])
        if top == -math.inf:
            weights, lse = [0.0] * len(scores), -math.inf
        else:
            total = math.fsum(math.exp(s - top) for s in [*scores, own_sink])
            weights, lse = [math.exp(s - top) / total for s in scores], top + math.log(total)
        outs.append([math.fsum(w * v for w, v in zip(weights, c, strict=True)) for c in columns])
        lses.append(lse)
        all_weights.append(weights)
        all_scores.append(scores)
    return outs, lses, all_weights, all_scores
