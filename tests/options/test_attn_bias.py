"""attn_bias: floats added to the scores beside a mask, each broadcast in its own way.

docs/semantics.md, masks. Against the reference it is among the options that test_properties.py and
its like draw; here, bit for bit, against the one array of both that a caller would have to build.
"""

import pickle

import numpy as np
import pytest

import selfattn
from selfattn.gradients import AttentionGradients
from support.arrays import HALF_DTYPES, normal, one_head, qkv, same_bits
from support.compare import check_each
from support.compare_gradients import check_each_gradient
from support.gradients import assert_same, backward, grad_of
from support.option_arrays import bool_mask, float_mask, without_sinks

L, S = 37, 150
SHAPES = [  # of a mask and of a bias beside it
    ((2, 1, 1, S), (4, L, S)),
    ((2, 1, L, S), (4, 1, S)),
    ((L, S), (2, 4, 1, 1)),
    ((S,), (L, 1)),
    ((2, 4, L, S), (2, 4, L, S)),
    ((), ()),
]


def results(*arrays, **options):
    """All that a mask has a part in, forward."""
    out, lse = selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)
    scores = selfattn.scaled_dot_product(*arrays[:2], **without_sinks(options))
    return out, lse, scores, selfattn.attention_weights(*arrays[:2], **options)


def combined(mask, bias):
    """The one float mask that says what both do."""
    if mask.dtype == bool:
        return np.where(mask, bias, np.asarray(-np.inf, bias.dtype))
    with np.errstate(invalid="ignore"):
        total = mask + bias
    return np.where((mask == -np.inf) | (bias == -np.inf), np.asarray(-np.inf, total.dtype), total)


@pytest.mark.parametrize("rows", [2, L])
@pytest.mark.parametrize("kind", [bool, float])
def test_as_one_array(each_isa, dtype, rows, kind):
    """The bits of the call with both in one array, and close to the reference."""
    arrays = qkv((2, 4, rows, 16), 2, S, 7, dtype=dtype)
    options = {"enable_gqa": True, "is_causal": True, "query_offset": 100}
    for of_mask, of_bias in SHAPES:
        of_mask, of_bias = (
            tuple(rows if n == L else n for n in shape) for shape in (of_mask, of_bias)
        )
        mask = np.asarray(bool_mask(*of_mask, share=0.7))
        if kind is float:
            mask = np.asarray(float_mask(*of_mask, dtype=dtype, masked=0.2, seed=3))
        bias = np.asarray(float_mask(*of_bias, dtype=dtype, masked=0.1))
        given = options | {"attn_mask": mask, "attn_bias": bias}
        check_each(each_isa, *arrays, f"{of_mask} {of_bias}", **given)
        one = options | {"attn_mask": combined(mask, bias)}
        assert same_bits(results(*arrays, **given), results(*arrays, **one)), (of_mask, of_bias)
        alone = results(*arrays, **options, attn_bias=bias)
        assert same_bits(alone, results(*arrays, **options, attn_mask=bias)), of_bias


@pytest.mark.parametrize("kind", [bool, float])
def test_gradients(each_isa, dtype, kind):
    """Each summed over its own axes; those of the inputs have the bits of the one array's."""
    arrays = qkv((2, 4, L, 8), 2, S, dtype=dtype)
    grad_out = grad_of(*arrays)
    for of_mask, of_bias in SHAPES:
        mask = np.asarray(bool_mask(*of_mask, share=0.7))
        if kind is float:
            mask = np.asarray(float_mask(*of_mask, dtype=dtype, masked=0.2, seed=3))
        bias = np.asarray(float_mask(*of_bias, dtype=dtype, masked=0.1))
        options = {"enable_gqa": True, "softcap": 3.0, "attn_mask": mask, "attn_bias": bias}
        check_each_gradient(each_isa, grad_out, *arrays, **options)
        got = backward(grad_out, *arrays, **options)
        one = backward(
            grad_out, *arrays, enable_gqa=True, softcap=3.0, attn_mask=combined(mask, bias)
        )
        names = ("query", "key", "value")
        assert same_bits(tuple(got[n] for n in names), tuple(one[n] for n in names))
        if bias.shape == one["attn_mask"].shape:
            assert same_bits(got["attn_bias"], one["attn_mask"])


@pytest.mark.parametrize("rows", [1, L])
def test_what_it_holds_where_the_mask_is_false(isa, dtype, rows):
    """NaN and infinity there change no bit; attended, they make their row NaN."""
    arrays = one_head(rows, 300, 8, dtype=dtype)
    mask, bias = bool_mask(rows, 300, share=0.5), normal(rows, 300, dtype=dtype, seed=4)
    grad_out = grad_of(*arrays)
    want = backward(grad_out, *arrays, attn_mask=mask, attn_bias=bias)
    forward = results(*arrays, attn_mask=mask, attn_bias=bias)
    for poison in (np.nan, np.inf, -np.inf):
        poisoned = np.where(mask, bias, dtype(poison))
        options = {"attn_mask": mask, "attn_bias": poisoned}
        assert same_bits(results(*arrays, **options), forward), poison
        got = backward(grad_out, *arrays, **options)
        assert_same(got, want, poison)
        assert not got["attn_bias"][~mask].any()
        floats = {"attn_mask": poisoned, "attn_bias": np.where(mask, dtype(0), dtype(-np.inf))}
        assert same_bits(results(*arrays, **floats)[0], forward[0]), poison
    seen = np.argmax(mask[0])
    bias[0, seen] = np.nan
    out = results(*arrays, attn_mask=mask, attn_bias=bias)[0]
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1:]).all()


def test_layouts_and_dtypes(isa):
    """Read in place at any strides; float32 beside float64 and beside half types is not rounded."""
    query, key, value = qkv((2, 4, L, 16), 2, S, dtype=np.float64)
    bias, mask = normal(4, L, S), bool_mask(2, 1, 1, S, share=0.7)
    wide = {"attn_mask": mask, "enable_gqa": True}
    want = results(query, key, value, attn_bias=bias.astype(np.float64), **wide)
    spaced = np.repeat(np.repeat(bias, 2, -1), 3, 0)[::3, :, ::2]
    for layout in (bias, bias[:, ::-1].copy()[:, ::-1], np.asfortranarray(bias), spaced):
        assert same_bits(results(query, key, value, attn_bias=layout, **wide), want)
    for half in HALF_DTYPES:
        arrays = [x.astype(half) for x in (query, key, value)]
        floats = [x.astype(np.float32) for x in arrays]
        for dtype in (np.float32, half):
            own = bias.astype(dtype)
            got = results(*arrays, attn_bias=own, **wide)
            of_floats = results(*floats, attn_bias=own.astype(np.float32), **wide)
            expected = [x if n == 1 else x.astype(half) for n, x in enumerate(of_floats)]
            assert same_bits(got, tuple(expected)), (half, dtype)


def test_out_may_overlap_it(isa):
    query, key, value = one_head(16, 16, 16)
    bias = normal(16, 16, seed=5)
    want = selfattn.scaled_dot_product_attention(query, key, value, attn_bias=bias)
    got = selfattn.scaled_dot_product_attention(query, key, value, attn_bias=bias, out=bias)
    assert got is bias
    assert same_bits(got, want)


def test_gradients_by_name():
    """Five to unpack, as ever; the sixth by its name, also in copies."""
    five = [np.full(2, n, np.float32) for n in range(5)]
    gradients = AttentionGradients(*five, attn_bias=np.ones(3))
    of_query, *_, of_sinks = gradients
    assert len(gradients) == 5
    assert of_query is five[0]
    assert of_sinks is five[4]
    assert list(gradients._asdict()) == [*gradients._fields, "attn_bias"]
    assert "attn_bias=array([1., 1., 1.])" in repr(gradients)
    assert AttentionGradients(*five[:3]).attn_bias is None
    for copy in (pickle.loads(pickle.dumps(gradients)), gradients._replace(query=five[1])):
        assert np.array_equal(copy.attn_bias, np.ones(3))
    assert gradients._replace(attn_bias=None).attn_bias is None
