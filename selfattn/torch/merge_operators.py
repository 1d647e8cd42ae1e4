"""The operators that merge states, `torch.ops.selfattn.merge` and its backward.

`merge` takes the states as two lists of tensors, and returns (out, lse), both differentiable.
`merge_backward` takes and returns all of a list as one tensor, whose first axis is that of the
states: PyTorch's older kind of vmap, autograd's `is_grads_batched`, knows no lists. Outside of
transforms and compilers the gradients are computed without it, and no state is copied. As
`operators.py` otherwise: schemas, kernels, fake kernels, derivatives, rules of vmap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _args, _core
from . import differentiation, eager, shapes
from .arrays import array_of, new_result, new_tensor
from .batching import Results, in_front
from .operators import library

_OPTIONS = "bool lse_heads_first=False, int? num_threads=None"


def _states(outs: list[Tensor], lses: list[Tensor], heads_first: bool) -> Any:
    """The NumPy API's, which checks that they fit together."""
    arrays = [array_of(f"outs[{i}]", x) for i, x in enumerate(outs)]
    rows = [array_of(f"lses[{i}]", x) for i, x in enumerate(lses)]
    return _args.states(arrays, rows, 0, heads_first)


def merge_forward(
    outs: list[Tensor], lses: list[Tensor], lse_heads_first: bool = False,
    num_threads: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    states = _states(outs, lses, lse_heads_first)
    out, lse = new_result(outs[0], outs[0].shape), new_result(lses[0], lses[0].shape)
    rows = states.lse_order(array_of("lse", lse))
    threads = _args.num_threads(num_threads)
    _core.merge(states.outs, states.lses, array_of("out", out), rows, threads)
    return out, lse


def _fake_forward(
    outs: list[Tensor], lses: list[Tensor], lse_heads_first: bool = False,
    num_threads: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shapes.check("lses", len(lses), len(outs), "one for each of outs,")
    for name, states in (("outs", outs), ("lses", lses)):
        for i, x in enumerate(states):
            shapes.check(f"{name}[{i}]", x.shape, states[0].shape, "the first one's shape")
    return new_result(outs[0], outs[0].shape), new_result(lses[0], lses[0].shape)


def merge_gradients(
    grad_out: Tensor, grad_lse: Tensor | None, outs: list[Tensor], lses: list[Tensor],
    lse_heads_first: bool = False, num_threads: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Those of outs and of lses, each with an axis of states before the others."""
    states = _states(outs, lses, lse_heads_first)
    of_out, of_lse = states.gradients_of_merged(
        array_of("grad_out", grad_out),
        None if grad_lse is None else array_of("grad_lse", grad_lse),
    )
    gradients = (
        new_tensor(outs[0], (len(outs), *outs[0].shape)),
        new_tensor(lses[0], (len(lses), *lses[0].shape)),
    )
    of_outs, of_lses = (tuple(array_of("", x)) for x in gradients)
    of_lses = tuple(map(states.lse_order, of_lses))
    threads = _args.num_threads(num_threads)
    _core.merge_backward(of_out, of_lse, states.outs, states.lses, of_outs, of_lses, threads)
    return gradients


def _backward(
    grad_out: Tensor, grad_lse: Tensor | None, outs: Tensor, lses: Tensor,
    lse_heads_first: bool = False, num_threads: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    states = list(outs.unbind(0)), list(lses.unbind(0))
    return merge_gradients(grad_out, grad_lse, *states, lse_heads_first, num_threads)


def _fake_backward(
    grad_out: Tensor, grad_lse: Tensor | None, outs: Tensor, lses: Tensor,
    lse_heads_first: bool = False, num_threads: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return new_tensor(outs, outs.shape), new_tensor(lses, lses.shape)


# ------------------------------------------------------------------ vmap


def _in_front(states: list[Tensor], dims: Any, n: int) -> list[Tensor]:
    return [in_front(x, dim, n) for x, dim in zip(states, dims, strict=True)]


def _batched(info: Any, in_dims: Any, outs: Any, lses: Any, *options: Any) -> Results:
    """Rows of more entries: the mapped axis goes before the others."""
    n = info.batch_size
    states = _in_front(outs, in_dims[0], n), _in_front(lses, in_dims[1], n)
    return merge(*states, *options), (0, 0)


def _batched_backward(
    info: Any, in_dims: Any, grad_out: Any, grad_lse: Any, outs: Any, lses: Any, *options: Any
) -> Results:
    n = info.batch_size
    grad_out = in_front(grad_out, in_dims[0], n)
    if grad_lse is not None:
        grad_lse = in_front(grad_lse, in_dims[1], n)
    states = [
        in_front(x, dim, n).movedim(0, 1) for x, dim in ((outs, in_dims[2]), (lses, in_dims[3]))
    ]
    return _merge_backward(grad_out, grad_lse, *states, *options), (1, 1)


# ------------------------------------------------------------------ derivatives


def _save(ctx: Any, arguments: tuple[Any, ...], results: Any) -> None:
    outs, lses, *options = arguments
    ctx.save_for_backward(*outs, *lses)
    ctx.options = options
    ctx.like = results[0].shape
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Any, grad_lse: Any) -> tuple[Any, ...]:
    """Those of each of outs, then of each of lses."""
    saved = ctx.saved_tensors
    if grad_out is None and grad_lse is None:
        return (None,) * len(saved)
    n = len(saved) // 2
    if grad_out is None:
        grad_out = saved[0].new_zeros(()).expand(ctx.like)
    is_final = eager.is_final(grad_out, grad_lse)
    states: Any = list(saved[:n]), list(saved[n:])
    if is_final:
        found = merge_gradients(grad_out, grad_lse, *states, *ctx.options)
    else:
        found = _merge_backward(grad_out, grad_lse, *map(torch.stack, states), *ctx.options)
    gradients = (*found[0].unbind(0), *found[1].unbind(0))
    needs = ctx.needs_input_grad[2:]
    return tuple([x if is_wanted else None for x, is_wanted in zip(gradients, needs, strict=True)])


def _define(name: str, signature: str, kernel: Any, fake: Any, rule: Any) -> Any:
    register: Any = torch.library
    library.define(f"{name}({signature}) -> (Tensor, Tensor)")
    library.impl(name, kernel, "CPU")
    register.register_fake(f"selfattn::{name}", fake, lib=library)
    register.register_vmap(f"selfattn::{name}", rule, lib=library)
    return getattr(torch.ops.selfattn, name).default


merge: Any = _define(
    "merge", f"Tensor[] outs, Tensor[] lses, {_OPTIONS}", merge_forward, _fake_forward, _batched
)
_merge_backward: Any = _define(
    "merge_backward",
    f"Tensor grad_out, Tensor? grad_lse, Tensor outs, Tensor lses, {_OPTIONS}",
    _backward,
    _fake_backward,
    _batched_backward,
)
merge_at_once = differentiation.register(
    library, "merge", (0, 1), _save, _differentiate, eager=merge_forward
)
differentiation.register(library, "merge_backward")
