"""Attention over disjoint sets of keys, merged into attention over all of them; and the gradients.

What pieces of a long sequence of keys leave, on one machine or on several, are states (out, lse).
Called by users; the truth it is tested against is `reference/merging.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import _args, _core
from .gradients import MergeGradients

if TYPE_CHECKING:
    from ._typing import Array

    States = Array | Sequence[Array]


def merge_states(
    out_a: Array, lse_a: Array, out_b: Array, lse_b: Array
) -> tuple[np.ndarray, np.ndarray]:
    """Merge attention over two disjoint sets of keys into attention over both.

    Parameters
    ----------
    out_a, out_b : array, shape (..., L, Ev)
        What `scaled_dot_product_attention` gave for each set.
    lse_a, lse_b : array, shape (..., L)
        The log-sum-exp that it gave with that. Where it is -inf, that side adds nothing,
        whatever its `out` holds.

    Returns
    -------
    out : array, shape (..., L, Ev)
    lse : array, shape (..., L)

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype or kind; for a wrong shape.

    Notes
    -----
    `out = (e^lse_a out_a + e^lse_b out_b) / (e^lse_a + e^lse_b)`, never overflowing. Of sinks,
    only one of the two sets may have them.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 5, 4))
    >>> a = selfattn.scaled_dot_product_attention(query, key[:2], value[:2], return_lse=True)
    >>> b = selfattn.scaled_dot_product_attention(query, key[2:], value[2:], return_lse=True)
    >>> out, lse = selfattn.merge_states(*a, *b)
    >>> np.allclose(out, selfattn.scaled_dot_product_attention(query, key, value))
    True
    """
    outs, lses = _args.pair_of_states(out_a, lse_a, out_b, lse_b)
    out, lse = _args.new_merged(outs, lses)
    _core.merge(outs, lses, out, lse, _args.num_threads(None))
    return out, lse


def merge_states_many(
    outs: States,
    lses: States,
    axis: int = 0,
    *,
    lse_heads_first: bool = False,
    num_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Merge attention over any number of disjoint sets of keys, in one pass.

    Parameters
    ----------
    outs : array with an axis of states, or sequence of arrays, shape (..., L, Ev)
        What attention gave for each set: stacked along `axis`, or one by one. float32, float64,
        float16 or bfloat16, any strides; an array is read in place.
    lses : array with an axis of states, or sequence of arrays, shape (..., L)
        The log-sum-exp that belongs to each, by natural logarithms: float32, or float64 where
        `outs` are. Where it is -inf, that state adds nothing, whatever its `out` holds.
    axis : int
        Of the states, in stacked `outs`; in stacked `lses` it has the same place, counted from the
        first axis.
    lse_heads_first : bool
        The last two axes of each lse, given and returned, are the other way round: (..., H, L)
        beside (..., L, H, Ev), as flash-attn, vLLM and `varlen_attention` return them.
    num_threads : int, optional

    Returns
    -------
    out : array, shape (..., L, Ev)
    lse : array, shape (..., L)

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype or kind; for a wrong shape, or a sequence without states.

    Notes
    -----
    `out = sum(e^lse_i out_i) / sum(e^lse_i)`, added from the first state to the last after the
    largest lse has been subtracted from all; half types are rounded once, at the end. A row has the
    same bits whatever other rows there are. Of two states the result has the bits of
    `merge_states`; a chain of merges of two differs from one merge of all by roundings.

    FlashInfer's `merge_states(v, s)` has the states on axis 1, and logarithms to base 2: multiply
    `s` by log 2.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 6, 4))
    >>> parts = [
    ...     selfattn.scaled_dot_product_attention(query, key[at], value[at], return_lse=True)
    ...     for at in (slice(0, 1), slice(1, 4), slice(4, 6))
    ... ]
    >>> outs, lses = zip(*parts)
    >>> out, lse = selfattn.merge_states_many(outs, lses)
    >>> np.allclose(out, selfattn.scaled_dot_product_attention(query, key, value))
    True
    """
    states = _args.states(outs, lses, axis, lse_heads_first)
    num_threads = _args.num_threads(num_threads)
    out, lse = states.new_merged()
    _core.merge(states.outs, states.lses, out, lse, num_threads)
    return out, states.lse_order(lse)


def merge_states_backward(
    grad_out: Array,
    grad_lse: Array | None,
    outs: States,
    lses: States,
    axis: int = 0,
    *,
    lse_heads_first: bool = False,
    num_threads: int | None = None,
) -> MergeGradients:
    """The gradients of `sum(grad_out * out) + sum(grad_lse * lse)` by the states.

    `out` and `lse` are those that `merge_states_many` returns for the same arguments, and
    `merge_states` for a pair `(out_a, out_b)`, `(lse_a, lse_b)` of them.

    Parameters
    ----------
    grad_out : array, shape (..., L, Ev)
        Of outs' dtype.
    grad_lse : array, shape (..., L), or None
        In the order of axes of the merged lse. None where nothing depends on that.

    Returns
    -------
    MergeGradients
        `outs` and `lses`, each stacked as the input was, or a tuple where that was a sequence, in
        its dtype. Those of a state whose lse is -inf are 0, whatever stands in it and in
        `grad_out`.

    Raises
    ------
    TypeError, ValueError
        As `merge_states_many`.

    Notes
    -----
    With the shares `p_i = e^(lse_i - lse)` these are `p_i grad_out` and
    `p_i (grad_lse + grad_out . (out_i - out))`. The shares are computed from the states, not from
    the merged lse, whose rounding a large lse would not forgive. What attention makes of a `lses`
    gradient, its backward takes as `grad_lse`.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> outs, lses = np.array([[[1.0]], [[5.0]]]), np.array([[0.0], [np.log(3)]])
    >>> grads = selfattn.merge_states_backward(np.array([[1.0]]), np.array([0.0]), outs, lses)
    >>> grads.outs.ravel().round(2), grads.lses.ravel().round(2)
    (array([0.25, 0.75]), array([-0.75,  0.75]))
    """
    states = _args.states(outs, lses, axis, lse_heads_first)
    of_out, of_lse = states.gradients_of_merged(grad_out, grad_lse)
    num_threads = _args.num_threads(num_threads)
    of_outs, of_lses = states.new_gradients()
    _core.merge_backward(
        of_out, of_lse, states.outs, states.lses, of_outs.parts, of_lses.parts, num_threads
    )
    return MergeGradients(of_outs.whole, of_lses.whole)
