"""Arrays of up to 64 axes, as many as NumPy has: the bits of those of fewer, or a clear error.

Fault 49.
"""

import numpy as np
import pytest

import selfattn
from selfattn import nn
from support.arrays import normal, same_bits

MAX_AXES = 64  # NumPy's


def with_axes(x, axes):
    """The same with axes of length 1 after the first."""
    return x.reshape(x.shape[0], *[1] * (axes - x.ndim), *x.shape[1:])


def flat(results):
    """Results without their axes of length 1."""
    arrays = results if isinstance(results, tuple) else (results,)
    return tuple(np.squeeze(x) for x in arrays if x is not None)


def attention(x, key, options, **more):
    call = selfattn.scaled_dot_product_attention
    out, lse = call(x, key, key, **options, return_lse=True)
    back = selfattn.scaled_dot_product_attention_backward
    gradients = back(np.ones_like(out), x, key, key, out, lse, **options, **more)
    return (out, lse, *gradients)


@pytest.mark.parametrize("axes", [32, 33, 63, MAX_AXES])
def test_attention(dtype, axes):
    x, key = normal(2, 3, 5, 4, dtype=dtype), normal(1, 3, 6, 4, dtype=dtype)
    of_entries = (2, *[1] * (axes - 4))
    for options, per_entry in (
        ({}, ()),
        ({"is_causal": True, "kv_lengths": np.array([4, 2])}, ("kv_lengths",)),
        ({"attn_mask": normal(2, 1, 5, 6, dtype=dtype), "softcap": 2.0}, ("attn_mask",)),
        ({"query_offset": np.array([1, 0]), "window_size": (2, 0)}, ("query_offset",)),
        ({"sinks": normal(3, dtype=dtype), "alibi_slopes": normal(3, dtype=dtype)}, ()),
        ({"segment_ids": (np.zeros(5, int), np.arange(6) % 2)}, ()),
    ):
        many = dict(options)
        for name in per_entry:
            given = options[name]
            many[name] = given.reshape(of_entries) if given.ndim == 1 else with_axes(given, axes)
        got = attention(with_axes(x, axes), with_axes(key, axes), many)
        assert got[0].ndim == axes
        assert same_bits(flat(got), flat(attention(x, key, options))), options


@pytest.mark.parametrize("axes", [33, MAX_AXES])
def test_steps(dtype, axes):
    x, key = normal(2, 3, 5, 4, dtype=dtype), normal(1, 3, 6, 4, dtype=dtype)
    weight, bias = normal(7, 4, dtype=dtype), normal(7, dtype=dtype)

    def steps(x, key):
        scores = selfattn.scaled_dot_product(x, key)
        weights = selfattn.attention_weights(x, key)
        summed = selfattn.weighted_sum(weights, key)
        out, lse = selfattn.scaled_dot_product_attention(x, key, key, return_lse=True)
        merged = selfattn.merge_states(out, lse, out, lse)
        rotated = nn.rope(x, np.arange(2).reshape(2, *[1] * (x.ndim - 4)))
        rotated_back = nn.rope_backward(x, positions=np.arange(5))
        cos = np.arange(40, dtype=x.dtype).reshape(*x.shape[:-3], 5, 4)
        by_tables = nn.rope(x, cos=cos, sin=cos[..., ::-1])
        both = selfattn.merge_states_many([out, out, out], [lse, lse, lse])
        projected = selfattn.project(x, weight, bias)
        of_projection = selfattn.project_backward(projected, x, weight, bias)
        steps = scores, weights, summed, *merged, rotated, rotated_back, selfattn.softmax(x, 0)
        return *steps, projected, *of_projection, by_tables, *both

    got = steps(with_axes(x, axes), with_axes(key, axes))
    assert got[0].ndim == axes
    assert same_bits(flat(got), flat(steps(x, key)))


def test_a_layer_has_an_axis_more(dtype):
    layer, x = nn.MultiheadAttention(4, 2, dtype=dtype, seed=0), normal(2, 5, 4, dtype=dtype)
    options = {"rope": {}, "is_causal": True}
    wide = with_axes(x, MAX_AXES - 1)
    got = layer.forward(wide, **options), layer.backward(wide)
    assert same_bits(flat(got), flat((layer.forward(x, **options), layer.backward(x))))
    message = "expected up to 63 axes, got 64$"
    for arguments, name in (
        ((with_axes(x, MAX_AXES),), "x"),
        ((x, with_axes(x, MAX_AXES)), "context"),
        ((x, (x, with_axes(x, MAX_AXES))), r"context\[1\]"),
    ):
        for call in (layer.forward, layer.attention_weights):
            with pytest.raises(ValueError, match=f"^{name}: {message}"):
                call(*arguments)
    with pytest.raises(ValueError, match=f"^grad_out: {message}"):
        layer.backward(with_axes(x, MAX_AXES))


def test_leading_axes_that_do_not_broadcast():
    """Shapes are compared by a function of ours: as NumPy's, beyond its 32 axes too."""
    x = np.ones((2, *[1] * 40, 3, 5, 4), np.float32)
    other = np.ones((3, *[1] * 40, 3, 5, 4), np.float32)
    with pytest.raises(ValueError, match=r"^key: expected leading axes that broadcast, got query"):
        selfattn.scaled_dot_product_attention(x, other, other)


def test_broadcast_shapes_as_numpy_does():
    from selfattn._args.shapes import broadcast_shapes

    shapes = [(), (1,), (3,), (0,), (2, 1), (2, 3), (1, 3), (0, 1), (4, 1, 1), (4, 2, 3)]
    for a in shapes:
        for b in shapes:
            for c in ((), (1, 1), (4, 1, 3)):
                try:
                    want = np.broadcast_shapes(a, b, c)
                except ValueError:
                    with pytest.raises(ValueError, match="do not broadcast"):
                        broadcast_shapes(a, b, c)
                else:
                    assert broadcast_shapes(a, b, c) == want
    assert broadcast_shapes() == ()
