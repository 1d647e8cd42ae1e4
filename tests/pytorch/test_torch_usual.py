"""The shorter ways of usual calls: what the operators give, in each layout, by autograd's rules."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import selfattn  # noqa: E402
from selfattn import torch as ours  # noqa: E402
from support.tensors import normal_tensor, tensor_of  # noqa: E402

OPERATORS = torch.ops.selfattn


@pytest.fixture
def kind(dtype):
    """PyTorch's."""
    return tensor_of(np.zeros(1, dtype)).dtype


def heads_last(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def sliced(x):
    return torch.cat([x, x], -1)[..., : x.shape[-1]]


def layouts(kind):
    """{name: (query, key, value)}, of every kind of strides that takes a way of its own."""
    query, key, value = (
        normal_tensor(2, heads, rows, 8, dtype=kind, seed=i)
        for i, (heads, rows) in enumerate(((4, 5), (2, 7), (2, 7)))
    )
    packed = normal_tensor(2, 5, 3, 4, 8, dtype=kind)
    return {
        "contiguous": (query, key, value),
        "heads last": tuple(map(heads_last, (query, key, value))),
        "heads last, other values": (heads_last(query), key, heads_last(value)[..., :3]),
        "of one product": tuple(packed.permute(2, 0, 3, 1, 4).unbind(0)),
        "slices": tuple(map(sliced, (query, key, value))),
        "keys in slices": (query, sliced(key), value),
        "columns first": (query.mT.contiguous().mT, key, value),
        "expanded": (query, key[:, :, :1].expand_as(key), value[:1].expand_as(value)),
        "broadcast": (query, key[:1], value),
        "three axes": (query[0], key[0], value[0]),
        "five axes": (query[None], key[None], value[None]),
        "one query": (heads_last(query[:, :, :1]), key, value),
        "one head": (heads_last(query[:, :1]), key[:, :1], value[:, :1]),
        "no keys": (query, key[:, :, :0], value[:, :, :0]),
        "no columns of keys": (query[..., :0], key[..., :0], value),
        "no queries": (query[:, :, :0], key, value),
        "no batch": (query[:0], key[:0], value[:0]),
        "no columns of values": (query, key, value[..., :0]),
        "negated": (torch._neg_view(query), key, value),
    }


def results(function, inputs, lse_takes_part):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out, lse = function(*leaves)
    grad_out = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)
    grads = [grad_out.to(out.dtype)]
    if lse_takes_part:
        grads.append(torch.ones_like(lse))
    torch.autograd.backward([out, lse][: len(grads)], grads)
    return [out.detach(), lse.detach(), *[x.grad for x in leaves]]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", layouts(torch.float32))
def test_attention_is_the_operators(kind, name, is_causal):
    inputs = layouts(kind)[name]
    options = {"is_causal": is_causal, "enable_gqa": True}
    for lse_takes_part in (False, True):
        got = results(
            lambda *x: ours.scaled_dot_product_attention(*x, return_lse=True, **options),
            inputs,
            lse_takes_part,
        )
        want = results(lambda *x: OPERATORS.attention(*x, **options), inputs, lse_takes_part)
        for i, (x, y) in enumerate(zip(got, want, strict=True)):
            assert x.dtype == y.dtype
            assert torch.equal(x, y), i
            if x.numel() and 1 not in x.shape:
                assert x.stride() == y.stride(), i
    with torch.inference_mode():
        alone = ours.scaled_dot_product_attention(*inputs, **options)
    assert torch.equal(alone, want[0])


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (0, 6), (2, 3, 0)])
def test_projections_are_the_operators(kind, shape, has_bias):
    inputs = [normal_tensor(*s, dtype=kind) for s in (shape, (4, shape[-1]), (4,))][: 2 + has_bias]
    found = []
    for function in (ours.linear, OPERATORS.linear):
        for needs in ((1, 1, 1), (0, 1, 0), (1, 0, 0), (0, 0, 1)):
            if not any(needs[: len(inputs)]):
                continue
            leaves = [
                x.clone().requires_grad_(bool(n)) for x, n in zip(inputs, needs, strict=False)
            ]
            out = function(*leaves)
            out.backward(torch.ones_like(out))
            found.append([out.detach(), *[x.grad for x in leaves]])
    half = len(found) // 2
    for got, want in zip(found[:half], found[half:], strict=True):
        for x, y in zip(got, want, strict=True):
            assert (x is None) == (y is None)
            assert x is None or torch.equal(x, y)


def calls():
    attend = ours.scaled_dot_product_attention
    x, weight = normal_tensor(1, 2, 5, 8), normal_tensor(3, 8)
    return {"attention": (attend, (x, x.clone(), x.clone())), "linear": (ours.linear, (x, weight))}


@pytest.mark.parametrize("name", calls())
def test_autograd_keeps_its_rules(name):
    """What is written to before the backward pass is found; hooks see what is saved; frees it."""
    function, inputs = calls()[name]
    leaves = [x.requires_grad_() for x in inputs]
    changed = [x * 1 for x in leaves]
    out = function(*changed)
    changed[1].detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out = function(*leaves)
    assert {x.data_ptr() for x in leaves} <= {x.data_ptr() for x in saved}
    out.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()
    out = function(*leaves)
    out += 1  # it is nobody's view
    again = [torch.autograd.grad(function(*leaves).sum(), leaves, retain_graph=True) for _ in "12"]
    assert all(torch.equal(x, y) for x, y in zip(*again, strict=True))


@pytest.mark.parametrize("name", calls())
def test_number_of_threads_of_each_pass(name, monkeypatch):
    """That in force when a pass begins; or that of the call."""
    from selfattn import _args

    function, inputs = calls()[name]
    asked = []
    original = _args.num_threads
    monkeypatch.setattr(_args, "num_threads", lambda n=None: asked.append(n) or original(n))
    leaves = [x.requires_grad_() for x in inputs]
    out = function(*leaves, num_threads=2)
    out.sum().backward()
    assert 2 in asked[-1:]
    with selfattn.threads(1):
        out = function(*leaves)
        out.sum().backward()
    assert asked[-1] is None
