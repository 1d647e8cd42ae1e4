"""How an operator is differentiated: in reverse mode once, and in no other way.

A kernel under the dispatcher's key Autograd, rather than `torch.library.register_autograd`, because
the latter gives a tangent of zero to whoever asks for forward-mode derivatives, without a word. The
kernel here raises: where an input carries a tangent, where an input that has no gradient requires
one, and where a gradient is differentiated again. It works on each level of torch.func's transforms
as it does outside of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

_C: Any = torch._C
_forward_ad: Any = forward_ad
_one_level: Any = enable_single_level_autograd_function


def register(
    library: Any,
    name: str,
    inputs: tuple[int, ...] | None = None,
    save: Callable[..., None] | None = None,
    backward: Callable[..., tuple[Any, ...]] | None = None,
    constants: dict[int, str] | None = None,
    eager: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register the derivative of the operator `name`.

    inputs                          places of the arguments that have a gradient; else all of them.
                                    Each tensor of a list is an input of its own; None is left out
                                    where no other input follows
    save(ctx, arguments, results)   keeps what backward needs
    backward(ctx, *gradients)       the gradients of the inputs
    constants                       {place of an argument: its name}: it must not require grad
    eager                           the operator's kernel for tensors on the CPU
    Returns a function of the arguments, in a tuple, that does the operator's work without the
    dispatcher, and records it to be differentiated: by `eager`, where its caller knows that nothing
    is to see the call.
    Without `backward` the operator's results cannot be differentiated, and trying it raises.
    """
    operator = getattr(torch.ops.selfattn, name).default
    has_lists = any(isinstance(x.type, _C.ListType) for x in operator._schema.arguments)

    def below(keyset: Any, arguments: tuple[Any, ...]) -> Any:
        with _C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & _C._after_autograd_keyset, *arguments)

    def forward(ctx: Any, keyset: Any, arguments: tuple[Any, ...], *inputs: Any) -> Any:
        # PyTorch switches derivatives off in here. For torch.func, other levels are yet to come.
        if keyset is None and eager is not None:
            results = eager(*arguments)
        else:
            with torch.enable_grad() if _is_transformed() else contextlib.nullcontext():
                results = below(keyset, arguments)
        if save is not None:
            save(ctx, arguments, results)
        return results

    def differentiate(ctx: Any, *gradients: Any) -> Any:
        if backward is None:
            raise NotImplementedError(
                f"selfattn: second derivatives are not built: {name} cannot be differentiated"
            )
        return (None, None, *backward(ctx, *gradients))[: len(ctx.needs_input_grad)]

    function: Any = type(
        f"selfattn_{name}",
        (_SingleLevelFunction,),
        {"forward": staticmethod(forward), "backward": staticmethod(differentiate)},
    )

    constant_places = tuple((constants or {}).items())

    def refuse(arguments: tuple[Any, ...]) -> None:
        for place, of_name in constant_places:
            if place < len(arguments) and _requires_grad(arguments[place]):
                raise NotImplementedError(
                    f"{of_name}: its gradient is not built; expected a tensor that does not "
                    "require grad (call .detach()), got one that does"
                )

    def apply(keyset: Any, arguments: tuple[Any, ...]) -> Any:
        # PyTorch looks at each argument of its own, in both directions: options go as one. Inputs
        # that the dispatcher leaves out, since they are the default, are None.
        refuse(arguments)
        n = len(arguments)
        chosen = arguments if inputs is None else [arguments[i] if i < n else None for i in inputs]
        while chosen and chosen[-1] is None:
            chosen = chosen[:-1]
        return function.apply(keyset, arguments, *(_flat(chosen) if has_lists else chosen))

    def at_once(arguments: tuple[Any, ...]) -> Any:
        return apply(None, arguments)

    def kernel(keyset: Any, *arguments: Any) -> Any:
        if _forward_ad._current_level >= 0:
            _refuse_tangents(name, arguments)
        if not (torch.is_grad_enabled() and _C._any_requires_grad(*_flat(arguments))):
            return below(keyset, arguments)
        if not _is_transformed():
            return apply(keyset, arguments)
        with _one_level():
            return apply(keyset, arguments)

    library.impl(name, kernel, "Autograd", with_keyset=True)
    return at_once


def _flat(arguments: Any) -> list[Any]:
    """The arguments with the elements of lists in the place of these."""
    return [y for x in arguments for y in (x if isinstance(x, list) else [x])]


def has_tangent(x: Any) -> bool:
    """Whether it is a tensor that carries a tangent, of a dual level that is entered."""
    if _forward_ad._current_level < 0 or not isinstance(x, torch.Tensor):
        return False
    return _forward_ad.unpack_dual(x).tangent is not None


def _refuse_tangents(name: str, arguments: tuple[Any, ...]) -> None:
    if any(map(has_tangent, _flat(arguments))):
        raise NotImplementedError(
            f"selfattn: forward-mode derivatives (jvp, dual tensors) of {name} are not built; "
            "reverse mode (backward, grad, vjp) is"
        )


def _requires_grad(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.requires_grad


def _is_transformed() -> bool:
    """Whether a transform of torch.func is at work."""
    return bool(_C._functorch.maybe_current_level() is not None)
