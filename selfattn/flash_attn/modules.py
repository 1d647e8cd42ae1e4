"""`import flash_attn` answered by selfattn, where the package itself is not installed.

Modules of the package's names are put into `sys.modules`, with the functions of this one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

from . import bert_padding, dense, kvcache, varlen

# The release of the package whose signatures these are; models compare it with what they need.
VERSION = "2.8.3"

_NAME = "flash_attn"
_FUNCTIONS = (
    dense.flash_attn_func,
    dense.flash_attn_kvpacked_func,
    dense.flash_attn_qkvpacked_func,
    varlen.flash_attn_varlen_func,
    varlen.flash_attn_varlen_kvpacked_func,
    varlen.flash_attn_varlen_qkvpacked_func,
    kvcache.flash_attn_with_kvcache,
)
_PADDING = (
    bert_padding.index_first_axis,
    bert_padding.index_put_first_axis,
    bert_padding.pad_input,
    bert_padding.unpad_input,
)
_lock = threading.RLock()
_ours: dict[str, ModuleType] = {}


def install() -> bool:
    """Let `import flash_attn` import selfattn's functions from now on, in the whole process.

    `flash_attn.flash_attn_interface` and `flash_attn.bert_padding` too; other parts of the
    package (`flash_attn.layers`, `flash_attn.ops`) are not there. Where the package itself is
    installed or imported, it stays, and nothing is done.

    Returns
    -------
    bool
        Whether `flash_attn` is selfattn's now.

    Examples
    --------
    >>> import selfattn.flash_attn
    >>> selfattn.flash_attn.install()
    True
    >>> from flash_attn import flash_attn_func
    >>> flash_attn_func.__module__
    'selfattn.flash_attn.dense'
    >>> selfattn.flash_attn.uninstall()
    """
    with _lock:
        if _ours:
            return True
        if _NAME in sys.modules or importlib.util.find_spec(_NAME) is not None:
            return False
        _ours.update(_new_modules())
        sys.modules.update(_ours)
        return True


def uninstall() -> None:
    """Undo `install`. What has been imported by then stays what it is.

    Examples
    --------
    >>> import selfattn.flash_attn
    >>> selfattn.flash_attn.uninstall()  # nothing to undo is no error
    """
    with _lock:
        for name, module in _ours.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        _ours.clear()


@contextlib.contextmanager
def installed() -> Iterator[bool]:
    """`install` inside a `with` block; after it, what was there before.

    Examples
    --------
    >>> import selfattn.flash_attn
    >>> with selfattn.flash_attn.installed():
    ...     from flash_attn.bert_padding import pad_input
    """
    was_ours = bool(_ours)
    try:
        yield install()
    finally:
        if not was_ours:
            uninstall()


def _new_modules() -> dict[str, ModuleType]:
    package = _module(_NAME, _FUNCTIONS, is_package=True)
    interface = _module(f"{_NAME}.flash_attn_interface", _FUNCTIONS)
    padding = _module(f"{_NAME}.bert_padding", _PADDING)
    vars(package).update(__version__=VERSION, flash_attn_interface=interface, bert_padding=padding)
    return {module.__name__: module for module in (package, interface, padding)}


def _module(name: str, functions: tuple[object, ...], is_package: bool = False) -> ModuleType:
    """A module that `importlib.util.find_spec` finds as well."""
    module = ModuleType(name, f"selfattn's functions in the place of {name}.")
    module.__spec__ = ModuleSpec(name, None, is_package=is_package, origin="selfattn.flash_attn")
    if is_package:
        module.__path__ = []
    vars(module).update({getattr(f, "__name__", ""): f for f in functions})
    return module
