"""Problems: shapes that fit together, made into what the kernels solve."""

from __future__ import annotations

import numpy as np

from .. import _core
from . import options
from .arrays import array, same_dtype
from .shapes import broadcast_shapes, unrepeated

NO_VALUE = object()  # the scores or the weights alone are asked for


def attention_problem(
    query,
    key,
    value,
    attn_mask=None,
    is_causal=False,
    scale=None,
    enable_gqa=False,
    query_offset=0,
    kv_lengths=None,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    sinks=None,
    segment_ids=None,
):
    """The problem that the kernels solve."""
    enable_gqa = options.flag("enable_gqa", enable_gqa)
    problem = _core.plain_problem(query, key, value)
    if problem is None:
        problem = _any_problem(query, key, value, enable_gqa)
    _set_scores(problem, scale, softcap)
    _set_ranges(problem, is_causal, query_offset, kv_lengths, window_size)
    if attn_mask is not None:
        problem.set_mask(options.mask(attn_mask, problem.scores_shape, problem.query.dtype))
    if segment_ids is not None:
        *_, seqlen_q, seqlen_k = problem.scores_shape
        ids = options.segments(segment_ids, problem.batch_shape, seqlen_q, seqlen_k)
        problem.set_segments(*ids)
    _set_heads(problem, alibi_slopes, sinks)
    return problem


def _any_problem(query, key, value, enable_gqa):
    """The problem of arrays of whatever kind and shape."""
    query, key = array("query", query), array("key", key)
    same_dtype("key", key, "query", query)
    if value is NO_VALUE:
        value = None
    else:
        value = array("value", value)
        same_dtype("value", value, "query", query)
    leading = _leading(_shapes(query, key, value), enable_gqa)
    return _core.AttentionProblem(query, key, value, *leading)


def varlen_problem(
    query,
    key,
    value,
    cu_seqlens_q,
    cu_seqlens_k,
    attn_mask=None,
    is_causal=False,
    scale=None,
    enable_gqa=False,
    query_offset=0,
    kv_lengths=None,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    sinks=None,
    segment_ids=None,
):
    """That of packed sequences: each is a batch entry, and its arrays are (H, total, E) views."""
    query, key, value = array("query", query), array("key", key), array("value", value)
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 3:
            raise ValueError(
                f"{name}: expected 3 axes, (total, heads, head_dim), got shape {x.shape}"
            )
        same_dtype(name, x, "query", query)
    _shapes(query, key, value, rows=0)
    query, key, value = (x.swapaxes(0, 1) for x in (query, key, value))
    shapes = {"query": query.shape, "key": key.shape, "value": value.shape}
    heads_q, heads_kv = _heads(shapes, options.flag("enable_gqa", enable_gqa))
    total_q, total_k = query.shape[1], key.shape[1]
    is_one = cu_seqlens_q is cu_seqlens_k and total_q == total_k
    cu_seqlens_q, longest_q = options.cumulative("cu_seqlens_q", cu_seqlens_q, total_q)
    if is_one:
        cu_seqlens_k, longest_k = cu_seqlens_q, longest_q
    else:
        cu_seqlens_k, longest_k = options.cumulative("cu_seqlens_k", cu_seqlens_k, total_k)
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_k: expected {cu_seqlens_q.size} numbers, as many as cu_seqlens_q has, got "
            f"{cu_seqlens_k.size}"
        )
    batch_shape = (cu_seqlens_q.size - 1,)
    problem = _core.AttentionProblem(query, key, value, batch_shape, heads_q, heads_kv)
    _set_scores(problem, scale, softcap)
    _set_ranges(problem, is_causal, query_offset, kv_lengths, window_size, cu_seqlens_k)
    problem.set_sequences(cu_seqlens_q, cu_seqlens_k, longest_q, longest_k)
    if attn_mask is not None:
        packed_scores = (heads_q, total_q, longest_k)
        problem.set_mask(options.mask(attn_mask, packed_scores, query.dtype))
    if segment_ids is not None:
        problem.set_segments(*options.segments(segment_ids, (), total_q, total_k))
    _set_heads(problem, alibi_slopes, sinks)
    return problem


def sum_problem(weights, value, enable_gqa):
    """The problem of `weights @ value`: its scores are given, so it has no query and no key."""
    weights, value = array("weights", weights), array("value", value)
    same_dtype("value", value, "weights", weights)
    shapes = {"weights": weights.shape, "value": value.shape}
    _two_axes(shapes)
    batch_shape, heads_q, heads_kv = _leading(shapes, options.flag("enable_gqa", enable_gqa))
    if value.shape[-2] != weights.shape[-1]:
        raise ValueError(
            f"value: expected {weights.shape[-1]} rows, one for each of weights' last axis, "
            f"got shape {value.shape}"
        )
    return _core.SumProblem(weights, value, batch_shape, heads_q, heads_kv)


def merge_operands(out_a, lse_a, out_b, lse_b):
    """Arrays of one dtype: two of one shape (..., L, E), and (..., L) for each."""
    arrays = {
        name: array(name, x)
        for name, x in (("out_a", out_a), ("lse_a", lse_a), ("out_b", out_b), ("lse_b", lse_b))
    }
    out_a = arrays["out_a"]
    if out_a.ndim == 0:
        raise ValueError(f"out_a: expected 1 or more axes, got shape {out_a.shape}")
    for name, x in arrays.items():
        same_dtype(name, x, "out_a", out_a)
        shape = out_a.shape if name.startswith("out") else out_a.shape[:-1]
        if x.shape != shape:
            raise ValueError(
                f"{name}: expected shape {shape} where out_a's is {out_a.shape}, got {x.shape}"
            )
    return tuple(arrays.values())


# ------------------------------------------------------------------ the problem, piece by piece


def _shapes(query, key, value, rows=-2):
    """The shapes by name, which agree in head_dim and in the axis of rows."""
    shapes = {"query": query.shape, "key": key.shape}
    if value is not None:
        shapes["value"] = value.shape
    _two_axes(shapes)
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"key: expected head_dim {query.shape[-1]}, query's last axis, got shape {key.shape}"
        )
    if value is not None and value.shape[rows] != key.shape[rows]:
        raise ValueError(
            f"value: expected {key.shape[rows]} rows, as many as key has, got shape {value.shape}"
        )
    return shapes


def _two_axes(shapes):
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(f"{name}: expected 2 or more axes, got shape {shape}")


def _set_scores(problem, scale, softcap):
    if scale is None and type(softcap) is float and softcap == 0.0:
        return  # as it is: 1 / sqrt(head_dim), and no cap
    problem.set_scores(options.scale_of(scale, problem.query.dtype), options.softcap_of(softcap))


def _set_ranges(problem, is_causal, query_offset, kv_lengths, window_size, cu_seqlens_k=None):
    """Causal, window, offset and lengths, at most those of packed sequences, or all keys."""
    if (
        is_causal is False
        and kv_lengths is None
        and type(query_offset) is int
        and query_offset == 0
        and type(window_size) is tuple
        and window_size == (-1, -1)
    ):
        return  # as it is: every query sees every key
    left, right = options.window(window_size)
    if options.flag("is_causal", is_causal):
        right = 0
    if type(query_offset) is not int or abs(query_offset) > options.FARTHEST:
        query_offset = options.per_batch(
            "query_offset", query_offset, problem.batch_shape, -options.FARTHEST, options.FARTHEST
        )
    if kv_lengths is not None:
        most = problem.scores_shape[-1] if cu_seqlens_k is None else np.diff(cu_seqlens_k)
        kv_lengths = options.per_batch("kv_lengths", kv_lengths, problem.batch_shape, 0, most)
    if 0 in problem.lse_shape:
        return  # no query; of batch entries, which an array of numbers is for, there may be many
    if isinstance(query_offset, np.ndarray):
        numbers = unrepeated(query_offset)
        one_for_all = numbers.size == 1
        query_offset = numbers.item() if one_for_all else np.ascontiguousarray(query_offset)
    if kv_lengths is not None:
        kv_lengths = np.ascontiguousarray(kv_lengths)
    problem.set_ranges(query_offset, kv_lengths, left, right)


def _set_heads(problem, alibi_slopes, sinks):
    """What each query head has."""
    if alibi_slopes is not None:
        shape = (*problem.batch_shape, problem.num_heads_q)
        problem.set_alibi(
            options.per_head("alibi_slopes", alibi_slopes, shape, problem.query.dtype)
        )
    if sinks is not None:
        shape = (problem.num_heads_q,)
        problem.set_sinks(options.per_head("sinks", sinks, shape, problem.query.dtype))


def _leading(shapes, enable_gqa):
    """(batch_shape, query heads, key/value heads) of named shapes, the query's first."""
    return _batch_shape(shapes), *_heads(shapes, enable_gqa)


def _heads(shapes, enable_gqa):
    """How many query heads and how many key/value heads there are; an axis of 1 broadcasts."""
    heads = {name: shape[-3] if len(shape) > 2 else 1 for name, shape in shapes.items()}
    (query, heads_q), (key, heads_kv), *others = heads.items()
    for name, n in others:
        if n != heads_kv and n != 1 and heads_kv != 1:
            raise ValueError(
                f"{name}: expected {heads_kv} heads, as many as {key} has, or 1, got {n}"
            )
        heads_kv = n if heads_kv == 1 else heads_kv
    if heads_q == heads_kv or heads_kv == 1:
        return heads_q, heads_kv
    if heads_q == 1:
        return heads_kv, heads_kv
    if not enable_gqa:
        raise ValueError(
            f"{key}: expected {heads_q} heads, as many as {query} has, or 1, got {heads_kv} "
            "(enable_gqa=True lets query heads share keys and values)"
        )
    if heads_kv == 0 or heads_q % heads_kv:
        raise ValueError(
            f"{key}: expected a number of heads that divides {query}'s {heads_q}, got {heads_kv}"
        )
    return heads_q, heads_kv


def _batch_shape(shapes):
    """The broadcast of the axes before the last three."""
    try:
        return broadcast_shapes(*(shape[:-3] for shape in shapes.values()))
    except ValueError:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"{list(shapes)[1]}: expected leading axes that broadcast, got {given}"
        ) from None
