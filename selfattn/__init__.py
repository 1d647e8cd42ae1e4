"""Self-attention on the CPU: fused, exact C kernels behind a thin NumPy API.

A call travels one way:

    attention.py, varlen.py,
    backward.py, merging.py,
    linear.py, steps.py        public functions and their docstrings
      -> _args/                the only validator: arrays and options -> a problem
        -> _core.pyx           fills one C struct, releases the GIL, maps status -> exception
          -> csrc/forward.c …  the parallel loops over tiles; schedule.c cuts them
            -> csrc/dispatch.c the kernel table of the best instruction set
              -> csrc/kernels/ the arithmetic, written once for every set and dtype

`nn` has layers that learn, around these functions; `torch` is all of it for PyTorch's tensors, and
on it stand `flash_attn`, flash-attn's functions, and `transformers`, for Hugging Face's models;
`plot` draws attention; `distributed` attends past one machine. Each loads when first asked for.
`reference/` is the NumPy truth that all of it is tested against. CONTRIBUTING.md walks a call
through these rooms.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

try:
    from . import _core as _core
except ImportError as error:
    from ._no_core import explained

    raise explained(error) from None

from ._config import isas, show_config
from ._threads import get_num_threads, set_num_threads, threads
from ._version import __version__
from .attention import scaled_dot_product_attention
from .backward import scaled_dot_product_attention_backward, varlen_attention_backward
from .gradients import AttentionGradients, ProjectionGradients
from .linear import project, project_backward
from .steps import attention_weights, scaled_dot_product, softmax, weighted_sum
from .varlen import varlen_attention

if TYPE_CHECKING:
    from . import (
        nn as nn,
    )  # and not torch or transformers, which checkers would read for every user
    from .caches import KVCache, PagedKVCache
    from .gradients import MergeGradients
    from .merging import merge_states, merge_states_backward, merge_states_many
    from .state import AttentionState

__all__ = [
    "AttentionGradients",
    "AttentionState",
    "KVCache",
    "MergeGradients",
    "PagedKVCache",
    "ProjectionGradients",
    "__version__",
    "attention_weights",
    "get_num_threads",
    "isas",
    "merge_states",
    "merge_states_backward",
    "merge_states_many",
    "project",
    "project_backward",
    "scaled_dot_product",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_backward",
    "set_num_threads",
    "show_config",
    "softmax",
    "threads",
    "varlen_attention",
    "varlen_attention_backward",
    "weighted_sum",
]

# What loads when it is first asked for: names, by the modules that have them, and modules.
_LAZY_NAMES = {
    "AttentionState": "state",
    "KVCache": "caches",
    "MergeGradients": "gradients",
    "PagedKVCache": "caches",
    "merge_states": "merging",
    "merge_states_backward": "merging",
    "merge_states_many": "merging",
}
_LAZY = ("distributed", "flash_attn", "nn", "plot", "torch", "transformers")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f".{name}", __name__)
    if name in _LAZY_NAMES:
        found = getattr(importlib.import_module(f".{_LAZY_NAMES[name]}", __name__), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_LAZY_NAMES})
