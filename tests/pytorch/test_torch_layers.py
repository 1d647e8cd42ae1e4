"""PyTorch's layers under the provider: PyTorch's to rounding; rows keep their bits in a batch."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from selfattn import torch as ours  # noqa: E402
from support.tensors import BACKENDS  # noqa: E402

BATCH, LENGTH, WIDTH, HEADS = 5, 33, 48, 4


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request):
    return request.param


def encoder_layer(dtype, **options):
    torch.manual_seed(0)
    options = {"dropout": 0.0, "batch_first": True} | options
    return torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 96, dtype=dtype, **options)


def attention_layer(dtype, **options):
    torch.manual_seed(0)
    options = {"batch_first": True} | options
    return torch.nn.MultiheadAttention(WIDTH, HEADS, dtype=dtype, **options)


def given(dtype):
    return torch.randn(
        BATCH, LENGTH, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(1)
    )


def attend(layer, x, **options):
    return layer(x, x, x, need_weights=False, **options)[0]


def causal():
    return torch.nn.Transformer.generate_square_subsequent_mask(LENGTH)


def padding():
    return torch.arange(LENGTH) >= torch.tensor([[LENGTH], [7], [20], [1], [30]])


def layers(dtype):
    """A layer, and how it is called."""
    return {
        "encoder": (encoder_layer(dtype), lambda layer, x: layer(x)),
        "encoder, norm first": (encoder_layer(dtype, norm_first=True), lambda layer, x: layer(x)),
        "encoder, gelu": (encoder_layer(dtype, activation="gelu"), lambda layer, x: layer(x)),
        "encoder, padding": (
            encoder_layer(dtype),
            lambda layer, x: layer(x, src_key_padding_mask=padding()[: len(x)]),
        ),
        "encoder, causal": (
            encoder_layer(dtype),
            lambda layer, x: layer(x, causal().to(x.dtype), is_causal=True),
        ),
        "attention": (attention_layer(dtype), attend),
        "attention, positions first": (
            attention_layer(dtype, batch_first=False),
            lambda layer, x: attend(layer, x.transpose(0, 1)).transpose(0, 1),
        ),
        "attention, other widths": (
            attention_layer(dtype, kdim=20, vdim=11),
            lambda layer, x: layer(x, x[..., :20], x[..., :11], need_weights=False)[0],
        ),
        "attention, a bias of keys": (attention_layer(dtype, add_bias_kv=True), attend),
    }


each_layer = pytest.mark.parametrize("name", layers(torch.float32))
in_both_modes = pytest.mark.parametrize("is_training", [False, True])


def run(layer, call, x):
    """The result, and if the layer trains the gradients of input and parameters."""
    if not layer.training:
        with torch.inference_mode():
            return [call(layer, x)]
    leaf = x.clone().requires_grad_()
    out = call(layer, leaf)
    layer.zero_grad()
    (out**3).sum().backward()  # what a norm of the rows does not make constant
    return [out.detach(), leaf.grad, *(p.grad.clone() for p in layer.parameters())]


@each_layer
@in_both_modes
@pytest.mark.parametrize("linear", [False, True])
def test_as_torchs_to_rounding(dtype, name, is_training, linear):
    layer, call = layers(dtype)[name]
    layer.train(is_training)
    want = run(layer, call, given(dtype))
    with ours.enabled(linear=linear):
        got = run(layer, call, given(dtype))
    near = 400 * torch.finfo(dtype).eps
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=near, atol=near * float(y.abs().max()))


@each_layer
def test_entries_have_the_bits_that_they_have_alone(dtype, name):
    """With linear=True, in inference and in training mode; of the input's gradient too."""
    layer, call = layers(dtype)[name]
    if "padding" in name:
        pytest.skip("its entries alone are of other masks: the test below")
    x = given(dtype)
    for is_training in (False, True):
        layer.train(is_training)
        with ours.enabled(linear=True):
            whole = run(layer, call, x)[: 1 + is_training]
            for i in range(BATCH):
                one = run(layer, call, x[i : i + 1])[: 1 + is_training]
                for got, want in zip(one, whole, strict=True):
                    assert torch.equal(got[0], want[i])


def test_padded_entries_have_the_bits_that_they_have_alone(dtype):
    layer = encoder_layer(dtype).eval()
    x, mask = given(dtype), padding()
    with ours.enabled(linear=True), torch.inference_mode():
        whole = layer(x, src_key_padding_mask=mask)
        for i in range(BATCH):
            length = int((~mask[i]).sum())
            assert torch.equal(layer(x[i : i + 1, :length])[0], whole[i, :length])


# torch says so of the nested tensors that its fast path makes.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_whole_encoder(dtype):
    """With padding, which torch's fast path would take as nested tensors."""
    encoder = torch.nn.TransformerEncoder(encoder_layer(dtype), 2).eval()
    x, mask = given(dtype), padding()
    with torch.inference_mode():
        want = encoder(x, src_key_padding_mask=mask)
        with ours.enabled(linear=True):
            got = encoder(x, src_key_padding_mask=mask)
    near = 400 * torch.finfo(dtype).eps
    torch.testing.assert_close(got[~mask], want[~mask], rtol=near, atol=near * 10)


def test_the_layers_call_selfattn(monkeypatch):
    """Without gradients too, where torch would take its fast path."""
    made = []

    def counted(name, function):
        def call(*arguments):
            result = function(*arguments)
            made.append(name if result is not None else "nothing")
            return result

        return call

    memory, functions = ours.patched.memory, ours.patched.functions
    project = counted("linear", memory.project)
    spy = SimpleNamespace(project=project, are_alike=memory.are_alike)
    monkeypatch.setattr(ours.patched, "memory", spy)
    attend = counted("attention", functions.attend_at_once)
    monkeypatch.setattr(functions, "attend_at_once", attend)
    layer = encoder_layer(torch.float32).eval()
    with ours.enabled(linear=True), torch.inference_mode():
        layer(given(torch.float32))
    assert made == ["linear", "attention", "linear", "linear", "linear"]


def test_dropout_in_training():
    layer = encoder_layer(torch.float32, dropout=0.3).train()
    x = given(torch.float32)
    with ours.enabled(linear=True):
        torch.manual_seed(4)
        first, second = layer(x), layer(x)
        torch.manual_seed(4)
        assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore")
@in_both_modes
def test_compiled(is_training):
    layer = encoder_layer(torch.float32).train(is_training)
    x = given(torch.float32)
    with ours.enabled(linear=True):
        want = run(layer, lambda layer, x: layer(x), x)
        compiled = torch.compile(layer, backend=BACKENDS[-1])
        got = run(compiled, lambda layer, x: layer(x), x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
