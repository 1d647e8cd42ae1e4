"""The operators in PyTorch's own tests, compilers and exporters: the same bits as without them."""

import pytest

torch = pytest.importorskip("torch")

from selfattn import torch as ours  # noqa: E402
from support.tensors import BACKENDS, normal_tensor  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the compilers about their own
OPERATORS = torch.ops.selfattn
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def qkv(dtype, batch=2, seqlen_q=5, seqlen_k=7, head_dim=8, requires_grad=True):
    shapes = (
        (batch, 4, seqlen_q, head_dim), (batch, 2, seqlen_k, head_dim), (batch, 2, seqlen_k, 6),
    )  # fmt: skip
    return [
        normal_tensor(*shape, dtype=dtype, seed=i, requires_grad=requires_grad)
        for i, shape in enumerate(shapes)
    ]


def transposed(x):
    """The same shape, with positions before heads in memory."""
    return x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()


def mask(dtype, *shape):
    return normal_tensor(*shape, dtype=dtype, seed=8, requires_grad=True)


def attention_samples(dtype):
    query, key, value = qkv(dtype)
    groups = {"enable_gqa": True}
    return {
        "grouped": ((query, key, value), groups),
        "causal": ((query, key, value), {"is_causal": True, "query_offset": 2, **groups}),
        "bools": ((query, key, value, torch.ones(5, 7, dtype=torch.bool).tril()), groups),
        "a mask": ((query, key, value, mask(dtype, 4, 1, 7)), groups),
        "strides": ((*map(transposed, (query, key, value)), mask(dtype, 5, 7)), groups),
        "one head": ((query[0, 0], key[0, 0], value[0, 0]), {}),
        "broadcast": ((query[:1], key, value[0]), groups),
        "expanded": ((query[:1].expand(2, -1, -1, -1), key, value), groups),
        "decoding": ((transposed(query[:, :, :1]), key, value), groups),
        "options": (
            (query, key, value),
            {
                "window_left": 3, "window_right": 1, "softcap": 2.0,
                "kv_lengths": torch.tensor([3, 7]),
                "alibi_slopes": torch.ones(4, dtype=dtype), "sinks": mask(dtype, 4),
                "query_segments": torch.zeros(5, dtype=torch.int64),
                "key_segments": torch.arange(7) // 5, "dropout_p": 0.2, "dropout_seed": 3,
                "query_offsets": torch.tensor([2, 1]), "scale": 0.3, **groups,
            },
        ),
        "bias": (
            (query, key, value, torch.ones(2, 1, 1, 7, dtype=torch.bool)),
            {
                "attn_bias": mask(dtype, 4, 5, 7), "kv_starts": torch.tensor([1, 0]),
                "query_lengths": torch.tensor([5, 3]), **groups,
            },
        ),
        "no queries": ((query[:, :, :0], key, value), groups),
    }  # fmt: skip


@pytest.mark.parametrize("name", attention_samples(torch.float32))
def test_opcheck_of_attention(dtype, name):
    arguments, options = attention_samples(dtype)[name]
    torch.library.opcheck(OPERATORS.attention.default, arguments, options)
    plain, options = (
        [x.detach() for x in arguments],
        {key: x.detach() if isinstance(x, torch.Tensor) else x for key, x in options.items()},
    )
    out, lse = OPERATORS.attention(*plain, **options)
    has_mask = len(plain) > 3 and plain[3].is_floating_point()
    results = out, lse, None if name == "grouped" else torch.ones_like(lse)
    wanted = has_mask, "sinks" in options, "attn_bias" in options
    torch.library.opcheck(
        OPERATORS.attention_backward.default,
        (torch.ones_like(out), *plain[:3], *results, *wanted, *plain[3:]),
        options,
    )


@pytest.mark.parametrize("heads", [1, 2])
def test_opcheck_of_packed_sequences(dtype, heads):
    starts = torch.tensor([0, 2, 5])
    product = normal_tensor(5, 3, heads, 4, dtype=dtype)
    for inputs in (product.unbind(1), [x.contiguous() for x in product.unbind(1)]):
        leaves = [x.detach().requires_grad_() for x in inputs]
        sample = (*leaves, starts, starts, None, None, mask(dtype, 3))
        torch.library.opcheck(OPERATORS.varlen.default, sample, {"is_causal": True})
        plain = [x.detach() for x in inputs]
        out, lse = OPERATORS.varlen(*plain, starts, starts, None, None)
        grad_lse = None if heads == 1 else torch.ones_like(lse)
        torch.library.opcheck(
            OPERATORS.varlen_backward.default,
            (
                *(torch.ones_like(out), *plain, out, lse, starts, starts, None, None, grad_lse),
                *[False] * 3,
            ),
        )


def test_opcheck_of_linear(dtype):
    weight, bias = mask(dtype, 4, 6), mask(dtype, 4)
    for x in (mask(dtype, 2, 3, 6), mask(dtype, 6), mask(dtype, 3, 2, 6).transpose(0, 1)):
        torch.library.opcheck(OPERATORS.linear.default, (x.detach().requires_grad_(), weight, bias))
        torch.library.opcheck(OPERATORS.linear.default, (x.detach(), weight))
        plain = x.detach(), weight.detach()
        for wanted in ((True, True, True), (False, True, False), (True, False, False)):
            grad_out = torch.ones(*x.shape[:-1], 4, dtype=dtype)
            torch.library.opcheck(OPERATORS.linear_backward.default, (grad_out, *plain, *wanted))


def results(function, inputs):
    """Values, and gradients of those inputs that require them."""
    inputs = [
        x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x
        for x in inputs
    ]
    out = function(*inputs)
    wanted = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    if not wanted:
        return [out]
    return [out.detach(), *torch.autograd.grad((out * out).sum(), wanted)]


def assert_equal(got, want):
    assert len(got) == len(want)
    for x, y in zip(got, want, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def with_options(query, key, value, bias, sinks):
    return ours.scaled_dot_product_attention(
        query * 2, key, value, bias, 0.2, True, scale=0.3, enable_gqa=True, query_offset=2,
        window_size=(4, -1), softcap=3.0, sinks=sinks, dropout_seed=9,
        kv_lengths=torch.tensor([4, 7]),
        segment_ids=(torch.zeros(5, dtype=torch.int64), torch.arange(7) // 6),
    )  # fmt: skip


def packed(query, key, value, starts):
    return ours.varlen_attention(query, key, value, starts, starts, is_causal=True)


def compiled_calls(dtype):
    return {
        "attention": (
            lambda q, k, v: ours.scaled_dot_product_attention(q, k, v, enable_gqa=True),
            qkv(dtype),
        ),
        "out and lse": (
            lambda q, k, v: torch.cat([
                x.flatten()
                for x in ours.scaled_dot_product_attention(
                    q, k, v, enable_gqa=True, return_lse=True
                )
            ]),
            qkv(dtype),
        ),
        "heads after positions": (
            lambda q, k, v: ours.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
            ).transpose(1, 2).flatten(2),
            [mask(dtype, 2, 5, 4, 8) for _ in range(3)],
        ),
        "options": (with_options, [*qkv(dtype), mask(dtype, 4, 1, 7), mask(dtype, 4)]),
        "packed": (packed, [*[mask(dtype, 5, 2, 4)] * 3, torch.tensor([0, 2, 5])]),
        "packed by pairs": (
            lambda q, k, v, starts, lengths: packed(q, k, v, (starts, lengths)),
            [*[mask(dtype, 5, 2, 4)] * 3, torch.tensor([3, 0]), torch.tensor([1, 2])],
        ),
        "linear": (ours.linear, [mask(dtype, 2, 5, 8), mask(dtype, 3, 8), mask(dtype, 3)]),
        "a layer": (
            lambda x, weight: ours.linear(
                ours.scaled_dot_product_attention(
                    *ours.linear(x, weight).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
                ).transpose(1, 2).flatten(2),
                weight[:4, :4],
            ),
            [mask(dtype, 2, 5, 8), mask(dtype, 12, 8)],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", compiled_calls(torch.float32))
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled(dtype, name, backend):
    function, inputs = compiled_calls(dtype)[name]
    want = results(function, inputs)
    got = results(torch.compile(function, fullgraph=True, backend=backend), inputs)
    assert_equal(got, want)


def test_compiled_with_dynamic_shapes(dtype):
    """One program for all lengths, batches and widths."""
    compilations = []

    def backend(graph, example):
        compilations.append(graph)
        return graph

    def function(query, key, value):
        return ours.scaled_dot_product_attention(query, key, value, enable_gqa=True, is_causal=True)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    # In the first of them no two axes are equal by chance: PyTorch would take them for one.
    for batch, seqlen_q, seqlen_k, head_dim in (
        (3, 5, 7, 8), (5, 9, 7, 11), (3, 5, 33, 8), (9, 70, 70, 13),
    ):  # fmt: skip
        inputs = qkv(dtype, batch, seqlen_q, seqlen_k, head_dim)
        want = results(function, inputs)
        assert_equal(results(compiled, inputs), want)
    assert len(compilations) == 1
    assert_equal(
        results(
            torch.compile(function, fullgraph=True, dynamic=True, backend=BACKENDS[-1]), inputs
        ),
        want,
    )


def test_a_seed_that_is_drawn_in_compiled_code(dtype):
    def function(query, key, value):
        seed = torch.randint(0, 2**62, (), dtype=torch.int64)
        return ours.scaled_dot_product_attention(
            query, key, value, dropout_p=0.5, dropout_seed=seed, enable_gqa=True
        )

    compiled = torch.compile(function, fullgraph=True, backend=BACKENDS[-1])
    inputs = qkv(dtype)
    torch.manual_seed(3)
    first, second = compiled(*inputs), compiled(*inputs)
    torch.manual_seed(3)
    assert torch.equal(compiled(*inputs), first)
    assert not torch.equal(first, second)


class Module(torch.nn.Module):
    def forward(self, query, key, value):
        out = ours.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return ours.linear(out, value[0, 0])


def test_exported(dtype):
    inputs = tuple(qkv(dtype, requires_grad=False))
    want = Module()(*inputs)
    program = torch.export.export(Module(), inputs)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"selfattn.attention.default", "selfattn.linear.default"} <= called
    assert torch.equal(program.module()(*inputs), want)


def test_exported_with_dynamic_shapes(dtype):
    length = torch.export.Dim("length", min=2, max=100)
    shapes = ({2: length}, None, None)
    program = torch.export.export(
        Module(), tuple(qkv(dtype, requires_grad=False)), dynamic_shapes=shapes
    )
    for seqlen_q in (2, 5, 17):
        inputs = qkv(dtype, seqlen_q=seqlen_q, requires_grad=False)
        assert torch.equal(program.module()(*inputs), Module()(*inputs))


def test_traced(dtype):
    """torch.jit.trace keeps the operators, and no result of them as a constant."""
    inputs = tuple(qkv(dtype, requires_grad=False))
    traced = torch.jit.trace(Module(), inputs)
    others = tuple(x + 1 for x in inputs)
    assert torch.equal(traced(*others), Module()(*others))


def test_modes_see_the_operators(dtype):
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            seen.append(str(function))
            return function(*arguments, **(options or {}))

    inputs = qkv(dtype)
    with torch.no_grad(), Mode():
        Module()(*inputs)
    selects = ["aten.select.int"] * 2
    assert seen == ["selfattn.attention.default", *selects, "selfattn.linear.default"]


def test_shapes_in_a_fake_mode(dtype):
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = Module()(*qkv(dtype, requires_grad=False))
    with FakeTensorMode() as mode:
        inputs = [mode.from_tensor(x) for x in qkv(dtype, requires_grad=False)]
        out = Module()(*inputs)
        assert (out.shape, out.dtype, out.stride()) == (real.shape, real.dtype, real.stride())
        with pytest.raises(ValueError, match=r"^key: expected query's head_dim 8, got 7"):
            Module()(inputs[0], inputs[1][..., 1:], inputs[2])
