"""merge_states_backward: against the reference, finite differences, and attention in one piece.

The bounds. A share p_i = e^-d is a weight over the sum of n of them, off by 8 + n + d units of
itself, for d is rounded, or by the least normal number. A dot product of E elements is summed in
16 chains, and off by E / 16 + 8 units of the sum of its terms' sizes; the gradient of lse_i is p_i
times the difference of two such numbers.
"""

import numpy as np
import pytest

import selfattn
from selfattn import merge_states_backward, reference
from support.arrays import HALF_DTYPES, normal, qkv, same_bits
from support.compare import assert_close, unit_roundoff
from support.halves import assert_rounded, widened

INF, NAN = np.inf, np.nan


def states(count, *shape, dtype=np.float32, size=3.0):
    """grad_out, grad_lse, outs, lses; one state in four saw no key, and holds NaN."""
    real = np.promote_types(dtype, np.float32)
    outs, lses = normal(count, *shape, dtype=dtype), size * normal(count, *shape[:-1], seed=1)
    dead = normal(count, *shape[:-1], seed=2) > 0.67
    outs[dead], lses[dead] = NAN, -INF
    grads = normal(*shape, dtype=dtype, seed=3), normal(*shape[:-1], dtype=real, seed=4)
    return *grads, outs, lses.astype(real)


def check(grad_out, grad_lse, outs, lses, context=""):
    got = merge_states_backward(grad_out, grad_lse, outs, lses)
    wide = [None if x is None else x.astype(np.float64) for x in (grad_out, grad_lse, outs, lses)]
    want = reference.merge_states_backward(*wide)
    u, n, width = unit_roundoff(outs.dtype), len(outs), outs.shape[-1]
    dead, tiny = lses == -INF, np.finfo(outs.dtype).tiny
    ones = np.zeros_like(wide[0]), np.ones_like(wide[3][0])
    p = reference.merge_states_backward(*ones, *wide[2:]).lses
    off = u * p * (10 + n - np.log(np.maximum(p, tiny))) + tiny
    assert_close(got.outs, want.outs, off[..., None] * np.abs(wide[0]), f"outs {context}")
    terms = np.abs(wide[0]) * np.where(dead[..., None], 0, np.abs(wide[2]))
    of_lse = 0 if grad_lse is None else np.abs(wide[1])
    sizes = terms.sum(-1) + (p * terms.sum(-1)).sum(0) + of_lse
    bound = (off + u * p * (width / 16 + 16 + 2 * n)) * sizes
    assert_close(got.lses, want.lses, bound, f"lses {context}")
    assert not got.outs[dead].any()
    assert not got.lses[dead].any()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 40])
def test_against_the_reference(isa, dtype, count):
    for shape in ((1,), (7, 1), (3, 5, 17), (2, 20, 64)):
        for size in (0.0, 3.0, 1e4):
            grad_out, grad_lse, *given = states(count, *shape, dtype=dtype, size=size)
            check(grad_out, grad_lse, *given, context=f"{shape} {size}")
            check(grad_out, None, *given, context=f"{shape} {size} out alone")


def test_finite_differences(rng):
    outs, lses = rng.standard_normal((4, 3, 5)), rng.standard_normal((4, 3))
    lses[1, 2] = -INF
    grad_out, grad_lse = rng.standard_normal((3, 5)), rng.standard_normal(3)
    grads = merge_states_backward(grad_out, grad_lse, outs, lses)
    for x, gradient in zip((outs, lses), grads, strict=True):
        for i in np.ndindex(x.shape):
            before, sums = x[i], []
            for step in (1e-6, -1e-6):
                x[i] = before + step
                out, lse = selfattn.merge_states_many(outs, lses)
                sums.append((grad_out * out).sum() + (grad_lse * lse).sum())
            x[i] = before
            assert gradient[i] == pytest.approx((sums[0] - sums[1]) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("scale", [None, 30.0])
def test_pieces_of_keys_make_the_gradients_of_one_call(isa, scale):
    """A chain of autograd: the merge's gradients go to each piece as grad_out and grad_lse."""
    query, key, value = qkv((2, 3, 20, 8), seqlen_k=45, dtype=np.float64)
    grad_out, grad_lse = normal(2, 3, 20, 8, dtype=np.float64, seed=7), normal(2, 3, 20, seed=8)
    grad_lse = grad_lse.astype(np.float64)
    options = {"is_causal": True, "query_offset": 12, "scale": scale}
    pieces = [
        (slice(a, b), options | {"query_offset": 12 - a}) for a, b in ((0, 9), (9, 30), (30, 45))
    ]
    attend = selfattn.scaled_dot_product_attention
    backward = selfattn.scaled_dot_product_attention_backward
    parts = [
        attend(query, key[:, :, at], value[:, :, at], return_lse=True, **given)
        for at, given in pieces
    ]
    of_parts = merge_states_backward(grad_out, grad_lse, *zip(*parts, strict=True))
    assert isinstance(of_parts.outs, tuple)
    found = [
        backward(of_out, query, key[:, :, at], value[:, :, at], *part, grad_lse=of_lse, **given)
        for of_out, of_lse, part, (at, given) in zip(*of_parts, parts, pieces, strict=True)
    ]
    out, lse = attend(query, key, value, return_lse=True, **options)
    want = backward(grad_out, query, key, value, out, lse, grad_lse=grad_lse, **options)
    np.testing.assert_allclose(sum(x.query for x in found), want.query, rtol=0, atol=1e-11)
    for name in ("key", "value"):
        got = np.concatenate([getattr(x, name) for x in found], -2)
        np.testing.assert_allclose(got, getattr(want, name), rtol=0, atol=1e-11)


def test_a_row_that_saw_no_key(isa, dtype):
    """Its gradients are 0, whatever stands in it and in grad_out (fault 7)."""
    grad_out, grad_lse, outs, lses = states(3, 6, 9, dtype=dtype)
    want = merge_states_backward(grad_out, grad_lse, outs, lses)
    lses[:, 2], grad_out[2], grad_lse[2] = -INF, NAN, INF
    got = merge_states_backward(grad_out, grad_lse, outs, lses)
    for x, y in zip(got, want, strict=True):
        assert not x[:, 2].any()
        x[:, 2] = y[:, 2] = 0
        assert same_bits(x, y)


def test_one_live_state_gets_the_gradients_as_they_are(isa, dtype):
    """Exactly: its share is 1, and its lse is the merged one."""
    grad_out, grad_lse, outs, lses = states(4, 6, 40, dtype=dtype)
    outs[:], lses[:] = NAN, -INF
    outs[2], lses[2] = normal(6, 40, dtype=dtype), 1e4
    grads = merge_states_backward(grad_out, grad_lse, outs, lses)
    assert same_bits(grads.outs[2], grad_out)
    assert same_bits(grads.lses[2], grad_lse)


# ------------------------------------------------------------------ axes, layouts, bits


def test_axes_and_sequences(isa, dtype):
    grad_out, grad_lse, outs, lses = states(4, 2, 3, 5, 6, dtype=dtype)
    want = merge_states_backward(grad_out, grad_lse, outs, lses)
    for axis in range(4):
        given = [np.moveaxis(x, 0, axis) for x in (outs, lses)]
        for arrays in (given, [np.ascontiguousarray(x) for x in given]):
            got = merge_states_backward(grad_out, grad_lse, *arrays, axis)
            assert same_bits(tuple(np.moveaxis(x, axis, 0) for x in got), tuple(want))
    swapped = np.ascontiguousarray(lses.swapaxes(-1, -2))
    got = merge_states_backward(
        grad_out, grad_lse.swapaxes(-1, -2).copy(), outs, swapped, lse_heads_first=True
    )
    assert same_bits((got.outs, got.lses.swapaxes(-1, -2)), tuple(want))
    reversed_out = grad_out[..., ::-1].copy()[..., ::-1]
    mixed = [outs[0], np.asfortranarray(outs[1]), *outs[2:]]
    got = merge_states_backward(reversed_out, np.asfortranarray(grad_lse), mixed, list(lses))
    assert same_bits(tuple(map(np.stack, got)), tuple(want))
    repeated = np.broadcast_to(outs[:1], outs.shape), np.broadcast_to(lses[:1], lses.shape)
    got = merge_states_backward(grad_out, grad_lse, *repeated)
    copies = merge_states_backward(grad_out, grad_lse, *(x.copy() for x in repeated))
    assert same_bits(tuple(got), tuple(copies))


def test_bits(each_isa, dtype):
    given = states(5, 30, 7, 70, dtype=dtype)
    want = None
    for isa in each_isa():
        for threads in (1, 2, 3):
            got = tuple(merge_states_backward(*given, num_threads=threads))
            want = want or got
            assert same_bits(got, want), (isa, threads)
        for rows in (np.s_[3:4, 2:3], np.s_[::9, 1:]):
            of_all = (slice(None), *rows)
            part = [x[rows] for x in given[:2]] + [x[of_all] for x in given[2:]]
            got = tuple(merge_states_backward(*part))
            assert same_bits(got, tuple(x[of_all] for x in want)), isa


@pytest.mark.parametrize("half", HALF_DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_halves(each_isa, half):
    """float32's gradients rounded once; those of lses are float32."""
    given = states(4, 3, 5, 33, dtype=half)
    want = tuple(merge_states_backward(*widened(given)))
    for isa in each_isa():
        got = tuple(merge_states_backward(*given))
        assert_rounded(got, want, isa)
        assert [x.dtype for x in got] == [half, np.float32]


# ------------------------------------------------------------------ errors

WRONG = [
    (
        {"grad_out": normal(4, 6)},
        ValueError,
        r"grad_out: expected shape \(4, 5\), that of merged out",
    ),
    ({"grad_out": normal(4, 5, dtype="f8")}, TypeError, "grad_out: expected float32, outs's dtype"),
    ({"grad_out": None}, TypeError, "grad_out: expected an array, got NoneType"),
    ({"grad_lse": normal(5)}, ValueError, r"grad_lse: expected shape \(4,\), that of merged lse"),
    ({"grad_lse": normal(4, dtype="f8")}, TypeError, "grad_lse: expected float32, lses's dtype"),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG)
def test_errors(changed, error, message):
    given = {"grad_out": normal(4, 5), "grad_lse": normal(4)} | changed
    with pytest.raises(error, match=f"^{message}"):
        merge_states_backward(**given, outs=normal(3, 4, 5), lses=normal(3, 4))
