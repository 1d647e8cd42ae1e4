"""torch.func.vmap: one call with another leading axis, to the bits of a call for each entry."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from selfattn import torch as ours  # noqa: E402
from selfattn.torch import kernels  # noqa: E402
from support.tensors import normal_tensor  # noqa: E402

N = 3


def entries(x, dim):
    return [x] * N if dim is None or not isinstance(x, torch.Tensor) else x.unbind(dim)


def check(function, in_dims, *inputs):
    """Values, and gradients of each entry's sum of squares to every input of floats."""

    def squares(*x):
        return (function(*x) ** 2).sum()

    each = list(zip(*map(entries, inputs, in_dims), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a loop that PyTorch falls back to
        got = torch.func.vmap(function, in_dims)(*inputs)
        assert torch.equal(got, torch.stack([function(*x) for x in each]))
        floats = tuple(i for i, x in enumerate(inputs) if x.is_floating_point())
        of_entry = torch.func.grad(squares, floats)
        gradients = torch.func.vmap(of_entry, in_dims)(*inputs)
        want = [torch.stack(x) for x in zip(*[of_entry(*x) for x in each], strict=True)]
        for x, y in zip(gradients, want, strict=True):
            assert torch.equal(x, y)


def attend(query, key, value, mask=None, **options):
    return ours.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True, **options)


@pytest.fixture
def calls(monkeypatch):
    """The shapes of the queries that the kernels have been called with."""
    made = []
    function = kernels.attend

    def counted(query, *arguments, **options):
        made.append(query.shape)
        return function(query, *arguments, **options)

    monkeypatch.setattr(kernels, "attend", counted)
    return made


def inputs_of(in_dims, *shapes, dtype=torch.float64):
    """N(0, 1), with an axis of N where one is mapped."""
    made = []
    for seed, (dim, shape) in enumerate(zip(in_dims, shapes, strict=True)):
        x = normal_tensor(*(shape if dim is None else (N, *shape)), dtype=dtype, seed=seed)
        made.append(x if dim is None else x.movedim(0, dim))
    return made


RANKS = {
    "one head": ((5, 4), (7, 4), (7, 2)),
    "heads": ((4, 5, 4), (2, 7, 4), (2, 7, 2)),
    "a batch": ((2, 4, 5, 4), (2, 2, 7, 4), (2, 2, 7, 2)),
    "other ranks": ((2, 4, 5, 4), (2, 7, 4), (7, 2)),
    "keys of more axes": ((5, 4), (2, 7, 4), (3, 1, 7, 2)),
}


@pytest.mark.parametrize("shapes", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize(
    "in_dims", [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0), (1, 0, -1)], ids=str
)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_attention(shapes, in_dims, dtype):
    check(attend, in_dims, *inputs_of(in_dims, *shapes, dtype=dtype))


@pytest.mark.parametrize("shape", [(7,), (5, 1), (5, 7), (1, 1, 7), (4, 5, 7)], ids=str)
@pytest.mark.parametrize("in_dims", [(0, 0, 0, 0), (0, 0, 0, None), (None, None, None, 0)], ids=str)
def test_masks(shape, in_dims):
    check(attend, in_dims, *inputs_of(in_dims, *RANKS["a batch"], shape))
    if len(shape) < 3:
        check(attend, in_dims, *inputs_of(in_dims, *RANKS["one head"], shape))


@pytest.mark.parametrize("in_dims", [(0, 0, 0, 0, 0), (None, 0, None, None, 0)], ids=str)
def test_a_mask_and_a_bias(in_dims):
    """Each with the gradient of each entry, of one rank or another."""
    check(
        lambda q, k, v, mask, bias: attend(q, k, v, mask, attn_bias=bias),
        in_dims,
        *inputs_of(in_dims, *RANKS["a batch"], (7,), (4, 5, 7)),
    )


OF_ENTRIES = {
    "kv_lengths": torch.tensor([[3, 7], [0, 1], [5, 5]]),
    "kv_starts": torch.tensor([[3, 7], [0, 1], [5, 5]]),
    "query_lengths": torch.tensor([[3, 5], [0, 1], [5, 5]]),
    "query_offset": torch.tensor([[3, 7], [0, 1], [-2, 5]]),
    "alibi_slopes": torch.arange(12, dtype=torch.float64).reshape(3, 4) / 12,
    "sinks": torch.arange(12, dtype=torch.float64).reshape(3, 4) / 6,
    "dropout_seed": torch.tensor([5, 6, 7]),
}


@pytest.mark.parametrize("name", OF_ENTRIES)
@pytest.mark.parametrize("is_mapped", [False, True])
def test_options(name, is_mapped):
    option = OF_ENTRIES[name] if is_mapped else OF_ENTRIES[name][0]
    more = {"dropout_p": 0.5} if name == "dropout_seed" else {"window_size": (3, 1)}
    dims = (0, 0, 0)
    inputs = inputs_of(dims, *RANKS["a batch"])
    if name == "dropout_seed" and not is_mapped:
        pytest.skip("what is dropped depends on the place in the folded batch")
    got = torch.func.vmap(
        lambda *x: attend(*x[:3], **{name: x[3]}, **more), (*dims, 0 if is_mapped else None)
    )(*inputs, option)
    want = [
        attend(*(x[i] for x in inputs), **{name: option[i] if is_mapped else option}, **more)
        for i in range(N)
    ]
    assert torch.equal(got, torch.stack(want))


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (None, None)], ids=str)
def test_segments(in_dims):
    query_ids = torch.arange(15).reshape(3, 5) % 2
    key_ids = torch.arange(21).reshape(3, 7) % 3
    ids = [x if dim == 0 else x[0] for x, dim in zip((query_ids, key_ids), in_dims, strict=True)]
    dims = (0, 0, 0, *in_dims)
    check(
        lambda q, k, v, a, b: attend(q, k, v, segment_ids=(a, b)),
        dims, *inputs_of(dims[:3], *RANKS["a batch"]), *ids,
    )  # fmt: skip


def test_gradients_of_sinks_for_each_entry():
    for dim in (0, None):
        dims = (0, 0, 0, dim)
        check(
            lambda q, k, v, s: attend(q, k, v, sinks=s),
            dims,
            *inputs_of(dims, *RANKS["heads"], (4,)),
        )


@pytest.mark.parametrize("shapes", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (None, 0, None)], ids=str)
def test_lse(shapes, in_dims):
    """Its gradient, alone and beside that of the result."""
    inputs = inputs_of(in_dims, *shapes)
    check(lambda *x: attend(*x, return_lse=True)[1], in_dims, *inputs)
    check(lambda *x: product(*attend(*x, return_lse=True)), in_dims, *inputs)


def product(out, lse):
    return out * lse[..., None]


def test_it_is_one_call(calls):
    inputs = inputs_of((0, None, 0), *RANKS["a batch"])
    torch.func.vmap(attend, (0, None, 0))(*inputs)
    assert calls == [(N, 2, 4, 5, 4)]


def test_nested(calls):
    query = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    got = torch.func.vmap(torch.func.vmap(attend, (0, 0, None)), (0, 0, None))(
        query, query, query[0, 0]
    )
    assert calls == [(2, 3, 4, 5, 6)]
    want = [[attend(y, y, query[0, 0]) for y in x] for x in query]
    assert torch.equal(got, torch.stack([torch.stack(x) for x in want]))


@pytest.mark.parametrize(
    "in_dims", [(0, None, None), (0, 0, 0), (None, 0, None), (1, None, 0), (None, None, 0)], ids=str
)
def test_linear(in_dims):
    for shape in ((6,), (2, 6)):
        check(ours.linear, in_dims, *inputs_of(in_dims, shape, (4, 6), (4,)))


def test_linear_is_one_call(monkeypatch):
    rows = []
    project = kernels.memory.project

    def counted(x, *rest):
        rows.append(x.shape)
        return project(x, *rest)

    monkeypatch.setattr(kernels, "memory", SimpleNamespace(project=counted))
    x, weight = torch.randn(2, N, 6), torch.randn(4, 6)
    torch.func.vmap(ours.linear, (1, None))(x, weight)
    assert rows == [(N, 2, 6)]


def test_packed():
    starts = torch.tensor([0, 2, 5])
    for dims in ((0, 0, 0), (0, None, None)):
        check(
            lambda q, k, v: ours.varlen_attention(q, k, v, starts, starts, is_causal=True),
            dims, *inputs_of(dims, (5, 2, 4), (5, 2, 4), (5, 2, 3)),
        )  # fmt: skip


def test_in_compiled_code():
    inputs = inputs_of((0, None, None), *RANKS["heads"])
    mapped = torch.func.vmap(attend, (0, None, None))
    got = torch.compile(mapped, fullgraph=True, backend="aot_eager")(*inputs)
    assert np.array_equal(got.numpy(), mapped(*inputs).numpy())
