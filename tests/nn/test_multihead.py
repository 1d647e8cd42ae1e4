"""nn.MultiheadAttention against the reference: outputs, gradients of inputs and parameters."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import selfattn
from selfattn import nn, reference
from support.arrays import same_bits
from support.layers import check, close, given, make

SHAPES = [
    # (x, context, is a pair, options of the layer)
    ((3, 7), None, False, {}),
    ((2, 70), None, False, {"num_heads_kv": 2}),
    ((7,), None, False, {"bias": False}),
    ((2, 3, 5), None, False, {}),
    ((2, 5), (2, 9), False, {}),
    ((2, 5), (2, 9), False, {"kdim": 10, "vdim": 10, "num_heads_kv": 1}),
    ((2, 5), (2, 9), True, {}),
    ((2, 5), (2, 9), True, {"kdim": 10, "vdim": 14}),
    ((2, 5), (2, 9), True, {"vdim": 14, "bias": False, "num_heads_kv": 2}),
    ((2, 5), (9,), False, {}),
    ((5,), (3, 9), False, {}),
    ((2, 1, 5), (1, 3, 9), True, {}),
    ((2, 1), None, False, {}),
    ((2, 1), (2, 33), False, {}),
    ((2, 5), (2, 0), False, {}),
    ((2, 0), None, False, {}),
    ((0, 5), None, False, {}),
    ((0, 5), (0, 4), True, {}),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_against_the_reference(rng, dtype, shapes):
    x_shape, context_shape, pair, options = shapes
    layer = make(rng, 24, 4, dtype, **options)
    check(layer, *given(rng, layer, x_shape, context_shape, pair))


@pytest.mark.parametrize(
    ("of_x", "of_key", "of_value"),
    [((2, 1, 5), (1, 1, 6), (1, 3, 6)), ((5,), (6,), (3, 6)), ((5,), (3, 6), (6,))],
)
def test_leading_axes_that_one_input_alone_has(rng, dtype, of_x, of_key, of_value):
    layer = make(rng, 24, 4, dtype, num_heads_kv=2)
    x, key, value = (given(rng, layer, shape)[0] for shape in (of_x, of_key, of_value))
    out, _ = check(layer, x, (key, value), rope={}, is_causal=True)
    assert out.shape == (*np.broadcast_shapes(of_x[:-1], of_key[:-1], of_value[:-1]), 5, 24)


@pytest.mark.parametrize("name", ["mask", "floats", "ranges", "bent", "heads", "segments", "lost"])
def test_options_are_passed_through(rng, dtype, name):
    layer = make(rng, 24, 4, dtype, num_heads_kv=2)
    mask = rng.random((2, 4, 6, 6)) < 0.6
    mask[0, :, 2] = False
    floats = rng.standard_normal((4, 6, 6)).astype(dtype)
    options = {
        "mask": {"attn_mask": mask, "scale": 0.7},
        "floats": {"attn_mask": floats, "mask_grad": True, "num_threads": 2},
        "ranges": {
            "is_causal": True,
            "query_offset": np.array([1, -2]),
            "kv_lengths": np.array([5, 6]),
            "window_size": (3, 2),
        },
        "bent": {"softcap": 1.5, "alibi_slopes": np.full(4, 0.2, dtype)},
        "heads": {"sinks": rng.standard_normal(4).astype(dtype), "sinks_grad": True},
        "segments": {"segment_ids": np.array([[0, 0, 1, 1, 1, 2]] * 2)},
        "lost": {"dropout_p": 0.4, "dropout_seed": 3},
    }[name]
    x, _ = given(rng, layer, (2, 6))
    out, _ = check(layer, x, **options)
    plain = layer.forward(x)
    assert not np.allclose(out, plain)


def test_x_as_a_part_of_its_own_context(rng, dtype):
    """One product over all three is right only where all three are x."""
    layer = make(rng, 24, 4, dtype)
    x, other = given(rng, layer, (2, 5), (2, 5))
    for context in (x, (x, x), (x, other), (other, x), (other, other)):
        check(layer, x, context)


def test_all_options_together_with_a_context(rng, dtype):
    layer = make(rng, 24, 4, dtype, num_heads_kv=2)
    x, context = given(rng, layer, (2, 5), (2, 9))
    check(
        layer,
        x,
        context,
        rope={"layout": "interleaved"},
        attn_mask=rng.standard_normal((2, 1, 5, 9)).astype(dtype),
        mask_grad=True,
        is_causal=True,
        query_offset=np.array([3, 4]),
        kv_lengths=np.array([8, 9]),
        window_size=(5, 1),
        segment_ids=(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 0, 0, 1, 0, 1, 1, 1])),
        scale=0.4,
        softcap=2.0,
        alibi_slopes=np.full(4, 0.1, dtype),
        sinks=np.ones(4, dtype),
        sinks_grad=True,
        dropout_p=0.3,
        dropout_seed=7,
        num_threads=2,
    )


def test_gradients_of_options_go_when_they_are_not_asked_for(rng):
    layer = make(rng, 8, 2)
    x, _ = given(rng, layer, (4,))
    options = {"sinks": np.ones(2), "attn_mask": np.zeros((4, 4))}
    layer.forward(x, **options)
    layer.backward(x, mask_grad=True, sinks_grad=True)
    assert layer.grads["attn_mask"].shape == (4, 4)
    assert layer.grads["sinks"].shape == (2,)
    layer.backward(x)
    assert list(layer.grads) == list(layer.params)


@pytest.mark.parametrize(
    ("rope", "options"),
    [
        ({}, {}),
        ({"layout": "interleaved", "theta": 100.0}, {"is_causal": True}),
        ({"rotary_dim": 2}, {"query_offset": 3}),
        ({"layout": "interleaved"}, {"query_offset": np.array([2, 5])}),
        ({"layout": "interleaved", "positions": np.array([4, 1, 2, 0, 1, 9])}, {}),
        ({"positions": None}, {"query_offset": 4}),
        ({"positions": np.arange(6)}, {"query_offset": 2, "is_causal": True}),
        ({"rotary_dim": 4}, {"query_offset": np.array([2, 5]), "is_causal": True}),
        ({"positions": np.array([0, 1, 2, 0, 1, 2])}, {}),
        ({"positions": np.array([[0, 1, 2, 0, 1, 2]] * 2), "frequencies": np.ones(3)}, {}),
    ],
)
def test_rope_in_the_layer(rng, dtype, rope, options):
    layer = make(rng, 24, 4, dtype, num_heads_kv=2)
    x, _ = given(rng, layer, (2, 6))
    out, _ = check(layer, x, rope=rope, **options)
    assert not np.allclose(out, layer.forward(x, **options))


def test_finite_differences(rng):
    layer = make(rng, 6, 3, num_heads_kv=1)
    x, context = given(rng, layer, (2, 3), (2, 4))
    options = {"is_causal": True, "query_offset": 1, "rope": {}}
    grad_out = rng.standard_normal((2, 3, 6))
    layer.forward(x, context, **options)
    grad_x, grad_context = layer.backward(grad_out)
    step = 1e-6
    arrays = [(x, grad_x), (context, grad_context)]
    arrays += [(layer.params[name], layer.grads[name].copy()) for name in layer.params]
    for array, gradient in arrays:
        difference = np.empty_like(array)
        for i in np.ndindex(array.shape):
            before, sums = array[i], []
            for sign in (1, -1):
                array[i] = before + sign * step
                out = layer.forward(x, context, requires_grad=False, **options)
                sums.append((grad_out * out).sum())
            array[i] = before
            difference[i] = (sums[0] - sums[1]) / (2 * step)
        np.testing.assert_allclose(gradient, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("pair", [False, True])
def test_attention_weights(rng, dtype, pair):
    layer = make(rng, 24, 4, dtype, num_heads_kv=2)
    x, context = given(rng, layer, (2, 5), (2, 7), pair)
    options = {"kv_lengths": np.array([4, 7]), "query_offset": 2, "is_causal": True}
    options |= {"scale": 2.0, "softcap": 1.5, "alibi_slopes": np.full(4, 0.2, dtype)}
    maps = layer.attention_weights(x, context, rope={}, **options)
    assert maps.shape == (2, 4, 5, 7)
    close(maps.sum(-1), np.ones((2, 4, 5), dtype), "sums")
    of_key = context[0] if pair else context
    weight, bias = layer.params["in_proj_weight"], layer.params["in_proj_bias"]
    query = (x @ weight[:24].T + bias[:24]).reshape(2, 5, 4, 6).swapaxes(1, 2)
    key = (of_key @ weight[24:36].T + bias[24:36]).reshape(2, 7, 2, 6).swapaxes(1, 2)
    query, key = reference.rope(query, 2), reference.rope(key)
    dropout = {"dropout_p": 0.3, "dropout_seed": 5}
    for given_options in (options, options | dropout):
        maps = layer.attention_weights(x, context, rope={}, **given_options)
        want = reference.attention_weights(query, key, enable_gqa=True, **given_options)
        close(maps, want, "weights")


def test_inputs_in_any_layout(rng, dtype):
    layer = make(rng, 8, 2, dtype)
    wide, grad_out = rng.standard_normal((2, 3, 10, 16)).astype(dtype)
    out = layer.forward(np.ascontiguousarray(wide[::-1, :, ::2]))
    grad_x = layer.backward(np.ascontiguousarray(grad_out[..., ::2]))
    grads = {name: x.copy() for name, x in layer.grads.items()}
    wide.flags.writeable = grad_out.flags.writeable = False
    # Not to the bit: NumPy's products of such arrays go another way, which one by its version.
    close(layer.forward(wide[::-1, :, ::2]), out, "out")
    close(layer.backward(grad_out[..., ::2]), grad_x, "grad_x")
    for name, x in grads.items():
        close(layer.grads[name], x, name)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_padding_that_holds_no_numbers(rng, dtype, poison):
    """What no query sees changes no gradient; it has one of 0."""
    layer = make(rng, 24, 4, dtype)
    x, context = given(rng, layer, (2, 5), (2, 9))
    lengths = np.array([9, 6])
    context[1, 6:] = 0
    grad_out = rng.standard_normal(x.shape).astype(dtype)
    want = layer.forward(x, context, kv_lengths=lengths), *layer.backward(grad_out)
    grads = {name: gradient.copy() for name, gradient in layer.grads.items()}
    context[1, 6:] = poison
    with np.errstate(invalid="ignore"):  # in the products of the padding itself
        out = layer.forward(x, context, kv_lengths=lengths)
        got = out, *layer.backward(grad_out)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    for name, gradient in grads.items():
        close(layer.grads[name], gradient, name)
    assert not got[2][1, 6:].any()


def test_padding_of_its_own_segment_may_hold_nan(rng, dtype):
    """In self-attention padded rows are queries too: they must not see what they pad."""
    layer = make(rng, 24, 4, dtype)
    x, _ = given(rng, layer, (2, 7))
    grad_out = rng.standard_normal(x.shape).astype(dtype)
    x[1, 5:] = grad_out[1, 5:] = 0
    lengths = np.array([7, 5])
    options = {"kv_lengths": lengths, "segment_ids": (np.arange(7) >= lengths[:, None]).astype(int)}
    out, want = layer.forward(x, **options), layer.backward(grad_out)
    grads = {name: gradient.copy() for name, gradient in layer.grads.items()}
    x[1, 5:] = np.nan
    poisoned, got = layer.forward(x, **options), layer.backward(grad_out)
    for a, b in ((poisoned, out), (got, want)):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1, :5], b[1, :5])
    assert not got[1, 5:].any()
    for name, gradient in grads.items():
        close(layer.grads[name], gradient, name)


def test_maps_need_no_values(rng, monkeypatch):
    from selfattn.nn import projection

    seen, project = [], projection.project
    monkeypatch.setattr(
        projection, "project", lambda *a, **k: seen.append(project(*a, **k)) or seen[-1]
    )
    for options, context_shape in (({"num_heads_kv": 2}, None), ({"vdim": 9}, (2, 5))):
        layer = make(rng, 24, 4, np.float32, **options)
        seen.clear()
        layer.attention_weights(*given(rng, layer, (2, 5), context_shape, pair=True))
        width = 24 + layer.num_heads_kv * 6  # of queries and keys
        assert sum(y.shape[-1] for y in seen) == width


def test_results_are_the_callers_to_write_into(rng):
    """As `out += x` does, between forward and backward."""
    layer = make(rng, 24, 4, num_heads_kv=2)
    x, _ = given(rng, layer, (2, 5))
    want = layer.backward(np.ones_like(layer.forward(x)))
    grads = {name: gradient.copy() for name, gradient in layer.grads.items()}
    out = layer.forward(x)
    out[...] = np.nan
    got = layer.backward(np.ones_like(out))
    np.testing.assert_array_equal(got, want)
    for name, gradient in grads.items():
        np.testing.assert_array_equal(layer.grads[name], gradient)
    got[...] = np.nan
    np.testing.assert_array_equal(layer.backward(np.ones_like(out)), want)


def test_threads_may_call_it_at_once(rng):
    layer = make(rng, 24, 4, np.float32)
    inputs = [given(rng, layer, (2, 40))[0] for _ in range(8)]

    def call(x):
        return layer.forward(x, rope={}, is_causal=True, requires_grad=False)

    want = [call(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(call, inputs * 4), want * 4, strict=True):
            close(got, expected, "at once")
    assert layer._saved is None


@pytest.mark.parametrize("rope", [None, {}])
@pytest.mark.parametrize("options", [{}, {"num_heads_kv": 2}, {"vdim": 9}])
def test_nothing_is_copied_between_the_products_and_the_kernels(rng, monkeypatch, options, rope):
    from selfattn.nn import multihead, projection

    seen = {"projected": [], "merged": [], "rows": [], "gradients": [], "multiplied": []}
    rotated, rotated_back = [], []

    def watched(module, name, note):
        function = getattr(module, name)

        def call(*arguments, **keywords):
            result = function(*arguments, **keywords)
            note(arguments, keywords, result)
            return result

        monkeypatch.setattr(module, name, call)

    watched(projection, "project", lambda a, k, result: seen["projected"].append(result))
    watched(multihead, "project", lambda a, k, result: seen["merged"].append(a[0]))
    watched(
        multihead,
        "scaled_dot_product_attention",
        lambda a, k, result: seen["rows"].extend([*a, k["out"]]),
    )
    watched(
        multihead,
        "scaled_dot_product_attention_backward",
        lambda a, k, result: seen["gradients"].extend(result[:3]),
    )
    watched(multihead, "rope", lambda a, k, result: rotated.append(result))
    watched(multihead, "rope_backward", lambda a, k, result: rotated_back.append(result))
    watched(multihead, "write_grads", lambda a, k, result: seen["multiplied"].append(a[0]))

    layer = make(rng, 24, 4, np.float32, **options)
    x, context = given(rng, layer, (2, 5), (2, 5) if "vdim" in options else None, pair=True)
    out = layer.forward(x, context, rope=rope)
    kept = (*layer._saved.inputs, layer._saved.merged)
    for array, kept_array in zip((x, *(context or (x, x)), seen["merged"][0]), kept, strict=True):
        assert np.shares_memory(array, kept_array)
    layer.backward(np.ones_like(out))
    *rows, target = seen["rows"]
    for row in rows[len(rotated) :]:
        assert any(np.shares_memory(row, projected) for projected in seen["projected"])
    for row, of_rope in zip(rows, rotated, strict=False):
        assert row is of_rope
    seen["gradients"][: len(rotated_back)] = rotated_back
    assert len(rotated) == len(rotated_back) == (0 if rope is None else 2)
    assert np.shares_memory(target, seen["merged"][0])
    for gradient, multiplied in zip(seen["gradients"], seen["multiplied"][:3], strict=True):
        assert np.shares_memory(gradient, multiplied)


def test_a_batch_entry_alone(rng, dtype):
    """Its bits; more of that in test_multihead_bits.py."""
    layer = make(rng, 24, 4, dtype)
    x, _ = given(rng, layer, (3, 9))
    assert same_bits(layer.forward(x)[1], layer.forward(x[1]))


def test_it_learns_a_rule(rng):
    """Gradient descent by params and grads: each row becomes the mean of those before it."""
    layer = nn.MultiheadAttention(8, 2, dtype=np.float64, seed=0)
    losses = []
    for _ in range(150):
        x = rng.standard_normal((16, 6, 8))
        want = np.cumsum(x, 1) / np.arange(1, 7)[:, None]
        error = layer.forward(x, is_causal=True) - want
        losses.append((error**2).mean())
        layer.backward(2 * error / error.size)
        for name, gradient in layer.grads.items():
            layer.params[name] -= 4 * gradient
    assert losses[-1] < losses[0] / 20


def test_threads_change_nothing(rng):
    layer = make(rng, 24, 4, np.float32)
    x, _ = given(rng, layer, (4, 200))
    results = []
    for threads in (1, 2, 3):
        with selfattn.threads(threads):
            results.append((layer.forward(x), layer.backward(x)))
    for out, grad_x in results[1:]:
        np.testing.assert_array_equal(out, results[0][0])
        np.testing.assert_array_equal(grad_x, results[0][1])
