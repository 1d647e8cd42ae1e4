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


# Of sequences in any order, with gaps: where each starts, and how long.
PLACES_Q = np.array([9, 0, 3]), np.array([4, 2, 5])
PLACES_K = np.array([0, 6, 3]), np.array([3, 5, 3])


@pytest.mark.parametrize("places", [(PLACES_Q, PLACES_K), (PLACES_Q, np.array([0, 4, 4, 10]))])
def test_pairs_of_starts_and_lengths(dtype, places):
    arrays = [
        normal(*shape, dtype=dtype, seed=i)
        for i, shape in enumerate([(14, 4, 8), (12, 2, 8), (12, 2, 6)])
    ]
    options = {"is_causal": True, "enable_gqa": True}
    want = selfattn.varlen_attention(*arrays, *places, return_lse=True, **options)
    assert not want[0][2].any()  # of no sequence
    grad_out = normal(*want[0].shape, dtype=dtype, seed=4)
    gradients = selfattn.varlen_attention_backward(grad_out, *arrays, *want, *places, **options)
    leaves = tensors(*arrays, requires_grad=True)
    got = ours.varlen_attention(*leaves, *tensor(places), return_lse=True, **options)
    assert_same_bits(got, want)
    got[0].backward(tensor(grad_out))
    for leaf, gradient in zip(leaves, gradients[:3], strict=True):
        assert_same_bits(leaf.grad, gradient)


def test_keys_that_sequences_share(dtype):
    """Their values are those of a call each; gradients are refused, not added up wrongly."""
    query, key = (normal(6, 2, 4, dtype=dtype, seed=i) for i in range(2))
    starts, places = np.array([0, 2, 6]), (np.array([0, 1]), np.array([5, 3]))
    want = selfattn.varlen_attention(query, key, key, starts, places)
    leaf = tensor(key, requires_grad=True)
    got = ours.varlen_attention(tensor(query), leaf, leaf, tensor(starts), tensor(places))
    assert_same_bits(got, want)
    with pytest.raises(ValueError, match="cu_seqlens_k: expected sequences that share no rows"):
        got.sum().backward()


def test_pairs_that_are_none():
    x, starts = torch.zeros(5, 1, 4), torch.tensor([0, 5])
    for pair, error, words in (
        ((starts,), TypeError, "cu_seqlens_k: expected a tensor or a pair of them, got 1 of them"),
        ((starts, None), TypeError, "cu_seqlens_k: expected a tensor, got NoneType"),
        ((starts, starts[:1]), ValueError, "cu_seqlens_k: expected a pair of shape"),
        ((starts, starts), ValueError, "cu_seqlens_k: expected starts and lengths"),
    ):
        with pytest.raises(error, match=words):
            ours.varlen_attention(x, x, x, starts, pair)
