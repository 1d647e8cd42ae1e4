"""The shapes of results, of those of the inputs; they may be symbolic (torch.compile).

Shapes that do not fit together give some shape: it is the kernels' validator that refuses them. The
fake kernels, which have none, ask `check`.
"""

from __future__ import annotations

from typing import Any

import torch

_check_value: Any = torch._check_value
Shape = tuple[Any, ...]  # of ints or of symbolic ones


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Shape:
    """The shape of attention's result, (..., Hq, L, Ev)."""
    operands = (query, key, value)
    if min(x.dim() for x in operands) < 2:
        return ()
    last = (query.shape[-2], value.shape[-1])
    if max(x.dim() for x in operands) == 2:
        return last
    heads = query.shape[-3] if query.dim() > 2 else 1
    if heads == 1:
        heads = _common([x.shape[-3] for x in (key, value) if x.dim() > 2])
    return (*_broadcast([tuple(x.shape[:-3]) for x in operands]), heads, *last)


def varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Shape:
    """The shape of the result of packed sequences, (total_q, Hq, Ev)."""
    if any(x.dim() != 3 for x in (query, key, value)):
        return ()
    heads = query.shape[1]
    if heads == 1:
        heads = _common([key.shape[1], value.shape[1]])
    return (query.shape[0], heads, value.shape[2])


def linear(x: torch.Tensor, weight: torch.Tensor) -> Shape:
    """The shape of a projection, (..., n_out)."""
    return (*x.shape[:-1], weight.shape[0]) if weight.dim() else ()


def check(name: str, given: Any, expected: Any, what: str) -> None:
    """Refuse a length that is not the expected one."""
    _check_value(given == expected, lambda: f"{name}: expected {what} {expected}, got {given}")


def _broadcast(shapes: list[Shape]) -> Shape:
    axes = max(map(len, shapes))
    padded = [(1,) * (axes - len(shape)) + shape for shape in shapes]
    return tuple(_common(list(lengths)) for lengths in zip(*padded, strict=True))


def _common(lengths: list[Any]) -> Any:
    """The first length that is not 1, or else 1."""
    for n in lengths:
        if n != 1:
            return n
    return 1
