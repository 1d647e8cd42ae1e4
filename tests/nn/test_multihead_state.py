"""What nn.MultiheadAttention keeps and what it refuses: parameters, gradients, saved calls."""

import copy
import math
import pickle

import numpy as np
import pytest

from selfattn import nn
from support.layers import given, make


def snapshot(layer):
    return copy.deepcopy((layer.params, layer.grads)), layer._saved


def assert_unchanged(layer, before):
    for was, now in zip(before[0], (layer.params, layer.grads), strict=True):
        assert list(was) == list(now)
        for name, x in was.items():
            np.testing.assert_array_equal(now[name], x)
    assert layer._saved is before[1]


def test_seeds():
    first, again, other = (nn.MultiheadAttention(8, 2, seed=seed).params for seed in (5, 5, 6))
    wide = nn.MultiheadAttention(8, 2, seed=5, dtype=np.float64).params
    for name, x in first.items():
        np.testing.assert_array_equal(x, again[name])
        np.testing.assert_array_equal(x, wide[name].astype(np.float32))
        assert x.ndim == 1 or (x != other[name]).any()
    from_generator = nn.MultiheadAttention(8, 2, seed=np.random.default_rng(5)).params
    np.testing.assert_array_equal(first["in_proj_weight"], from_generator["in_proj_weight"])


@pytest.mark.parametrize("options", [{}, {"num_heads_kv": 4}, {"kdim": 32}])
def test_initial_values(options):
    """Uniform within the bounds of Glorot, the output's within those of torch's Linear."""
    layer = nn.MultiheadAttention(64, 8, seed=0, **options)
    for name, x in layer.params.items():
        if x.ndim == 1:
            assert not x.any()
            continue
        bound = 1 / 8 if name == "out_proj.weight" else math.sqrt(6 / sum(x.shape))
        assert 0.98 * bound < np.abs(x).max() <= bound
        assert abs(x.mean()) < 5 * bound / math.sqrt(3 * x.size)
        assert x.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_sizes_and_repr():
    layer = nn.MultiheadAttention(12, 4, num_heads_kv=2, kdim=5, bias=False, dtype="float64")
    assert (layer.embed_dim, layer.num_heads, layer.num_heads_kv, layer.head_dim) == (12, 4, 2, 3)
    assert (layer.kdim, layer.vdim, layer.dtype) == (5, 12, np.float64)
    assert {name: x.shape for name, x in layer.params.items()} == {
        "q_proj_weight": (12, 12),
        "k_proj_weight": (6, 5),
        "v_proj_weight": (6, 12),
        "out_proj.weight": (12, 12),
    }
    text = "MultiheadAttention(12, 4, num_heads_kv=2, kdim=5, bias=False, dtype=float64)"
    assert repr(layer) == text
    again = eval(repr(nn.MultiheadAttention(6, 3)), {**vars(nn), "float32": np.float32})
    assert repr(again) == "MultiheadAttention(6, 3, dtype=float32)"


def test_calling_is_forward(layer, rng):
    x, _ = given(rng, layer, (5,))
    np.testing.assert_array_equal(layer(x, is_causal=True), layer.forward(x, is_causal=True))


def test_requires_grad_false_keeps_and_changes_nothing(layer, rng):
    before = snapshot(layer)
    x, _ = given(rng, layer, (3, 5))
    out = layer.forward(x, requires_grad=False)
    layer.attention_weights(x)
    assert_unchanged(layer, before)
    np.testing.assert_array_equal(layer.forward(x), out)
    fresh = make(rng, 8, 2)
    fresh.forward(x, requires_grad=False)
    with pytest.raises(RuntimeError, match=r"expected a forward\(\.\.\., requires_grad=True\)"):
        fresh.backward(x)


def test_backward_overwrites(layer, rng):
    x, _ = given(rng, layer, (3, 5))
    layer.forward(x)
    arrays = dict(layer.grads)
    first = layer.backward(x), copy.deepcopy(layer.grads)
    second = layer.backward(x), layer.grads
    np.testing.assert_array_equal(first[0], second[0])
    for name, gradient in layer.grads.items():
        assert gradient is arrays[name]
        np.testing.assert_array_equal(first[1][name], gradient)


def test_backward_before_forward():
    with pytest.raises(RuntimeError, match="backward: expected a forward"):
        nn.MultiheadAttention(8, 2).backward(np.zeros((3, 8), np.float32))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(layer, rng, copied):
    x, _ = given(rng, layer, (3, 5))
    twin = copied(layer)
    np.testing.assert_array_equal(twin.forward(x), layer.forward(x))
    twin.params["in_proj_weight"][...] = 0
    assert layer.params["in_proj_weight"].all()
    with pytest.raises(RuntimeError, match="expected a forward"):
        copied(layer).backward(x)  # the call is not copied


def test_state_dict_is_a_copy_and_comes_back(layer, rng):
    x, _ = given(rng, layer, (3, 5))
    state, out = layer.state_dict(), layer.forward(x)
    arrays = dict(layer.params)
    for x_ in layer.params.values():
        x_ += 1
    layer.load_state_dict(state)
    assert all(layer.params[name] is array for name, array in arrays.items())
    np.testing.assert_array_equal(layer.forward(x), out)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_states_of_other_dtypes(layer, dtype):
    state = {name: x.astype(dtype) for name, x in layer.state_dict().items()}
    narrow = nn.MultiheadAttention(8, 2)
    narrow.load_state_dict(state)
    for name, x in narrow.params.items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, state[name].astype(np.float32))


def test_a_state_of_the_layers_own_arrays(rng):
    layer = make(rng, 8, 2, vdim=8, kdim=5)
    state = {**layer.params}
    state["q_proj_weight"], state["v_proj_weight"] = state["v_proj_weight"], state["q_proj_weight"]
    want = copy.deepcopy(state)
    layer.load_state_dict(state)
    for name, x in layer.params.items():
        np.testing.assert_array_equal(x, want[name])


def test_a_number_beyond_the_dtype_changes_nothing(rng):
    """It would be an infinity; one that is given stays one."""
    layer = make(rng, 8, 2, np.float32)
    state = {name: x.astype(np.float64) + 1 for name, x in layer.params.items()}
    state["out_proj.bias"][3] = 1e300
    before = snapshot(layer)
    with pytest.raises(ValueError, match=r"out_proj\.bias: expected numbers that float32 can hold"):
        layer.load_state_dict(state)
    assert_unchanged(layer, before)
    state["out_proj.bias"][3] = np.inf
    layer.load_state_dict(state)
    assert layer.params["out_proj.bias"][3] == np.inf


def test_loading_forgets_the_call(layer):
    """Its rows are those of other weights."""
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="backward: expected a forward"):
        layer.backward(X)


def test_parameters_have_gradients_beside_those_of_options(layer):
    layer.forward(X, sinks=np.ones(2))
    layer.backward(X + 1, sinks_grad=True)
    assert set(layer.grads) == {*layer.params, "sinks"}


DTYPE = "dtype: expected float16, bfloat16, float32 or float64"
WRONG_SIZES = [
    ((0, 1), {}, ValueError, "embed_dim: expected 1 or more, got 0"),
    ((8, 3), {}, ValueError, "num_heads: expected a number that divides embed_dim, 8, got 3"),
    ((8, -2), {}, ValueError, "num_heads: expected 1 or more, got -2"),
    ((8.0, 2), {}, TypeError, "embed_dim: expected an int, got float"),
    ((8, True), {}, TypeError, "num_heads: expected an int, got bool"),
    ((8, 4), {"num_heads_kv": 3}, ValueError, "num_heads_kv: .* divides num_heads, 4, got 3"),
    ((8, 2), {"kdim": 0}, ValueError, "kdim: expected 1 or more, got 0"),
    ((8, 2), {"vdim": "8"}, TypeError, "vdim: expected an int, got str"),
    ((8, 2), {"bias": "1"}, TypeError, "bias: expected a bool, got str"),
    ((8, 2), {"dtype": np.int32}, TypeError, f"{DTYPE}, got"),
    ((8, 2), {"seed": -1}, ValueError, "seed: expected what default_rng takes, got -1"),
    ((8, 2), {"seed": "one"}, TypeError, "seed: expected what default_rng takes, got 'one'"),
    ((8, 2), {"dtype": None}, TypeError, f"{DTYPE}, got None"),
    ((8, 2), {"dtype": "real"}, TypeError, f"{DTYPE}, got 'real'"),
    ((8, 2), {"dtype": ">f4"}, TypeError, f"{DTYPE}, got '>f4'"),
]


@pytest.mark.parametrize(("sizes", "options", "error", "message"), WRONG_SIZES)
def test_wrong_sizes(sizes, options, error, message):
    with pytest.raises(error, match=message):
        nn.MultiheadAttention(*sizes, **options)


X = np.zeros((3, 5, 8))
WRONG_CALLS = [
    ((X.astype(np.float32),), {}, TypeError, "x: expected float64, the layer's dtype, got float32"),
    ((X[..., :7],), {}, ValueError, r"x: expected shape \(\.\.\., rows, 8\), got \(3, 5, 7\)"),
    ((X[0, 0],), {}, ValueError, r"x: expected shape \(\.\.\., rows, 8\), got \(8,\)"),
    ((X.tolist(),), {}, TypeError, "x: expected an array, got list"),
    ((X, X[..., :3]), {}, ValueError, r"context: expected shape \(\.\.\., rows, 8\), got"),
    ((X, (X, X, X)), {}, ValueError, "context: expected an array or a pair, got 3 of them"),
    ((X, (X, X[:, :4])), {}, ValueError, "context: expected a pair of as many rows, got 5 and 4"),
    ((X, X[:2]), {}, ValueError, r"context: .* that broadcast with \(3,\), got \(2,\)"),
    ((X[0], (X[:2], X)), {}, ValueError, r"context: .* that broadcast with \(2,\), got \(3,\)"),
    ((X,), {"requires_grad": None}, TypeError, "requires_grad: expected a bool, got NoneType"),
    ((X,), {"causal": True}, TypeError, "attention_options: expected options among attn_mask.*"),
    ((X,), {"out": X}, TypeError, "attention_options: .*, got 'out'"),
    ((X,), {"enable_gqa": True}, TypeError, "attention_options: .*, got 'enable_gqa'"),
    ((X,), {"is_causal": 2}, ValueError, "is_causal: expected a bool, or 0 or 1, got 2"),
    ((X,), {"kv_lengths": np.array([9, 1, 1])}, ValueError, "kv_lengths: expected values from 0"),
    ((X,), {"rope": {}, "query_offset": 0.5}, TypeError, "query_offset: expected an int, or an"),
    ((X,), {"rope": {}, "query_offset": 2**60}, ValueError, "query_offset: expected values from"),
    ((X,), {"rope": {}, "query_offset": np.ones(2, int)}, ValueError, "query_offset: .* broadcast"),
    ((X,), {"rope": 5}, TypeError, "rope: expected a mapping, got int"),
    ((X,), {"rope": {"offset": 1}}, TypeError, "rope: expected options among .*, got 'offset'"),
    ((X,), {"rope": {"layout": "x"}}, ValueError, "layout: expected 'half' or 'interleaved'"),
    ((X,), {"rope": {"rotary_dim": 3}}, ValueError, "rotary_dim: expected an even number from 0"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), WRONG_CALLS)
def test_wrong_calls_change_nothing(layer, arguments, options, error, message):
    before = snapshot(layer)
    with pytest.raises(error, match=message):
        layer.forward(*arguments, **options)
    assert_unchanged(layer, before)


@pytest.mark.parametrize(
    ("context", "options", "error", "message"),
    [
        ((X, X[:, :4]), {}, ValueError, "context: expected a pair of as many rows, got 5 and 4"),
        (X[:2], {}, ValueError, r"context: .* that broadcast with \(3,\), got \(2,\)"),
        ((X, X[:2]), {}, ValueError, r"context: .* that broadcast with \(3,\), got \(2,\)"),
        (None, {"return_lse": 1}, TypeError, "attention_options: .*, got 'return_lse'"),
        (None, {"dropout_p": 1.5}, ValueError, "dropout_p: expected a probability"),
        (None, {"rope": {}, "query_offset": "one"}, TypeError, "query_offset: expected an int, or"),
    ],
)
def test_maps_refuse_what_forward_refuses(layer, context, options, error, message):
    with pytest.raises(error, match=message):
        layer.attention_weights(X, context, **options)


def test_rope_of_an_odd_head_dim_needs_a_rotary_dim(rng):
    layer = make(rng, 6, 2)
    x, _ = given(rng, layer, (5,))
    with pytest.raises(ValueError, match="rope: expected a rotary_dim where head_dim is odd, 3"):
        layer.forward(x, rope={})
    assert (layer.forward(x, rope={"rotary_dim": 2}) != layer.forward(x)).any()


def test_widths_of_their_own_need_a_context(rng):
    layer = make(rng, 8, 2, kdim=4, vdim=6)
    x, context = given(rng, layer, (5,), (5,), pair=True)
    message = (
        r"context: expected a pair of arrays \(\.\.\., rows, 4\) and \(\.\.\., rows, 6\), got "
    )
    with pytest.raises(ValueError, match=message + "none"):
        layer.forward(x)
    with pytest.raises(ValueError, match=message + "one array"):
        layer.forward(x, context[0])
    with pytest.raises(ValueError, match=r"context: expected a pair.*, got none"):
        make(rng, 8, 2, kdim=4, vdim=4).forward(x)


@pytest.mark.parametrize(
    ("grad_out", "options", "error", "message"),
    [
        (X[:2], {}, ValueError, r"grad_out: expected shape \(3, 5, 8\), got \(2, 5, 8\)"),
        (X[..., :4], {}, ValueError, r"grad_out: expected shape \(\.\.\., rows, 8\), got"),
        (X.astype(np.float32), {}, TypeError, "grad_out: expected float64, the layer's dtype"),
        (X, {"mask_grad": True}, ValueError, "mask_grad: expected an attn_mask of floats"),
        (X, {"sinks_grad": True}, ValueError, "sinks_grad: expected sinks, got none"),
        (X, {"sinks_grad": 2}, ValueError, "sinks_grad: expected a bool, or 0 or 1, got 2"),
    ],
)
def test_wrong_gradients_change_nothing(layer, grad_out, options, error, message):
    before = snapshot(layer)
    with pytest.raises(error, match=message):
        layer.backward(grad_out, **options)
    assert_unchanged(layer, before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("in_proj_bias"), ValueError, "state: expected .* lacking in_proj_bias"),
        (lambda s: s.update(bias_k=X), ValueError, "state: expected .*, got one with bias_k"),
        (
            lambda s: s.update({"out_proj.bias": np.zeros(9)}),
            ValueError,
            r"out_proj\.bias: expected shape \(8,\), got \(9,\)",
        ),
        (
            lambda s: s.update({"out_proj.bias": np.zeros(8, int)}),
            TypeError,
            r"out_proj\.bias: expected floats, got dtype\('int64'\)",
        ),
        (
            lambda s: s.update({"out_proj.bias": [0.0] * 8}),
            TypeError,
            r"out_proj\.bias: expected an array, got list",
        ),
    ],
)
def test_wrong_states_change_nothing(layer, change, error, message):
    state = {name: x + 1 for name, x in layer.state_dict().items()}
    change(state)
    before = snapshot(layer)
    with pytest.raises(error, match=message):
        layer.load_state_dict(state)
    assert_unchanged(layer, before)
    with pytest.raises(TypeError, match="state: expected a mapping of arrays, got list"):
        layer.load_state_dict([])
