"""out=: where the result goes, right even where it overlaps an input; errors write nothing.

Fault 18: overlapping, adjacent and reversed buffers.
"""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import selfattn
from support.arrays import normal, qkv, same_bits

ARRAYS = qkv((2, 3, 20, 16), seqlen_k=20)


def functions(dtype):
    """(function of arrays and out, arrays): the function's result has the shape of each of them."""
    query, key, value = (x.astype(dtype) for x in qkv((2, 3, 16, 16)))
    return [
        (selfattn.scaled_dot_product_attention, (query, key, value)),
        (selfattn.scaled_dot_product, (query, key)),
        (selfattn.attention_weights, (query, key)),
        (selfattn.weighted_sum, (query, value)),
        (selfattn.softmax, (value,)),
    ]


@pytest.fixture(params=range(5), ids=["attention", "scores", "weights", "sum", "softmax"])
def call(request, dtype):
    return functions(dtype)[request.param]


def test_out_is_returned(isa, call):
    f, arrays = call
    out = np.full_like(arrays[0], np.nan)
    assert f(*arrays, out=out) is out
    assert same_bits(out, f(*arrays))


def test_out_with_lse(isa, dtype):
    query, key, value = (x.astype(dtype) for x in ARRAYS)
    out = np.empty_like(query)
    got, lse = selfattn.scaled_dot_product_attention(query, key, value, out=out, return_lse=True)
    assert got is out
    want = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True)
    assert same_bits((out, lse), want)


def test_out_is_an_input(isa, call):
    """The same array, or a view of all of it, in the place of each input."""
    f, arrays = call
    want = f(*arrays)
    for i in range(len(arrays)):
        for view in (lambda x: x, lambda x: x[...], lambda x: x.view()):
            given = [x.copy() for x in arrays]
            f(*given, out=view(given[i]))
            assert same_bits(given[i], want), i


def test_out_overlaps_an_input(isa, call):
    """Fault 18: shifted by elements, reversed, transposed; beside it without a gap."""
    f, arrays = call
    want = f(*arrays)
    size, step = want.size, want.itemsize
    for i, x in enumerate(arrays):
        for shift in (1, 2, 15, 16, 17, 255, size // 2, size - 1, size):
            for sign in (1, -1):
                buffer = np.zeros(3 * size, want.dtype)
                middle = buffer[size : 2 * size].reshape(want.shape)
                middle[...] = x
                at = (size + sign * shift) * step
                out = np.ndarray(want.shape, want.dtype, buffer, at)
                given = [middle if j == i else y for j, y in enumerate(arrays)]
                f(*given, out=out)
                assert same_bits(out, want), (i, sign * shift)
        for view in (np.s_[::-1], np.s_[..., ::-1], np.s_[:, :, ::-1]):
            given = [y.copy() for y in arrays]
            out = given[i][view]
            f(*given, out=out)
            assert same_bits(np.ascontiguousarray(out), want), (i, view)
        given = [y.copy() for y in arrays]
        out = given[i].swapaxes(-1, -2)
        f(*given, out=out)
        assert same_bits(np.ascontiguousarray(out), want), i


def test_an_input_beside_out_is_not_written(isa, call):
    """Fault 18, off by one: arrays that touch, but share nothing."""
    f, arrays = call
    want = f(*arrays)
    size = want.size
    for i, x in enumerate(arrays):
        for first in (0, size):
            buffer = np.zeros(2 * size, want.dtype)
            given, out = buffer[first:][:size], buffer[size - first :][:size]
            given[...] = x.ravel()
            others = [given.reshape(x.shape) if j == i else y for j, y in enumerate(arrays)]
            f(*others, out=out.reshape(want.shape))
            assert same_bits(out.reshape(want.shape), want)
            assert same_bits(given.reshape(x.shape), x)


@pytest.mark.parametrize(
    "view",
    [np.s_[:, :, :, ::2], np.s_[:, :, :, ::-2], np.s_[:, :, ::-1, 1::2], np.s_[::-1, ::-1, :, :16]],
    ids=str,
)
def test_out_of_any_stride(isa, call, view):
    """Its elements are written, and nothing between them."""
    f, arrays = call
    want = f(*arrays)
    whole = np.full((2, 3, 16, 32), 7, want.dtype)
    f(*arrays, out=whole[view])
    assert same_bits(np.ascontiguousarray(whole[view]), want)
    whole[view] = 7
    assert (whole == 7).all()


def test_unaligned_out(isa, call):
    f, arrays = call
    want = f(*arrays)
    for offset in (1, 2, 3, 5, 17, 63):
        memory = np.zeros(want.nbytes + 64, np.uint8)
        out = np.ndarray(want.shape, want.dtype, memory, offset)
        f(*arrays, out=out)
        assert same_bits(out.copy(), want)
        assert not memory[:offset].any()
        assert not memory[offset + want.nbytes :].any()


def test_out_whose_elements_share_memory(isa, call):
    """A stride that does not clear what is inside it: what NumPy's own assignment would leave."""
    f, arrays = call
    want = f(*arrays)
    buffer, buffer_of_numpy = np.zeros((2, want.size), want.dtype)
    shape, strides = want.shape, np.multiply((256, 256, 1, 1), want.itemsize)
    as_strided(buffer_of_numpy, shape, strides)[...] = want
    f(*arrays, out=as_strided(buffer, shape, strides))
    assert same_bits(buffer, buffer_of_numpy)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (lambda x: x.astype(np.float16), TypeError, r"out: expected .*float\d\d.*got .*float16"),
        (lambda x: x.astype(x.dtype.newbyteorder()), TypeError, r"out: expected .*got .*>f"),
        (lambda x: x.astype(np.int32), TypeError, r"out: expected .*got .*int32"),
        (lambda x: x.astype("f4" if x.itemsize == 8 else "f8"), TypeError, "out: expected .*got"),
        (lambda x: x.tolist(), TypeError, "out: expected a NumPy array, got list"),
        (lambda x: 0, TypeError, "out: expected a NumPy array, got int"),
        (lambda x: x[..., :-1], ValueError, r"out: expected shape \(2, 3, 16, 16\), got"),
        (lambda x: x[0], ValueError, r"out: expected shape \(2, 3, 16, 16\), got \(3, 16, 16\)"),
        (lambda x: x[None], ValueError, r"out: expected shape .*got \(1, 2, 3, 16, 16\)"),
        (lambda x: x.reshape(2, 3, 256), ValueError, "out: expected shape"),
        (lambda x: np.broadcast_to(x[:1], x.shape), ValueError, "out: .*writeable.*read-only"),
        (lambda x: x[:0], ValueError, r"out: expected shape .*got \(0, 3, 16, 16\)"),
    ],
)
def test_an_error_writes_nothing(call, bad, error, message):
    """Fault 18's other half: an out that does not fit is refused by name, and is left as it was."""
    f, arrays = call
    out = bad(np.full_like(arrays[0], 7))
    before = np.array(out)
    with pytest.raises(error, match=message):
        f(*arrays, out=out)
    assert np.array_equal(out, before)


def test_another_error_writes_nothing(call):
    """The inputs are at fault, and out is fine."""
    f, arrays = call
    out = np.full_like(arrays[0], 7)
    for i, x in enumerate(arrays):
        for wrong in (x.astype(np.int64), x[..., :5, :3, :7] if len(arrays) > 1 else None):
            given = [wrong if j == i else y for j, y in enumerate(arrays)]
            with pytest.raises((TypeError, ValueError)):
                f(*given, out=out)
            assert (out == 7).all(), i


def test_no_memory_is_kept(isa):
    """A new result is a new array: the one before stays."""
    x = normal(4, 8)
    first = selfattn.softmax(x)
    kept = first.copy()
    second = selfattn.softmax(x + 1)
    assert not np.shares_memory(first, second)
    assert same_bits(first, kept)
