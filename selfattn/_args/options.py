"""Checks of options, each on its own: what a user gave -> what the kernels take, or an error.

Those of attention, under the options' names, are called with the problem that they are options of:
`table.py` says which is which. The others are called where their functions are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _core, _threads
from .._core import AttentionProblem
from .arrays import LARGEST, as_array, real_dtype
from .numbers import finite, integer
from .shapes import broadcast, unrepeated

_BOOL, _FLOAT32 = np.dtype(bool), np.dtype(np.float32)
MAX_POSITION = 2**61  # positions and windows beyond this act alike, and their sums fit 64 bits


def _hints() -> Any:
    """The module of that name, which only errors need."""
    from . import hints

    return hints


def num_threads(n: Any = None) -> int:
    """The number of threads of this call."""
    return _threads.get_num_threads() if n is None else _threads.count("num_threads", n)


def axis(name: str, n: Any, x: np.ndarray) -> int:
    """An axis of `x`, counted from 0."""
    number = integer(name, n)
    if not -x.ndim <= number < x.ndim:
        raise ValueError(f"{name}: expected an axis of shape {x.shape}, got {number}")
    return number % x.ndim


def flag(name: str, x: Any) -> bool:
    """A bool, or 0 or 1, which some frameworks have in its place."""
    if x is True or x is False or isinstance(x, np.bool_):
        return bool(x)
    if isinstance(x, (int, np.integer)):
        if x in (0, 1):
            return bool(x)
        raise ValueError(f"{name}: expected a bool, or 0 or 1, got {x}")
    raise TypeError(f"{name}: expected a bool, got {type(x).__name__}")


# ------------------------------------------------------------------ attention's: numbers and ranges


def dropout_p(x: Any, problem: AttentionProblem) -> float:
    """A probability."""
    p = finite("dropout_p", x)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout_p: expected a probability from 0 to 1, got {x}")
    return p


def dropout_seed(x: Any, problem: AttentionProblem) -> int:
    """A word of 64 bits."""
    seed = integer("dropout_seed", x)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"dropout_seed: expected an int of 64 bits, got {seed}")
    return seed % 2**64


def is_causal(x: Any, problem: AttentionProblem) -> bool:
    return flag("is_causal", x)


def enable_gqa(x: Any, problem: AttentionProblem | None = None) -> bool:
    return flag("enable_gqa", x)


def scale(x: Any, problem: AttentionProblem) -> float:
    """A float that can be computed with."""
    number, dtype = finite("scale", x), real_dtype(problem.query.dtype)
    if abs(number) > LARGEST[dtype]:
        raise ValueError(f"scale: expected a number that {dtype} can hold, got {number}")
    return number


def softcap(x: Any, problem: AttentionProblem) -> float:
    """A finite float of 0 or more; 0 is none, and so is None."""
    number = 0.0 if x is None else finite("softcap", x)
    if number < 0:
        raise ValueError(f"softcap: expected 0 or more, got {number}")
    return number


def window_size(x: Any, problem: AttentionProblem) -> tuple[int, int]:
    """Its sides as ints; None is a window without bounds."""
    if x is None:
        return -1, -1
    try:
        if not isinstance(x, (tuple, list, np.ndarray)):
            raise TypeError
        if any(isinstance(side, (bool, np.bool_)) for side in x):
            raise TypeError
        sides = [operator.index(side) for side in x]
    except TypeError:
        raise TypeError(f"window_size: expected two ints (left, right), got {x!r}") from None
    if len(sides) != 2:
        raise ValueError(f"window_size: expected two ints (left, right), got {x!r}")
    left, right = sides
    if left < -1 or right < -1:
        raise ValueError(f"window_size: expected sides of -1 or more, got {x!r}")
    return min(left, MAX_POSITION), min(right, MAX_POSITION)


def query_offset(x: Any, problem: AttentionProblem) -> int | np.ndarray:
    """An int, or an array with one for each batch entry."""
    if type(x) is int and abs(x) <= MAX_POSITION:
        return x
    offsets = per_batch("query_offset", x, problem.batch_shape, -MAX_POSITION, MAX_POSITION)
    if 0 in problem.lse_shape:
        return 0  # no query, though there may be very many batch entries
    different = unrepeated(offsets)
    return different.item() if different.size == 1 else np.ascontiguousarray(offsets)


def query_lengths(x: Any, problem: AttentionProblem) -> np.ndarray | None:
    """An array with one for each batch entry; None where there is no query."""
    sequences = problem.queries
    most = problem.lse_shape[-1] if sequences is None else sequences.lengths
    return _lengths("query_lengths", x, problem, most)


def kv_starts(x: Any, problem: AttentionProblem) -> np.ndarray | None:
    """An array with one for each batch entry; None where there is no query to see keys."""
    return _of_keys("kv_starts", x, problem)


def kv_lengths(x: Any, problem: AttentionProblem) -> np.ndarray | None:
    """An array with one for each batch entry; None where there is no query to see keys."""
    return _of_keys("kv_lengths", x, problem)


def _of_keys(name: str, x: Any, problem: AttentionProblem) -> np.ndarray | None:
    sequences = problem.keys
    most = problem.scores_shape[-1] if sequences is None else sequences.lengths
    return _lengths(name, x, problem, most, lambda n: _hints().of_kv_length(n, problem))


def _lengths(
    name: str,
    x: Any,
    problem: AttentionProblem,
    most: int | np.ndarray,
    hint: Callable[[int], str] | None = None,
) -> np.ndarray | None:
    numbers = per_batch(name, x, problem.batch_shape, 0, most, hint)
    return None if 0 in problem.lse_shape else np.ascontiguousarray(numbers)


def per_batch(
    name: str,
    x: Any,
    batch_shape: tuple[int, ...],
    low: int,
    high: int | np.ndarray,
    hint: Callable[[int], str] | None = None,
) -> np.ndarray:
    """An int64 view of `batch_shape`, whose values must be from `low` to `high`, each or all.

    A `hint` is asked, with a value that is not, what the error should add.
    """
    expected = "an int, or an array or list of ints"
    if isinstance(x, int) and not isinstance(x, bool):
        if not -(2**63) <= x < 2**63:
            raise ValueError(f"{name}: expected values from {low} to {high}, got {x}")
        x = np.asarray(x)
    x = np.array(ints_in(name, x, expected))  # our own: the user's may change later
    view = broadcast(name, x, batch_shape, "the axes before the heads")
    is_beyond = (x < low) | (x > high)  # of x as it was given, which may be less than the view
    if is_beyond.any():
        x, high = (np.broadcast_to(y, is_beyond.shape)[is_beyond][0] for y in (x, high))
        more = hint(int(x)) if hint else ""
        raise ValueError(f"{name}: expected values from {low} to {high}, got {x}{more}")
    return np.broadcast_to(x.astype(np.int64, copy=False), view.shape)


# ------------------------------------------------------------------ attention's: arrays


def attn_mask(x: Any, problem: AttentionProblem) -> np.ndarray:
    """Bools or floats that broadcast to the scores' shape."""
    y, dtype = as_array("attn_mask", x), problem.query.dtype
    if y.dtype not in (_BOOL, _FLOAT32, dtype):
        expected = " or ".join(dict.fromkeys(("bool", "float32", dtype.name)))
        raise TypeError(
            f"attn_mask: expected {expected} in native byte order, got {y.dtype!r}"
            f"{_hints().of_mask_dtype(y.dtype)}"
        )
    if _core.broadcasts(y, problem.scores_shape):
        return y
    return broadcast(  # which raises
        "attn_mask",
        y,
        problem.scores_shape,
        "the scores' shape",
        hint=lambda given: _hints().of_mask_shape(given, problem),
    )


def attn_bias(x: Any, problem: AttentionProblem) -> np.ndarray:
    """A view of the scores' shape, of floats."""
    y = as_array("attn_bias", x)
    if y.dtype == _BOOL:
        raise TypeError("attn_bias: expected floats to add to the scores, got bools (attn_mask=)")
    y = _of_dtypes("attn_bias", y, _FLOAT32, problem.query.dtype)
    return broadcast(
        "attn_bias",
        y,
        problem.scores_shape,
        "the scores' shape",
        hint=lambda given: _hints().of_mask_shape(given, problem, "bias"),
    )


def alibi_slopes(x: Any, problem: AttentionProblem) -> np.ndarray:
    """A view of one for each batch entry and query head."""
    shape = (*problem.batch_shape, problem.num_heads_q)
    return _per_head("alibi_slopes", x, shape, problem)


def sinks(x: Any, problem: AttentionProblem) -> np.ndarray:
    """A view of one for each query head: of (Hq,), or of (1, Hq, 1, 1), as models keep them."""
    heads = problem.num_heads_q
    x = as_array("sinks", x)
    if x.shape == (1, heads, 1, 1):
        x = x.reshape(heads)
    return _per_head("sinks", x, (heads,), problem)


def segment_ids(x: Any, problem: AttentionProblem) -> tuple[np.ndarray, np.ndarray]:
    """Views (batch..., L) and (batch..., S) of the ids of queries and of keys, of one dtype.

    Of packed sequences (total_q,) and (total_k,).
    """
    query, key, *_ = problem.arrays
    is_packed = problem.keys is not None
    seqlen_q = query.shape[-2]
    seqlen_k = key.shape[-2] if is_packed else problem.scores_shape[-1]
    if isinstance(x, (tuple, list)):
        if len(x) != 2:
            raise ValueError(f"segment_ids: expected one array or a pair, got {len(x)} of them")
        of_query, of_key = (_ids(ids) for ids in x)
        if of_query.dtype != of_key.dtype:
            raise TypeError(
                f"segment_ids: expected a pair of one dtype, got {of_query.dtype!r} and "
                f"{of_key.dtype!r}"
            )
    else:
        of_query = of_key = _ids(x)
        if seqlen_q != seqlen_k:
            raise ValueError(
                f"segment_ids: expected a pair where there are {seqlen_q} queries and {seqlen_k} "
                "keys, got one array"
            )
    batch_shape = problem.lse_shape[:-2]
    shape_q, shape_k = (*batch_shape, seqlen_q), (*batch_shape, seqlen_k)
    return (
        broadcast(
            "segment_ids",
            of_query,
            shape_q,
            "one for each query",
            last=True,
            hint=lambda given: _hints().of_ids(given, problem, query),
        ),
        broadcast(
            "segment_ids",
            of_key,
            shape_k,
            "one for each key",
            last=True,
            hint=lambda given: _hints().of_ids(given, problem, key),
        ),
    )


def _ids(x: Any) -> np.ndarray:
    return ints("segment_ids", x, "an array of ints, or a pair of them", kinds="iub")


def ints(name: str, x: Any, expected: str, kinds: str = "iu") -> np.ndarray:
    y = as_array(name, x, expected)
    if y.dtype.kind not in kinds or not y.dtype.isnative:
        raise TypeError(f"{name}: expected {expected}, got {y.dtype!r}")
    return y


def ints_in(name: str, x: Any, expected: str) -> np.ndarray:
    """The same of an array, or of a list or tuple of ints."""
    if not isinstance(x, (list, tuple)):
        return ints(name, x, expected)
    given = type(x).__name__
    try:
        y = np.array(x)
    except (ValueError, OverflowError):
        raise ValueError(f"{name}: expected {expected}, got a {given} that is no array") from None
    if y.size == 0:  # of which NumPy makes floats
        return y.astype(np.int64)
    if y.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected {expected}, got a {given} of {y.dtype!r}")
    return y


def _per_head(name: str, x: Any, shape: tuple[int, ...], problem: AttentionProblem) -> np.ndarray:
    """A view of `shape`, which ends in the query heads, of the real dtype of query's."""
    x, dtype = as_array(name, x), problem.query.dtype
    if x.dtype not in (np.float32, dtype):
        expected = " or ".join(dict.fromkeys(("float32", dtype.name)))
        raise TypeError(f"{name}: expected {expected} in native byte order, got {x.dtype!r}")
    x = x.astype(real_dtype(dtype), copy=False)
    return broadcast(
        name,
        x,
        shape,
        "one for each query head",
        last=True,
        hint=lambda given: _hints().of_numbers_of_heads(given, problem),
    )


def _of_dtypes(name: str, x: Any, *dtypes: np.dtype) -> np.ndarray:
    y = as_array(name, x)
    if y.dtype not in dtypes:
        expected = " or ".join(dict.fromkeys(dtype.name for dtype in dtypes))
        raise TypeError(f"{name}: expected {expected} in native byte order, got {y.dtype!r}")
    return y
