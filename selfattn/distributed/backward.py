"""Gradients of attention over many ranks, with the bits of one machine.

The gradient of the query is a sum over keys, those of key and value are sums over rows: two rings.
In the first one keys and values travel, as forward, and each rank adds each piece's part to its
rows. In the second one rows travel, with their results and the gradients of these, and each rank
adds each piece's part to its keys. Scores are computed twice, as one machine does where it has few
heads (csrc/backward_schedule.h); what would have to be passed on with one ring, a sum that all
ranks add to, is never waited for. Called by users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _args
from ..gradients import AttentionGradients
from .agreement import check_same, in_step, together
from .key_gradients import KeyGradients
from .layout import BLOCK, Layout
from .problem import RingProblem
from .query_gradient import QueryGradient
from .ring import travel
from .row_states import states_of_rows
from .rows_given import RowsGiven
from .sinks_gradient import sinks_gradient
from .transport import transport_of

if TYPE_CHECKING:
    from .._typing import Array, Ints, Number, Window


def ring_attention_backward(
    grad_out: Array,
    query: Array,
    key: Array,
    value: Array,
    out: Array,
    lse: Array,
    comm: Any,
    *,
    attn_mask: Array | None = None,
    dropout_p: Number = 0.0,
    is_causal: bool = False,
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
    layout: Layout = "contiguous",
    block: int = BLOCK,
    num_threads: int | None = None,
) -> AttentionGradients:
    """The gradients of `sum(grad_out * out)` over all ranks, for `out` of `ring_attention`.

    Every rank calls it with its shards, and gets its shards of the gradients: those of one call of
    `scaled_dot_product_attention_backward` over the whole, to the last bit, whatever the number of
    ranks and the layout, if `block` is a multiple of 1536, as it is by default.

    Parameters
    ----------
    grad_out : array, shape (..., Hq, L, Ev)
        The gradient of this rank's `out`, of query's dtype.
    query, key, value, comm
        As `ring_attention` was given them. The axes before the heads are the same of all three,
        and so are the heads of key and value.
    out : array, shape (..., Hq, L, Ev)
    lse : array, shape (..., Hq, L)
        What it returned on this rank, with `return_lse=True`.
    grad_lse : array, shape (..., Hq, L), optional
        The gradient of `lse`, where it is used too; on all ranks or on none.
    mask_grad, bias_grad, sinks_grad : bool
        Return the gradient of a float `attn_mask`, of `attn_bias`, of `sinks` too; the same on all
        ranks. A mask or a bias has a row for each of this rank's queries then and a column for each
        key of all ranks. Of other axes, one that broadcasts is summed over. (Where rows or columns
        broadcast, give `np.broadcast_to` of it and sum what comes back.)
    layout, block, and the options
        As `ring_attention` was given them.

    Returns
    -------
    AttentionGradients
        Named (query, key, value, attn_mask, sinks), and `attn_bias` by its name alone: of this
        rank's positions, as they were given. Sinks are the same on all ranks, and so is their
        gradient, which is that of all positions: it is not to be summed over ranks.

    Raises
    ------
    TypeError, ValueError
        As `ring_attention`, and as `scaled_dot_product_attention_backward`.
    RankError
        If another rank failed.

    Notes
    -----
    Of half types, sums are kept in float32, and each gradient is rounded once, at its end.

    A mask of rows travels with its rows, over the keys of all ranks. Where some row's `lse` is
    large, its maximum and its sum are found again, as on one machine: keys travel once more.

    Examples
    --------
    >>> import numpy as np
    >>> from selfattn import distributed, scaled_dot_product_attention
    >>> from selfattn import scaled_dot_product_attention_backward
    >>> query, key, value, grad = np.random.default_rng(0).standard_normal((4, 2, 3500, 8))
    >>> def differentiate(comm):
    ...     mine = [distributed.shard(x, comm.ranks, comm.rank) for x in (query, key, value, grad)]
    ...     *qkv, grad_out = mine
    ...     out, lse = distributed.ring_attention(*qkv, comm, return_lse=True)
    ...     return distributed.ring_attention_backward(grad_out, *qkv, out, lse, comm)
    >>> shards = distributed.run_ranks(3, differentiate)
    >>> out, lse = scaled_dot_product_attention(query, key, value, return_lse=True)
    >>> want = scaled_dot_product_attention_backward(grad, query, key, value, out, lse)
    >>> [
    ...     np.array_equal(distributed.unshard([shard[i] for shard in shards]), want[i])
    ...     for i in range(3)
    ... ]
    [True, True, True]
    """
    options = {
        "attn_mask": attn_mask,
        "dropout_p": dropout_p,
        "is_causal": is_causal,
        "scale": scale,
        "enable_gqa": enable_gqa,
        "attn_bias": attn_bias,
        "query_offset": query_offset,
        "query_lengths": query_lengths,
        "kv_starts": kv_starts,
        "kv_lengths": kv_lengths,
        "window_size": window_size,
        "softcap": softcap,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "segment_ids": segment_ids,
        "dropout_seed": dropout_seed,
    }
    transport = transport_of(comm)
    found: list[RowsGiven] = []

    def start(problem: RingProblem) -> None:
        wanted = _args.Wanted((attn_mask, mask_grad), (sinks, sinks_grad), (attn_bias, bias_grad))
        found.append(RowsGiven(problem, (grad_out, out, lse, grad_lse), wanted, num_threads))

    problem = RingProblem(transport, (query, key, value), options, layout, block, start)
    rows = found[0]
    gradients: list[tuple[QueryGradient, KeyGradients]] = []

    def begin() -> Any:
        gradients.append((QueryGradient(problem, rows), KeyGradients(problem, rows)))
        return [rows.asked_for, rows.words]

    answers = together(transport, begin)
    of_query, of_keys = gradients[0]
    check_same([asked_for for asked_for, _ in answers])
    words = [of_rank for _, of_rank in answers]
    if any(of_rank["needs_states"] for of_rank in words):
        rows.state = states_of_rows(transport, problem, rows)
    travel(
        transport,
        problem.key_pieces,
        problem.readers_of_keys,
        problem.own_keys,
        problem.like_keys,
        of_query.visit,
    )
    masks_of_rows = {name for of_rank in words for name in of_rank["masks_of_rows"]}
    own, like = in_step(transport, lambda: of_keys.rows_that_travel(masks_of_rows))
    travel(transport, problem.query_pieces, problem.readers_of_rows, own, like, of_keys.visit)
    of_sinks = sinks_gradient(transport, problem, rows) if rows.asked_for["sinks_grad"] else None
    return AttentionGradients(
        _args.in_dtype_of(of_query.query, problem.query),
        _args.in_dtype_of(of_keys.key, problem.key),
        _args.in_dtype_of(of_keys.value, problem.value),
        _args.in_dtype_of(of_query.masks.get("attn_mask"), attn_mask),
        of_sinks,
        _args.in_dtype_of(of_query.masks.get("attn_bias"), attn_bias),
    )
