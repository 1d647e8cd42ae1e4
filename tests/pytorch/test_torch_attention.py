"""selfattn.torch's attention: the bits of the NumPy API, both ways, with every option."""

import inspect

import numpy as np
import pytest

import selfattn
from support.arrays import BROADCASTS, normal, qkv
from support.gradients import grad_of, options_of, wanted_grads
from support.layouts import LAYOUTS

torch = pytest.importorskip("torch")

from selfattn import torch as ours  # noqa: E402
from selfattn.torch.arrays import tensor_of  # noqa: E402
from support.tensors import array, assert_same_bits, of_options, tensor, tensors  # noqa: E402

KINDS = [
    "plain", "causal", "window", "lengths", "dropout", "bool", "float", "biased", "padded",
    "segments", "unsorted", "alibi", "softcap", "sinks", "all", "all and dropout",
]  # fmt: skip
SHAPE, HEADS_KV, SEQLEN_K, HEAD_DIM_V = (2, 4, 5, 8), 2, 7, 6


def problem(kind, dtype):
    arrays = qkv(SHAPE, HEADS_KV, SEQLEN_K, HEAD_DIM_V, dtype=dtype)
    options = options_of(kind, SHAPE[0], SHAPE[1], SHAPE[2], SEQLEN_K, dtype)
    return arrays, options | {"enable_gqa": True}


def check(arrays, options, given=None):
    """Values, lse and all gradients against the NumPy API; by the operator and without it."""
    want = selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)
    grad_out = grad_of(*arrays)
    gradients = selfattn.scaled_dot_product_attention_backward(
        grad_out, *arrays, *want, **wanted_grads(options), **options
    )
    inputs = given or tensors(*arrays)
    for grad_mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with grad_mode():
            plain = of_options(options)
            assert_same_bits(ours.scaled_dot_product_attention(*inputs, **plain), want[0])
            both = ours.scaled_dot_product_attention(*inputs, return_lse=True, **plain)
            assert_same_bits(both, want)
    leaves = [x.detach().requires_grad_() for x in inputs]
    plain = of_options(options, requires_grad=True)
    out, lse = ours.scaled_dot_product_attention(*leaves, return_lse=True, **plain)
    assert_same_bits((out, lse), want)
    assert out.requires_grad
    assert lse.requires_grad
    out.backward(tensor(grad_out))
    with_gradients = dict(zip(("query", "key", "value"), leaves, strict=True)) | plain
    for name, x in gradients._asdict().items():
        if x is not None:
            assert_same_bits(with_gradients[name].grad, x, name)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_the_numpy_api(dtype, kind):
    check(*problem(kind, dtype))


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
def test_leading_axes(dtype, shapes):
    arrays = [
        normal(*leading, rows, 8, dtype=dtype, seed=i)
        for i, (leading, rows) in enumerate(zip(shapes, (5, 7, 7), strict=True))
    ]
    check(arrays, {"is_causal": True})


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (5, 1), (4, 1, 7), (2, 1, 5, 7), (1, 4, 5, 1)])
def test_gradients_of_broadcast_masks(dtype, shape):
    arrays, options = problem("plain", dtype)
    check(arrays, options | {"attn_mask": normal(*shape, dtype=dtype, seed=9)})


def test_a_mask_of_float32_beside_float64():
    """Its gradient is of its own dtype."""
    arrays, options = problem("plain", np.float64)
    check(arrays, options | {"attn_mask": normal(5, 7), "sinks": normal(4)})


def test_an_expanded_mask(dtype):
    """A view that repeats a bias for every batch entry gets the sum of the entries' gradients."""
    arrays, options = problem("plain", dtype)
    bias = normal(4, 5, 7, dtype=dtype)
    leaf = tensor(bias, requires_grad=True)
    out = ours.scaled_dot_product_attention(*tensors(*arrays), leaf.expand(2, 4, 5, 7), **options)
    grad_out = grad_of(*arrays)
    out.backward(tensor(grad_out))
    full = np.broadcast_to(bias, (2, 4, 5, 7))
    want = selfattn.scaled_dot_product_attention(*arrays, full, return_lse=True, **options)
    gradients = selfattn.scaled_dot_product_attention_backward(
        grad_out, *arrays, *want, full, mask_grad=True, **options
    )
    assert_same_bits(out, want[0])
    assert_same_bits(leaf.grad, gradients.attn_mask.sum(0))


TORCH_HAS_NONE = {"columns reversed", "rows reversed", "all reversed", "by minus two"}


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - TORCH_HAS_NONE - {"packed structs"}))
def test_strides(dtype, layout):
    """Tensors that lie in memory in any way are read in place: bits, and no copy."""
    arrays, options = problem("float", dtype)
    given = [tensor_of(LAYOUTS[layout](x)) for x in arrays]
    assert [x.stride() for x in given] != [x.stride() for x in tensors(*arrays)]
    check(arrays, options, given)


def test_no_copy_is_made():
    """What is written into the memory of a tensor between calls counts, by views of any kind."""
    memory = torch.zeros(2, 5, 4, 16)
    query, key, value = (memory.transpose(1, 2)[..., i : i + 4] for i in (0, 4, 8))
    with torch.no_grad():
        before = ours.scaled_dot_product_attention(query, key, value)
        memory += torch.randn(memory.shape)
        after = ours.scaled_dot_product_attention(query, key, value)
    assert not before.any()
    assert after.all()
    arrays = [np.ascontiguousarray(array(x)) for x in (query, key, value)]
    assert_same_bits(after, selfattn.scaled_dot_product_attention(*arrays))


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (3, 2, 1, 0)])
def test_the_result_lies_as_query_does(axes):
    backwards = [axes.index(i) for i in range(4)]
    query = torch.randn(2, 3, 4, 5).permute(axes).contiguous().permute(backwards)
    assert query.shape == (2, 3, 4, 5)
    value = torch.randn(2, 3, 4, 7)
    for x in (query, query.clone().requires_grad_()):
        out = ours.scaled_dot_product_attention(x, query, value)
        assert out.permute(axes).is_contiguous()
        assert torch.equal(out, ours.scaled_dot_product_attention(query.contiguous(), query, value))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_empty(dtype, shape):
    check(qkv(shape, dtype=dtype), {})


def test_no_keys(dtype):
    check(qkv((1, 2, 3, 4), seqlen_k=0, dtype=dtype), {})


def test_of_torchs_own_function(dtype):
    """To rounding, values and gradients, of a float mask too."""
    arrays = qkv((2, 3, 33, 16), seqlen_k=65, dtype=dtype)
    bias = normal(3, 33, 65, dtype=dtype, seed=5)
    near = 200 * torch.finfo(tensor(arrays[0]).dtype).eps
    results = []
    for function in (
        ours.scaled_dot_product_attention,
        torch.nn.functional.scaled_dot_product_attention,
    ):
        leaves = tensors(*arrays, bias, requires_grad=True)
        out = function(*leaves)
        (out * out).sum().backward()
        results.append([out.detach(), *(x.grad for x in leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=near, atol=near * float(want.abs().max()))


def test_ints_and_tensors_say_the_same(dtype):
    arrays, options = problem("causal", dtype)
    inputs = tensors(*arrays)
    options["query_offset"] = 3
    want = ours.scaled_dot_product_attention(
        *inputs, kv_lengths=4, dropout_p=0.5, dropout_seed=2**64 - 3, **options
    )
    options["query_offset"] = torch.tensor(3)
    got = ours.scaled_dot_product_attention(
        *inputs,
        kv_lengths=torch.tensor([4, 4]),
        dropout_p=0.5,
        dropout_seed=torch.tensor(-3),
        **options,
    )
    assert_same_bits(got, array(want))
    options["query_offset"] = 3
    of_numpy = selfattn.scaled_dot_product_attention(
        *arrays, kv_lengths=4, dropout_p=0.5, dropout_seed=2**64 - 3, **options
    )
    assert_same_bits(got, of_numpy)


def test_threads(dtype):
    """Any number of threads, by the argument and by the context: the same bits."""
    arrays = qkv((2, 4, 100, 16), dtype=dtype)
    want = selfattn.scaled_dot_product_attention(*arrays)
    inputs = tensors(*arrays)
    for n in (1, 2, 3):
        assert_same_bits(ours.scaled_dot_product_attention(*inputs, num_threads=n), want)
        with selfattn.threads(n):
            assert_same_bits(ours.scaled_dot_product_attention(*inputs), want)


@pytest.mark.parametrize("name", ["scaled_dot_product_attention", "varlen_attention"])
def test_signatures_are_those_of_the_numpy_api(name):
    def parameters(function):
        return {
            p.name: (p.kind, p.default)
            for p in inspect.signature(function).parameters.values()
            if p.name != "out"
        }

    assert parameters(getattr(ours, name)) == parameters(getattr(selfattn, name))


def test_a_gradient_that_is_not_needed():
    """Of inputs that do not require grad there is none; a result of no leaf requires none."""
    query, key, value = (torch.randn(1, 2, 3, 4) for _ in range(3))
    bias = torch.randn(3, 3)
    for wanted in range(4):
        inputs = [x.clone() for x in (query, key, value, bias)]
        inputs[wanted].requires_grad_()
        ours.scaled_dot_product_attention(*inputs).sum().backward()
        assert [x.grad is not None for x in inputs] == [i == wanted for i in range(4)]


def test_an_input_that_was_written_to():
    """PyTorch sees that a tensor kept for the backward pass is another one by then."""
    query = torch.randn(1, 2, 3, 4, requires_grad=True)
    key = query * 2
    out = ours.scaled_dot_product_attention(query, key, key)
    key.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_another_default_device(dtype):
    """Tensors that are made on the way are on the CPU, whatever the default is."""
    arrays, options = problem("dropout", dtype)
    with torch.device("meta"):
        check(arrays, options | {"kv_lengths": 4})


def test_checkpoints(dtype):
    """What autograd keeps goes through its hooks: recomputed, it has the same bits."""
    from torch.utils.checkpoint import checkpoint

    inputs = tensors(*qkv((1, 2, 5, 8), dtype=dtype), requires_grad=True)

    def function(*x):
        return ours.scaled_dot_product_attention(*x, is_causal=True)

    want = torch.autograd.grad(function(*inputs).sum(), inputs)
    got = torch.autograd.grad(checkpoint(function, *inputs, use_reentrant=False).sum(), inputs)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_options_as_frameworks_pass_them(requires_grad):
    """0 and 1 for bools, None for what is off, sinks with axes of 1."""
    x = torch.randn(2, 4, 7, 8, requires_grad=requires_grad)
    sinks = torch.linspace(-1, 1, 4)
    kept = sinks.reshape(1, 4, 1, 1).requires_grad_(requires_grad)
    options = {"is_causal": 1, "softcap": None, "window_size": None, "sinks": kept}
    got = ours.scaled_dot_product_attention(x, x, x, **options)
    want = ours.scaled_dot_product_attention(x, x, x, is_causal=True, sinks=sinks)
    assert torch.equal(got, want)
    if requires_grad:
        got.sum().backward()
        assert kept.grad.shape == kept.shape
        assert kept.grad.any()
