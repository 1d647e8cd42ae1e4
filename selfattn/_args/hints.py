"""What errors add where the mistake is a common one, known by other libraries' habits.

Each function is given what did not fit and returns the end of a message, empty where it knows
nothing. They are called when an error is certain, so they may guess, and cost nothing before.

Arrays (..., positions, heads, head_dim) cannot be told from (..., heads, positions, head_dim) by
their own shapes: where there are as many keys as queries, either is a legal call. What betrays them
is what comes beside them: a mask of positions, slopes of heads, lengths.
"""

from __future__ import annotations

import numpy as np

from .._core import AttentionProblem

Shape = tuple[int, ...]

_SWAPPED = (
    " (axes are (..., heads, positions, head_dim): of (..., positions, heads, head_dim) give "
    "x.swapaxes(-3, -2))"
)

# Keywords of torch.nn.MultiheadAttention and of its call: what says the same here.
_TORCH = {
    "key_padding_mask": "kv_lengths, or attn_mask=~key_padding_mask[:, None, None, :], since True "
    "lets a key be seen here",
    "need_weights": "the layer's attention_weights(), which returns them",
    "average_attn_weights": "the layer's attention_weights(), and .mean(-3) of it",
    "dropout": "dropout_p",
}


def of_number_of_heads(query: Shape, key: Shape) -> str:
    """For heads that differ: perhaps they are positions, and equal numbers of heads follow them."""
    is_swapped = min(len(query), len(key)) > 2 and query[-2] == key[-2] != 1
    return _SWAPPED if is_swapped else ""


def of_mask_shape(given: Shape, problem: AttentionProblem, name: str = "mask") -> str:
    """For a mask or bias that does not broadcast: one of padding, or of a layout swapped."""
    scores = problem.scores_shape
    if problem.keys is None and len(scores) > 3:
        if given == (scores[-4], scores[-1]):
            return f" (of padding, (batch, keys), give {name}[:, None, None, :], or kv_lengths)"
        if given == (scores[-4], *scores[-2:]):
            return f" (of each batch entry, (batch, queries, keys), give {name}[:, None])"
    return _of_keys(given[-1], problem) if len(given) > 1 else ""


def of_kv_length(given: int, problem: AttentionProblem) -> str:
    """For a length beyond the keys."""
    return _of_keys(given, problem)


def of_numbers_of_heads(given: Shape, problem: AttentionProblem) -> str:
    """For slopes or sinks of another number of heads."""
    return _swapped(problem, given[-1:], problem.num_heads_q, problem.query.shape[-2])


def of_ids(given: Shape, problem: AttentionProblem, x: np.ndarray) -> str:
    """For segments' ids that are not one for each position of `x`, the query or the key."""
    return _swapped(problem, given[-1:], x.shape[-2], *x.shape[-3:-2])


def _of_keys(given: int, problem: AttentionProblem) -> str:
    key = problem.arrays[1]
    return _swapped(problem, (given,), problem.scores_shape[-1], *key.shape[-3:-2])


def _swapped(problem: AttentionProblem, given: Shape, expected: int, other: int = 1) -> str:
    """Where the length of an axis is that of the other one of heads and positions."""
    is_dense = problem.keys is None
    return _SWAPPED if is_dense and given == (other,) and 1 != other != expected else ""


def of_mask_dtype(dtype: np.dtype) -> str:
    """For a mask of a wrong dtype."""
    if dtype.kind in "iu":
        return " (of 0 and 1, where 1 lets a query see a key, give mask.astype(bool))"
    if dtype == np.float64:
        return " (give mask.astype(np.float32))"
    return ""


def of_keyword(name: str) -> str:
    """For a keyword that a layer does not have."""
    return f" (in its place: {_TORCH[name]})" if name in _TORCH else ""
