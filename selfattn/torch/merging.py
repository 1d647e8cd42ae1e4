"""The public merges of states: of tensors, with the signatures of the NumPy API's.

Each makes a list of states of what it is given, views of stacked ones, and calls the operator
(`merge_operators.py`); or its kernel at once, where nobody would see the difference (`eager.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._args import flag
from .._args.numbers import integer
from . import eager, merge_operators
from .arrays import lse_dtype
from .functions import check

States = Any  # a tensor with an axis of states, or a sequence of tensors


def merge_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    """`selfattn.merge_states` of tensors, with gradients: attention over two disjoint sets of keys.

    Parameters
    ----------
    out_a, out_b : tensor, shape (..., L, Ev)
        What `scaled_dot_product_attention` gave for each set.
    lse_a, lse_b : tensor, shape (..., L)
        The log-sum-exp that it gave with that. Where it is -inf, that side adds nothing, whatever
        its `out` holds, and its gradients are 0.

    Returns
    -------
    out : tensor, shape (..., L, Ev)
    lse : tensor, shape (..., L)
        Each lies in memory as the first state's.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, kind or device; for a wrong shape.
    NotImplementedError
        For forward-mode and for second derivatives.

    Examples
    --------
    >>> import torch, selfattn.torch
    >>> query, key, value = torch.randn(3, 5, 4, requires_grad=True).unbind(0)
    >>> attend = selfattn.torch.scaled_dot_product_attention
    >>> a = attend(query, key[:2], value[:2], return_lse=True)
    >>> b = attend(query, key[2:], value[2:], return_lse=True)
    >>> out, lse = selfattn.torch.merge_states(*a, *b)
    >>> torch.allclose(out, attend(query, key, value), atol=1e-6)
    True
    """
    if not torch.compiler.is_compiling():
        _check_pair(out_a=out_a, lse_a=lse_a, out_b=out_b, lse_b=lse_b)
    return _merge([out_a, out_b], [lse_a, lse_b], False, None)


def merge_states_many(
    outs: States,
    lses: States,
    axis: int = 0,
    *,
    lse_heads_first: bool = False,
    num_threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`selfattn.merge_states_many` of tensors, with gradients: any number of states in one pass.

    Parameters
    ----------
    outs : tensor with an axis of states, or sequence of tensors, shape (..., L, Ev)
        Stacked along `axis`, or one by one. float32, float64, float16 or bfloat16, any strides;
        they are read in place.
    lses : tensor with an axis of states, or sequence of tensors, shape (..., L)
        float32, or float64 where `outs` are. Where it is -inf, that state adds nothing.
    axis : int
        Of the states, in stacked `outs`; in stacked `lses` it has the same place, counted from the
        first axis.
    lse_heads_first : bool
        The last two axes of each lse, given and returned, are the other way round: (..., H, L)
        beside (..., L, H, Ev), as `varlen_attention` returns them.
    num_threads : int, optional
        As many as `selfattn.get_num_threads()` unless given.

    Returns
    -------
    out : tensor, shape (..., L, Ev)
    lse : tensor, shape (..., L)
        Each lies in memory as the first state's.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, kind or device; for a wrong shape, or where there are no states.
    NotImplementedError
        For forward-mode and for second derivatives.

    Examples
    --------
    >>> import torch, selfattn.torch
    >>> outs = torch.tensor([[[1.0]], [[5.0]]], requires_grad=True)
    >>> lses = torch.tensor([[0.0], [3.0]]).log()
    >>> out, lse = selfattn.torch.merge_states_many(outs, lses)
    >>> out.item(), lse.exp().item()  # the first has no weight: its lse is -inf
    (5.0, 3.0)
    >>> out.sum().backward()
    >>> outs.grad.flatten().tolist()
    [0.0, 1.0]
    """
    heads_first = flag("lse_heads_first", lse_heads_first)
    axis = integer("axis", axis)
    if not torch.compiler.is_compiling():
        _check_tensors("outs", outs)
        _check_tensors("lses", lses)
    if isinstance(outs, Tensor):
        axis = _axis(outs, axis)
    elif axis != 0:
        raise ValueError(f"axis: expected 0 where outs is a sequence, got {axis}")
    return _merge(
        _states("outs", outs, axis), _states("lses", lses, axis), heads_first, num_threads
    )


def _merge(
    outs: list[Tensor], lses: list[Tensor], heads_first: bool, num_threads: int | None
) -> tuple[Tensor, Tensor]:
    arguments = outs, lses, heads_first, num_threads
    if not eager.is_plain(*outs, *lses):
        out, lse = merge_operators.merge(*arguments)
    elif eager.wants_grad(*outs, *lses):
        out, lse = merge_operators.merge_at_once(arguments)
    else:
        out, lse = merge_operators.merge_forward(*arguments)
    return out, lse


def _states(name: str, given: States, axis: int) -> list[Tensor]:
    """One tensor for each state: views, where they are stacked."""
    if not isinstance(given, Tensor):
        return list(given)
    if given.dim() <= axis:
        raise ValueError(f"{name}: expected more than {axis} axes, got {tuple(given.shape)}")
    if given.shape[axis] == 0:
        raise ValueError(f"{name}: expected one state or more, got shape {tuple(given.shape)}")
    return list(given.unbind(axis))


def _axis(outs: Tensor, axis: int) -> int:
    """The axis of stacked states, counted from the first."""
    last = outs.dim() - 1
    if last < 1:
        raise ValueError(f"outs: expected 2 or more axes, got shape {tuple(outs.shape)}")
    place = axis + last + 1 if axis < 0 else axis
    if not 0 <= place < last:
        shape = tuple(outs.shape)
        raise ValueError(f"axis: expected one before the last of shape {shape}, got {axis}")
    return place


def _check_tensors(name: str, given: States) -> None:
    """Refuse what is no dense tensor on the CPU, nor a sequence of them."""
    if isinstance(given, Tensor):
        check((), **{name: given})
        return
    if not isinstance(given, (list, tuple)):
        kind = type(given).__name__
        raise TypeError(f"{name}: expected a tensor or a sequence of tensors, got {kind}")
    if not given:
        raise ValueError(f"{name}: expected one state or more, got an empty {type(given).__name__}")
    for i, x in enumerate(given):
        check((), **{f"{name}[{i}]": x})


def _check_pair(**states: Tensor) -> None:
    """Refuse a pair that does not fit together, by the names of its arguments."""
    check((), **states)
    first = states["out_a"]
    if first.dim() == 0:
        raise ValueError(f"out_a: expected 1 or more axes, got shape {tuple(first.shape)}")
    shapes: dict[str, Sequence[int]] = {"out_b": first.shape}
    shapes |= dict.fromkeys(("lse_a", "lse_b"), first.shape[:-1])
    for name, shape in shapes.items():
        got = tuple(states[name].shape)
        if got != tuple(shape):
            raise ValueError(
                f"{name}: expected shape {tuple(shape)} where out_a's is {tuple(first.shape)}, "
                f"got {got}"
            )
    dtypes = {"out_b": first.dtype}
    dtypes |= dict.fromkeys(("lse_a", "lse_b"), lse_dtype(first.dtype))
    for name, dtype in dtypes.items():
        if states[name].dtype != dtype:
            raise TypeError(
                f"{name}: expected {dtype} where out_a is of {first.dtype}, "
                f"got {states[name].dtype}"
            )
