"""PyTorch's tensors for the tests of `selfattn.torch`: of arrays, of options, and back.

Tests that import this skip first where PyTorch is missing.
"""

import shutil

import numpy as np
import torch
import torch.nn.functional as F

from selfattn.torch.arrays import array_of, tensor_of
from support.arrays import same_bits
from support.gradients import wanted_grads

# As code has it that imports the function itself, and so does not meet what replaces it.
ATTENTION, LINEAR = F.scaled_dot_product_attention, F.linear


def through_the_function(*arguments, **options):
    return F.scaled_dot_product_attention(*arguments, **options)


def through_the_dispatcher(*arguments, **options):
    return ATTENTION(*arguments, **options)


# Of torch.compile, the most thorough last; inductor needs a compiler of C++.
BACKENDS = ["eager", "aot_eager"] + ["inductor"] * bool(shutil.which("g++"))
DOORS = [through_the_function, through_the_dispatcher]


def tensor(x, requires_grad=False):
    """A tensor of a copy of the array, with its strides; what is no array, as it is."""
    if isinstance(x, (tuple, list)):
        return tuple(map(tensor, x))
    if not isinstance(x, np.ndarray):
        return x
    return tensor_of(np.copy(x, order="K")).requires_grad_(requires_grad)


def tensors(*arrays, requires_grad=False):
    return [tensor(x, requires_grad) for x in arrays]


def of_options(options, requires_grad=False):
    """The options with tensors for arrays; those that have a gradient may require it."""
    given = {name: tensor(x) if name != "window_size" else x for name, x in options.items()}
    wanted = wanted_grads(options)
    for name, is_wanted in (
        ("attn_mask", "mask_grad"), ("attn_bias", "bias_grad"), ("sinks", "sinks_grad"),
    ):  # fmt: skip
        if requires_grad and wanted[is_wanted]:
            given[name].requires_grad_()
    return given


def array(x):
    return array_of("", x)


def assert_same_bits(got, want, context=""):
    """A tensor, or a tuple of them, and arrays."""
    if isinstance(want, tuple):
        assert len(got) == len(want), context
        for x, y in zip(got, want, strict=True):
            assert_same_bits(x, y, context)
        return
    assert isinstance(got, torch.Tensor), context
    assert same_bits(np.ascontiguousarray(array(got)), np.ascontiguousarray(want)), context


def normal_tensor(*shape, dtype=None, seed=0, requires_grad=False):
    """N(0, 1) of any shape."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, dtype=dtype or torch.float32, generator=generator)
    return x.requires_grad_(requires_grad)
