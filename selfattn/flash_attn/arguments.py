"""flash-attn's arguments: what is checked of them, and the options of selfattn.torch they become.

Options of numbers are checked where they are used; here is what flash-attn calls otherwise than
selfattn does, so that errors name the user's argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..torch.options import drawn_seed

DENSE = "(batch, seqlen, heads, head_dim)"
PACKED = "(total, heads, head_dim)"


def tensor(name: str, x: Any, shape: str) -> Tensor:
    """`x`, a tensor with as many axes as `shape` names."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, shape {shape}, got {type(x).__name__}")
    if x.dim() != shape.count(",") + 1:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
    return x


def unpacked(name: str, x: Any, shape: str, axis: int, number: int) -> tuple[Tensor, ...]:
    """Views of the `number` tensors that lie side by side in one, along `axis`."""
    x = tensor(name, x, shape)
    if x.shape[axis] != number:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
    # One node for autograd, whose gradient is one tensor; a view for each would be summed up.
    views: tuple[Tensor, ...] = x.unbind(axis)
    return views


def check_operands(
    shape: str, q: Any, k: Any, v: Any, names: Sequence[str] = ("q", "k", "v")
) -> None:
    """Refuse queries, keys and values that do not fit together."""
    q_name, k_name, v_name = names
    for name, x in zip(names, (q, k, v), strict=True):
        tensor(name, x, shape)
        if x.dtype != q.dtype:
            raise TypeError(f"{name}: expected {q.dtype}, {q_name}'s dtype, got {x.dtype}")
    if shape == DENSE and k.shape[0] != q.shape[0]:
        raise ValueError(f"{k_name}: expected a batch of {q.shape[0]}, got {k.shape[0]}")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"{k_name}: expected head_dim {q.shape[-1]}, got {k.shape[-1]}")
    heads, heads_k = q.shape[-2], k.shape[-2]
    if heads_k == 0 or heads % heads_k:
        raise ValueError(
            f"{k_name}: expected a number of heads that divides {q_name}'s {heads}, got {heads_k}"
        )
    if v.shape[:-1] != k.shape[:-1]:
        expected = ", ".join(map(str, (*k.shape[:-1], "head_dim")))
        raise ValueError(f"{v_name}: expected shape ({expected}), got {tuple(v.shape)}")


def options(
    softmax_scale: Any,
    causal: Any,
    window_size: Any,
    softcap: Any,
    alibi_slopes: Any,
    dropout_p: Any = 0.0,
) -> dict[str, Any]:
    """selfattn.torch's options, but `query_offset`, which `is_aligned` says whether to give."""
    given: dict[str, Any] = {"scale": softmax_scale, "enable_gqa": True}
    if causal:
        given["is_causal"] = True
    window = _window(window_size)
    if window != (-1, -1):
        given["window_size"] = window
    if softcap > 0:  # all else says that there is none
        given["softcap"] = softcap
    if alibi_slopes is not None:
        given["alibi_slopes"] = alibi_slopes
    if dropout_p:
        given["dropout_p"] = dropout_p
        given["dropout_seed"] = drawn_seed()
    return given


def is_aligned(given: dict[str, Any]) -> bool:
    """Whether it matters where queries stand among keys: the last beside the last."""
    return "is_causal" in given or "window_size" in given or "alibi_slopes" in given


def _window(window_size: Any) -> tuple[Any, Any]:
    """(left, right), where any negative number stands for no limit, as -1 does here."""
    if isinstance(window_size, Tensor) and not window_size.is_floating_point():
        window_size = window_size.tolist()
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise TypeError(f"window_size: expected two ints (left, right), got {window_size!r}")
    left, right = (side if side >= 0 else -1 for side in window_size)
    return left, right
