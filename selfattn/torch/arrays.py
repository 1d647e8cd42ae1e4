"""Tensors as arrays, arrays as tensors, and new tensors for results: nothing is copied.

`array_of` and `tensor_of` are the only places that know how a dtype of PyTorch lies in NumPy: a
dtype that the kernels compute in is added to DTYPES and, where NumPy itself lacks it, to these two.
bfloat16 is such a one: it is ml_dtypes' there, which is imported when the first tensor of it comes.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import _args, _core
from .._args.arrays import is_bfloat16
from .eager import PLAIN

# What the kernels compute in. The provider leaves all else to PyTorch's own functions.
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the log-sum-exp of queries of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# Tensors' memory by PyTorch's own C functions: in a quarter of the time of `Tensor.numpy`, whether
# they require grad or not.
memory = _core.TensorCalls(torch.Tensor, torch.Tensor.is_neg, torch.empty_like)


def array_of(name: str, x: torch.Tensor) -> np.ndarray:
    """The memory of a tensor on the CPU, as an array with the tensor's strides.

    TypeError, or what the NumPy API raises for such a dtype, for any other tensor.
    """
    array = memory.array(x)
    return _other_array(name, x) if array is None else array


def _other_array(name: str, x: torch.Tensor) -> np.ndarray:
    """What is no plain view of memory: a negative bit is resolved, the rest an error says why."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.device.type != "cpu":
        raise TypeError(f"{name}: expected a tensor on the CPU, got one on {x.device}")
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one of {x.layout}")
    if x.is_neg() or x.is_conj():
        return array_of(name, x.resolve_neg().resolve_conj())
    if x.dtype is torch.bfloat16 and _bfloat16() is None:
        raise TypeError(
            f"{name}: expected ml_dtypes to be installed (pip install 'selfattn[torch]'), whose "
            "bfloat16 is NumPy's, got a tensor of bfloat16"
        )
    array = memory.array(x)
    try:
        return x.detach().numpy() if array is None else array
    except (TypeError, RuntimeError):
        return _args.array(name, x)


@functools.cache
def _bfloat16() -> np.dtype | None:
    """NumPy's dtype of bfloat16, made known to the core; None without ml_dtypes."""
    try:
        dtype: np.dtype = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ModuleNotFoundError:
        return None
    return dtype if is_bfloat16(dtype) else None


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """A tensor of the memory of a writeable array."""
    if is_bfloat16(array.dtype):
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def new_tensor(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """An empty tensor of like's dtype, in C order; `like` may be one without memory."""
    new: Any = memory.new(like, shape) if type(like) in PLAIN else None
    return like.new_empty(shape) if new is None else new


def new_result(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """An empty tensor of like's dtype whose axes lie in memory in the order of like's.

    In C order where `like` has another number of axes or repeats elements. This is called for real
    tensors and for those that have no memory (fake kernels), which must agree on the strides.
    """
    if like.is_contiguous() or like.dim() != len(shape):
        return new_tensor(like, shape)
    if like.shape == shape:
        return torch.empty_like(like)
    if _repeats(like):
        return new_tensor(like, shape)
    return torch.empty_permuted(shape, _order(like), dtype=like.dtype, device=like.device)


def new_gradient(like: torch.Tensor) -> torch.Tensor:
    """An empty tensor with the strides that the NumPy API gives the gradient of `like`."""
    if like.is_contiguous() or like.stride(-1) != 1 or 0 in like.stride():
        return new_tensor(like, like.shape)
    return torch.empty_permuted(like.shape, _order(like), dtype=like.dtype, device=like.device)


def _repeats(x: torch.Tensor) -> bool:
    return any(step == 0 and n != 1 for step, n in zip(x.stride(), x.shape, strict=True))


def _order(x: torch.Tensor) -> list[int]:
    """The axes from the outermost in memory to the innermost."""
    strides = x.stride()
    return sorted(range(x.dim()), key=lambda axis: -strides[axis])
