"""selfattn.torch's merges of states: the NumPy API's bits, values and gradients, compiled too."""

import numpy as np
import pytest

import selfattn
from support.arrays import normal

torch = pytest.importorskip("torch")

from selfattn import torch as ours  # noqa: E402
from support.tensors import (  # noqa: E402
    BACKENDS,
    array,
    assert_same_bits,
    normal_tensor,
    tensor,
    tensors,
)

# PyTorch's forward mode scripts decompositions of its own where it is first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
OPERATORS = torch.ops.selfattn
N = 3


def real(dtype):
    return np.float64 if dtype == np.float64 else np.float32


def states(dtype, heads_first=False, count=N):
    """Outs (2, 5, 4, 6) and lses, one state after the other; some have no weight."""
    outs = [normal(2, 5, 4, 6, dtype=dtype, seed=i) for i in range(count)]
    lses = [3 * normal(2, 5, 4, dtype=real(dtype), seed=i + 9) for i in range(count)]
    lses[0][0, 1] = -np.inf
    for lse in lses:
        lse[1, 2, 3] = -np.inf
    return outs, [np.ascontiguousarray(x.swapaxes(1, 2)) for x in lses] if heads_first else lses


def layouts(dtype, heads_first):
    """{name: (arguments, axis)}, states as the NumPy API takes them."""
    outs, lses = states(dtype, heads_first)
    permuted = [np.ascontiguousarray(x.transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3) for x in outs]
    return {
        "a sequence": (outs, lses, 0),
        "permuted": (permuted, [np.asfortranarray(x) for x in lses], 0),
        "unlike": ([outs[0], *permuted[1:]], lses, 0),
        "stacked": (np.stack(outs), np.stack(lses), 0),
        "on axis 1": (np.stack(outs, 1), np.stack(lses, 1), 1),
        "on the last axis of lse": (np.stack(outs, -2), np.stack(lses, 3), -2),
        "one of each kind": (outs, np.stack(lses), 0),
    }


def leaves_of(given):
    if isinstance(given, np.ndarray):
        return tensor(given, requires_grad=True)
    return tensors(*given, requires_grad=True)


def gradients(leaves):
    return [leaves.grad] if isinstance(leaves, torch.Tensor) else [x.grad for x in leaves]


def listed(given):
    return [given] if isinstance(given, np.ndarray) else list(given)


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("name", layouts(np.float32, False))
def test_bits(dtype, name, heads_first):
    outs, lses, axis = layouts(dtype, heads_first)[name]
    options = {"axis": axis, "lse_heads_first": heads_first}
    want = selfattn.merge_states_many(outs, lses, **options)
    grad_out = normal(2, 5, 4, 6, dtype=dtype, seed=20)
    grad_lse = normal(*want[1].shape, dtype=real(dtype), seed=21)
    given = leaves_of(outs), leaves_of(lses)
    got = ours.merge_states_many(*given, **options)
    assert_same_bits(got, want)
    torch.autograd.backward(got, [tensor(grad_out), tensor(grad_lse)])
    of = selfattn.merge_states_backward(grad_out, grad_lse, outs, lses, **options)
    for leaves, wanted in zip(given, of, strict=True):
        for x, y in zip(gradients(leaves), listed(wanted), strict=True):
            assert_same_bits(x, y)
    with torch.inference_mode():
        assert_same_bits(ours.merge_states_many(*given, **options), want)


def test_results_lie_as_the_first_state_does(dtype):
    outs, lses, _ = layouts(dtype, False)["permuted"]
    given = tensors(*outs), tensors(*lses)
    out, lse = ours.merge_states_many(*given)
    assert out.stride() == given[0][0].stride()
    assert lse.stride() == given[1][0].stride()


def test_a_pair(dtype):
    outs, lses = states(dtype, count=2)
    want = selfattn.merge_states(outs[0], lses[0], outs[1], lses[1])
    given = [leaves_of([x, y]) for x, y in zip(outs, lses, strict=True)]
    out, lse = ours.merge_states(*given[0], *given[1])
    assert_same_bits((out, lse), want)
    out.float().sum().backward()  # of lse none
    of = selfattn.merge_states_backward(np.ones_like(want[0]), None, outs, lses)
    for i, (of_out, of_lse) in enumerate(zip(of.outs, of.lses, strict=True)):
        assert_same_bits(given[i][0].grad, of_out)
        assert_same_bits(given[i][1].grad, of_lse)


def test_states_are_not_copied(monkeypatch):
    """Any axis of states, any order of axes: what the kernels read is the tensors' own memory."""
    from selfattn.torch import merge_operators

    seen = []
    kernel = merge_operators._core.merge
    monkeypatch.setattr(
        merge_operators._core, "merge", lambda *given: seen.append(given) or kernel(*given)
    )
    for axis, order in ((0, (0, 1, 2, 3, 4)), (2, (3, 0, 2, 1, 4)), (1, (1, 3, 2, 0, 4))):
        outs = normal_tensor(4, 2, 3, 5, 6).permute(order)
        lses = normal_tensor(4, 2, 3, 5).permute(order[:-1])
        ours.merge_states_many(outs, lses, axis)
        for given, whole in zip(seen[-1][:2], (outs, lses), strict=True):
            assert all(np.shares_memory(x, array(whole)) for x in given)


def attend_in_pieces(query, key, value):
    """Attention over keys in pieces, merged: its gradients go through lse as well."""
    parts = [
        ours.scaled_dot_product_attention(query, key[at], value[at], return_lse=True)
        for at in (slice(0, 1), slice(1, 4), slice(4, None))
    ]
    return ours.merge_states_many(*zip(*parts, strict=True))


def test_pieces_of_keys():
    leaves = [normal_tensor(n, 4, dtype=torch.float64, seed=n, requires_grad=True) for n in (5, 7)]
    query, key = leaves
    merged = attend_in_pieces(query, key, key)
    whole = ours.scaled_dot_product_attention(query, key, key, return_lse=True)
    for x, y in zip(merged, whole, strict=True):
        torch.testing.assert_close(x, y)
    weights = [normal_tensor(*x.shape, dtype=torch.float64, seed=4) for x in whole]
    got = torch.autograd.grad(merged, leaves, weights)
    for x, y in zip(got, torch.autograd.grad(whole, leaves, weights), strict=True):
        torch.testing.assert_close(x, y)


def stacked(outs, lses):
    return torch.cat([x.flatten() for x in ours.merge_states_many(outs, lses, axis=1)])


def of_sequences(a, b, lse_a, lse_b):
    out, lse = ours.merge_states(a, lse_a, b, lse_b)
    return out * lse[..., None]


def samples(dtype=torch.float64):
    def leaf(*shape, seed):
        kind = torch.float32 if len(shape) < 3 and dtype.itemsize < 4 else dtype
        return normal_tensor(*shape, dtype=kind, seed=seed, requires_grad=True)

    return {
        "stacked": (stacked, (leaf(4, 3, 2, seed=1), leaf(4, 3, seed=2))),
        "pairs": (
            of_sequences,
            tuple(leaf(*shape, seed=i) for i, shape in enumerate([(1, 4, 2)] * 2 + [(1, 4)] * 2)),
        ),
    }


@pytest.mark.parametrize("name", samples())
def test_derivatives(name):
    function, inputs = samples()[name]
    assert torch.autograd.gradcheck(function, inputs, check_batched_grad=True)
    with pytest.raises(NotImplementedError, match="merge_backward cannot be differentiated"):
        torch.autograd.gradgradcheck(function, inputs)
    plain = [x.detach() for x in inputs]
    out = function(*inputs)
    want = torch.autograd.grad(out.sum(), inputs)
    every = tuple(range(len(plain)))
    got = torch.func.grad(lambda *x: function(*x).sum(), every)(*plain)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(function, tuple(plain), tuple(plain))


@pytest.mark.parametrize("name", samples())
def test_vmap(name):
    function, inputs = samples()[name]
    many = [torch.stack([x.detach(), x.detach() + 1]) for x in inputs]
    got = torch.func.vmap(function)(*many)
    assert torch.equal(got, torch.stack([function(*x) for x in zip(*many, strict=True)]))
    of_entry = torch.func.grad(lambda *x: (function(*x) ** 2).sum(), tuple(range(len(many))))
    got = torch.func.vmap(of_entry)(*many)
    want = [of_entry(*x) for x in zip(*many, strict=True)]
    for x, y in zip(got, zip(*want, strict=True), strict=True):
        assert torch.equal(x, torch.stack(y))
    once = (None, *[0] * (len(many) - 1))  # the first is not mapped
    got = torch.func.vmap(function, once)(inputs[0].detach(), *many[1:])
    want = [function(inputs[0].detach(), *x) for x in zip(*many[1:], strict=True)]
    assert torch.equal(got, torch.stack(want))


@pytest.mark.filterwarnings("ignore")  # those of the compilers about their own
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", samples())
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_compiled(name, backend, kind):
    function, inputs = samples(kind)[name]
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    got, want = compiled(*inputs), function(*inputs)
    assert torch.equal(got, want)
    gradients = torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), inputs)
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("heads_first", [False, True])
def test_opcheck(heads_first):
    for name in ("permuted", "unlike"):
        outs, lses, _ = layouts(np.float32, heads_first)[name]
        given = leaves_of(outs), leaves_of(lses)
        torch.library.opcheck(OPERATORS.merge.default, given, {"lse_heads_first": heads_first})
        plain = tensors(*outs), tensors(*lses)
        out, lse = OPERATORS.merge(*plain, heads_first)
        stacked = [torch.stack(list(x)) for x in plain]
        for grad_lse in (None, lse):
            torch.library.opcheck(
                OPERATORS.merge_backward.default, (out, grad_lse, *stacked, heads_first)
            )


def test_bad_input():
    out, lse = torch.zeros(2, 3), torch.zeros(2)
    both = [out, out], [lse, lse]
    for error, words, arguments in (
        (TypeError, "lse_b: expected a tensor, got list", (out, lse, out, [0])),
        (ValueError, r"out_b: expected shape \(2, 3\)", (out, lse, out[:1], lse)),
        (ValueError, r"lse_a: expected shape \(2,\)", (out, lse[:1], out, lse)),
        (TypeError, "lse_b: expected torch.float32", (out, lse, out, lse.double())),
        (TypeError, "out_a: expected a tensor on the CPU", (out.to("meta"), lse, out, lse)),
        (ValueError, "out_a: expected 1 or more axes", (lse[0], lse[0], lse[0], lse[0])),
    ):
        with pytest.raises(error, match=words):
            ours.merge_states(*arguments)
    for error, words, arguments in (
        (ValueError, "outs: expected one state or more", ([], [])),
        (ValueError, "lses: expected 2, one for each of outs, got 1", (both[0], [lse])),
        (ValueError, r"outs\[1\]: expected shape", ([out, out[:1]], both[1])),
        (TypeError, r"outs\[1\]: expected a tensor, got NoneType", ([out, None], both[1])),
        (TypeError, r"lses\[0\]: expected", (both[0], [lse.double(), lse])),
        (TypeError, "outs: expected a tensor or a sequence", (3, both[1])),
        (ValueError, "axis: expected 0 where outs is a sequence", (*both, 1)),
        (ValueError, "axis: expected one before the last", (torch.stack(both[0]), lse, 2)),
        (ValueError, "outs: expected one state or more", (out[:0], lse[:0])),
        (TypeError, "axis", (torch.stack(both[0]), torch.stack(both[1]), 0.5)),
        (TypeError, "integers|int", (torch.ones(2, 2, 3, dtype=torch.int64), torch.ones(2, 2))),
    ):
        with pytest.raises(error, match=words):
            ours.merge_states_many(*arguments)
