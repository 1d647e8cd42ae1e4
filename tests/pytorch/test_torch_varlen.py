"""selfattn.torch's packed sequences: the bits of the NumPy API, values and gradients."""

import numpy as np
import pytest

import selfattn
from support.arrays import normal
from support.gradients import wanted_grads
from support.packed import LENGTHS, OPTIONS, Packed

torch = pytest.importorskip("torch")

from selfattn import torch as ours  # noqa: E402
from support.tensors import array, assert_same_bits, of_options, tensor, tensors  # noqa: E402


def check(packed, options):
    want = packed.attend(**options)
    grad_out = normal(*want[0].shape, dtype=packed.dtype, seed=3)
    starts = packed.cu_q, packed.cu_k
    gradients = selfattn.varlen_attention_backward(
        grad_out,
        *packed.arrays,
        *want,
        *starts,
        enable_gqa=True,
        **wanted_grads(options),
        **options,
    )
    leaves = tensors(*packed.arrays, requires_grad=True)
    given = of_options(options, requires_grad=True)
    got = ours.varlen_attention(
        *leaves, *tensors(*starts), enable_gqa=True, return_lse=True, **given
    )
    assert_same_bits(got, want)
    assert got[1].requires_grad
    got[0].backward(tensor(grad_out))
    with_gradients = dict(zip(("query", "key", "value"), leaves, strict=True)) | given
    for name, x in gradients._asdict().items():
        if x is not None:
            assert_same_bits(with_gradients[name].grad, x, name)
    with torch.inference_mode():
        alone = ours.varlen_attention(
            *tensors(*packed.arrays), *tensors(*starts), enable_gqa=True, **of_options(options)
        )
    assert_same_bits(alone, want[0])


@pytest.mark.parametrize("kind", OPTIONS)
def test_options(dtype, kind):
    packed = Packed(LENGTHS["queries without keys"], dtype)
    check(packed, OPTIONS[kind](packed))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_lengths(dtype, lengths):
    check(Packed(LENGTHS[lengths], dtype), {"is_causal": True})


def test_dropout(dtype):
    check(Packed(LENGTHS["alike"], dtype), {"dropout_p": 0.4, "dropout_seed": 7})


def test_starts_of_int32(dtype):
    packed = Packed(LENGTHS["alike"], dtype)
    starts = [torch.from_numpy(x).to(torch.int32) for x in (packed.cu_q, packed.cu_k)]
    got = ours.varlen_attention(*tensors(*packed.arrays), *starts, enable_gqa=True)
    assert_same_bits(got, packed.attend()[0])


def test_a_packed_product_is_read_in_place(dtype):
    """Queries, keys and values as columns of one tensor, as models project them."""
    product = tensor(normal(10, 3, 4, 8, dtype=dtype), requires_grad=True)
    starts = torch.tensor([0, 4, 10])
    out = ours.varlen_attention(*product.unbind(1), starts, starts)
    out.sum().backward()
    arrays = [np.ascontiguousarray(array(x)) for x in product.unbind(1)]
    cu = starts.numpy()
    want = selfattn.varlen_attention(*arrays, cu, cu, return_lse=True)
    assert_same_bits(out, want[0])
    gradients = selfattn.varlen_attention_backward(np.ones_like(want[0]), *arrays, *want, cu, cu)
    assert_same_bits(product.grad, np.stack(gradients[:3], 1))
