"""The steps after the projection, each on its own: score, normalise, sum; and the weights.

The fused call of `attention.py` does the last three at once and never holds their L x S results;
these are for looking at them, and for models that need one of them. Called by users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import _args, _core

if TYPE_CHECKING:
    from ._typing import Array, Ints, Number, Window


def scaled_dot_product(
    query: Array,
    key: Array,
    attn_mask: Array | None = None,
    is_causal: bool = False,
    *,
    scale: Number | None = None,
    enable_gqa: bool = False,
    attn_bias: Array | None = None,
    query_offset: Ints = 0,
    query_lengths: Ints | None = None,
    kv_starts: Ints | None = None,
    kv_lengths: Ints | None = None,
    window_size: Window | None = (-1, -1),
    softcap: Number | None = 0.0,
    alibi_slopes: Array | None = None,
    segment_ids: Array | tuple[Array, Array] | None = None,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Score every query against every key: `scale * query @ key.T`, biased, -inf where masked.

    Parameters and errors are those of `scaled_dot_product_attention`; `out` has the shape of the
    result.

    Returns
    -------
    array, shape (..., Hq, L, S)
        The scores as the softmax sees them, in query's dtype: scaled, capped and biased.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> selfattn.scaled_dot_product(np.eye(2), np.eye(2), is_causal=True, scale=3.0)
    array([[  3., -inf],
           [  0.,   3.]])
    """
    values = (
        attn_mask, is_causal, scale, enable_gqa, attn_bias, query_offset, query_lengths, kv_starts,
        kv_lengths, window_size, softcap, alibi_slopes, segment_ids,
    )  # fmt: skip
    options = _args.nondefault("scaled_dot_product", values)
    problem = _args.attention_problem(query, key, _args.NO_VALUE, **options)
    num_threads = _args.num_threads(num_threads)
    return _args.compute_into(
        out,
        problem.scores_shape,
        problem.query,
        problem.arrays,
        lambda target: problem.score(target, num_threads),
    )


def softmax(
    x: Array,
    axis: int = -1,
    *,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Normalise along `axis`: `exp(x - max(x)) / sum(exp(x - max(x)))`, never overflowing.

    Parameters
    ----------
    x : array, shape (..., n, ...)
        float32, float64, float16 or bfloat16, any strides.
    axis : int
    out : array of x's shape and dtype, optional
        It may be `x` itself.
    num_threads : int, optional

    Returns
    -------
    array of x's shape and dtype
        A slice of nothing but -inf gives 0, not NaN.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype or kind; for an axis that `x` lacks, a wrong shape of `out`.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> selfattn.softmax(np.array([[1000.0, 1000.0], [0.0, -np.inf]]))
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    logits = _args.array("x", x)
    along = _args.axis("axis", axis, logits)
    num_threads = _args.num_threads(num_threads)
    inputs = () if out is logits else (logits,)
    return _args.compute_into(
        out,
        logits.shape,
        logits,
        inputs,
        lambda target: _core.softmax(logits, target, along, num_threads),
    )


def weighted_sum(
    weights: Array,
    value: Array,
    *,
    enable_gqa: bool = False,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Sum the values by the weights: `weights @ value`.

    Parameters
    ----------
    weights : array, shape (..., Hq, L, S)
        float32, float64, float16 or bfloat16.
    value : array, shape (..., Hkv, S, Ev)
        Of weights' dtype. The axes before the last two broadcast.
    enable_gqa : bool
        Allow Hq to be a multiple of Hkv, as `scaled_dot_product_attention` does.
    out : array, shape (..., Hq, L, Ev), optional
    num_threads : int, optional

    Returns
    -------
    array, shape (..., Hq, L, Ev)

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype or kind; for a wrong shape.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> selfattn.weighted_sum(np.array([[0.5, 0.5]]), np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([[2., 3.]])
    """
    problem = _args.sum_problem(weights, value, enable_gqa)
    num_threads = _args.num_threads(num_threads)
    return _args.compute_into(
        out,
        problem.out_shape,
        problem.arrays[1],
        problem.arrays,
        lambda target: problem.sum(target, num_threads),
    )


def attention_weights(
    query: Array,
    key: Array,
    attn_mask: Array | None = None,
    is_causal: bool = False,
    *,
    dropout_p: Number = 0.0,
    scale: Number | None = None,
    enable_gqa: bool = False,
    attn_bias: Array | None = None,
    query_offset: Ints = 0,
    query_lengths: Ints | None = None,
    kv_starts: Ints | None = None,
    kv_lengths: Ints | None = None,
    window_size: Window | None = (-1, -1),
    softcap: Number | None = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    segment_ids: Array | tuple[Array, Array] | None = None,
    dropout_seed: int = 0,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray:
    """Return the distribution itself, `softmax(scaled_dot_product(...))`, for looking at.

    Parameters and errors are those of `scaled_dot_product_attention`; `out` has the shape of the
    result.

    Returns
    -------
    array, shape (..., Hq, L, S)
        Rows that sum to 1, or less by the sink's weight, in query's dtype; a query that sees no
        key has a row of 0. With `dropout_p` the weights as attention applies them to the values:
        those that it drops with the same `dropout_seed` are 0, the others divided by
        `1 - dropout_p`.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> selfattn.attention_weights(np.eye(2), np.eye(2), is_causal=True).round(3)
    array([[1.  , 0.  ],
           [0.33, 0.67]])
    """
    values = (
        attn_mask, dropout_p, is_causal, scale, enable_gqa, attn_bias, query_offset, query_lengths,
        kv_starts, kv_lengths, window_size, softcap, alibi_slopes, sinks, segment_ids, dropout_seed,
    )  # fmt: skip
    options = _args.nondefault("attention_weights", values)
    problem = _args.attention_problem(query, key, _args.NO_VALUE, **options)
    num_threads = _args.num_threads(num_threads)
    return _args.compute_into(
        out,
        problem.scores_shape,
        problem.query,
        problem.arrays,
        lambda target: problem.weigh(target, num_threads),
    )
