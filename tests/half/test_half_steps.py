"""The steps on their own in half types: scores, weights, softmax, sums, merges, rotary positions.

Each is float32's result rounded once, in every set, so nothing between may be rounded: a softmax
row's numerators, the sums of long rows, cosines and sines.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import selfattn
from selfattn import nn
from support.arrays import HALF_DTYPES, normal, same_bits
from support.halves import assert_rounded, check, each_half, rounded, widened
from support.layouts import LAYOUTS, bits_at
from support.strategies import laid_out, lengths, repeatable

# Rows of more than 2^16 elements are computed in parts, between which a call can be cancelled.
LONG = 2**16 + 37


def in_every_set(each_isa, f, *arguments, context="", **options):
    """f gives float32's result rounded once."""
    want = f(*widened(arguments), **widened(options))
    for isa in each_isa():
        assert_rounded(f(*arguments, **options), want, f"{context} {isa}")
    return want


# ------------------------------------------------------------------ softmax


@each_half
@pytest.mark.parametrize("n", [1, 2, 7, 8, 15, 16, 17, 33, 63, 64, 100, 1000, 8193, LONG])
def test_softmax(each_isa, half, n):
    x = 3 * normal(3, n, dtype=half)
    in_every_set(each_isa, selfattn.softmax, x)
    in_every_set(each_isa, selfattn.softmax, x.T.copy(), 0)


@each_half
@pytest.mark.parametrize("n", [33, 1000, LONG])
def test_softmax_in_place(each_isa, half, n):
    """What is computed again must not read what has been written."""
    x = 3 * normal(4, n, dtype=half)
    want = rounded(selfattn.softmax(widened(x)), half)
    for _ in each_isa():
        for layout in (np.ascontiguousarray, np.asfortranarray, lambda x: bits_at(1, x)):
            own = layout(x.copy())
            assert selfattn.softmax(own, out=own) is own
            assert same_bits(own, want)
        backwards = x.copy()
        selfattn.softmax(backwards, out=backwards[:, ::-1])  # overlaps, and is not the same
        assert same_bits(backwards[:, ::-1], want)


@each_half
def test_softmax_is_of_rows_that_lie_anyhow(each_isa, half):
    x = 3 * normal(2, 3, 35, 13, dtype=half)
    for axis in range(4):
        want = rounded(selfattn.softmax(widened(x), axis), half)
        for _ in each_isa():
            for name, layout in LAYOUTS.items():
                assert same_bits(selfattn.softmax(layout(x), axis), want), name
                out = layout(x)
                selfattn.softmax(x, axis, out=out)
                assert same_bits(out, want), name


@each_half
def test_softmax_rounds_no_numerator(each_isa, half):
    """Numerators rounded to the half type would make a sum that is off by 2^-12 or more."""
    x = np.full((1, 3000), -np.log(2.0**0.5), half)
    x[0, 0] = 0
    exact = np.exp(widened(x).astype(np.float64))
    want = rounded((exact / exact.sum()).astype(np.float32), half)
    for _ in each_isa():
        assert same_bits(selfattn.softmax(x), want)


@each_half
def test_softmax_of_special_rows(each_isa, half):
    inf, nan, most = np.inf, np.nan, float(np.finfo(half).max) if half is np.float16 else 3.38e38
    least = 2.0**-24 if half is np.float16 else 2.0**-133
    rows = [[-inf] * 5, [inf, 0, 0, 0, 0], [nan, 0, 1, 2, 3], [most, -most, most, 0, -inf]]
    rows += [[least, -least, 0, -0.0, 2 * least], [-most] * 5, [most] * 5, [-inf, 1, -inf, 2, 3]]
    x = np.array(rows).astype(half)
    want = in_every_set(each_isa, selfattn.softmax, x)
    assert (want[0] == 0).all()
    assert np.isnan(want[2]).all()


# ------------------------------------------------------------------ scores, weights, sums


@each_half
@pytest.mark.parametrize("rows", [1, 4, 50])
@pytest.mark.parametrize(("keys", "head_dim"), [(1, 7), (129, 64), (600, 33), (140, 256), (9, 0)])
def test_scores_weights_and_sums(each_isa, half, rows, keys, head_dim):
    query, key = normal(2, 4, rows, head_dim, dtype=half), normal(2, 2, keys, head_dim, dtype=half)
    value = normal(2, 2, keys, head_dim, dtype=half, seed=2)
    grouped = {"enable_gqa": True}
    in_every_set(each_isa, selfattn.scaled_dot_product, query, key, **grouped, is_causal=True)
    in_every_set(each_isa, selfattn.attention_weights, query, key, **grouped)
    lost = {"dropout_p": 0.3, "dropout_seed": 4}
    in_every_set(each_isa, selfattn.attention_weights, query, key, **grouped, **lost)
    weights = selfattn.attention_weights(query, key, **grouped)
    in_every_set(each_isa, selfattn.weighted_sum, weights, value, **grouped)


@each_half
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weighted_sums_of_any_layout(each_isa, half, layout):
    weights, value = normal(2, 3, 35, 40, dtype=half), normal(2, 3, 40, 13, dtype=half)
    lay = LAYOUTS[layout]
    want = rounded(selfattn.weighted_sum(widened(weights), widened(value)), half)
    for _ in each_isa():
        assert same_bits(selfattn.weighted_sum(lay(weights), lay(value)), want)
        out = lay(np.zeros(want.shape, half))
        selfattn.weighted_sum(lay(weights), lay(value), out=out)
        assert same_bits(out, want)


@each_half
def test_a_sum_of_many_values_is_one_of_float32(each_isa, half):
    weights, value = np.ones((2, 5000), half), np.ones((5000, 3), half)
    for _ in each_isa():
        got = selfattn.weighted_sum(weights, value)
        assert same_bits(got, np.full((2, 3), 5000, half))


# ------------------------------------------------------------------ merges


@each_half
@pytest.mark.parametrize("n", [1, 2, 7, 16, 33, 64, 80])
def test_merges(each_isa, half, n):
    """Outputs of the half type, lse of float32, which is neither read nor written in halves."""
    a, b = normal(3, 5, n, dtype=half), normal(3, 5, n, dtype=half, seed=1)
    lse_a, lse_b = normal(3, 5), normal(3, 5, seed=1)
    lse_a[0], lse_b[:, 0], lse_a[1, 1] = -np.inf, -np.inf, 50
    a[0, 1], b[2, 0] = np.nan, np.inf
    out, lse = in_every_set(each_isa, selfattn.merge_states, a, lse_a, b, lse_b)
    assert (lse == lse.astype(half)).mean() < 0.9  # it is not one of halves
    got = selfattn.merge_states(a, lse_a, b, lse_b)
    assert (got[0].dtype, got[1].dtype) == (half, np.float32)
    for name, layout in LAYOUTS.items():
        laid = [layout(x[None]) for x in (a, b)]
        got = selfattn.merge_states(laid[0], lse_a[None], laid[1], lse_b[None])
        assert_rounded(got, (out[None], lse[None]), name)


# ------------------------------------------------------------------ rotary positions


@each_half
@pytest.mark.parametrize("options", [{}, {"layout": "interleaved"}, {"rotary_dim": 10}])
def test_rope(each_isa, half, options):
    """Cosines and sines are float32: rounded to halves they would be off by 2^-9 or 2^-12."""
    x = normal(2, 3, 35, 34, dtype=half)
    positions = np.arange(35) * 41
    frequencies = np.linspace(0.1, 3, options.get("rotary_dim", 34) // 2)
    for f in (nn.rope, nn.rope_backward):
        in_every_set(each_isa, f, x, 70, **options)
        in_every_set(each_isa, f, x, positions=positions, **options)
        in_every_set(each_isa, f, x, frequencies=frequencies, **options)
        assert f(x, 70, **options).dtype == half
        want = rounded(f(widened(x), 5, **options), half)
        for _ in each_isa():
            for name, layout in LAYOUTS.items():
                assert same_bits(f(layout(x), 5, **options), want), name
                own = layout(x)
                f(own, 5, out=own, **options)
                assert same_bits(own, want), name


@given(data=st.data())
@repeatable(40)
def test_any_rows(each_isa, data):
    """Every function of rows, on any shape and layout of each array."""
    half = data.draw(st.sampled_from(HALF_DTYPES))
    n, m, k = (data.draw(lengths(140)) for _ in range(3))
    leading = data.draw(st.lists(st.integers(1, 3), max_size=2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    a, b, value = (
        data.draw(laid_out(rng.standard_normal((*leading, *shape)).astype(half)))
        for shape in ((n, m), (n, m), (m, k))
    )
    lse = [data.draw(laid_out(x)) for x in rng.standard_normal((2, *leading, n)).astype("f4")]
    threads = {"num_threads": data.draw(st.integers(1, 3))}
    axis = data.draw(st.integers(-a.ndim, a.ndim - 1))
    in_every_set(each_isa, selfattn.softmax, a, axis, **threads)
    in_every_set(each_isa, selfattn.weighted_sum, a, value, **threads)
    in_every_set(each_isa, selfattn.merge_states, a, lse[0], b, lse[1])
    rope = {"rotary_dim": m // 2 * 2, "layout": data.draw(st.sampled_from(["half", "interleaved"]))}
    check(nn.rope, a, 3, **rope, **threads, dtypes=[half])
    check(nn.rope_backward, a, 3, **rope, **threads, dtypes=[half])
