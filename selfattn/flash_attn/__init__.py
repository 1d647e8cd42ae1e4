"""flash-attn's functions on the CPU: its signatures, defaults and semantics, with gradients.

    dense.py          batches: flash_attn_func, …_qkvpacked_func, …_kvpacked_func
    varlen.py         packed sequences: flash_attn_varlen_func and its two packed forms
    kvcache.py        flash_attn_with_kvcache; rotary.py rotates what it appends
      -> arguments.py   the package's arguments checked, and selfattn.torch's made of them
      -> ../torch/      the operators, their gradients and fake kernels
    probabilities.py  what `return_attn_probs` asks for
    bert_padding.py   padded batches to packed sequences and back
    modules.py        install: `import flash_attn` is answered by all this

The signatures are those of flash-attn 2.8 (Dao, 2023, arXiv:2307.08691; T. Dao's package is not
needed, and no code of it is here). docs/flash_attn.md is the page. PyTorch is imported with it.
"""

from .. import torch as _torch  # noqa: F401  (it says what is missing where PyTorch is)
from .dense import flash_attn_func, flash_attn_kvpacked_func, flash_attn_qkvpacked_func
from .kvcache import flash_attn_with_kvcache
from .modules import install, installed, uninstall
from .varlen import (
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "install",
    "installed",
    "uninstall",
]
