"""The provider under torch.compile: selfattn's bits inside a block, PyTorch's own after it."""

import pytest

from support.arrays import normal, qkv

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from selfattn import torch as ours  # noqa: E402
from support.tensors import (  # noqa: E402
    BACKENDS,
    DOORS,
    tensors,
)

both_doors = pytest.mark.parametrize("attend", DOORS)


def results(function, inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad((out * out).sum(), leaves)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_causal", [False, True])
@both_doors
def test_compiled(dtype, attend, backend, is_causal):
    """Compiled inside a block: selfattn's bits there, torch's after it."""

    def function(query, key, value):
        return attend(query * 2, key, value, is_causal=is_causal)

    inputs = tensors(*qkv((2, 4, 33, 64), seqlen_k=65, dtype=dtype))
    torchs = results(function, inputs)
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    with ours.enabled():
        want = results(function, inputs)
        assert not torch.equal(want[0], torchs[0])
        got = results(compiled, inputs)
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    after = results(compiled, inputs)
    assert all(torch.equal(x, y) for x, y in zip(after, torchs, strict=True))
    with ours.enabled():
        again = results(compiled, inputs)
        assert all(torch.equal(x, y) for x, y in zip(again, want, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_compiled_with_what_only_the_function_takes(dtype):
    query, key, value = tensors(*qkv((2, 4, 5, 8), seqlen_k=7, dtype=dtype))
    bias = torch.randn(4, 1, 7, dtype=query.dtype)

    def function(query, key, value, bias):
        return F.scaled_dot_product_attention(query, key, value[..., :3], bias)

    with ours.enabled():
        want = results(function, (query, key, value, bias))
        got = results(
            torch.compile(function, fullgraph=True, backend=BACKENDS[-1]), (query, key, value, bias)
        )
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_compiled_linear(dtype):
    shapes = ((3, 64), (5, 64), (5,))
    x, weight, bias = tensors(*(normal(*shape, dtype=dtype) for shape in shapes))

    def function(x, weight, bias):
        return F.linear(x, weight, bias)

    compiled = torch.compile(function, fullgraph=True, backend=BACKENDS[-1])
    with ours.enabled(linear=True):
        want = results(function, (x, weight, bias))
        got = results(compiled, (x, weight, bias))
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_compiled_dropout():
    inputs = tensors(*qkv((2, 4, 5, 8)))

    def function(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, dropout_p=0.5)

    compiled = torch.compile(function, fullgraph=True, backend=BACKENDS[-1])
    with ours.enabled():
        torch.manual_seed(1)
        first, second = compiled(*inputs), compiled(*inputs)
        torch.manual_seed(1)
        assert torch.equal(compiled(*inputs), first)
        assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted():
    """torch.jit.script writes PyTorch's own functions, whether the provider is on or not."""
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    want = layer(x, x, x, need_weights=False)[0]
    with ours.enabled(linear=True):
        scripted = torch.jit.script(layer)
        got = scripted(x, x, x, need_weights=False)[0]
    for y in (got, scripted(x, x, x, need_weights=False)[0]):
        torch.testing.assert_close(y, want)
