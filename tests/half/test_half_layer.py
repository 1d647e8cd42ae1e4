"""nn.MultiheadAttention in half types: each of its steps is float32's, rounded once.

What is expected is composed of float32's functions, with a rounding after each of them.
"""

import numpy as np
import pytest

import selfattn
from selfattn import nn
from support.arrays import same_bits
from support.halves import each_half, rounded, widened
from support.layers import given, make

ROPE = {"theta": 500.0}
CASES = {
    "plain": ({}, {}),
    "causal, rotary": ({}, {"is_causal": True, "rope": ROPE}),
    "groups": ({"num_heads_kv": 2}, {"softcap": 2.0}),
    "no bias": ({"bias": False}, {}),
    "other widths": ({"kdim": 12, "vdim": 20}, {}),
}


def in_heads(rows, head_dim):
    return rows.reshape(*rows.shape[:-1], -1, head_dim).swapaxes(-3, -2)


def side_by_side(heads):
    rows = heads.swapaxes(-3, -2)
    return rows.reshape(*rows.shape[:-2], -1)


class Steps:
    """float32's functions, rounded to `half` and widened again: what is between two steps."""

    def __init__(self, half):
        self.half = half

    def __call__(self, f, *arrays, **options):
        got = f(*arrays, **options)
        parts = got if isinstance(got, tuple) else (got,)
        parts = [None if x is None else widened(rounded(x, self.half)) for x in parts]
        return parts if isinstance(got, tuple) else parts[0]


def expected(layer, half, x, context, grad_out, rope=None, **options):
    """out, the inputs' gradients and the parameters', of a layer whose keys have a context."""
    step, params = Steps(half), widened(layer.params)
    x, (of_key, of_value), grad_out = widened((x, context, grad_out))
    weights = layer._layout.of_inputs(params)
    inputs = x, of_key, of_value
    rows = [step(selfattn.project, y, *w) for y, w in zip(inputs, weights, strict=True)]
    heads = [in_heads(y, layer.head_dim) for y in rows]
    if rope is not None:
        heads[:2] = [step(nn.rope, y, **rope) for y in heads[:2]]
    merged, lse = selfattn.scaled_dot_product_attention(
        *heads, enable_gqa=True, return_lse=True, **options
    )
    merged = widened(rounded(merged, half))
    out = step(selfattn.project, side_by_side(merged), *layer._layout.of_output(params))

    weight, bias = layer._layout.of_output(params)
    of_merged, of_weight, of_bias = step(
        selfattn.project_backward, grad_out, side_by_side(merged), weight, bias
    )
    grads = {"out_proj.weight": of_weight, "out_proj.bias": of_bias}
    of_heads = step(
        selfattn.scaled_dot_product_attention_backward,
        *(in_heads(of_merged, layer.head_dim), *heads, merged, lse),
        enable_gqa=True,
        **options,
    )[:3]
    if rope is not None:
        of_heads[:2] = [step(nn.rope_backward, y, **rope) for y in of_heads[:2]]
    of_inputs = []
    for name, grad, y, (weight, bias) in zip("qkv", of_heads, inputs, weights, strict=True):
        of_x, *grads[name] = step(selfattn.project_backward, side_by_side(grad), y, weight, bias)
        of_inputs.append(of_x)
    names = [name for name in layer.params if name.startswith(("in_proj_weight", "q_", "k_", "v_"))]
    of_weights = [grads[name][0] for name in "qkv"]
    if len(names) == 1:
        of_weights = [np.concatenate(of_weights)]
    want = dict(zip(names, of_weights, strict=True))
    if "in_proj_bias" in layer.params:
        want["in_proj_bias"] = np.concatenate([grads[name][1] for name in "qkv"])
        want["out_proj.bias"] = grads["out_proj.bias"]
    want["out_proj.weight"] = grads["out_proj.weight"]
    return out, of_inputs, want


@each_half
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", [2, 60])
def test_every_step_is_rounded_once(each_isa, rng, half, name, rows):
    sizes, options = CASES[name]
    layer = make(rng, 16, 4, half, **sizes)
    assert {x.dtype for x in layer.params.values()} == {np.dtype(half)}
    x, context = given(rng, layer, (2, rows), (2, 70), pair=True)
    grad_out = rng.standard_normal(x.shape).astype(half)
    want, of_inputs, grads = expected(layer, half, x, context, grad_out, **options)
    for _ in each_isa():
        assert same_bits(layer.forward(x, context, **options), rounded(want, half))
        got, of_context = layer.backward(grad_out)
        for y, wide in zip((got, *of_context), of_inputs, strict=True):
            assert same_bits(y, rounded(wide, half))
        assert layer.grads.keys() == grads.keys()
        for key, wide in grads.items():
            assert same_bits(layer.grads[key], rounded(wide, half)), key


@each_half
def test_self_attention(each_isa, rng, half):
    """One product of all three is the three; their gradients of x are added in the half type."""
    layer = make(rng, 16, 4, half)
    x, _ = given(rng, layer, (2, 30))
    grad_out = rng.standard_normal(x.shape).astype(half)
    for _ in each_isa():
        want = layer.forward(x, (x, x), is_causal=True, rope={})
        of_query, (of_key, of_value) = layer.backward(grad_out)
        assert same_bits(layer.forward(x, is_causal=True, rope={}), want)
        assert same_bits(layer.backward(grad_out), of_query + (of_key + of_value))


@each_half
def test_maps(each_isa, rng, half):
    layer = make(rng, 16, 4, half)
    x, _ = given(rng, layer, (2, 30))
    weights, step = layer._layout.of_inputs(widened(layer.params)), Steps(half)
    rows = [step(selfattn.project, widened(x), *w) for w in weights[:2]]
    heads = [in_heads(y, layer.head_dim) for y in rows]
    want = rounded(selfattn.attention_weights(*heads), half)
    for _ in each_isa():
        got = layer.attention_weights(x)
        assert got.dtype == half
        assert same_bits(got, want)


@each_half
def test_dtypes_of_layers_by_name(half):
    """And what it takes in is of its dtype."""
    layer = nn.MultiheadAttention(8, 2, dtype=np.dtype(half).name, seed=0)
    assert layer.dtype == half
    with pytest.raises(TypeError, match=r"^x: expected b?float16, the layer's dtype, got float32"):
        layer.forward(np.ones((3, 8), np.float32))


@each_half
def test_states(rng, half):
    """Rounded to the layer's dtype; a finite number that it cannot hold is refused."""
    layer, wide = make(rng, 16, 4, half), make(rng, 16, 4, np.float32)
    layer.load_state_dict(wide.state_dict())
    for name, x in layer.params.items():
        assert same_bits(x, rounded(wide.params[name], half))
    state = wide.state_dict()
    state["out_proj.bias"][2] = np.float32(3.4e38)
    with pytest.raises(ValueError, match=r"^out_proj\.bias: expected numbers that b?float16 can"):
        layer.load_state_dict(state)
    wide.load_state_dict(layer.state_dict())
    for name, x in wide.params.items():
        assert same_bits(x, widened(layer.params[name]))
