"""Derivatives by PyTorch's own checks; those that are not built raise, none is silently 0."""

import numpy as np
import pytest

import selfattn

torch = pytest.importorskip("torch")

from selfattn import torch as ours  # noqa: E402
from selfattn.torch.arrays import array_of, tensor_of  # noqa: E402
from support.tensors import normal_tensor  # noqa: E402

# PyTorch's forward mode scripts decompositions of its own where it is first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
FLOAT64 = torch.float64


def leaf(*shape, seed=0):
    return normal_tensor(*shape, dtype=FLOAT64, seed=seed, requires_grad=True)


def qkv(seqlen_q=4, seqlen_k=5):
    return leaf(2, 4, seqlen_q, 3), leaf(2, 2, seqlen_k, 3, seed=1), leaf(2, 2, seqlen_k, 2, seed=2)


def attend(query, key, value, *options, **more):
    return ours.scaled_dot_product_attention(query, key, value, *options, enable_gqa=True, **more)


def product(out, lse):
    """Of every row of `out`, (..., Ev), and its lse; those of packed sequences lie otherwise."""
    return out * (lse.T if out.dim() == 3 else lse)[..., None]


STARTS = torch.tensor([0, 1, 4])
CALLS = {
    "attention": (attend, qkv()),
    "a mask": (attend, (*qkv(), leaf(4, 5, seed=3))),
    "a broadcast mask": (attend, (*qkv(), leaf(2, 1, 1, 5, seed=3))),
    "causal": (lambda q, k, v: attend(q, k, v, is_causal=True, query_offset=1), qkv()),
    "options": (
        lambda q, k, v, mask, sinks: attend(
            q, k, v, mask, 0.3, dropout_seed=4, softcap=2.0, sinks=sinks, window_size=(3, 2),
            alibi_slopes=torch.ones(4, dtype=FLOAT64) / 4, kv_lengths=torch.tensor([4, 5]),
        ),
        (*qkv(), leaf(4, 1, 5, seed=3), leaf(4, seed=4)),
    ),
    "a bias": (
        lambda q, k, v, mask, bias: attend(
            q, k, v, mask, attn_bias=bias, kv_starts=torch.tensor([0, 2]), query_lengths=3
        ),
        (*qkv(), leaf(2, 1, 1, 5, seed=3), leaf(4, 4, 5, seed=4)),
    ),
    "a bias of an operator": (  # which is given no more than that: the dispatcher, no sinks
        lambda q, k, v, bias: torch.ops.selfattn.attention(
            q, k, v, enable_gqa=True, attn_bias=bias
        )[0],
        (*qkv(), leaf(4, 1, 5, seed=3)),
    ),
    "packed": (
        lambda q, k, v, mask, sinks: ours.varlen_attention(
            q, k, v, STARTS, STARTS, mask, sinks=sinks
        ),
        (leaf(4, 2, 3), leaf(4, 2, 3, seed=1), leaf(4, 2, 3, seed=2), leaf(3, seed=3), leaf(2)),
    ),
    "lse": (lambda *x: attend(*x, return_lse=True)[1], (*qkv(), leaf(2, 1, 1, 5, seed=3))),
    "out and lse": (
        lambda q, k, v, mask, sinks: product(
            *attend(q, k, v, mask, sinks=sinks, is_causal=True, softcap=2.0, return_lse=True)
        ),
        (*qkv(), leaf(4, 1, 5, seed=3), leaf(4, seed=4)),
    ),
    "packed by pairs": (
        lambda q, k, v: ours.varlen_attention(
            q, k, v, (torch.tensor([3, 0]), torch.tensor([1, 2])), (STARTS[:2], STARTS[1:] - 1)
        ),
        (leaf(4, 2, 3), leaf(4, 2, 3, seed=1), leaf(4, 2, 3, seed=2)),
    ),
    "packed lse": (
        lambda q, k, v: product(
            *ours.varlen_attention(q, k, v, STARTS, STARTS, is_causal=True, return_lse=True)
        ),
        (leaf(4, 2, 3), leaf(4, 2, 3, seed=1), leaf(4, 2, 3, seed=2)),
    ),
    "linear": (ours.linear, (leaf(2, 3, 5), leaf(4, 5, seed=1), leaf(4, seed=2))),
    "linear without a bias": (ours.linear, (leaf(3, 5), leaf(4, 5, seed=1))),
}  # fmt: skip
each_call = pytest.mark.parametrize(("function", "inputs"), CALLS.values(), ids=CALLS)
SECOND = r"selfattn: second derivatives are not built: \w+_backward cannot be differentiated"
FORWARD = r"selfattn: forward-mode derivatives \(jvp, dual tensors\) of \w+ are not built"


@each_call
def test_gradcheck(function, inputs):
    assert torch.autograd.gradcheck(function, inputs, check_batched_grad=True)


@each_call
def test_second_derivatives_raise(function, inputs):
    with pytest.raises(NotImplementedError, match=SECOND):
        torch.autograd.gradgradcheck(function, inputs)
    first = torch.autograd.grad(function(*inputs).sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=SECOND):
        first.sum().backward()


@each_call
def test_transforms_of_reverse_mode(function, inputs):
    """torch.func.grad, vjp and jacrev, to the bits of backward."""
    plain = [x.detach() for x in inputs]
    every = tuple(range(len(plain)))
    out = function(*inputs)
    cotangent = normal_tensor(*out.shape, dtype=FLOAT64, seed=9)
    want = torch.autograd.grad(out, inputs, cotangent)
    got = torch.func.grad(lambda *x: (function(*x) * cotangent).sum(), every)(*plain)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    assert all(
        torch.equal(x, y)
        for x, y in zip(torch.func.vjp(function, *plain)[1](cotangent), want, strict=True)
    )
    jacobians = torch.func.jacrev(function, every)(*plain)
    for jacobian, x in zip(jacobians, want, strict=True):
        product = torch.tensordot(cotangent, jacobian, out.dim())
        torch.testing.assert_close(product, x, rtol=1e-12, atol=1e-12)


@each_call
def test_nested_transforms_raise(function, inputs):
    plain = [x.detach() for x in inputs]

    def total(x):
        return (function(x, *plain[1:]) ** 2).sum()

    with pytest.raises(NotImplementedError, match=SECOND):
        torch.func.grad(lambda x: torch.func.grad(total)(x).sum())(plain[0])
    with pytest.raises(NotImplementedError, match=SECOND):  # of a leaf outside the transform
        torch.func.grad(total)(inputs[0]).sum().backward()
    with pytest.raises(NotImplementedError, match=FORWARD):
        torch.func.hessian(total)(plain[0])


@each_call
def test_forward_mode_raises(function, inputs):
    """For a tangent of each input alone; in every mode of gradients; under the compiler."""
    plain = [x.detach() for x in inputs]
    for i, x in enumerate(plain):

        def of_one(y, i=i):
            return function(*plain[:i], y, *plain[i + 1 :])

        with pytest.raises(NotImplementedError, match=FORWARD):
            torch.func.jvp(of_one, (x,), (torch.ones_like(x),))
        with pytest.raises(NotImplementedError, match=FORWARD):
            torch.func.jacfwd(of_one)(x)
        for mode in (torch.enable_grad, torch.no_grad):
            with torch.autograd.forward_ad.dual_level(), mode():
                dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
                with pytest.raises(NotImplementedError, match=FORWARD):
                    of_one(dual)
    with torch.autograd.forward_ad.dual_level():  # a level, and no tangent
        assert torch.equal(function(*plain), function(*inputs))


def test_forward_mode_raises_under_the_compiler():
    query = torch.randn(1, 2, 3, 4)
    function = torch.compile(
        lambda x: torch.func.jvp(lambda y: attend(y, query, query), (x,), (x,))[1],
        backend="aot_eager",
    )
    with pytest.raises(Exception, match=FORWARD):
        function(query)


def test_slopes_that_require_grad():
    query = torch.randn(1, 2, 3, 4)
    slopes = torch.ones(2, requires_grad=True)
    with pytest.raises(NotImplementedError, match=r"^alibi_slopes: its gradient is not built"):
        attend(query, query, query, alibi_slopes=slopes)
    starts = torch.tensor([0, 2, 4])
    packed = torch.randn(4, 2, 4)
    with pytest.raises(NotImplementedError, match=r"^alibi_slopes: its gradient is not built"):
        ours.varlen_attention(packed, packed, packed, starts, starts, alibi_slopes=slopes)
    with torch.no_grad():
        want = attend(query, query, query, alibi_slopes=slopes.detach())
        assert torch.equal(attend(query, query, query, alibi_slopes=slopes), want)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("used", ["out", "lse", "both"])
def test_gradients_of_lse_have_the_bits_of_the_numpy_api(used, dtype):
    """With rows that see no key, of which lse is -inf; by the operator and without it."""
    leaves = [
        normal_tensor(2, 4, rows, 8, dtype=dtype, seed=i, requires_grad=True)
        for i, rows in enumerate((5, 7, 7))
    ]
    arrays = [array_of("", x) for x in leaves]
    options = {"is_causal": True, "query_offset": -2}
    out, lse = selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)
    cotangents = [
        normal_tensor(*x.shape, dtype=tensor_of(x).dtype, seed=i) for i, x in enumerate((out, lse))
    ]
    grad_out, grad_lse = (array_of("", x) for x in cotangents)
    if used == "lse":
        grad_out = np.zeros_like(grad_out)
    want = selfattn.scaled_dot_product_attention_backward(
        grad_out, *arrays, out, lse, grad_lse=None if used == "out" else grad_lse, **options
    )

    def results(*inputs):
        found = attend(*inputs, return_lse=True, **options)
        return {"out": found[:1], "lse": found[1:], "both": found}[used]

    chosen = tuple({"out": cotangents[:1], "lse": cotangents[1:], "both": cotangents}[used])
    for got in (
        torch.autograd.grad(results(*leaves), leaves, chosen),
        torch.func.vjp(results, *[x.detach() for x in leaves])[1](chosen),
    ):
        for x, y in zip(got, want[:3], strict=True):
            assert torch.equal(x, tensor_of(y))


def test_pieces_of_the_keys_that_are_merged_by_lse():
    """Their gradients go through lse: to rounding those of all keys at once."""
    inputs = [leaf(2, 4, 5, 8), leaf(2, 4, 12, 8, seed=1), leaf(2, 4, 12, 6, seed=2)]
    weights = normal_tensor(2, 4, 5, 6, dtype=FLOAT64, seed=3)

    def in_pieces(query, key, value):
        pieces = [
            attend(query, *x, return_lse=True)
            for x in zip(key.split(5, 2), value.split(5, 2), strict=True)
        ]
        shares = torch.softmax(torch.stack([lse for _, lse in pieces]), 0)
        return sum(x[..., None] * out for x, (out, _) in zip(shares, pieces, strict=True))

    results = [
        torch.autograd.grad((f(*inputs) * weights).sum(), inputs) for f in (in_pieces, attend)
    ]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
