"""Options that nn.MultiheadAttention passes on: refused by their names, and nothing has changed."""

import copy

import numpy as np
import pytest

from selfattn.nn import multihead
from support.layers import given

X = np.zeros((3, 5, 8))
WRONG_OPTIONS = [
    ({"attn_mask": np.zeros((4, 5))}, ValueError, r"attn_mask: .*\(3, 2, 5, 5\), got \(4, 5\)"),
    ({"attn_mask": np.zeros((5, 5), int)}, TypeError, "attn_mask: expected bool or .*int64"),
    ({"dropout_p": 1.5}, ValueError, "dropout_p: expected a probability from 0 to 1, got 1.5"),
    ({"dropout_p": 0.5, "dropout_seed": "1"}, TypeError, "dropout_seed: expected an int, got str"),
    ({"scale": "1"}, TypeError, "scale: expected a number, got str"),
    ({"query_offset": 0.5}, TypeError, "query_offset: expected an int, or an .*got"),
    ({"window_size": 3}, TypeError, "window_size: expected two ints .*, got 3"),
    ({"softcap": -1.0}, ValueError, "softcap: expected 0 or more, got -1.0"),
    ({"alibi_slopes": np.zeros(3)}, ValueError, r"alibi_slopes: .*\(3, 2\), got \(3,\)"),
    ({"sinks": np.zeros(3)}, ValueError, r"sinks: .*\(2,\), got \(3,\)"),
    ({"sinks": np.zeros(2, np.float16)}, TypeError, "sinks: expected float32 .*float16"),
    ({"segment_ids": np.zeros(4, int)}, ValueError, r"segment_ids: .*\(3, 5\), got \(4,\)"),
    ({"num_threads": 0}, ValueError, "num_threads: expected 1 to 1024 threads, got 0"),
    ({"return_lse": True}, TypeError, "attention_options: .*, got 'return_lse'"),
    ({"rope": {"theta": 0}}, ValueError, "theta: expected a number above 0, got 0"),
    ({"rope": {"positions": np.arange(4)}}, ValueError, r"positions: .*\(3, 5\), got \(4,\)"),
    ({"rope": {"positions": np.ones(5)}}, TypeError, "positions: expected an array of ints, got"),
    ({"rope": {"frequencies": np.ones(3)}}, ValueError, r"frequencies: .*\(2,\).*, got \(3,\)"),
    ({"rope": {"num_threads": 1}}, TypeError, "rope: expected options among .*'num_threads'"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG_OPTIONS)
def test_wrong_options_change_nothing(layer, options, error, message):
    before, saved = copy.deepcopy((layer.params, layer.grads)), layer._saved
    with pytest.raises(error, match=message):
        layer.forward(X, **options)
    for was, now in zip(before, (layer.params, layer.grads), strict=True):
        assert list(was) == list(now)
        for name, x in was.items():
            np.testing.assert_array_equal(now[name], x)
    assert layer._saved is saved


@pytest.mark.parametrize("shape", [(5, 3, 8), (1, 15, 8), (15, 8), (1, 3, 5, 8)])
def test_a_gradient_of_the_right_size_alone(layer, shape):
    before = copy.deepcopy(layer.grads)
    with pytest.raises(ValueError, match=r"grad_out: expected shape \(3, 5, 8\), got"):
        layer.backward(np.ones(shape))
    for name, x in before.items():
        np.testing.assert_array_equal(layer.grads[name], x)


def test_a_backward_that_fails_halfway_changes_nothing(layer, rng, monkeypatch):
    """Parameters' gradients are written when all that can be refused has been computed."""
    x, _ = given(rng, layer, (3, 5))
    out = layer.forward(x, rope={}, sinks=np.ones(2))
    before, saved = copy.deepcopy(layer.grads), layer._saved

    def fail(*arguments, **options):
        raise ValueError("turned away")

    with monkeypatch.context() as patch:
        patch.setattr(multihead, "rope_backward", fail)
        with pytest.raises(ValueError, match="turned away"):
            layer.backward(out, sinks_grad=True)
    assert list(layer.grads) == list(before)
    for name, gradient in before.items():
        np.testing.assert_array_equal(layer.grads[name], gradient)
    assert layer._saved is saved
    layer.backward(out, sinks_grad=True)
    assert (layer.grads["sinks"] != 0).all()


def test_rope_uses_the_threads_of_the_call(layer, monkeypatch):
    seen = []

    def watched(function):
        def call(x, **options):
            seen.append(options["num_threads"])
            return function(x, **options)

        return call

    for name in ("rope", "rope_backward"):
        monkeypatch.setattr(multihead, name, watched(getattr(multihead, name)))
    layer.backward(layer.forward(X, rope={}, num_threads=2))
    assert seen == [2] * 4
