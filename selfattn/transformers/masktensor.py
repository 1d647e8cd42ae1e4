"""A Rule as a tensor: what a model hands on as its attention mask.

Models look at a mask's shape, cut it to the number of keys, move it and pass it on. So what the
mask function returns is a tensor of bools, shape (B, 1, L, S), that has no elements and knows its
Rule. Cutting off keys gives the shorter Rule's; any other operation is given the dense mask, so
that a model may do with it what it likes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree

from .rules import Rule

_Tensor: Any = torch.Tensor
_aten: Any = torch.ops.aten
_tree: Any = _pytree
_SAME = (_aten.detach.default, _aten.alias.default, _aten.clone.default)


def of_rule(rule: Rule, batch: int, num_queries: int, num_keys: int) -> Any:
    """The mask tensor of a rule, shape (B, 1, L, S)."""
    mask = _Tensor._make_wrapper_subclass(
        MaskTensor, (batch, 1, num_queries, num_keys), dtype=torch.bool, device="cpu"
    )
    mask.rule = rule
    return mask


def dense(mask: Any) -> Any:
    """The bools that a mask tensor stands for; anything else as it is."""
    if isinstance(mask, MaskTensor):
        batch, _, num_queries, num_keys = mask.shape
        return mask.rule.dense(batch, num_queries, num_keys)
    return mask


def _dispatch(
    cls: Any, operator: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
) -> Any:
    keywords = keywords or {}
    mask = arguments[0] if arguments else None
    if isinstance(mask, MaskTensor):
        if operator in _SAME or (operator is _aten._to_copy.default and _changes_nothing(keywords)):
            return of_rule(mask.rule, mask.shape[0], *mask.shape[2:])
        if operator is _aten.slice.Tensor:
            cut = _sliced(mask, *arguments[1:])
            if cut is not None:
                return cut
    arguments, keywords = _tree.tree_map(dense, (arguments, keywords))
    return operator(*arguments, **keywords)


def _changes_nothing(keywords: Any) -> bool:
    device = keywords.get("device")
    return keywords.get("dtype") in (None, torch.bool) and (
        device is None or torch.device(device).type == "cpu"
    )


def _sliced(mask: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    """A slice that keeps all, or the first keys; None for any other."""
    length = mask.shape[dim]
    end = length if end is None else end
    end = min(end + length if end < 0 else end, length)
    if start not in (None, 0) or step != 1:
        return None
    if end == length:
        return of_rule(mask.rule, mask.shape[0], *mask.shape[2:])
    if dim not in (3, -1) or end < 0:
        return None
    return of_rule(mask.rule.shortened(end), mask.shape[0], mask.shape[2], end)


def _text(mask: Any) -> str:
    return f"MaskTensor(shape={tuple(mask.shape)}, rule={mask.rule})"


# By a call: where PyTorch is not installed, type checkers refuse a class of an unknown base.
MaskTensor: Any = type(
    "MaskTensor",
    (torch.Tensor,),
    {
        "__doc__": "A tensor of bools without elements, which stand in its `rule`.",
        "__module__": __name__,
        "__torch_dispatch__": classmethod(_dispatch),
        "__torch_function__": torch._C._disabled_torch_function_impl,
        "__repr__": _text,
    },
)
