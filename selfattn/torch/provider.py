"""The provider: PyTorch's attention on the CPU, and its linear layers too, run on selfattn.

    register     make it known to torch.nn.attention, by the name "selfattn"
    activate     from now on, until restore
    enabled      inside a `with` block

It has two doors. PyTorch's dispatcher is given kernels (`dispatched.py`), which all code comes to,
compiled before or after; but PyTorch does not hand over what its own kernels cannot do. The
functions of `torch.nn.functional` are replaced as well (`patched.py`), which have no such limits.

All of it is of the whole process: of every thread, like the rest of PyTorch's choice of kernels.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn import attention

from . import dispatched, patched

NAME = "selfattn"

_registry: Any = attention
_mha: Any = torch.backends.mha
_functional: Any = F

_lock = threading.RLock()
_wanted: list[bool] = []  # one for each block that is entered: whether it wants linear layers too
_activated: list[bool] = []  # of `activate`: none or one
_attention_undo: contextlib.ExitStack | None = None
_linear_undo: contextlib.ExitStack | None = None


def register() -> None:
    """Make it known to `torch.nn.attention` by the name "selfattn", and change nothing else.

    `torch.nn.attention.activate_flash_attention_impl("selfattn")` then takes the kernels alone, of
    what PyTorch's dispatcher hands over; `activate` here and `enabled` take all of it, and call
    this themselves.

    Examples
    --------
    >>> import torch, selfattn.torch
    >>> selfattn.torch.register()
    >>> "selfattn" in torch.nn.attention.list_flash_attention_impls()
    True
    """
    _registry.register_flash_attention_impl(NAME, register_fn=dispatched.Handle)


def activate(linear: bool = False) -> None:
    """Run PyTorch's attention on selfattn from now on, in the whole process, until `restore`.

    Parameters
    ----------
    linear : bool
        `torch.nn.functional.linear` too, so that a row has the same bits alone and in a batch. A
        second call changes this.

    Examples
    --------
    >>> import torch, selfattn.torch
    >>> selfattn.torch.activate()
    >>> torch.nn.attention.current_flash_attention_impl()
    'selfattn'
    >>> selfattn.torch.restore()
    >>> torch.nn.attention.current_flash_attention_impl() is None
    True
    """
    with _lock:
        before = list(_activated)
        _activated[:] = [bool(linear)]
        _settle_or(lambda: _activated.__setitem__(slice(None), before))


def restore() -> None:
    """Undo `activate`. Blocks of `enabled` that are not left yet keep what they want.

    Examples
    --------
    >>> import selfattn.torch
    >>> selfattn.torch.restore()  # nothing to undo is no error
    """
    with _lock:
        _activated.clear()
        _settle()


@contextlib.contextmanager
def enabled(linear: bool = False) -> Iterator[None]:
    """Run PyTorch's attention on selfattn inside a `with` block.

    Every `torch.nn.functional.scaled_dot_product_attention` of float32, float64, float16 or
    bfloat16 tensors on the CPU, forward and backward, and
    `torch.nn.attention.varlen.varlen_attn`, which has no kernel on the CPU otherwise. What
    selfattn does not compute stays PyTorch's.

    The choice is the whole process's, not this thread's: while any thread is in such a block, all
    are. Blocks may be nested and may overlap; PyTorch's own functions are back when the last one is
    left, by an exception too.

    Parameters
    ----------
    linear : bool
        `torch.nn.functional.linear` too, so that a row has the same bits alone and in a batch. It
        stays so inside blocks that do not ask for it.

    Notes
    -----
    The layers `torch.nn.MultiheadAttention` and `torch.nn.TransformerEncoderLayer` have a fast path
    of their own without gradients, which calls neither function; it is switched off in the block
    (`torch.backends.mha.set_fastpath_enabled`).

    Examples
    --------
    >>> import torch, selfattn.torch
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    >>> x = torch.randn(4, 5, 8)
    >>> with selfattn.torch.enabled(linear=True), torch.inference_mode():
    ...     in_a_batch, alone = layer(x)[1], layer(x[1:2])[0]
    >>> torch.equal(in_a_batch, alone)
    True
    """
    wants_linear = bool(linear)
    with _lock:
        _wanted.append(wants_linear)
        _settle_or(lambda: _wanted.remove(wants_linear))
    try:
        yield
    finally:
        with _lock:
            _wanted.remove(wants_linear)
            _settle()


def _settle_or(undo: Callable[[], None]) -> None:
    try:
        _settle()
    except BaseException:
        undo()
        raise


def _settle() -> None:
    """Put in place what is wanted, and take away what nobody wants any more."""
    global _attention_undo, _linear_undo
    wanted = [*_wanted, *_activated]
    if any(wanted) and _linear_undo is None:
        _linear_undo = _replace_linear()
    elif not any(wanted) and _linear_undo is not None:
        undo, _linear_undo = _linear_undo, None
        undo.close()
    if wanted and _attention_undo is None:
        _attention_undo = _replace_attention()
    elif not wanted and _attention_undo is not None:
        undo, _attention_undo = _attention_undo, None
        undo.close()


def _replace_attention() -> contextlib.ExitStack:
    """Returns what undoes it; nothing is changed if it raises."""
    with contextlib.ExitStack() as stack:
        register()
        before = _registry.current_flash_attention_impl()
        stack.callback(_give_back, before)
        _registry.activate_flash_attention_impl(NAME)
        _replace_function(
            stack, "scaled_dot_product_attention", patched.scaled_dot_product_attention, "is_on"
        )
        stack.callback(_mha.set_fastpath_enabled, _mha.get_fastpath_enabled())
        _mha.set_fastpath_enabled(False)
        return stack.pop_all()


def _give_back(before: str | None) -> None:
    """To the kernels that were chosen before; if others have been chosen since, they stay."""
    if _registry.current_flash_attention_impl() != NAME:
        return
    _registry.restore_flash_attention_impl()
    if before is not None and before != NAME:
        _registry.activate_flash_attention_impl(before)


def _replace_linear() -> contextlib.ExitStack:
    with contextlib.ExitStack() as stack:
        _replace_function(stack, "linear", patched.linear, "is_linear_on")
        return stack.pop_all()


def _replace_function(stack: contextlib.ExitStack, name: str, function: Any, switch: str) -> None:
    """Replace a function of `torch.nn.functional`, whoever else has replaced it before."""
    before = getattr(_functional, name)
    setattr(patched, f"torch_{name.rpartition('_')[2]}", before)
    setattr(_functional, name, function)
    setattr(patched, switch, True)

    def undo() -> None:
        setattr(patched, switch, False)
        if getattr(_functional, name) is function:  # else somebody has replaced ours, and calls it
            setattr(_functional, name, before)

    stack.callback(undo)
