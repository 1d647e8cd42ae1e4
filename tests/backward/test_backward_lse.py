"""The gradient of lse, where what is differentiated uses it: dS = P (dP - delta + grad_lse)."""

import itertools

import numpy as np
import pytest

import selfattn
from selfattn import reference
from support.arrays import normal, qkv, same_bits
from support.compare_gradients import check_each_gradient
from support.gradients import backward, grad_of

OPTIONS = (
    {},
    {"is_causal": True, "query_offset": -2},  # the first rows see no key
    {"window_size": (9, 3)},
    {"kv_lengths": np.array([0, 17])},
    {"softcap": 2.0},
    {"dropout_p": 0.3, "dropout_seed": 5},
)


def rows_of(query):
    return normal(*query.shape[:-1], dtype=query.dtype, seed=11)


@pytest.mark.parametrize("rows", [1, 5, 40, 130])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_against_the_reference(each_isa, dtype, options, rows):
    arrays = qkv((2, 4, rows, 16), 2, 150, 9, dtype=dtype)
    given = {"grad_lse": rows_of(arrays[0]), "enable_gqa": True}
    check_each_gradient(each_isa, grad_of(*arrays, seed=3), *arrays, **given, **options)


def test_masks_and_sinks(each_isa, dtype):
    """Their gradients too; the lse of a row that sees no key is its sink."""
    arrays = qkv((2, 3, 40, 16), 3, 60, 8, dtype=dtype)
    mask = normal(3, 40, 60, dtype=dtype, seed=4)
    mask[:, 7] = -np.inf
    options = {"attn_mask": mask, "sinks": normal(3, dtype=dtype, seed=5)}
    given = {"grad_lse": rows_of(arrays[0])}
    check_each_gradient(each_isa, grad_of(*arrays, seed=3), *arrays, **given, **options)
    masked = backward(
        np.zeros((2, 3, 40, 8), dtype), *arrays, attn_mask=np.full_like(mask, -np.inf),
        sinks=options["sinks"], **given,
    )  # fmt: skip
    assert not masked["query"].any()
    want = given["grad_lse"].astype(np.float64).sum((0, 2))
    np.testing.assert_allclose(masked["sinks"], want, rtol=1e-5)


@pytest.mark.parametrize("rows", [2, 40])
def test_a_row_without_keys_has_no_gradient(dtype, rows):
    """Whatever its gradient of lse, which is -inf, is."""
    arrays = qkv((1, 2, rows, 8), 2, 30, 8, dtype=dtype)
    visible = np.ones((rows, 30), bool)
    visible[1] = False
    grad_lse = rows_of(arrays[0])
    options = {"attn_mask": visible}
    want = backward(grad_of(*arrays), *arrays, grad_lse=grad_lse, **options)
    grad_lse[..., 1] = np.nan
    got = backward(grad_of(*arrays), *arrays, grad_lse=grad_lse, **options)
    assert not got["query"][..., 1, :].any()
    assert all(same_bits(got[name], want[name]) for name in want)


def test_zeros_change_no_bit(dtype):
    arrays = qkv((2, 4, 70, 16), 2, 150, 9, dtype=dtype)
    options = {"enable_gqa": True, "is_causal": True}
    want = backward(grad_of(*arrays), *arrays, **options)
    zeros = np.zeros(arrays[0].shape[:-1], dtype)
    got = backward(grad_of(*arrays), *arrays, grad_lse=zeros, **options)
    assert all(same_bits(got[name], want[name]) for name in want)


def test_threads_and_strides(dtype):
    arrays = qkv((2, 4, 70, 16), 2, 150, 9, dtype=dtype)
    grad_lse = rows_of(arrays[0])
    want = backward(grad_of(*arrays), *arrays, grad_lse=grad_lse, enable_gqa=True, num_threads=1)
    strided = np.repeat(grad_lse.swapaxes(1, 2), 2, axis=2)[..., ::2].swapaxes(1, 2)
    got = backward(grad_of(*arrays), *arrays, grad_lse=strided, enable_gqa=True, num_threads=3)
    assert all(same_bits(got[name], want[name]) for name in want)


def test_by_differences():
    """The reference itself: of sum(h lse), by central differences."""
    query, key, value = qkv((1, 2, 3, 4), 2, 5, 4, dtype=np.float64)
    h, sinks = normal(1, 2, 3, dtype=np.float64), normal(2, dtype=np.float64)

    def f(query, key, sinks):
        _, lse = reference.scaled_dot_product_attention(
            query, key, value, softcap=1.5, sinks=sinks, return_lse=True
        )
        return (h * lse).sum()

    out, lse = reference.scaled_dot_product_attention(
        query, key, value, softcap=1.5, sinks=sinks, return_lse=True
    )
    found = reference.scaled_dot_product_attention_backward(
        np.zeros_like(out), query, key, value, out, lse, softcap=1.5, sinks=sinks,
        sinks_grad=True, grad_lse=h,
    )  # fmt: skip
    inputs = [query, key, sinks]
    for n, gradient in enumerate((found.query, found.key, found.sinks)):
        for index in np.ndindex(inputs[n].shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [x.copy() for x in inputs]
                moved[n][index] += step
                ends.append(f(*moved))
            assert abs((ends[0] - ends[1]) / 2e-6 - gradient[index]) < 1e-8
    assert not found.value.any()


def test_packed_sequences(dtype):
    """Each as a call of its own."""
    ends = np.array([0, 3, 3, 40])
    query, key, value = (normal(40, 2, 8, dtype=dtype, seed=seed) for seed in range(3))
    grad_out, grad_lse = normal(40, 2, 8, dtype=dtype, seed=4), normal(2, 40, dtype=dtype, seed=5)
    out, lse = selfattn.varlen_attention(query, key, value, ends, ends, return_lse=True)
    got = selfattn.varlen_attention_backward(
        grad_out, query, key, value, out, lse, ends, ends, grad_lse=grad_lse
    )
    for begin, end in itertools.pairwise(ends):
        own = [x[begin:end].swapaxes(0, 1) for x in (grad_out, query, key, value)]
        want = backward(*own, grad_lse=grad_lse[:, begin:end])
        for name, x in want.items():
            assert same_bits(getattr(got, name)[begin:end].swapaxes(0, 1), x), name


def test_half_types():
    """float32's, rounded once; the gradient of lse is float32."""
    arrays = qkv((2, 4, 40, 16), 2, 150, 16)
    grad_lse, grad_out = rows_of(arrays[0]), grad_of(*arrays)
    half = [x.astype(np.float16) for x in (grad_out, *arrays)]
    out, lse = selfattn.scaled_dot_product_attention(*half[1:], return_lse=True, enable_gqa=True)
    differentiate = selfattn.scaled_dot_product_attention_backward
    got = differentiate(*half, out, lse, grad_lse=grad_lse, enable_gqa=True)
    wide = [x.astype(np.float32) for x in (*half, out)]
    want = differentiate(*wide, lse, grad_lse=grad_lse, enable_gqa=True)
    assert all(same_bits(a, b.astype(np.float16)) for a, b in zip(got[:3], want[:3], strict=True))


@pytest.mark.parametrize(
    ("grad_lse", "error", "message"),
    [
        (np.zeros((1, 2, 3), np.float64), TypeError, "grad_lse: expected float32"),
        (np.zeros((1, 2, 4), np.float32), ValueError, r"grad_lse: expected shape \(1, 2, 3\)"),
        ([0.0], TypeError, "grad_lse: expected an array"),
    ],
)
def test_errors(grad_lse, error, message):
    arrays = qkv((1, 2, 3, 8), 2, 5, 8)
    with pytest.raises(error, match=f"^{message}"):
        backward(grad_of(*arrays), *arrays, grad_lse=grad_lse)
