"""Rotary positions by tables of cosines and sines, as flash-attn's caches are given them.

    (a, b) -> (a cos - b sin, b cos + a sin)

for each pair of the first elements of a row, in float32 (of float64 in float64), rounded once.
(Su et al., 2021.) `selfattn.nn.rope` takes such tables too, as arrays; these are PyTorch's own
operations, which torch.compile traces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check(cos: Any, sin: Any, head_dim: int) -> None:
    """Refuse tables that do not fit together, or rows of another width."""
    for name, x in (("rotary_cos", cos), ("rotary_sin", sin)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if x.dim() != 2 or 2 * x.shape[1] > head_dim:
            raise ValueError(
                f"{name}: expected shape (positions, rotary_dim / 2), with rotary_dim of "
                f"{head_dim} or less, got {tuple(x.shape)}"
            )
    if sin.shape != cos.shape:
        raise ValueError(f"rotary_sin: expected shape {tuple(cos.shape)}, got {tuple(sin.shape)}")


def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """Rows at positions: (batch, seqlen, heads, head_dim) at (batch, seqlen) or (seqlen,).

    Pairs are the elements 2i and 2i + 1 where they are interleaved, else i and
    `i + rotary_dim / 2`.
    """
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    c, s = (table[positions].to(real).unsqueeze(-2) for table in (cos, sin))
    rotary_dim = 2 * cos.shape[1]
    turned, rest = x[..., :rotary_dim].to(real), x[..., rotary_dim:]
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        turned = torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat((a * c - b * s, b * c + a * s), -1)
    return torch.cat((turned.to(x.dtype), rest), -1)
