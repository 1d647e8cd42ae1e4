"""flash_attn.bert_padding: padded batches to packed sequences and back, differentiable.

Results are what `flash_attn_varlen_func` takes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """The rows `input[indices]`, (n, …) of (rows, …).

    Examples
    --------
    >>> import torch
    >>> index_first_axis(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 0])).tolist()
    [[3.0], [1.0]]
    """
    return input.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """The inverse: `first_axis_dim` rows of 0, but `values` at `indices`.

    Examples
    --------
    >>> import torch
    >>> index_put_first_axis(torch.tensor([[1.0], [2.0]]), torch.tensor([2, 0]), 3).tolist()
    [[2.0], [0.0], [1.0]]
    """
    return values.new_zeros(first_axis_dim, *values.shape[1:]).index_copy(0, indices, values)


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Pack the rows that a mask keeps, one sequence after the other.

    Parameters
    ----------
    hidden_states : tensor, shape (batch, seqlen, …)
    attention_mask : tensor of bools or ints, shape (batch, seqlen)
        1 is kept.
    unused_mask : tensor of bools or ints, shape (batch, seqlen), optional
        1 is kept as well, and does not count as used.

    Returns
    -------
    hidden_states : tensor, shape (total, …)
    indices : int64 tensor, shape (total,)
        Where they were among the batch * seqlen rows.
    cu_seqlens : int32 tensor, shape (batch + 1,)
    max_seqlen : int
    seqused : int32 tensor, shape (batch,)
        How many of each sequence `attention_mask` keeps.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    >>> rows, indices, starts, longest, used = unpad_input(x, torch.tensor([[1, 1], [1, 0]]))
    >>> rows.flatten().tolist(), starts.tolist(), longest
    ([1.0, 2.0, 3.0], [0, 2, 3], 2)
    >>> pad_input(rows, indices, 2, 2).flatten().tolist()
    [1.0, 2.0, 3.0, 0.0]
    """
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = kept.sum(-1, dtype=torch.int32)
    indices = kept.flatten().nonzero().flatten()
    starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    longest = int(lengths.max()) if len(lengths) else 0
    used = attention_mask.sum(-1, dtype=torch.int32)
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, starts, longest, used


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """The inverse of `unpad_input`: (batch, seqlen, …) with 0 where nothing was kept."""
    rows = index_put_first_axis(hidden_states, indices, batch * seqlen)
    return rows.reshape(batch, seqlen, *rows.shape[1:])
