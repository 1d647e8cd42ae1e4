"""Options as frameworks pass them: 0 and 1 for bools, None for off, sinks with axes of 1."""

import numpy as np
import pytest

import selfattn
from support.arrays import normal, same_bits

OPTIONS = (
    ({"is_causal": 1}, {"is_causal": True}),
    ({"is_causal": np.int64(0)}, {"is_causal": False}),
    ({"softcap": None}, {}),
    ({"window_size": None}, {}),
    ({"window_size": None, "is_causal": True}, {"is_causal": True}),
    ({"softcap": None, "window_size": (2, 0)}, {"window_size": (2, 0)}),
)


@pytest.fixture
def arrays():
    return [normal(2, 3, 7, 8, seed=seed) for seed in range(3)]


@pytest.mark.parametrize(("spelt", "meant"), OPTIONS, ids=str)
def test_the_same_option(arrays, spelt, meant):
    attend = selfattn.scaled_dot_product_attention
    got, want = (attend(*arrays, return_lse=True, **options) for options in (spelt, meant))
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
    scores = selfattn.scaled_dot_product
    assert same_bits(scores(*arrays[:2], **spelt), scores(*arrays[:2], **meant))
    differentiate = selfattn.scaled_dot_product_attention_backward
    found = [differentiate(arrays[0], *arrays, *want, **options) for options in (spelt, meant)]
    assert all(same_bits(a, b) for a, b in zip(found[0][:3], found[1][:3], strict=True))


def test_gqa_by_a_number(arrays):
    query, key, value = arrays[0], *(x[:, :1].repeat(1, 1) for x in arrays[1:])
    query = np.concatenate([query, query[:, :1]], axis=1)  # four heads
    key, value = (np.concatenate([x, x + 1], axis=1) for x in (key, value))  # two
    attend = selfattn.scaled_dot_product_attention
    got, want = (attend(query, key, value, enable_gqa=gqa) for gqa in (1, True))
    assert same_bits(got, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sinks_as_models_keep_them(arrays, dtype):
    """(1, Hq, 1, 1); the gradient has that shape too."""
    arrays = [x.astype(dtype) for x in arrays]
    sinks = np.linspace(-1, 1, 3).astype(dtype)
    kept = sinks.reshape(1, 3, 1, 1)
    attend = selfattn.scaled_dot_product_attention
    out, lse = attend(*arrays, sinks=sinks, return_lse=True)
    assert same_bits(attend(*arrays, sinks=kept), out)
    differentiate = selfattn.scaled_dot_product_attention_backward
    flat, as_kept = (
        differentiate(arrays[0], *arrays, out, lse, sinks=x, sinks_grad=True).sinks
        for x in (sinks, kept)
    )
    assert as_kept.shape == kept.shape
    assert same_bits(as_kept.reshape(3), flat)
    with pytest.raises(ValueError, match=r"^sinks: "):
        attend(*arrays, sinks=sinks.reshape(3, 1, 1))
