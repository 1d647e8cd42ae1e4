"""The arrays of the backward pass as they lie in memory: what is given, and what is returned.

Faults 10, 11 and 20. test_backward_bits.py compares many layouts with contiguous copies; here what
users give is compared with the reference, and the results are looked at as arrays.
"""

import itertools

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import selfattn
from support.array_likes import OfArray, OfDLPack
from support.arrays import normal, qkv, same_bits
from support.compare_gradients import check_each_gradient, check_gradients
from support.gradients import assert_same, backward, grad_of, upon
from support.option_arrays import float_mask

# Few rows, and a tile of many.
ROWS = [2, 37]
MEMORY = {
    "every other column": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "columns reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
    "rows reversed": lambda x: x[..., ::-1, :].copy()[..., ::-1, :],
    "batch reversed": lambda x: x[::-1].copy()[::-1],
    "BSHD": lambda x: x.swapaxes(1, 2).copy().swapaxes(1, 2),
    "heads last": lambda x: x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
    "rows last": lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
}

# ------------------------------------------------------------------ what is given


@pytest.mark.parametrize("name", MEMORY)
@pytest.mark.parametrize("rows", ROWS)
def test_strides_of_grad_out(each_isa, dtype, name, rows):
    """Fault 10: permuted, reversed, with gaps; and all others so too."""
    arrays = qkv((2, 4, rows, 10), 2, 131, 7, dtype=dtype)
    grad_out = MEMORY[name](grad_of(*arrays))
    check_each_gradient(each_isa, grad_out, *arrays, enable_gqa=True)
    moved = map(MEMORY[name], arrays)
    check_each_gradient(each_isa, grad_out, *moved, enable_gqa=True, is_causal=True)


@pytest.mark.parametrize("rows", [1, 3, 37, 100])
def test_grad_out_of_stride_zero(each_isa, dtype, rows):
    """Fault 10: what out.sum().backward() gives, and what other sums do: rows, columns alike."""
    arrays = qkv((2, 4, rows, 10), 2, 131, 7, dtype=dtype)
    grad_out = grad_of(*arrays)
    for index in (np.s_[:1, :1, :1, :1], np.s_[:, :, :1], np.s_[..., :1], np.s_[:1], np.s_[:, :1]):
        alike = np.broadcast_to(grad_out[index], grad_out.shape)
        check_each_gradient(each_isa, alike, *arrays, enable_gqa=True)
        check_each_gradient(each_isa, alike, *arrays, enable_gqa=True, is_causal=True)


@pytest.mark.parametrize("rows", ROWS)
def test_broadcast_keys_and_values(each_isa, dtype, rows):
    """Fault 11: keys and values of stride 0 where S % 32 == 1, and at other tails."""
    for seqlen_k in (1, 2, 31, 32, 33, 65, 97, 127, 129, 257):
        query, key, value = qkv((2, 3, rows, 6), seqlen_k=seqlen_k, dtype=dtype)
        grad_out = grad_of(query, key, value)
        for index in (np.s_[:1], np.s_[:, :1], np.s_[:1, :1], np.s_[:, :, :1]):
            for k, v in itertools.product((key, np.broadcast_to(key[index], key.shape)), repeat=2):
                check_each_gradient(each_isa, grad_out, query, k, v)


@pytest.mark.parametrize("rows", ROWS)
def test_one_array_as_all_of_them(isa, dtype, rows):
    """Each input has a gradient of its own all the same."""
    x = normal(2, rows, 8, dtype=dtype)
    got = check_gradients(x, x, x, x)
    assert_same(backward(x.copy(), x.copy(), x.copy(), x.copy()), got)
    out, lse = selfattn.scaled_dot_product_attention(x, x, x, return_lse=True)
    want = upon(out.copy(), x, x, x, out=out, lse=lse)
    assert_same(upon(out, x, x, x, out=out, lse=lse), want)


@pytest.mark.parametrize("stride", [2**62, -(2**62), 2**40])
def test_strides_of_axes_that_do_not_move(isa, dtype, stride):
    """Fault 15: an axis of length 1 may have any stride; nothing is computed from it."""
    for shape in ((1, 3, 20, 13), (2, 1, 20, 13), (2, 3, 1, 13), (2, 3, 20, 1)):
        arrays = qkv(shape, seqlen_k=shape[2], dtype=dtype)
        out, lse = selfattn.scaled_dot_product_attention(*arrays, return_lse=True)
        inputs = [grad_of(*arrays), *arrays, out, lse]
        moved = [
            as_strided(
                x,
                strides=[stride if n == 1 else s for s, n in zip(x.strides, x.shape, strict=True)],
            )
            for x in inputs
        ]
        want = selfattn.scaled_dot_product_attention_backward(*inputs)[:3]
        assert same_bits(selfattn.scaled_dot_product_attention_backward(*moved)[:3], want)


@pytest.mark.parametrize("like", [OfArray, OfDLPack, memoryview])
def test_arrays_of_other_kinds(like, dtype):
    """All that are arrays, from what is no NumPy array; the results are."""
    arrays = qkv((2, 3, 20, 13), seqlen_k=35, dtype=dtype)
    options = {"attn_mask": normal(20, 35, dtype=dtype), "sinks": normal(3, dtype=dtype)}
    out, lse = selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)
    inputs = grad_of(*arrays), *arrays, out, lse
    asked = {"mask_grad": True, "sinks_grad": True}
    want = selfattn.scaled_dot_product_attention_backward(*inputs, **options, **asked)
    given = {name: like(x) for name, x in options.items()}
    got = selfattn.scaled_dot_product_attention_backward(*map(like, inputs), **given, **asked)
    assert all(type(x) is np.ndarray for x in got)
    assert same_bits(tuple(got), tuple(want))


@pytest.mark.parametrize("rows", ROWS)
def test_inputs_are_read_only(isa, dtype, rows):
    """Fault 20: read-only arrays are accepted, and no input is ever written."""
    arrays = qkv((2, 3, rows, 13), seqlen_k=141, dtype=dtype)
    mask = float_mask(rows, 141, dtype=dtype)
    out, lse = selfattn.scaled_dot_product_attention(*arrays, mask, return_lse=True)
    inputs = [grad_of(*arrays), *arrays, out, lse, mask]
    before = [x.copy() for x in inputs]

    def call():
        *first, out, lse, mask = inputs
        return upon(*first, out=out, lse=lse, attn_mask=mask)

    want = call()
    for x in inputs:
        x.flags.writeable = False
    assert_same(call(), want)
    assert all(map(same_bits, inputs, before))


# ------------------------------------------------------------------ what is returned


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (1, 0, 2, 3)])
def test_gradients_lie_as_their_inputs_do(isa, dtype, order):
    """A model that holds BSHD takes the gradient of it as BSHD, without a copy."""
    back = np.argsort(order)
    arrays = qkv((2, 4, 20, 12), 2, 9, 5, dtype=dtype)
    for which in itertools.product((False, True), repeat=3):
        moved = [
            np.ascontiguousarray(x.transpose(order)).transpose(back) if transposed else x
            for x, transposed in zip(arrays, which, strict=True)
        ]
        got = backward(grad_of(*arrays), *moved, enable_gqa=True)
        for gradient, transposed in zip(got.values(), which, strict=True):
            assert gradient.transpose(order if transposed else (0, 1, 2, 3)).flags.c_contiguous


def in_one_piece(x):
    """Whether each element has a place of its own, and nothing lies between them."""
    order = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    return x.transpose(order).flags.c_contiguous


@pytest.mark.parametrize("name", MEMORY)
def test_gradients_are_whole_arrays(isa, dtype, name):
    """Whatever the input's strides, 0 among them: a write to an element changes no other."""
    arrays = qkv((2, 4, 20, 12), 2, 9, 5, dtype=dtype)
    mask = normal(2, 4, 20, 9, dtype=dtype)
    mask_of_rows = np.broadcast_to(mask[..., :1], mask.shape)
    moved = [MEMORY[name](x) for x in (*arrays, mask)]
    alike = [np.broadcast_to(x[:1, :, :1], x.shape) for x in (*arrays, mask)]
    for *inputs, m in (moved, alike, (*arrays, mask_of_rows)):
        got = backward(grad_of(*arrays), *inputs, enable_gqa=True, attn_mask=m)
        assert all(x.flags.writeable and in_one_piece(x) for x in got.values())


def test_gradients_never_alias(isa, dtype):
    """Not one another, not an input, not the gradients of another call."""
    x = normal(1, 2, 20, 8, dtype=dtype)
    options = {"attn_mask": normal(20, 20, dtype=dtype), "sinks": normal(2, dtype=dtype)}
    first, second = (backward(x, x, x, x, **options) for _ in range(2))
    results = [*first.values(), *second.values()]
    for a, b in itertools.combinations(results, 2):
        assert not np.shares_memory(a, b)
    for a, b in itertools.product(results, (x, *options.values())):
        assert not np.shares_memory(a, b)
    before = {name: gradient.copy() for name, gradient in second.items()}
    for gradient in first.values():
        gradient.fill(7)
    assert_same(second, before)
