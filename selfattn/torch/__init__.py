"""selfattn in PyTorch: attention, packed sequences, projections and merges, with gradients.

    functions.py        the public functions, their docstrings
      -> operators.py   torch.ops.selfattn: schemas, kernels, derivatives, rules of vmap
        -> kernels.py   the NumPy API on the memory of tensors; shapes for torch.compile
    merging.py, merge_operators.py    the same of merges of states
    eager.py, usual.py  the shorter way of a call that nobody needs to see
    options.py, shapes.py, arrays.py, differentiation.py, batching.py    what operators share
    provider.py         PyTorch's own functions run on selfattn: enabled, activate, restore
      -> dispatched.py  kernels in the place of PyTorch's operators
      -> patched.py     functions in the place of torch.nn.functional's

Loaded when it is first asked for, and only then is PyTorch. docs/torch.md is its page.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "selfattn.torch: expected PyTorch, which is not installed (pip install 'selfattn[torch]')",
        name=error.name,
    ) from error

from .functions import linear, scaled_dot_product_attention, varlen_attention
from .merging import merge_states, merge_states_many
from .provider import activate, enabled, register, restore

__all__ = [
    "activate",
    "enabled",
    "linear",
    "merge_states",
    "merge_states_many",
    "register",
    "restore",
    "scaled_dot_product_attention",
    "varlen_attention",
]
