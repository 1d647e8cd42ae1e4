"""nn.MultiheadAttention beside torch's: numbers, gradients, weights that move both ways."""

import numpy as np
import pytest

from selfattn import nn
from support.layers import UNIT, given, make

torch = pytest.importorskip("torch")


def twin_of(layer):
    """torch's layer with the weights of ours."""
    bias = any(x.ndim == 1 for x in layer.params.values())
    twin = torch.nn.MultiheadAttention(
        layer.embed_dim,
        layer.num_heads,
        bias=bias,
        kdim=layer.kdim,
        vdim=layer.vdim,
        batch_first=True,
        dtype=torch.from_numpy(np.empty(0, layer.dtype)).dtype,
    )
    state = {name: torch.from_numpy(x) for name, x in layer.state_dict().items()}
    twin.load_state_dict(state)
    return twin


def check(layer, x, context=None, theirs=None, options=None):
    """Outputs, gradients of inputs and parameters; the options of torch's call and of ours."""
    twin = twin_of(layer)
    pair = isinstance(context, tuple)
    arrays = [x] if context is None else [x, *(context if pair else [context])]
    tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in arrays]
    query, key, value = {1: tensors * 3, 2: [*tensors, tensors[-1]], 3: tensors}[len(tensors)]
    want, _ = twin(query, key, value, need_weights=False, **(theirs or {}))
    grad_out = np.random.default_rng(3).standard_normal(want.shape).astype(layer.dtype)
    want.backward(torch.from_numpy(grad_out))

    got = layer.forward(x, context, **(options or {}))
    grads = layer.backward(grad_out)
    if context is None:
        grads = [grads]
    elif pair:
        grads = [grads[0], *grads[1]]
    close(got, want, "out")
    for n, (grad, tensor) in enumerate(zip(grads, tensors, strict=True)):
        close(grad, tensor.grad, f"gradient of input {n}")
    for name, parameter in twin.named_parameters():
        close(layer.grads[name], parameter.grad, f"gradient of {name}")
    assert set(layer.grads) == {name for name, _ in twin.named_parameters()}


def close(got, want, what):
    """1e-12 in float64; in float32 both round, in products of up to 100 terms: 500 units."""
    want = want.detach().numpy()
    assert got.shape == want.shape, what
    bound = 1e-12 if got.dtype == np.float64 else 500 * UNIT[got.dtype]
    size = max(float(np.abs(want).max()), 1.0) if got.dtype == np.float32 else 1.0
    off = float(np.abs(got - want).max())
    assert off <= bound * size, (what, off)


SHAPES = [
    (24, 3, (2, 7), None, False, {}),
    (24, 3, (3, 70), None, False, {"bias": False}),
    (64, 4, (2, 33), None, False, {}),
    (24, 4, (7,), None, False, {}),
    (24, 4, (2, 5), (2, 9), False, {}),
    (24, 4, (2, 5), (2, 9), False, {"kdim": 10, "vdim": 10}),
    (24, 4, (2, 5), (2, 9), True, {}),
    (24, 4, (2, 5), (2, 9), True, {"kdim": 10, "vdim": 14}),
    (24, 4, (5,), (9,), True, {"vdim": 14, "bias": False}),
    (8, 8, (1, 1), None, False, {}),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_equal(rng, dtype, shapes):
    embed_dim, heads, x_shape, context_shape, pair, options = shapes
    layer = make(rng, embed_dim, heads, dtype, **options)
    check(layer, *given(rng, layer, x_shape, context_shape, pair))


def test_masks(rng, dtype):
    """torch's True says what is not attended, ours what is."""
    layer = make(rng, 24, 4, dtype)
    x, _ = given(rng, layer, (2, 6))
    seen = rng.random((6, 6)) < 0.6
    seen |= np.eye(6, dtype=bool)
    check(layer, x, None, {"attn_mask": torch.from_numpy(~seen)}, {"attn_mask": seen})
    floats = rng.standard_normal((6, 6)).astype(dtype)
    check(layer, x, None, {"attn_mask": torch.from_numpy(floats)}, {"attn_mask": floats})
    by_head = rng.standard_normal((2, 4, 6, 6)).astype(dtype)
    theirs = {"attn_mask": torch.from_numpy(by_head.reshape(8, 6, 6))}
    check(layer, x, None, theirs, {"attn_mask": by_head})


def test_causal_and_padding(rng, dtype):
    layer = make(rng, 24, 4, dtype)
    x, _ = given(rng, layer, (2, 6))
    later = torch.from_numpy(np.triu(np.ones((6, 6), bool), 1))
    check(layer, x, None, {"attn_mask": later, "is_causal": True}, {"is_causal": True})
    lengths = np.array([4, 6])
    padding = torch.from_numpy(np.arange(6) >= lengths[:, None])
    check(layer, x, None, {"key_padding_mask": padding}, {"kv_lengths": lengths})


@pytest.mark.parametrize("batch", [(2,), ()], ids=["batched", "unbatched"])
def test_masks_with_a_context(rng, dtype, batch):
    """A mask and padding at once, in 3-D and in 2-D."""
    layer = make(rng, 24, 4, dtype, kdim=10, vdim=14)
    x, context = given(rng, layer, (*batch, 5), (*batch, 9), pair=True)
    seen = rng.random((5, 9)) < 0.6
    seen[:, 0] = True
    lengths = np.array([4, 9]) if batch else np.array(6)
    padding = torch.from_numpy(np.arange(9) >= lengths[..., None])
    theirs = {"attn_mask": torch.from_numpy(~seen), "key_padding_mask": padding}
    check(layer, x, context, theirs, {"attn_mask": seen, "kv_lengths": lengths})


def test_maps(rng):
    layer = make(rng, 24, 4)
    x, context = given(rng, layer, (2, 5), (2, 9))
    tensors = (torch.from_numpy(array) for array in (x, context, context))
    _, want = twin_of(layer)(*tensors, average_attn_weights=False)
    maps = layer.attention_weights(x, context)
    close(maps, want, "maps")
    tensors = (torch.from_numpy(array) for array in (x, context, context))
    _, averaged = twin_of(layer)(*tensors)
    close(maps.mean(-3), averaged, "their mean over the heads")


def test_tensors_are_taken_as_arrays_are(rng):
    layer = make(rng, 24, 4)
    x, context = given(rng, layer, (2, 5), (2, 9), pair=True)
    want = layer.forward(x, context)
    want_x, want_context = layer.backward(want)
    got = layer.forward(torch.from_numpy(x), tuple(map(torch.from_numpy, context)))
    grad_x, grad_context = layer.backward(torch.from_numpy(got))
    for a, b in ((got, want), (grad_x, want_x), *zip(grad_context, want_context, strict=True)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 10, "vdim": 14}], ids=str)
def test_states_move_both_ways(rng, options):
    theirs = torch.nn.MultiheadAttention(24, 4, batch_first=True, **options)
    layer = nn.MultiheadAttention(24, 4, **options)
    state = theirs.state_dict()
    assert list(layer.state_dict()) == list(state)
    layer.load_state_dict(state)
    for name, x in layer.params.items():
        np.testing.assert_array_equal(x, state[name].numpy())
    for dtype in (torch.float64, torch.float16):
        layer.load_state_dict({name: x.to(dtype) for name, x in state.items()})
        for name, x in layer.params.items():
            assert x.dtype == np.float32
            np.testing.assert_array_equal(x, state[name].to(dtype).float().numpy())
    back = {name: torch.from_numpy(x) for name, x in layer.state_dict().items()}
    theirs.load_state_dict(back)
    x = rng.standard_normal((5, 24)).astype(np.float32)
    context = [rng.standard_normal((9, n)).astype(np.float32) for n in (layer.kdim, layer.vdim)]
    want, _ = theirs(*(torch.from_numpy(array) for array in (x, *context)))
    close(layer.forward(x, context), want, "out")


@pytest.mark.parametrize("options", [{}, {"kdim": 32, "vdim": 16}], ids=str)
def test_initial_values_are_spread_as_torchs(options):
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(64, 8, **options).state_dict()
    for name, x in nn.MultiheadAttention(64, 8, seed=0, **options).params.items():
        want = theirs[name].numpy()
        assert np.abs(x).max() == pytest.approx(np.abs(want).max(), rel=0.02, abs=1e-9), name
        assert x.std() == pytest.approx(want.std(), rel=0.05, abs=1e-9), name
