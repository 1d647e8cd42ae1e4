"""merge_states_many: any number of states at once, stacked along any axis or one by one.

The bounds are those of test_merge_states.py and one unit more for each state: the sums of n weights
and of n products. What one pair of states does is tested there; two here have the same bits.
"""

import itertools

import numpy as np
import pytest

import selfattn
from selfattn import merge_states, merge_states_many, reference
from support.arrays import HALF_DTYPES, normal, same_bits
from support.compare import assert_close, largest, unit_roundoff
from support.halves import assert_rounded, widened
from support.layouts import LAYOUTS

INF, NAN = np.inf, np.nan


def states(count, *shape, dtype=np.float32, size=3.0):
    """outs (count, *shape) and their lses; one state in four saw no key, and holds NaN."""
    outs = normal(count, *shape, dtype=dtype)
    lses = (size * normal(count, *shape[:-1], seed=1)).astype(np.promote_types(dtype, np.float32))
    dead = normal(count, *shape[:-1], seed=2) > 0.67
    outs[dead], lses[dead] = NAN, -INF
    return outs, lses


def check(outs, lses, context="", **options):
    """Against the reference, in float64 from the same numbers."""
    out, lse = merge_states_many(outs, lses, **options)
    want, want_lse = reference.merge_states_many(
        *(
            x.astype(np.float64) if isinstance(x, np.ndarray) else [y.astype("f8") for y in x]
            for x in (outs, lses)
        ),
        **options,
    )
    u = unit_roundoff(out.dtype)
    n = len(outs) if not isinstance(outs, np.ndarray) else outs.shape[options.get("axis", 0)]
    size = max([largest(x[np.isfinite(x)]) for x in outs], default=0.0)
    assert_close(out, want, (16 + n) * u * size, f"out {context}")
    bound = np.nan_to_num((6 + n) * u + 3 * u * np.abs(want_lse), nan=0.0)
    assert_close(lse, want_lse, bound, f"lse {context}")
    return out, lse


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 17, 100])
def test_any_number(isa, dtype, count):
    for shape in ((1,), (7, 1), (3, 5, 17), (2, 40, 64)):
        for size in (0.0, 3.0, 1000.0):
            check(*states(count, *shape, dtype=dtype, size=size), context=f"{shape} {size}")


def test_two_have_the_bits_of_a_pair(isa, dtype):
    outs, lses = states(2, 50, 33, dtype=dtype)
    lses[:, 7], outs[1, 9, 3], outs[0, 11, 4] = -INF, INF, np.finfo(dtype).max
    outs[1, 11, 4] = outs[0, 11, 4]
    want = merge_states(outs[0], lses[0], outs[1], lses[1])
    assert same_bits(merge_states_many(outs, lses), want)
    assert same_bits(merge_states_many(list(outs), tuple(lses)), want)


def test_one_is_itself(isa, dtype):
    outs, lses = states(1, 50, 33, dtype=dtype)
    dead = lses[0] == -INF
    outs[0, 5, 5] = NAN if lses[0, 5] != -INF else 0
    assert same_bits(merge_states_many(outs, lses), (np.where(dead[:, None], 0, outs[0]), lses[0]))


def test_no_state_saw_no_key(isa, dtype):
    real = np.promote_types(dtype, np.float32)
    out, lse = merge_states_many(np.empty((3, 0, 4), dtype), np.empty((3, 0), real), 1)
    assert same_bits((out, lse), (np.zeros((3, 4), dtype), np.full(3, -INF, real)))


def test_the_order_is_the_first_to_the_last(dtype):
    """Weights of 1: each partial sum is rounded, and one of large numbers absorbs the small."""
    large = 2.0 / np.finfo(dtype).eps
    outs, lses = np.array([[1.0], [large], [-large], [1.0]], dtype), np.zeros(4, dtype)
    assert merge_states_many(outs, lses)[0] == 0.25
    assert merge_states_many(outs[[1, 2, 0, 3]], lses)[0] == 0.5


def test_the_mean_of_large_values(isa, dtype):
    """Their sum overflows, the mean does not."""
    greatest = np.finfo(dtype).max
    outs, lses = np.full((5, 3, 9), greatest, dtype), np.zeros((5, 3), dtype)
    outs[:, 1] *= -1
    outs[2, 2, 4] = INF
    out, _ = merge_states_many(outs, lses)
    assert np.isfinite(out).sum() == out.size - 1
    np.testing.assert_allclose(out[:2], outs[0, :2], rtol=8 * np.finfo(dtype).eps)
    assert out[2, 4] == INF


# ------------------------------------------------------------------ axes and layouts


def test_every_axis(isa, dtype):
    """The place of the states in outs, counted from either end, and the same place in lses."""
    outs, lses = states(4, 2, 3, 5, 6, dtype=dtype)
    want = check(outs, lses)
    for axis in range(4):
        stacked = np.moveaxis(outs, 0, axis), np.moveaxis(lses, 0, axis)
        for given in (axis, axis - 5, np.int64(axis)):
            assert same_bits(merge_states_many(*stacked, given), want)
        copies = [np.ascontiguousarray(x) for x in stacked]
        assert same_bits(merge_states_many(*copies, axis), want)
    assert same_bits(merge_states_many(list(outs), lses), want)
    assert same_bits(merge_states_many(outs, list(lses)), want)


def test_as_flashinfer_stacks_them(isa):
    """v (seq_len, num_states, num_heads, head_dim) and s (seq_len, num_states, num_heads)."""
    outs, lses = states(4, 20, 3, 16)
    v, s = (np.ascontiguousarray(np.moveaxis(x, 0, 1)) for x in (outs, lses))
    out, lse = check(v, s, axis=1)
    assert (out.shape, lse.shape) == ((20, 3, 16), (20, 3))


def test_lse_with_the_heads_first(isa, dtype):
    """As varlen_attention returns them, flash-attn and vLLM too: (..., H, L) beside (..., L, H, E).

    Where L and H are one number only the flag tells.
    """
    for shape in ((6, 6, 8), (2, 5, 3, 8)):
        outs, lses = states(3, *shape, dtype=dtype)
        out, lse = merge_states_many(outs, lses)
        swapped = np.ascontiguousarray(lses.swapaxes(-1, -2))
        want = out, np.ascontiguousarray(lse.swapaxes(-1, -2))
        for given in (swapped, lses.swapaxes(-1, -2), list(swapped)):
            assert same_bits(merge_states_many(outs, given, lse_heads_first=True), want)
        check(np.moveaxis(outs, 0, 1), np.moveaxis(swapped, 0, 1), axis=1, lse_heads_first=True)
    query, key, value = (normal(12, 2, 8, dtype=dtype, seed=n) for n in range(3))
    starts, keep = np.array([0, 5, 12]), np.arange(7) % 3
    parts = [
        selfattn.varlen_attention(query, key, value, starts, starts, keep == n, return_lse=True)
        for n in range(3)
    ]
    out, lse = merge_states_many(*zip(*parts, strict=True), lse_heads_first=True)
    want = selfattn.varlen_attention(query, key, value, starts, starts, return_lse=True)
    for got, wanted in zip((out, lse), want, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=64 * np.finfo(dtype).eps)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_memory(isa, layout):
    outs, lses = states(3, 2, 4, 6)
    lay = LAYOUTS[layout]
    want = merge_states_many(outs, lses)
    assert same_bits(merge_states_many(lay(outs), lay(lses[..., None])[..., 0]), want)
    mixed = [outs[0], lay(outs[1:2])[0], np.asfortranarray(outs[2])]
    assert same_bits(
        merge_states_many(mixed, [*lses[:2], lay(lses[2:, ..., None])[0, ..., 0]]), want
    )


def test_repeated_states_and_read_only_ones(dtype):
    outs, lses = states(1, 5, 9, dtype=dtype)
    stacked = np.broadcast_to(outs, (4, 5, 9)), np.broadcast_to(lses, (4, 5))
    want = merge_states_many(*(np.ascontiguousarray(x) for x in stacked))
    assert same_bits(merge_states_many(*stacked), want)
    assert same_bits(merge_states_many([outs[0]] * 4, [lses[0]] * 4), want)


# ------------------------------------------------------------------ bits, halves


def test_bits(each_isa, dtype):
    """Of each row its own: alone, in any set, by any number of threads."""
    outs, lses = states(5, 40, 7, 70, dtype=dtype)
    want = None
    for isa in each_isa():
        for threads in (1, 2, 3):
            got = merge_states_many(outs, lses, num_threads=threads)
            want = want or got
            assert same_bits(got, want), (isa, threads)
        for rows in (np.s_[3:4, 2:3], np.s_[::9, 1:]):
            part = merge_states_many(outs[(slice(None), *rows)], lses[(slice(None), *rows)])
            assert same_bits(part, tuple(x[rows] for x in want)), isa


@pytest.mark.parametrize("half", HALF_DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_halves(each_isa, half):
    """Rounded once: a chain of merges of two would round each time."""
    outs, lses = states(6, 3, 5, 33, dtype=half)
    want = merge_states_many(widened(outs), lses)
    for isa in each_isa():
        got = merge_states_many(outs, lses)
        assert_rounded(got, want, isa)
        assert (got[0].dtype, got[1].dtype) == (half, np.float32)
        assert_rounded(merge_states_many(list(outs), list(lses)), want, isa)


# ------------------------------------------------------------------ errors

OUTS, LSES = states(3, 4, 2, 5)
PAIR = list(OUTS[:2]), list(LSES[:2])
WRONG = [
    ((OUTS, LSES[..., 0]), {}, ValueError, r"lses: expected shape \(3, 4, 2\), .* got \(3, 4\)"),
    ((OUTS, LSES[:2]), {"axis": 1}, ValueError, r"lses: expected shape \(3, 4, 2\), .* of 4 outs"),
    ((OUTS, LSES), {"axis": 3}, ValueError, "axis: expected one before the last of shape"),
    ((OUTS, LSES), {"axis": 4}, ValueError, "axis: expected an axis of shape"),
    ((OUTS, LSES), {"axis": 0.0}, TypeError, "axis: expected an int, got float"),
    ((OUTS, LSES), {"lse_heads_first": True}, ValueError, r"lses: expected shape \(3, 2, 4\)"),
    ((OUTS, LSES), {"lse_heads_first": 2}, ValueError, "lse_heads_first: expected a bool"),
    ((OUTS[:, 0, 0], LSES[:, 0, 0]), {"lse_heads_first": True}, ValueError, "outs: expected 3 or"),
    ((OUTS[0, 0, 0], LSES[0, 0, 0]), {}, ValueError, r"outs: expected 2 or more axes, .* \(5,\)"),
    (
        (OUTS, LSES.astype("f8")),
        {},
        TypeError,
        "lses: expected float32, that of the lse where outs",
    ),
    ((np.ones(OUTS.shape, int), LSES), {}, TypeError, "outs: expected float16, .*int64"),
    ((OUTS, None), {}, TypeError, "lses: expected an array, got NoneType"),
    (([], []), {}, ValueError, "outs: expected one state or more, got an empty list"),
    ((PAIR[0], LSES), {}, ValueError, r"lses: expected shape \(2, 4, 2\)"),
    ((OUTS, PAIR[1]), {}, ValueError, "lses: expected 3, one for each of outs, got 2"),
    (PAIR, {"axis": 1}, ValueError, "axis: expected 0 where outs is a sequence, got 1"),
    (([OUTS[0], OUTS[1, :2]], PAIR[1]), {}, ValueError, r"outs\[1\]: expected shape \(4, 2, 5\)"),
    (([OUTS[0], OUTS[1].astype("f8")], PAIR[1]), {}, TypeError, r"outs\[1\]: expected float32"),
    ((PAIR[0], [LSES[0], LSES[1, :2]]), {}, ValueError, r"lses\[1\]: expected shape \(4, 2\)"),
    ((PAIR[0], [LSES[0], 1.0]), {}, TypeError, r"lses\[1\]: expected an array, got float"),
    (([[1.0]], [1.0]), {}, TypeError, r"outs\[0\]: expected an array, got list"),
    ((OUTS, LSES), {"num_threads": 0}, ValueError, "num_threads: expected 1 to"),
]


@pytest.mark.parametrize(("given", "options", "error", "message"), WRONG)
def test_errors(given, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        merge_states_many(*given, **options)
    grads = normal(4, 2, 5), normal(4, 2)
    with pytest.raises(error, match=f"^{message}"):
        selfattn.merge_states_backward(*grads, *given, **options)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty_axes(shape, dtype):
    for count in (1, 3):
        out, lse = check(*states(count, *shape, dtype=dtype))
        assert (out.shape, lse.shape) == (shape, shape[:-1])


def test_a_chain_of_pairs_differs_by_roundings(dtype):
    outs, lses = states(9, 30, 8, dtype=dtype)
    chain = outs[0], lses[0]
    for state in itertools.islice(zip(outs, lses, strict=True), 1, None):
        chain = merge_states(*chain, *state)
    for got, want in zip(merge_states_many(outs, lses), chain, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=32 * np.finfo(dtype).eps * 9)
