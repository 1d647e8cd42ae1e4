"""The only validator: what a user gave -> arrays and numbers that the kernels can take as valid.

Every function here either returns something sound or raises an error that names the argument,
what was expected and what came. Nothing has been written when it raises. Called by `attention.py`
and `steps.py`; what it returns goes to `_core`, which checks nothing.
"""

from __future__ import annotations

import math
import operator

import numpy as np

from . import _core, _threads

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_PLANNED_DTYPES = ("float16", "bfloat16")
_FARTHEST = 2**61  # positions and windows beyond this act alike, and their sums fit 64 bits


# ------------------------------------------------------------------ arrays


def array(name, x):
    """`x` as a NumPy array of a dtype that the kernels compute in, without a copy."""
    if type(x) is not np.ndarray:
        x = _as_array(name, x)
    dtype = x.dtype
    if dtype in _DTYPES:
        return x
    if dtype.name in _PLANNED_DTYPES and dtype.isnative:
        raise NotImplementedError(f"{name}: {dtype.name} is not built yet, got an array of it")
    raise TypeError(f"{name}: expected float32 or float64 in native byte order, got {dtype!r}")


def _as_array(name, x, expected="an array"):
    if isinstance(x, np.ndarray):
        return x.view(np.ndarray)
    given = type(x).__name__
    if isinstance(x, (list, tuple, str, bytes, int, float, complex)) or x is None:
        raise TypeError(f"{name}: expected {expected}, got {given}")
    if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
        return np.from_dlpack(x)
    x = np.asarray(x)
    if x.dtype == object:
        raise TypeError(f"{name}: expected {expected}, got {given}")
    return x


def same_dtype(name, x, other_name, other):
    if x.dtype != other.dtype:
        raise TypeError(f"{name}: expected {other.dtype}, {other_name}'s dtype, got {x.dtype}")


def output(out, shape, like, inputs):
    """The array to return, and the one to write: a temporary where `out` overlaps an input."""
    if out is None:
        if like.ndim == len(shape):
            new = np.empty_like(like, shape=shape, subok=False)
        else:
            new = np.empty(shape, like.dtype)
        return new, new
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a NumPy array, got {type(out).__name__}")
    if out.dtype != like.dtype:
        raise TypeError(f"out: expected {like.dtype!r}, got {out.dtype!r}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writeable array, got a read-only one")
    if _may_overlap_itself(out) or any(np.may_share_memory(out, x) for x in inputs):
        return out, np.empty(shape, like.dtype)
    return out, out


def _may_overlap_itself(x):
    """Whether two elements could share a byte: each stride must step over all that is inside it."""
    reach = x.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(x.strides, x.shape, strict=True)):
        if length > 1:
            if stride < reach:
                return True
            reach += stride * (length - 1)
    return False


# ------------------------------------------------------------------ numbers and options


def not_built(
    attn_mask=None,
    dropout_p=0.0,
    softcap=0.0,
    alibi_slopes=None,
    sinks=None,
    segment_ids=None,
    dropout_seed=0,
):
    """Refuse, by name, an option of the API that no kernel carries out yet."""
    if (
        attn_mask is None
        and alibi_slopes is None
        and sinks is None
        and segment_ids is None
        and not dropout_p
        and not softcap
        and not dropout_seed
    ):
        return
    given = {
        "attn_mask": attn_mask is not None,
        "dropout_p": dropout_p,
        "softcap": softcap,
        "alibi_slopes": alibi_slopes is not None,
        "sinks": sinks is not None,
        "segment_ids": segment_ids is not None,
        "dropout_seed": dropout_seed,
    }
    names = ", ".join(name for name, is_given in given.items() if is_given)
    raise NotImplementedError(f"{names}: not built yet")


def num_threads(n):
    """The number of threads of this call."""
    return _threads.get_num_threads() if n is None else _threads.count("num_threads", n)


def axis(name, n, x):
    """An axis of `x`, counted from 0."""
    try:
        number = operator.index(n)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {type(n).__name__}") from None
    if not -x.ndim <= number < x.ndim:
        raise ValueError(f"{name}: expected an axis of shape {x.shape}, got {number}")
    return number % x.ndim


def _scale(scale):
    """A finite float, or NaN where the kernels are to take 1 / sqrt(head_dim)."""
    if scale is None:
        return math.nan
    try:
        if isinstance(scale, (str, bytes, bytearray, bool, np.bool_)):
            raise TypeError
        scale = float(scale)
    except (TypeError, ValueError):
        raise TypeError(f"scale: expected a number, got {type(scale).__name__}") from None
    if not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number, got {scale}")
    return scale


def _flag(name, x):
    if x is True or x is False or isinstance(x, np.bool_):
        return bool(x)
    raise TypeError(f"{name}: expected a bool, got {type(x).__name__}")


def _window(window_size):
    if type(window_size) is tuple and window_size == (-1, -1):
        return -1, -1
    try:
        sides = [operator.index(side) for side in window_size]
        if any(isinstance(side, (bool, np.bool_)) for side in window_size):
            raise TypeError
    except TypeError:
        raise TypeError(
            f"window_size: expected two ints (left, right), got {window_size!r}"
        ) from None
    if len(sides) != 2:
        raise ValueError(f"window_size: expected two ints (left, right), got {window_size!r}")
    left, right = sides
    if left < -1 or right < -1:
        raise ValueError(f"window_size: expected sides of -1 or more, got {window_size!r}")
    return min(left, _FARTHEST), min(right, _FARTHEST)


def _per_batch(name, x, batch_shape, low, high):
    """An int64 array of `batch_shape`, whose values must be from `low` to `high`."""
    expected = "an int or an array of ints"
    if isinstance(x, int) and not isinstance(x, bool):
        x = np.asarray(_within(name, x, low, high))
    x = _as_array(name, x, expected)
    if x.dtype.kind not in "iu" or not x.dtype.isnative:
        raise TypeError(f"{name}: expected {expected}, got {x.dtype!r}")
    try:
        x = np.broadcast_to(x, batch_shape)
    except ValueError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to the axes before the heads, "
            f"{batch_shape}, got {x.shape}"
        ) from None
    x = np.array(x, order="C")  # our own: the user's may change while the kernels read it
    if x.size:
        _within(name, int(x.min()), low, high)
        _within(name, int(x.max()), low, high)
    return x.astype(np.int64, copy=False)


def _within(name, n, low, high):
    if low <= n <= high:
        return n
    raise ValueError(f"{name}: expected values from {low} to {high}, got {n}")


# ------------------------------------------------------------------ problems


def attention_problem(
    query,
    key,
    value=None,
    is_causal=False,
    scale=None,
    enable_gqa=False,
    query_offset=0,
    kv_lengths=None,
    window_size=(-1, -1),
):
    """The problem that the kernels solve; without a `value` it is that of the scores alone.

    A `value` has been through `array` already: None is no value that a user may give.
    """
    query, key = array("query", query), array("key", key)
    same_dtype("key", key, "query", query)
    shapes = {"query": query.shape, "key": key.shape}
    if value is not None:
        same_dtype("value", value, "query", query)
        shapes["value"] = value.shape
    batch_shape, heads_q, heads_kv = _leading(shapes, _flag("enable_gqa", enable_gqa))
    head_dim = shapes["query"][-1]
    seqlen_k, head_dim_of_key = shapes["key"][-2:]
    if head_dim_of_key != head_dim:
        raise ValueError(
            f"key: expected head_dim {head_dim}, query's last axis, got shape {key.shape}"
        )
    if value is not None and shapes["value"][-2] != seqlen_k:
        raise ValueError(
            f"value: expected {seqlen_k} rows, as many as key has, got shape {value.shape}"
        )

    left, right = _window(window_size)
    if _flag("is_causal", is_causal):
        right = 0
    if type(query_offset) is not int or not -_FARTHEST <= query_offset <= _FARTHEST:
        query_offset = _per_batch("query_offset", query_offset, batch_shape, -_FARTHEST, _FARTHEST)
    if kv_lengths is not None:
        kv_lengths = _per_batch("kv_lengths", kv_lengths, batch_shape, 0, seqlen_k)
    return _core.AttentionProblem(
        query,
        key,
        value,
        batch_shape,
        heads_q,
        heads_kv,
        _scale(scale),
        query_offset,
        kv_lengths,
        left,
        right,
    )


def sum_problem(weights, value, enable_gqa):
    """The problem of `weights @ value`: its scores are given, so it has no query and no key."""
    weights, value = array("weights", weights), array("value", value)
    same_dtype("value", value, "weights", weights)
    shapes = {"weights": weights.shape, "value": value.shape}
    batch_shape, heads_q, heads_kv = _leading(shapes, _flag("enable_gqa", enable_gqa))
    if value.shape[-2] != weights.shape[-1]:
        raise ValueError(
            f"value: expected {weights.shape[-1]} rows, one for each of weights' last axis, "
            f"got shape {value.shape}"
        )
    return _core.SumProblem(weights, value, batch_shape, heads_q, heads_kv)


def _leading(shapes, enable_gqa):
    """(batch_shape, query heads, key/value heads) of named shapes, the first of them the query's.

    What is before the last two axes; mostly that is the same in all of them.
    """
    leading = next(iter(shapes.values()))[:-2]
    for shape in shapes.values():
        if shape[:-2] != leading:
            break
    else:
        if leading:
            return leading[:-1], leading[-1], leading[-1]
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(f"{name}: expected 2 or more axes, got shape {shape}")
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
        return np.broadcast_shapes(*(shape[:-3] for shape in shapes.values()))
    except ValueError:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"{list(shapes)[1]}: expected leading axes that broadcast, got {given}"
        ) from None
