"""Problems: shapes that fit together, made into what the kernels solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _core
from .._core import AttentionProblem, SumProblem
from . import options, table
from .arrays import array, same_dtype
from .sequences import sequences
from .shapes import broadcast_shapes

Shapes = dict[str, tuple[int, ...]]  # of arrays by name, the query first

NO_VALUE = object()  # the scores or the weights alone are asked for


def attention_problem(
    query: Any, key: Any, value: Any, enable_gqa: Any = False, **values: Any
) -> AttentionProblem:
    """The problem that the kernels solve; values of options come by their names in `table.py`."""
    enable_gqa = enable_gqa is not False and options.enable_gqa(enable_gqa)
    problem = _core.fast_problem(query, key, value, value is not NO_VALUE, enable_gqa)
    if problem is None:
        problem = _any_problem(query, key, value, enable_gqa)
    if values:
        table.set_options(problem, values)
    return problem


def _any_problem(query: Any, key: Any, value: Any, enable_gqa: bool) -> AttentionProblem:
    """The problem of arrays of whatever kind and shape."""
    query, key = array("query", query), array("key", key)
    same_dtype("key", key, "query", query)
    if value is NO_VALUE:
        value = None
    else:
        value = array("value", value)
        same_dtype("value", value, "query", query)
    leading = _leading(_shapes(query, key, value), enable_gqa, _hint_of_heads)
    return AttentionProblem(query, key, value, *leading)


def varlen_problem(
    query: Any,
    key: Any,
    value: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    enable_gqa: Any = False,
    **values: Any,
) -> AttentionProblem:
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
    heads_q, heads_kv = _heads(shapes, options.enable_gqa(enable_gqa))
    total_q, total_k = query.shape[1], key.shape[1]
    queries = keys = sequences("cu_seqlens_q", cu_seqlens_q, total_q)
    if queries.overlaps:
        raise ValueError(
            "cu_seqlens_q: expected sequences that share no rows of query, got some that do"
        )
    if cu_seqlens_q is not cu_seqlens_k or total_q != total_k:
        keys = sequences("cu_seqlens_k", cu_seqlens_k, total_k)
    batch = queries.cumulative.size - 1
    if keys.cumulative.size - 1 != batch:
        raise ValueError(
            f"cu_seqlens_k: expected {batch} sequences, as many as cu_seqlens_q has, got "
            f"{keys.cumulative.size - 1}"
        )
    problem = AttentionProblem(query, key, value, (batch,), heads_q, heads_kv)
    problem.set_sequences(queries, keys)
    if values:
        table.set_options(problem, values)
    return problem


def sum_problem(weights: Any, value: Any, enable_gqa: Any) -> SumProblem:
    """The problem of `weights @ value`: its scores are given, so it has no query and no key."""
    weights, value = array("weights", weights), array("value", value)
    same_dtype("value", value, "weights", weights)
    shapes = {"weights": weights.shape, "value": value.shape}
    _two_axes(shapes)
    batch_shape, heads_q, heads_kv = _leading(shapes, options.enable_gqa(enable_gqa))
    if value.shape[-2] != weights.shape[-1]:
        raise ValueError(
            f"value: expected {weights.shape[-1]} rows, one for each of weights' last axis, "
            f"got shape {value.shape}"
        )
    return SumProblem(weights, value, batch_shape, heads_q, heads_kv)


# ------------------------------------------------------------------ the problem, piece by piece


def _shapes(query: np.ndarray, key: np.ndarray, value: np.ndarray | None, rows: int = -2) -> Shapes:
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


def _two_axes(shapes: Shapes) -> None:
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(f"{name}: expected 2 or more axes, got shape {shape}")


def _hint_of_heads(shapes: Shapes) -> str:
    from . import hints  # which only errors need

    query, key, *_ = shapes.values()
    return hints.of_number_of_heads(query, key)


def _no_hint(shapes: Shapes) -> str:
    return ""


def _leading(
    shapes: Shapes, enable_gqa: bool, hint: Callable[[Shapes], str] = _no_hint
) -> tuple[tuple[int, ...], int, int]:
    """(batch_shape, query heads, key/value heads) of named shapes, the query's first."""
    return _batch_shape(shapes), *_heads(shapes, enable_gqa, hint)


def _heads(
    shapes: Shapes, enable_gqa: bool, hint: Callable[[Shapes], str] = _no_hint
) -> tuple[int, int]:
    """How many query heads and how many key/value heads there are; an axis of 1 broadcasts.

    The error that says otherwise ends in the hint.
    """
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
            f"{hint(shapes)}"
        )
    if heads_kv == 0 or heads_q % heads_kv:
        raise ValueError(
            f"{key}: expected a number of heads that divides {query}'s {heads_q}, got {heads_kv}"
            f"{hint(shapes)}"
        )
    return heads_q, heads_kv


def _batch_shape(shapes: Shapes) -> tuple[int, ...]:
    """The broadcast of the axes before the last three."""
    try:
        return broadcast_shapes(*(shape[:-3] for shape in shapes.values()))
    except ValueError:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"{list(shapes)[1]}: expected leading axes that broadcast, got {given}"
        ) from None
