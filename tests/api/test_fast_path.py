"""Usual arrays without options take the fast path, to the same bits; no other call does."""

from __future__ import annotations

import numpy as np
import pytest

import selfattn
from selfattn import _core
from selfattn._args import attention


def arrays(dtype="f4"):
    return np.random.default_rng(0).standard_normal((3, 2, 3, 7, 5)).astype(dtype)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("with_out", [False, True])
def test_same_bits_as_the_long_way(dtype, with_out):
    query, key, value = arrays(dtype)
    value = value[..., :4]
    out = np.empty_like(query[..., :4], order="C") if with_out else None
    plain = _core.fast_path(query, key, value, out, (), (), 1, None)
    assert plain is out if with_out else plain is not None
    long, _ = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True)
    assert plain.tobytes() == long.tobytes()
    usual = selfattn.scaled_dot_product_attention(query, key, value)
    assert usual.tobytes() == long.tobytes()


def test_the_public_function_takes_it(monkeypatch):
    """Its own defaults are those that the fast path knows."""

    def validated(*operands, **options):
        raise RuntimeError("the validator was asked")

    monkeypatch.setattr(attention, "attention_problem", validated)
    query, key, value = arrays()
    out = selfattn.scaled_dot_product_attention(query, key, value)
    selfattn.scaled_dot_product_attention(query, key, value, out=out, num_threads=1)
    with pytest.raises(RuntimeError, match="the validator was asked"):
        selfattn.scaled_dot_product_attention(query, key, value, is_causal=True)


def test_grouped_heads_are_usual_where_they_are_asked_for():
    query, key, value = arrays()
    query = np.repeat(query, 2, axis=1)
    assert _core.fast_problem(query, key, value, True) is None
    problem = _core.fast_problem(query, key, value, True, True)
    assert problem.out_shape == query.shape
    for operands in ((query[:, :5], key, value), (query, key[:, :0], value[:, :0])):
        assert _core.fast_problem(*operands, True, True) is None
    assert _core.fast_problem(query, key, value[:, :1], True, True) is None


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 1), (3, 1, 7), (2, 1, 5, 7), (2, 3, 5, 7)])
def test_shapes_that_broadcast(shape):
    assert _core.broadcasts(np.empty(shape), (2, 3, 5, 7))
    assert not _core.broadcasts(np.empty((*shape[:-1], 4)), (2, 3, 5, 7))
    assert not _core.broadcasts(np.empty((1, *[1] * (4 - len(shape)), *shape)), (2, 3, 5, 7))


def unusual_outs(query):
    read_only = np.empty_like(query)
    read_only.flags.writeable = False
    yield read_only
    yield query
    yield np.empty((*query.shape[:-1], 2 * query.shape[-1]), query.dtype)[..., ::2]
    yield np.empty(query.shape, "f8")
    yield np.empty(query.shape[1:], query.dtype)
    yield np.ma.empty(query.shape, query.dtype)
    yield [0.0]


def test_what_is_not_plain_goes_the_long_way():
    query, key, value = arrays()
    for out in unusual_outs(query):
        assert _core.fast_path(query, key, value, out, (), (), 1, None) is None
    unusual = [
        (query.swapaxes(-1, -2).copy().swapaxes(-1, -2), key, value),
        (query[0, 0], key[0, 0], value[0, 0]),
        (query, key[:, :1], value[:, :1]),
        (query, key, value[..., :3, :]),
        (query, key.astype("f8"), value),
        (query.astype(">f4"), key.astype(">f4"), value.astype(">f4")),
        (query.tolist(), key, value),
    ]
    for operands in unusual:
        assert _core.fast_path(*operands, None, (), (), 1, None) is None
    for option in (object(), 1.0, True, -1):
        for default in (None, 0.0, False, 0, (-1, -1)):
            call = (query, key, value, None, (option,), (default,), 1, None)
            assert _core.fast_path(*call) is None


def test_the_number_of_threads_is_asked_for_where_there_is_work():
    """A small call does not wait for the answer, which takes longer than it does."""
    asked = []

    def number():
        asked.append(2)
        return 2

    for length, times in ((4, 0), (300, 1)):
        x = np.ones((1, 2, length, 16), "f4")
        _core.fast_path(x, x, x, None, (), (), None, number)
        assert len(asked) == times


def test_an_out_beside_an_input_does_not_overlap():
    memory = np.zeros((2, 1, 3, 4), "f4")
    assert not _core.may_overlap(memory[0], [memory[1]])
    assert not _core.may_overlap(memory[0, ..., ::-1], [memory[1], memory[1, :, ::-2]])
    assert _core.may_overlap(memory[0, :, ::-1], [memory[1], memory[0, :, -1:]])
    assert not _core.may_overlap(memory, [memory[:0]])
