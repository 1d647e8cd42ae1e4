"""Makes selfattn known to transformers, by name."""

from __future__ import annotations

import functools
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, modeling_flash_attention_utils
from transformers.masking_utils import flash_attention_mask

from . import unpadded
from .attention import attention
from .masks import attention_mask

_interface: Any = AttentionInterface
_flash_utils: Any = modeling_flash_attention_utils
_unpadding: set[str] = set()  # names that take the functions of unpadded.py


def register_transformers(name: str = "selfattn") -> None:
    """Make selfattn known to transformers, as an attention implementation for models on the CPU.

    Two names, to be given as `attn_implementation` where a model is made, or to its
    `set_attn_implementation`:

    - `name`: for any model. What a mask says about padding, causality, windows and packed
      sequences is said by a few numbers, and no matrix of a batch's queries and keys is made.
    - `name` + "_flash": the padding of a batch is not computed. It is left out in attention, and by
      sentence-transformers in the whole model.

    Nothing else in transformers changes. It may be called again, with other names too.

    Parameters
    ----------
    name : str
        Not one that transformers has itself, and without what it reads a meaning into: "flash",
        "sdpa", "eager" and others, and the marks of a repository's name.

    Raises
    ------
    TypeError, ValueError
        For a name that is no string; for one that transformers would misread.

    Examples
    --------
    >>> import torch, transformers, selfattn.transformers
    >>> selfattn.transformers.register_transformers()
    >>> config = transformers.BertConfig(
    ...     hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8,
    ...     vocab_size=10,
    ... )
    >>> config._attn_implementation = "selfattn"
    >>> model = transformers.BertModel(config).eval()
    >>> tokens = torch.tensor([[1, 2, 3], [4, 5, 0]])
    >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    >>> model(tokens, attention_mask=mask).last_hidden_state.shape
    torch.Size([2, 3, 8])
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {type(name).__name__}")
    taken = _taken(name)
    if taken:
        raise ValueError(f"name: expected one that transformers does not read itself, got {taken}")
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, attention_mask)
    flash = f"{name}_flash"
    _unpadding.add(flash)
    _replace_lazy_imports()
    AttentionInterface.register(flash, unpadded.unpadded_attention)
    AttentionMaskInterface.register(flash, flash_attention_mask)


def _taken(name: str) -> str:
    """Why transformers would misread the name, or "" if it would not."""
    if not name:
        return "''"
    if name == "eager" or _interface().get(name) not in (None, attention):
        return f"{name!r}, which is its own"
    for part in ("flash", "flex_attention", "sdpa", "paged", "eager", "|", "/", ":", "@"):
        if part in name:
            return f"{name!r}, which contains {part!r}"
    return ""


def _replace_lazy_imports() -> None:
    """Have transformers take our functions where it looks for those of a name with "flash"."""
    theirs = _flash_utils._lazy_imports
    if getattr(theirs, "is_selfattns", False):
        return

    @functools.wraps(theirs)
    def lazy_imports(implementation: str | None, *arguments: Any, **keywords: Any) -> Any:
        if implementation not in _unpadding:
            return theirs(implementation, *arguments, **keywords)
        return (
            unpadded.flash_attn_func,
            unpadded.flash_attn_varlen_func,
            None,  # of a paged cache
            _flash_utils._pad_input,
            _flash_utils._unpad_input,
        )

    vars(lazy_imports)["is_selfattns"] = True
    _flash_utils._lazy_imports = lazy_imports
