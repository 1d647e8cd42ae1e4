"""Gradients of attention: those of its inputs, from that of its output.

Called by users; `_args` checks what they give and makes a problem of it, `_core` computes it. The
truth it is tested against is `reference/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _args
from .gradients import AttentionGradients

if TYPE_CHECKING:
    from ._core import AttentionProblem
    from ._typing import Array, Ints, Number, Sequences, Window


def scaled_dot_product_attention_backward(
    grad_out: Array,
    query: Array,
    key: Array,
    value: Array,
    out: Array,
    lse: Array,
    attn_mask: Array | None = None,
    dropout_p: Number = 0.0,
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
    sinks: Array | None = None,
    segment_ids: Array | tuple[Array, Array] | None = None,
    dropout_seed: int = 0,
    grad_lse: Array | None = None,
    mask_grad: bool = False,
    bias_grad: bool = False,
    sinks_grad: bool = False,
    num_threads: int | None = None,
) -> AttentionGradients:
    """The gradients of `sum(grad_out * out)`, for `out` of `scaled_dot_product_attention`.

    Parameters that are not named below and errors are those of `scaled_dot_product_attention`,
    and must be what that call was given. The gradients have the same bits whatever the number of
    threads and the instruction set, and those of a batch entry whatever else is in the batch.

    Parameters
    ----------
    grad_out : array, shape (..., Hq, L, Ev)
        The gradient of `out`, of query's dtype. Any strides.
    out : array, shape (..., Hq, L, Ev)
        What the forward call returned.
    lse : array, shape (..., Hq, L)
        What it returned with `return_lse=True`. Or both of more keys than these, merged
        (`merge_states`): then the gradients of key and value are those of a piece of the keys, and
        the query's is its part of a sum over all pieces.
    grad_lse : array, shape (..., Hq, L), optional
        The gradient of `lse`, of its dtype, where the function that is differentiated uses it too:
        the gradients are then those of `sum(grad_out * out) + sum(grad_lse * lse)`.
    mask_grad : bool
        Return the gradient of `attn_mask` too, which must be of floats.
    bias_grad : bool
        Return the gradient of `attn_bias` too.
    sinks_grad : bool
        Return the gradient of `sinks` too.

    Returns
    -------
    AttentionGradients
        Named (query, key, value, attn_mask, sinks), each of the shape and dtype of its input, and
        `attn_bias` by its name alone; those of options are None unless asked for. Where an axis of
        an input broadcast, and over the query heads that share a key head, its gradient is summed.

    Raises
    ------
    TypeError
        For a wrong dtype, byte order or kind of argument.
    ValueError
        For a wrong shape or value; for `mask_grad` without a mask of floats, `bias_grad` without
        a bias, `sinks_grad` without sinks.

    Notes
    -----
    Nothing of the size of the scores is kept or made: they are computed again, block by block, and
    `lse` makes weights of them (Dao et al., "FlashAttention", 2022, algorithm 4). With P the
    weights and dP = grad_out @ value.T::

        dS = P * (dP - sum(grad_out * out))
        grad_query = scale * dS @ key,  grad_key = scale * dS.T @ query
        grad_value = P.T @ grad_out

    A large `lse` has lost bits of the sum that it is the log of. Where these keys alone make just
    this `lse`, maximum and sum are found again, and nothing is lost; where it is of more keys, a
    weight may be off by half of lse's last bit, relative to itself.

    A query that sees no key has gradients of 0 and adds 0 to the others, whatever it holds; so has
    a pair of a query and a key that is masked.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> value = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> out, lse = selfattn.scaled_dot_product_attention(query, query, value, return_lse=True)
    >>> gradients = selfattn.scaled_dot_product_attention_backward(
    ...     np.ones_like(out), query, query, value, out, lse
    ... )
    >>> gradients.value.round(3)
    array([[1., 1.],
           [1., 1.]])
    >>> gradients.query.round(3)
    array([[-0.626,  0.626],
           [-0.626,  0.626]])
    """
    values = (
        attn_mask, dropout_p, is_causal, scale, enable_gqa, attn_bias, query_offset, query_lengths,
        kv_starts, kv_lengths, window_size, softcap, alibi_slopes, sinks, segment_ids,
        dropout_seed,
    )  # fmt: skip
    options = _args.nondefault("scaled_dot_product_attention_backward", values)
    problem = _args.attention_problem(query, key, value, **options)
    wanted = _args.Wanted((attn_mask, mask_grad), (sinks, sinks_grad), (attn_bias, bias_grad))
    return differentiate(problem, grad_out, out, lse, grad_lse, wanted, num_threads)


def differentiate(
    problem: AttentionProblem,
    grad_out: Array,
    out: Array,
    lse: Array,
    grad_lse: Array | None,
    wanted: _args.Wanted,
    num_threads: int | None,
) -> AttentionGradients:
    """The same of a problem, whose mask, sinks and bias are those of `wanted`."""
    inputs = _args.backward_inputs(problem, problem.out_shape, grad_out, out, lse)
    of_lse = _args.lse_gradient(problem, grad_lse)
    gradients = _args.new_gradients(problem, wanted)
    problem.differentiate(*inputs, gradients, _args.num_threads(num_threads), of_lse)
    return AttentionGradients(*_args.in_own_dtypes(problem, gradients, wanted))


def varlen_attention_backward(
    grad_out: Array,
    query: Array,
    key: Array,
    value: Array,
    out: Array,
    lse: Array,
    cu_seqlens_q: Sequences,
    cu_seqlens_k: Sequences,
    attn_mask: Array | None = None,
    dropout_p: Number = 0.0,
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
    sinks: Array | None = None,
    segment_ids: Array | tuple[Array, Array] | None = None,
    dropout_seed: int = 0,
    grad_lse: Array | None = None,
    mask_grad: bool = False,
    bias_grad: bool = False,
    sinks_grad: bool = False,
    num_threads: int | None = None,
) -> AttentionGradients:
    """The gradients of `sum(grad_out * out)`, for `out` of `varlen_attention`.

    Parameters that are not named below are those of `varlen_attention`, and must be what that call
    was given; `mask_grad`, `bias_grad`, `sinks_grad` and errors are those of
    `scaled_dot_product_attention_backward`. Each sequence has the bits that it has alone. The
    gradients of rows of no sequence are 0. Sequences of keys that share rows are a ValueError here.

    Parameters
    ----------
    grad_out : array, shape (total_q, Hq, Ev)
        The gradient of `out`, of query's dtype.
    out : array, shape (total_q, Hq, Ev)
    lse : array, shape (Hq, total_q)
        What the forward call returned with `return_lse=True`.

    Returns
    -------
    AttentionGradients
        Named (query, key, value, attn_mask, sinks), each of the shape and dtype of its input, and
        `attn_bias` by its name alone.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 5, 1, 4))
    >>> starts = np.array([0, 2, 5])
    >>> out, lse = selfattn.varlen_attention(query, key, value, starts, starts, return_lse=True)
    >>> gradients = selfattn.varlen_attention_backward(
    ...     np.ones_like(out), query, key, value, out, lse, starts, starts
    ... )
    >>> gradients.key.shape
    (5, 1, 4)
    """
    values = (
        attn_mask, dropout_p, is_causal, scale, enable_gqa, attn_bias, query_offset, query_lengths,
        kv_starts, kv_lengths, window_size, softcap, alibi_slopes, sinks, segment_ids,
        dropout_seed,
    )  # fmt: skip
    options = _args.nondefault("varlen_attention_backward", values)
    problem = _args.varlen_problem(query, key, value, cu_seqlens_q, cu_seqlens_k, **options)
    _args.check_apart(problem)
    heads, total, head_dim_v = problem.out_shape
    inputs = _args.backward_inputs(problem, (total, heads, head_dim_v), grad_out, out, lse)
    of_lse = _args.lse_gradient(problem, grad_lse)
    wanted = _args.Wanted((attn_mask, mask_grad), (sinks, sinks_grad), (attn_bias, bias_grad))
    gradients = _args.new_gradients(problem, wanted)
    problem.differentiate(
        inputs[0].swapaxes(0, 1),
        inputs[1].swapaxes(0, 1),
        inputs[2],
        gradients,
        _args.num_threads(num_threads),
        of_lse,
    )
    found = _args.in_own_dtypes(problem, gradients, wanted)
    return AttentionGradients(*(x.swapaxes(0, 1) for x in found[:3]), *found[3:])
