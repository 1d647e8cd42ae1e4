"""Options, each on its own: numbers, flags, ranges of keys, masks, segments, what a head has."""

from __future__ import annotations

import math
import operator

import numpy as np

from .. import _threads
from .arrays import LARGEST, as_array
from .numbers import finite, integer
from .shapes import broadcast

_PIECE = 2**16  # elements that are looked at at once where there may be very many
FARTHEST = 2**61  # positions and windows beyond this act alike, and their sums fit 64 bits


def num_threads(n=None):
    """The number of threads of this call."""
    return _threads.get_num_threads() if n is None else _threads.count("num_threads", n)


def axis(name, n, x):
    """An axis of `x`, counted from 0."""
    number = integer(name, n)
    if not -x.ndim <= number < x.ndim:
        raise ValueError(f"{name}: expected an axis of shape {x.shape}, got {number}")
    return number % x.ndim


def scale_of(scale, dtype):
    """A float that `dtype` can hold, or NaN where the kernels are to take 1 / sqrt(head_dim)."""
    if scale is None:
        return math.nan
    scale = finite("scale", scale)
    if abs(scale) > LARGEST[dtype]:
        raise ValueError(f"scale: expected a number that {dtype} can hold, got {scale}")
    return scale


def softcap_of(softcap):
    """A finite float of 0 or more; 0 is none."""
    softcap = finite("softcap", softcap)
    if softcap < 0:
        raise ValueError(f"softcap: expected 0 or more, got {softcap}")
    return softcap


def dropout(dropout_p, dropout_seed):
    """A probability, and a seed as a word of 64 bits."""
    plain = type(dropout_p) is float and type(dropout_seed) is int
    if plain and dropout_p == 0.0 and dropout_seed == 0:
        return 0.0, 0
    p = finite("dropout_p", dropout_p)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout_p: expected a probability from 0 to 1, got {dropout_p}")
    seed = integer("dropout_seed", dropout_seed)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"dropout_seed: expected an int of 64 bits, got {seed}")
    return p, seed % 2**64


def flag(name, x):
    if x is True or x is False or isinstance(x, np.bool_):
        return bool(x)
    raise TypeError(f"{name}: expected a bool, got {type(x).__name__}")


def window(window_size):
    if type(window_size) is tuple and window_size == (-1, -1):
        return -1, -1
    try:
        if not isinstance(window_size, (tuple, list, np.ndarray)):
            raise TypeError
        if any(isinstance(side, (bool, np.bool_)) for side in window_size):
            raise TypeError
        sides = [operator.index(side) for side in window_size]
    except TypeError:
        raise TypeError(
            f"window_size: expected two ints (left, right), got {window_size!r}"
        ) from None
    if len(sides) != 2:
        raise ValueError(f"window_size: expected two ints (left, right), got {window_size!r}")
    left, right = sides
    if left < -1 or right < -1:
        raise ValueError(f"window_size: expected sides of -1 or more, got {window_size!r}")
    return min(left, FARTHEST), min(right, FARTHEST)


def per_batch(name, x, batch_shape, low, high):
    """An int64 view of `batch_shape`, whose values must be from `low` to `high`, each or all."""
    expected = "an int or an array of ints"
    if isinstance(x, int) and not isinstance(x, bool):
        if not -(2**63) <= x < 2**63:
            raise ValueError(f"{name}: expected values from {low} to {high}, got {x}")
        x = np.asarray(x)
    x = np.array(ints(name, x, expected))  # our own: the user's may change later
    view = broadcast(name, x, batch_shape, "the axes before the heads")
    wrong = (x < low) | (x > high)  # of x as it was given, which may be less than the view
    if wrong.any():
        x, high = (np.broadcast_to(y, wrong.shape)[wrong][0] for y in (x, high))
        raise ValueError(f"{name}: expected values from {low} to {high}, got {x}")
    return np.broadcast_to(x.astype(np.int64, copy=False), view.shape)


# ------------------------------------------------------------------ arrays beside the scores


def mask(attn_mask, scores_shape, dtype):
    """A view of the scores' shape, of bools or floats."""
    x = _of_dtypes("attn_mask", attn_mask, np.dtype(bool), np.dtype(np.float32), dtype)
    return broadcast("attn_mask", x, scores_shape, "the scores' shape")


def segments(segment_ids, batch_shape, seqlen_q, seqlen_k):
    """Views (batch..., L) and (batch..., S) of the ids of queries and of keys, of one dtype."""
    if isinstance(segment_ids, (tuple, list)):
        if len(segment_ids) != 2:
            raise ValueError(
                f"segment_ids: expected one array or a pair, got {len(segment_ids)} of them"
            )
        of_query, of_key = (_ids(x) for x in segment_ids)
        if of_query.dtype != of_key.dtype:
            raise TypeError(
                f"segment_ids: expected a pair of one dtype, got {of_query.dtype!r} and "
                f"{of_key.dtype!r}"
            )
    else:
        of_query = of_key = _ids(segment_ids)
        if seqlen_q != seqlen_k:
            raise ValueError(
                f"segment_ids: expected a pair where there are {seqlen_q} queries and {seqlen_k} "
                "keys, got one array"
            )
    return (
        broadcast(
            "segment_ids", of_query, (*batch_shape, seqlen_q), "one for each query", last=True
        ),
        broadcast("segment_ids", of_key, (*batch_shape, seqlen_k), "one for each key", last=True),
    )


def _ids(x):
    return ints("segment_ids", x, "an array of ints, or a pair of them", kinds="iub")


def ints(name, x, expected, kinds="iu"):
    x = as_array(name, x, expected, of_floats=False)
    if x.dtype.kind not in kinds or not x.dtype.isnative:
        raise TypeError(f"{name}: expected {expected}, got {x.dtype!r}")
    return x


def per_head(name, x, shape, dtype):
    """A view of `shape`, which ends in the query heads, of floats of query's dtype."""
    x = as_array(name, x)
    if x.dtype not in (np.float32, dtype):
        expected = " or ".join(dict.fromkeys(("float32", dtype.name)))
        raise TypeError(f"{name}: expected {expected} in native byte order, got {x.dtype!r}")
    return broadcast(name, x.astype(dtype, copy=False), shape, "one for each query head", last=True)


def _of_dtypes(name, x, *dtypes):
    x = as_array(name, x)
    if x.dtype not in dtypes:
        expected = " or ".join(dict.fromkeys(dtype.name for dtype in dtypes))
        raise TypeError(f"{name}: expected {expected} in native byte order, got {x.dtype!r}")
    return x


def cumulative(name, x, total):
    """Where packed sequences begin and end, and the longest.

    The first as int64, our own, (number of sequences + 1,).
    """
    given = ints(name, x, "an array of ints")
    if given.ndim != 1 or given.size == 0:
        raise ValueError(f"{name}: expected shape (number of sequences + 1,), got {given.shape}")
    # Our own: the user's may change while the kernels read it. A number beyond int64 is negative
    # here, and so less than the one before it.
    x = np.array(given, np.int64)
    longest = _longest_step(x) if x[0] == 0 and x[-1] == total else None
    if longest is None:
        raise ValueError(
            f"{name}: expected numbers that start at 0, never decrease and end at {total}, the "
            f"number of rows, got {given}"
        )
    return x, longest


def _longest_step(x):
    """The largest difference of neighbours; None where numbers decrease.

    Piece by piece: there may be so many sequences that arrays beside them would be large.
    """
    longest = 0
    for at in range(0, len(x) - 1, _PIECE):
        first, second = x[at : at + _PIECE], x[at + 1 : at + _PIECE + 1]
        first = first[: len(second)]
        if (second < first).any():
            return None
        longest = max(longest, int((second - first).max()))
    return longest
