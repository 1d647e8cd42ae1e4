"""flash_attn_func and its packed forms: the oracle to rounding, the NumPy API's bits."""

import numpy as np
import pytest

import selfattn
from support.arrays import normal

torch = pytest.importorskip("torch")

from selfattn.flash_attn import (  # noqa: E402
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
)
from support import flash  # noqa: E402
from support.tensors import (  # noqa: E402
    BACKENDS,
    array,
    assert_same_bits,
    normal_tensor,
    tensor,
    tensors,
)


def operands(seqlen_q, seqlen_k, heads_k=2, head_dim_v=16, dtype=np.float32):
    shapes = ((2, seqlen_q, 4, 16), (2, seqlen_k, heads_k, 16), (2, seqlen_k, heads_k, head_dim_v))
    return [normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


def of_numpy(grad_out, arrays, options):
    """The NumPy API's out, lse and gradients, in flash-attn's layout."""
    given = {
        {"causal": "is_causal", "softmax_scale": "scale"}.get(name, name): x
        for name, x in options.items()
    }
    if options.get("causal") and "window_size" in given:
        given["window_size"] = (given["window_size"][0], -1)
    if "alibi_slopes" in given:
        given["alibi_slopes"] = given["alibi_slopes"].numpy()
    given |= {"enable_gqa": True, "query_offset": arrays[1].shape[1] - arrays[0].shape[1]}
    heads_first = [x.swapaxes(1, 2) for x in arrays]
    out, lse = selfattn.scaled_dot_product_attention(*heads_first, return_lse=True, **given)
    found = selfattn.scaled_dot_product_attention_backward(
        grad_out.swapaxes(1, 2), *heads_first, out, lse, **given
    )
    return out.swapaxes(1, 2), lse, [x.swapaxes(1, 2) for x in found[:3]]


@pytest.mark.parametrize("name", flash.OPTIONS)
@pytest.mark.parametrize("lengths", flash.LENGTHS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda x: x.__name__)
def test_the_oracle(dtype, lengths, name):
    options = flash.OPTIONS[name]
    leaves = tensors(*operands(*lengths, dtype=dtype), requires_grad=True)
    out, lse, weights = flash_attn_func(*leaves, return_attn_probs=True, **options)
    assert weights is None
    assert not lse.requires_grad
    grad_out = normal_tensor(*out.shape, dtype=out.dtype, seed=9)
    found = torch.autograd.grad(out, leaves, grad_out)
    want, want_lse, gradients, bounds = flash.gradients(grad_out, *leaves, **options)
    for got, expected, bound, of in zip(
        (out, *found), (want, *gradients), bounds, ("out", "q", "k", "v"), strict=True
    ):
        flash.assert_within(got, expected, bound, of)
    flash.assert_lse_within(lse, want_lse, leaves, options)


@pytest.mark.parametrize("name", flash.OPTIONS)
def test_the_numpy_apis_bits(dtype, name):
    """In every dtype, and of each way to call it; the gradient of packed tensors is one tensor."""
    options = flash.OPTIONS[name]
    for lengths in ((5, 5), (3, 11), (11, 3)):
        arrays = operands(*lengths, dtype=dtype)
        grad_out = normal(2, lengths[0], 4, 16, dtype=dtype, seed=9)
        want, want_lse, gradients = of_numpy(grad_out, arrays, options)
        leaves = tensors(*arrays, requires_grad=True)
        out, lse, _ = flash_attn_func(*leaves, return_attn_probs=True, **options)
        assert_same_bits((out, lse), (want, want_lse))
        assert out.is_contiguous()
        out.backward(tensor(grad_out))
        for leaf, gradient in zip(leaves, gradients, strict=True):
            assert_same_bits(leaf.grad, gradient)
        with torch.inference_mode():
            assert_same_bits(flash_attn_func(*tensors(*arrays), **options), want)
        q = tensor(arrays[0], requires_grad=True)
        kv = tensor(np.stack(arrays[1:], 2), requires_grad=True)
        flash_attn_kvpacked_func(q, kv, **options).backward(tensor(grad_out))
        assert_same_bits(q.grad, gradients[0])
        assert_same_bits(kv.grad, np.stack(gradients[1:], 2))


@pytest.mark.parametrize("name", flash.OPTIONS)
def test_qkvpacked(dtype, name):
    options = flash.OPTIONS[name]
    arrays = operands(9, 9, heads_k=4, dtype=dtype)
    grad_out = normal(2, 9, 4, 16, dtype=dtype, seed=9)
    want, want_lse, gradients = of_numpy(grad_out, arrays, options)
    qkv = tensor(np.stack(arrays, 2), requires_grad=True)
    out, lse, weights = flash_attn_qkvpacked_func(qkv, return_attn_probs=True, **options)
    assert weights is None
    assert_same_bits((out, lse), (want, want_lse))
    out.backward(tensor(grad_out))
    assert_same_bits(qkv.grad, np.stack(gradients, 2))


def test_read_in_place(dtype):
    """Views of one product, heads first in memory, expanded keys: nothing has to be contiguous."""
    product = tensor(normal(2, 9, 3 * 4 * 16, dtype=dtype))
    q, k, v = product.unflatten(-1, (3, 4, 16)).unbind(2)
    want = flash_attn_func(q.contiguous(), k.contiguous(), v.contiguous(), causal=True)
    assert torch.equal(flash_attn_func(q, k, v, causal=True), want)
    heads_first = q.transpose(1, 2).contiguous().transpose(1, 2)
    out = flash_attn_func(heads_first, k, v, causal=True)
    assert torch.equal(out, want)
    assert out.stride() == heads_first.stride()
    one = k[:, :, :1].expand(-1, -1, 4, -1)
    assert torch.equal(flash_attn_func(q, one, one), flash_attn_func(q, k[:, :, :1], k[:, :, :1]))


def test_no_copy_is_made():
    """PyTorch's part of a call is views alone."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            seen.append(str(function).partition(".")[2].partition(".")[0])
            return function(*arguments, **(options or {}))

    qkv, starts = torch.randn(2, 9, 3, 4, 16), torch.tensor([0, 4, 9])
    with Mode():
        flash_attn_qkvpacked_func(qkv, causal=True)
        q, k, v = qkv.unbind(2)
        flash_attn_func(q, k[:, ::2], v[:, ::2], window_size=(3, 0))
        flash_attn_varlen_func(q[0], k[0], v[0], starts, starts, 5, 5, causal=True)
    assert set(seen) == {"unbind", "transpose", "slice", "select", "attention", "varlen"}


def test_another_head_dim_of_values(dtype):
    arrays = operands(5, 7, head_dim_v=6, dtype=dtype)
    want = of_numpy(normal(2, 5, 4, 6, dtype=dtype), arrays, {"causal": True})[0]
    assert_same_bits(flash_attn_func(*tensors(*arrays), causal=True), want)


def test_what_says_that_there_is_no_limit():
    """Any negative side, a softcap below 0, an int for causal."""
    q, k, v = tensors(*operands(5, 7))
    want = flash_attn_func(q, k, v, causal=True)
    got = flash_attn_func(q, k, v, window_size=torch.tensor([3, 1]))
    assert torch.equal(got, flash_attn_func(q, k, v, window_size=(3, 1)))
    got = flash_attn_func(q, k, v, causal=1, window_size=[-3, 4], softcap=-1.0, deterministic=True)
    assert torch.equal(got, want)


def test_queries_that_see_no_key(dtype):
    q, k, v = tensors(*operands(5, 2, dtype=dtype), requires_grad=True)
    out, lse, _ = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert not out[:, :3].any()
    assert (lse[:, :, :3] == -torch.inf).all()
    out.sum().backward()
    assert not q.grad[:, :3].any()
    assert k.grad.isfinite().all()
    no_keys = flash_attn_func(q.detach(), k[:, :0].detach(), v[:, :0].detach())
    assert no_keys.shape == q.shape
    assert not no_keys.any()


def test_dropout(dtype):
    """Of PyTorch's generator; S_dmask tells what was dropped, and the result is of the rest."""
    q, k, v = tensors(*operands(20, 30, dtype=dtype), requires_grad=True)
    before = torch.get_rng_state()
    flash_attn_func(q, k, v)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    out, lse, weights = flash_attn_func(q, k, v, 0.3, causal=True, return_attn_probs=True)
    torch.manual_seed(3)
    seed = int(torch.randint(0, 2**62, (), dtype=torch.int64))
    torch.manual_seed(3)
    assert torch.equal(flash_attn_func(q, k, v, dropout_p=0.3, causal=True), out)
    assert not torch.equal(flash_attn_func(q, k, v, dropout_p=0.3, causal=True), out)
    heads_first = [array(x).swapaxes(1, 2) for x in (q, k, v)]
    given = {"enable_gqa": True, "is_causal": True, "query_offset": 10}
    want = selfattn.scaled_dot_product_attention(
        *heads_first, dropout_p=0.3, dropout_seed=seed, return_lse=True, **given
    )
    assert_same_bits((out, lse), (want[0].swapaxes(1, 2), want[1]))
    assert weights.shape == (2, 4, 20, 30)
    all_weights = selfattn.attention_weights(*heads_first[:2], **given)
    near = 4 * torch.finfo(q.dtype).eps
    torch.testing.assert_close(weights.abs(), tensor(all_weights), rtol=near, atol=near)
    dropped = (weights < 0).double().mean() / (weights != 0).double().mean()
    assert 0.2 < dropped < 0.4
    kept = weights.detach().double().clamp(min=0) / 0.7
    values = v.detach().double().repeat_interleave(2, 2)
    rest = torch.einsum("bhij,bjhd->bihd", kept, values)
    near = 20 * torch.finfo(q.dtype).eps
    torch.testing.assert_close(out.double(), rest, rtol=near, atol=near * float(values.abs().max()))
    out.sum().backward()


def attend(q, k, v, slopes):
    return flash_attn_func(
        q, k, v, causal=True, window_size=(5, 0), softcap=3.0, alibi_slopes=slopes
    )


@pytest.mark.filterwarnings("ignore")  # those of the compilers about their own
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled(dtype, backend):
    slopes = torch.arange(4) / 8
    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    packed = torch.compile(flash_attn_qkvpacked_func, fullgraph=True, backend=backend)
    for lengths in ((5, 7), (9, 7)):
        leaves = tensors(*operands(*lengths, dtype=dtype), requires_grad=True)
        want, got = attend(*leaves, slopes), compiled(*leaves, slopes)
        assert torch.equal(got, want)
        for x, y in zip(*(torch.autograd.grad(x.sum(), leaves) for x in (got, want)), strict=True):
            assert torch.equal(x, y)
    qkv = tensor(normal(2, 5, 3, 4, 8, dtype=dtype), requires_grad=True)
    got = torch.autograd.grad(packed(qkv, causal=True).sum(), qkv)
    want = torch.autograd.grad(flash_attn_qkvpacked_func(qkv, causal=True).sum(), qkv)
    assert torch.equal(*got, *want)


@pytest.mark.filterwarnings("ignore")
def test_compiled_dropout_draws_anew():
    def function(q):
        return flash_attn_func(q, q, q, dropout_p=0.5)

    compiled = torch.compile(function, fullgraph=True, backend=BACKENDS[-1])
    q = torch.randn(1, 9, 2, 8)
    assert not torch.equal(compiled(q), compiled(q))


ERRORS = [
    ((torch.ones(5, 4, 8),) * 3, {}, ValueError, r"q: expected shape \(batch, seqlen, heads, head"),
    ((torch.ones(1, 5, 4, 8).numpy(),) * 3, {}, TypeError, "q: expected a tensor, shape .*ndarray"),
    ((2, 4, 8), {}, ValueError, "k: expected a batch of 1, got 2"),
    ((1, 3, 8), {}, ValueError, "k: expected a number of heads that divides q's 4, got 3"),
    ((1, 0, 8), {}, ValueError, "k: expected a number of heads that divides q's 4, got 0"),
    ((1, 4, 7), {}, ValueError, "k: expected head_dim 8, got 7"),
    ((1, 4, 8), {"window_size": 3}, TypeError, "window_size: expected two ints"),
    ((1, 4, 8), {"window_size": (1, 2, 3)}, TypeError, "window_size: expected two ints"),
    ((1, 4, 8), {"dropout_p": 1.5}, ValueError, "dropout_p: expected a probability"),
    ((1, 4, 8), {"alibi_slopes": torch.ones(3)}, ValueError, "alibi_slopes: expected a shape"),
    ((1, 4, 8), {"softmax_scale": "1"}, TypeError, "scale: expected a number"),
    (
        (1, 4, 8),
        {"alibi_slopes": torch.ones(4, requires_grad=True)},
        NotImplementedError,
        "alibi_slopes: its gradient is not built",
    ),
]


@pytest.mark.parametrize(
    ("given", "options", "error", "message"), ERRORS, ids=lambda x: str(x)[:30]
)
def test_errors(given, options, error, message):
    if isinstance(given[0], int):
        batch, heads, head_dim = given
        k = torch.ones(batch, 6, heads, head_dim)
        given = torch.ones(1, 5, 4, 8, requires_grad=True), k, k
    with pytest.raises(error, match=f"^{message}"):
        flash_attn_func(*given, **options)


def test_errors_of_operands():
    q = torch.ones(1, 5, 4, 8)
    with pytest.raises(
        TypeError, match=r"^k: expected torch\.float32, q's dtype, got torch\.float16"
    ):
        flash_attn_func(q, q.half(), q)
    with pytest.raises(ValueError, match=r"^v: expected shape \(1, 5, 4, head_dim\), got"):
        flash_attn_func(q, q, q[:, :4])
    with pytest.raises(ValueError, match=r"^qkv: expected shape \(batch, seqlen, 3, heads, head_"):
        flash_attn_qkvpacked_func(torch.ones(1, 5, 2, 4, 8))
    with pytest.raises(ValueError, match=r"^kv: expected shape \(batch, seqlen, 2, heads, head_d"):
        flash_attn_kvpacked_func(q, q)
    with pytest.raises(TypeError, match="expected a tensor on the CPU, got one on meta"):
        flash_attn_func(*[q.to("meta")] * 3)
