"""The provider: PyTorch's functions have selfattn's bits while it is on, PyTorch's own after."""

import numpy as np
import pytest

import selfattn
from support.arrays import normal, qkv

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from selfattn import torch as ours  # noqa: E402
from support.tensors import (  # noqa: E402
    DOORS,
    array,
    assert_same_bits,
    tensor,
    tensors,
    through_the_function,
)


@pytest.fixture
def provider():
    with ours.enabled():
        yield


both_doors = pytest.mark.parametrize("attend", DOORS)


def wanted(grad_out, *arrays, **options):
    """selfattn's result and gradients."""
    out, lse = selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)
    gradients = selfattn.scaled_dot_product_attention_backward(
        grad_out, *arrays, out, lse, **options
    )
    return out, gradients


def check(attend, arrays, options, context=""):
    given = {name: tensor(x) for name, x in options.items()}
    grad_out = normal(*attend(*tensors(*arrays), **given).shape, dtype=arrays[0].dtype, seed=5)
    out, gradients = wanted(grad_out, *arrays, **options)
    with torch.inference_mode():
        assert_same_bits(attend(*tensors(*arrays), **given), out, context)
    leaves = tensors(*arrays, requires_grad=True)
    got = attend(*leaves, **given)
    assert_same_bits(got, out, context)
    got.backward(tensor(grad_out))
    for leaf, gradient in zip(leaves, gradients[:3], strict=True):
        assert_same_bits(leaf.grad, gradient, context)


# What both doors take: four axes, one head_dim, masks without a gradient, no dropout.
CALLS = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "bools": {"attn_mask": normal(2, 1, 5, 7, seed=4) > -1},
    "bools of rows and keys": {"attn_mask": normal(5, 7, seed=4) > -1},
    "floats": {"attn_mask": normal(2, 4, 5, 7, seed=4)},
}
HEAD_DIM = 12  # whose root is no power of 2: masks of floats have other bits than bools


@pytest.mark.usefixtures("provider")
@both_doors
@pytest.mark.parametrize("name", CALLS)
def test_bits(dtype, attend, name):
    options = dict(CALLS[name])
    if name == "floats":
        options["attn_mask"] = options["attn_mask"].astype(dtype)
    arrays = qkv((2, 4, 5, HEAD_DIM), seqlen_k=7, dtype=dtype)
    check(attend, arrays, options)
    views = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in arrays]
    check(attend, views, options, "heads after positions")


@pytest.mark.usefixtures("provider")
@both_doors
def test_floats_that_stand_for_bools(dtype, attend):
    """Of 0 and -inf alone: the bits of bools, and where all are 0 those of no mask."""
    arrays = qkv((2, 4, 5, HEAD_DIM), seqlen_k=7, dtype=dtype)
    keep = normal(2, 1, 5, 7) > -1
    floats = np.where(keep, dtype(0), dtype(-np.inf))
    grad_out = normal(2, 4, 5, HEAD_DIM, dtype=dtype)
    if np.dtype(dtype).itemsize > 2:  # what differs is lost where a half type rounds
        assert wanted(grad_out, *arrays, attn_mask=floats)[0].tobytes() != (
            wanted(grad_out, *arrays, attn_mask=keep)[0].tobytes()
        )
    for mask, says in ((floats, {"attn_mask": keep}), (np.zeros_like(floats), {})):
        out, gradients = wanted(grad_out, *arrays, **says)
        leaves = tensors(*arrays, requires_grad=True)
        got = attend(*leaves, tensor(mask))
        assert_same_bits(got, out)
        got.backward(tensor(grad_out))
        for leaf, gradient in zip(leaves, gradients[:3], strict=True):
            assert_same_bits(leaf.grad, gradient)


@pytest.mark.usefixtures("provider")
@both_doors
def test_grouped_heads(dtype, attend):
    """PyTorch repeats keys and values before its kernels, so their gradients are to rounding."""
    arrays = qkv((2, 4, 5, 16), 2, 7, dtype=dtype)
    out = attend(*tensors(*arrays), enable_gqa=True)
    assert_same_bits(out, selfattn.scaled_dot_product_attention(*arrays, enable_gqa=True))
    with pytest.raises((ValueError, RuntimeError)):
        attend(*tensors(*arrays))


@pytest.mark.usefixtures("provider")
@both_doors
def test_causal_is_top_left(dtype, attend):
    for seqlen_q in (1, 3, 6):
        for seqlen_k in (1, 3, 6):
            check(
                attend,
                qkv((1, 2, seqlen_q, 8), seqlen_k=seqlen_k, dtype=dtype),
                {"is_causal": True},
            )


@pytest.mark.usefixtures("provider")
def test_what_the_dispatcher_does_not_hand_over(dtype):
    """Another head_dim of values, two and three axes, batches that broadcast: by the function."""
    for shapes in (
        ((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 3)),
        ((4, 5, 8), (4, 7, 8), (4, 7, 8)),
        ((5, 8), (7, 8), (7, 8)),
        ((2, 4, 5, 8), (1, 4, 7, 8), (1, 4, 7, 8)),
        ((2, 3, 4, 5, 8), (3, 4, 7, 8), (4, 7, 2)),
    ):
        arrays = [normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
        check(through_the_function, arrays, {})
        check(through_the_function, arrays, {"attn_mask": normal(5, 7) > -1})


@pytest.mark.usefixtures("provider")
def test_the_gradient_of_a_mask(dtype):
    arrays = qkv((2, 4, 5, 8), seqlen_k=7, dtype=dtype)
    bias = normal(4, 5, 7, dtype=dtype, seed=8)
    leaf = tensor(bias, requires_grad=True)
    out = F.scaled_dot_product_attention(*tensors(*arrays), leaf)
    out.sum().backward()
    want = selfattn.scaled_dot_product_attention(*arrays, bias, return_lse=True)
    gradients = selfattn.scaled_dot_product_attention_backward(
        np.ones_like(want[0]), *arrays, *want, bias, mask_grad=True
    )
    assert_same_bits(out, want[0])
    assert_same_bits(leaf.grad, gradients.attn_mask)


@pytest.mark.usefixtures("provider")
def test_dropout_is_seeded_by_torch(dtype):
    inputs = tensors(*qkv((2, 4, 5, 8), dtype=dtype), requires_grad=True)
    torch.manual_seed(5)
    first = F.scaled_dot_product_attention(*inputs, dropout_p=0.5)
    second = F.scaled_dot_product_attention(*inputs, dropout_p=0.5)
    torch.manual_seed(5)
    again = F.scaled_dot_product_attention(*inputs, dropout_p=0.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    seed = int(torch.randint(0, 2**62, (), dtype=torch.int64))
    want = selfattn.scaled_dot_product_attention(
        *map(array, inputs), dropout_p=0.5, dropout_seed=seed
    )
    assert_same_bits(first, want)
    first.sum().backward()  # drops the same


@pytest.mark.usefixtures("provider")
def test_another_default_device(dtype):
    inputs = tensors(*qkv((2, 4, 5, 8), dtype=dtype), requires_grad=True)
    with torch.device("meta"):
        for attend in DOORS:
            attend(*inputs).sum().backward()
        out = F.scaled_dot_product_attention(*inputs, dropout_p=0.5)
    assert out.device.type == "cpu"


@pytest.mark.usefixtures("provider")
def test_no_draw_without_dropout():
    inputs = tensors(*qkv((1, 2, 3, 4)))
    before = torch.get_rng_state()
    F.scaled_dot_product_attention(*inputs)
    assert torch.equal(torch.get_rng_state(), before)


@both_doors
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(attend, dtype):
    """PyTorch casts float32 to the half type, and selfattn's function of it has the result."""
    inputs = tensors(*qkv((2, 4, 5, 16), seqlen_k=7), requires_grad=True)
    halves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    want = ours.scaled_dot_product_attention(*halves, is_causal=True)
    grad_out = torch.randn(want.shape).to(dtype)
    with ours.enabled():
        with torch.autocast("cpu", dtype):
            got = attend(*inputs, is_causal=True)
        assert got.dtype == dtype
        assert torch.equal(got, want)
        got.backward(grad_out)
    want.backward(grad_out)
    for x, y in zip(inputs, halves, strict=True):
        assert torch.equal(x.grad, y.grad.float())


def test_autocast_of_what_the_dispatcher_does_not_hand_over():
    """A mask that requires grad, other head_dims, double precision, which is not cast."""
    half = torch.bfloat16
    arrays = qkv((2, 4, 5, 16), seqlen_k=7, head_dim_v=6)
    leaves = tensors(*arrays, normal(4, 5, 7, seed=8), requires_grad=True)
    halves = [x.detach().to(half).requires_grad_() for x in leaves]
    want = ours.scaled_dot_product_attention(*halves)
    doubles = [x.detach().double() for x in leaves]
    want_double = ours.scaled_dot_product_attention(*doubles)
    with ours.enabled(), torch.autocast("cpu", half):
        got = F.scaled_dot_product_attention(*leaves)
        assert torch.equal(F.scaled_dot_product_attention(*doubles), want_double)
        compiled = torch.compile(
            F.scaled_dot_product_attention, fullgraph=True, backend="aot_eager"
        )
        assert torch.equal(compiled(*leaves), want)
    assert torch.equal(got, want)
    got.sum().backward()
    want.sum().backward()
    for x, y in zip(leaves, halves, strict=True):
        assert torch.equal(x.grad, y.grad.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_mask_of_float32_beside_half_types(dtype):
    inputs = [x.to(dtype) for x in tensors(*qkv((2, 4, 5, 16), seqlen_k=7))]
    mask = tensor(normal(4, 5, 7))
    want = ours.scaled_dot_product_attention(*inputs, mask)
    with ours.enabled():
        assert torch.equal(F.scaled_dot_product_attention(*inputs, mask), want)
        leaves = [x.requires_grad_() for x in (*inputs, mask)]
        out = F.scaled_dot_product_attention(*leaves)
        assert torch.equal(out, want)
        out.sum().backward()
    assert [x.grad.dtype for x in leaves] == [*[dtype] * 3, torch.float32]


@both_doors
def test_what_stays_torchs(attend):
    """Errors and devices: the same results and exceptions as without it."""
    query, key, value = (torch.randn(2, 4, 5, 16) for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool)

    def result(call):
        try:
            return call()
        except RuntimeError as error:
            return str(error)

    for call in (
        lambda: attend(query, key.double(), value),
        lambda: attend(query.half(), key.bfloat16(), value.half()),
        lambda: attend(query.to("meta"), key.to("meta"), value.to("meta")),
        lambda: attend(query, key, value, mask.to(torch.int64)),
        lambda: attend(query[0, 0, 0], key[0, 0, 0], value[0, 0, 0]),
        lambda: attend(query, key[..., :8], value),
        lambda: attend(query.requires_grad_(), key[..., :8], value),
        lambda: attend(query, key[:, :3], value[:, :3]),
        lambda: attend(query, key, value, mask[:4]),
    ):
        want = result(call)
        with ours.enabled():
            got = result(call)
        if isinstance(want, str):
            assert got == want
        else:
            assert want.device.type == "meta"
            assert got.shape == want.shape


@pytest.mark.parametrize("requires_grad", [False, True])
def test_errors_of_linear_layers(requires_grad):
    x, weight = torch.randn(5, 8, requires_grad=requires_grad), torch.randn(3, 8)
    for operands in ((x, weight[:, :7]), (x, weight, torch.randn(4)), (x, weight.double())):
        with pytest.raises(RuntimeError) as before:
            F.linear(*operands)
        with ours.enabled(linear=True), pytest.raises(RuntimeError) as inside:
            F.linear(*operands)
        assert str(inside.value) == str(before.value)
    want = F.linear(x, weight[0])
    with ours.enabled(linear=True):
        assert torch.equal(F.linear(x, weight[0]), want)


@both_doors
def test_a_mask_and_causal(dtype, attend):
    """PyTorch refuses both together, or applies both, by the kernel it chooses: so it is here."""
    query, key, value = tensors(*qkv((2, 4, 5, 16), dtype=dtype))
    mask = tensor(normal(5, 5) > -1)
    want = attend(query, key, value, mask, is_causal=True)
    with ours.enabled():
        got = attend(query, key, value, mask, is_causal=True)
        with pytest.raises(RuntimeError, match="is_causal"):
            attend(query[0], key[0], value[0], mask, is_causal=True)
    near = 100 * torch.finfo(query.dtype).eps
    torch.testing.assert_close(got, want, rtol=near, atol=near)
