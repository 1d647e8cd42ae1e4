"""Layers, what goes into them, and their comparison with the reference; for test_multihead*.py."""

import numpy as np

from selfattn import nn, reference

UNIT = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-53}


def make(rng, embed_dim, num_heads, dtype=np.float64, **options):
    """A layer whose biases are not 0."""
    layer = nn.MultiheadAttention(embed_dim, num_heads, dtype=dtype, seed=1, **options)
    for x in layer.params.values():
        x[...] = rng.standard_normal(x.shape) * (0.3 if x.ndim == 1 else 1 / x.shape[-1] ** 0.5)
    return layer


def given(rng, layer, x_shape, context_shape=None, pair=False):
    """x, and the context: None, an array or a pair."""

    def array(shape, width):
        return rng.standard_normal((*shape, width)).astype(layer.dtype)

    x = array(x_shape, layer.embed_dim)
    if context_shape is None:
        return x, None
    if pair:
        return x, (array(context_shape, layer.kdim), array(context_shape, layer.vdim))
    return x, array(context_shape, layer.kdim)


def check(layer, x, context=None, rope=None, mask_grad=False, sinks_grad=False, **options):
    """Forward and backward against the reference: inputs' gradients and parameters'.

    Every result is a chain of at most five products of matrices and the attention between; each
    entry is off by a part of the size of the largest, allowed here 50 units in float32 and 1e-12
    in float64.
    """
    heads = {"num_heads": layer.num_heads, "num_heads_kv": layer.num_heads_kv}
    rng = np.random.default_rng(9)
    out = layer.forward(x, context, rope=rope, **options)
    grad_out = rng.standard_normal(out.shape).astype(layer.dtype)
    grad_inputs = layer.backward(grad_out, mask_grad=mask_grad, sinks_grad=sinks_grad)
    options.pop("num_threads", None)
    want = reference.multihead_attention(layer.params, x, context, rope=rope, **heads, **options)
    want_inputs, want_grads = reference.multihead_attention_backward(
        grad_out,
        layer.params,
        x,
        context,
        rope=rope,
        mask_grad=mask_grad,
        sinks_grad=sinks_grad,
        **heads,
        **options,
    )
    close(out, want, "out")
    for n, (got, expected) in enumerate(zip(flat(grad_inputs), flat(want_inputs), strict=True)):
        close(got, expected, f"gradient of input {n}")
    assert list(layer.grads) == list(want_grads)
    for name, expected in want_grads.items():
        close(layer.grads[name], expected, f"gradient of {name}")
    return out, grad_inputs


def flat(results):
    """Arrays of a result that may be an array, a pair, or a pair with a pair in it."""
    if isinstance(results, np.ndarray):
        return [results]
    return [array for part in results for array in flat(part)]


def close(got, want, what):
    assert got.shape == want.shape, what
    assert got.dtype == want.dtype, what
    size = max(float(np.abs(want).max(initial=0)), 1.0)
    bound = 1e-12 if got.dtype == np.float64 else 50 * UNIT[got.dtype]
    assert np.isfinite(got).all(), what
    off = float(np.abs(got.astype(np.float64) - want).max(initial=0))
    assert off <= bound * size, (what, off, bound * size)
