"""S_dmask: the weights of attention with the pattern of dropout in their signs, for looking at.

Two calls of attention whose values are the unit vectors of keys, so that a result is a row of
weights: one without dropout, one with it. Where the second is 0 and the first is not, the weight
was dropped, and it is returned negative. It holds queries times keys numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..torch import scaled_dot_product_attention, varlen_attention


def of_dense(query: Tensor, key: Tensor, given: dict[str, Any]) -> Tensor:
    """(batch, heads, seqlen_q, seqlen_k) of query and key of (batch, heads, seqlen, head_dim)."""
    seqlen_k = key.shape[2]
    units = torch.eye(seqlen_k, dtype=key.dtype, device="cpu")
    value = units.expand(*key.shape[:2], seqlen_k, seqlen_k)
    with torch.no_grad():
        return _signed(
            *(scaled_dot_product_attention(query, key, value, **x) for x in (given, _kept(given)))
        )


def of_packed(
    query: Tensor, key: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, given: dict[str, Any]
) -> Tensor:
    """(sequences, heads, longest of queries, longest of keys); 0 beyond a sequence's end."""
    sequence, row, longest_q = _places(cu_seqlens_q)
    _, column, longest_k = _places(cu_seqlens_k)
    units = torch.nn.functional.one_hot(column, max(longest_k, 1)).to(key.dtype)
    value = units[:, None].expand(-1, key.shape[1], -1)
    starts = cu_seqlens_q, cu_seqlens_k
    with torch.no_grad():
        found = _signed(
            *(varlen_attention(query, key, value, *starts, **x) for x in (given, _kept(given)))
        )
    sequences = len(cu_seqlens_q) - 1
    all_rows = found.new_zeros(sequences, longest_q, query.shape[1], found.shape[-1])
    all_rows[sequence, row] = found
    return all_rows.transpose(1, 2)[..., :longest_k]


def _kept(given: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in given.items() if not name.startswith("dropout")}


def _signed(dropped: Tensor, weights: Tensor) -> Tensor:
    return torch.where((dropped == 0) & (weights > 0), -weights, weights)


def _places(cu_seqlens: Tensor) -> tuple[Tensor, Tensor, int]:
    """Of each row its sequence and its place there; the length of the longest sequence."""
    lengths = cu_seqlens.diff().long()
    sequence = torch.repeat_interleave(lengths)
    places = torch.arange(len(sequence), device="cpu") - cu_seqlens[:-1].long()[sequence]
    return sequence, places, int(lengths.max()) if len(lengths) else 0
