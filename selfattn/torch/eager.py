"""Which calls may go to the kernels at once, without PyTorch's dispatcher, which takes longer.

Those that nobody wants to see or to transform: of plain tensors, outside of compilers, tracers,
modes and transforms, and that nothing is differentiated of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

_C: Any = torch._C
_forward_ad: Any = forward_ad
_functorch_is_active: Any = torch._C._are_functorch_transforms_active
_is_compiling: Any = torch.compiler.is_compiling
_num_modes: Any = torch._C._len_torch_dispatch_stack
_tracing_state: Any = torch._C._get_tracing_state
_any_requires_grad: Any = torch._C._any_requires_grad
_is_batched: Any = torch._C._functorch.is_legacy_batchedtensor
PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))
_PLAIN_OR_NONE = PLAIN | {type(None)}


def is_plain(*tensors: Any) -> bool:
    """Whether all are plain tensors, and nothing is there to see a call of an operator of them.

    None counts as one, for it is an argument that is not given.
    """
    return (
        not _is_compiling()
        and _num_modes() == 0
        and not _functorch_is_active()
        and _tracing_state() is None
        and _forward_ad._current_level < 0
        and _PLAIN_OR_NONE.issuperset(map(type, tensors))
    )


def is_final(*gradients: Any) -> bool:
    """Whether what these are gradients of may be differentiated at once: nobody will see that.

    None counts as one. Autograd's `is_grads_batched` gives tensors of many gradients, by its older
    kind of vmap.
    """
    return (
        not torch.is_grad_enabled()
        and is_plain(*gradients)
        and not any(x is not None and _is_batched(x) for x in gradients)
    )


def wants_grad(*arguments: Any) -> bool:
    """Whether a call of these is to be differentiated."""
    return torch.is_grad_enabled() and bool(_any_requires_grad(*arguments))
