"""A sequence's bits in a layer: the same alone, in a batch, padded, as a prefix; threads and sets.

Fault 42. Of the result and of the gradient of x: projections, heads and attention each promise it
of rows.
"""

import itertools

import numpy as np
import pytest

from support import layers
from support.arrays import same_bits

OPTIONS = {
    "plain": {},
    "groups": {"num_heads_kv": 2},
    "no bias": {"bias": False},
}
CALLS = [{}, {"is_causal": True}, {"is_causal": True, "rope": {}}]


def run(layer, x, grad_out, **options):
    """The result and the gradient of x."""
    out = layer.forward(x, **options)
    return out, layer.backward(grad_out)


def given(rng, dtype, shape, **options):
    """A layer, x and the gradient of its result."""
    layer = layers.make(rng, 40, 4, dtype, **options)
    x, _ = layers.given(rng, layer, shape)
    return layer, x, layers.given(rng, layer, shape)[0]


@pytest.mark.parametrize("length", [1, 5, 40])
@pytest.mark.parametrize("name", OPTIONS)
def test_alone_and_in_batches(isa, rng, dtype, name, length):
    layer, x, grad_out = given(rng, dtype, (7, length), **OPTIONS[name])
    for call in CALLS:
        alone = [run(layer, x[i], grad_out[i], **call) for i in range(7)]
        for batch, threads in itertools.product((1, 2, 3, 7), (1, 2, 3)):
            got = run(layer, x[:batch], grad_out[:batch], num_threads=threads, **call)
            for i in range(batch):
                assert same_bits(tuple(a[i] for a in got), alone[i]), (call, batch, threads, i)


@pytest.mark.parametrize("padding", [0, 1000, np.nan])
def test_padded_on_the_right(isa, rng, dtype, padding):
    """Rows of padding have no gradient; what x holds there reaches no other row.

    Except NaN, which such rows as queries give to the gradients of the keys that they see.
    """
    lengths = np.array([40, 1, 17, 33, 5, 26, 40])
    layer, x, grad_out = given(rng, dtype, (7, 40))
    for n, a, g in zip(lengths, x, grad_out, strict=True):
        a[n:] = padding
        g[n:] = 0
    for call in CALLS:
        alone = [run(layer, x[i, :n], grad_out[i, :n], **call) for i, n in enumerate(lengths)]
        for batch, threads in itertools.product((2, 3, 7), (1, 2, 3)):
            got = run(
                layer,
                x[:batch],
                grad_out[:batch],
                kv_lengths=lengths[:batch],
                num_threads=threads,
                **call,
            )
            results = 1 if np.isnan(padding) else 2
            for i, n in enumerate(lengths[:batch]):
                part = tuple(a[i, :n] for a in got[:results])
                assert same_bits(part, alone[i][:results]), (call, batch, threads, i)


def test_a_causal_prefix(isa, rng, dtype):
    """100 of 128 rows; of the gradient where the others have none of their own."""
    layer, x, grad_out = given(rng, dtype, (2, 128))
    grad_out[:, 100:] = 0
    for rope, threads in itertools.product((None, {}), (1, 2, 3)):
        call = {"is_causal": True, "rope": rope, "num_threads": threads}
        whole = run(layer, x, grad_out, **call)
        prefix = run(layer, x[:, :100], grad_out[:, :100], **call)
        assert same_bits(tuple(a[:, :100].copy() for a in whole), prefix), (rope, threads)


@pytest.mark.parametrize("name", OPTIONS)
def test_threads_and_sets(each_isa, rng, dtype, name):
    """The parameters' gradients too."""
    layer, x, grad_out = given(rng, dtype, (3, 128), **OPTIONS[name])
    for call in CALLS:
        want = None
        for isa in each_isa():
            for threads in (1, 2, 3):
                got = run(layer, x, grad_out, num_threads=threads, **call)
                got += tuple(a.copy() for a in layer.grads.values())
                want = got if want is None else want
                assert same_bits(got, want), (call, isa, threads)


def test_decoding_has_the_bits_of_the_whole(isa, rng, dtype):
    """A row after the other, as a model generates: queries of one row at their position."""
    layer, x, _ = given(rng, dtype, (1, 30))
    want = layer.forward(x, is_causal=True)
    for i in range(30):
        got = layer.forward(x[:, i : i + 1], x[:, : i + 1], is_causal=True, query_offset=i)
        assert same_bits(got, want[:, i : i + 1]), i
