"""Special numbers in half types: NaN, infinities, subnormals, the largest; masks made of finfo.min.

A finite float32 result beyond the half type's largest becomes infinite by rounding alone, and a
caller's floating-point modes change nothing.
"""

import numpy as np
import pytest

import selfattn
from support import subprocesses
from support.arrays import bfloat16, normal, qkv, same_bits
from support.gradients import grad_of, upon
from support.halves import assert_rounded, each_half, rounded, widened
from support.process import MXCSR, x86_linux

attend = selfattn.scaled_dot_product_attention
LARGEST = {np.float16: 65504.0, bfloat16: (2 - 2.0**-7) * 2.0**127}
LEAST = {np.float16: 2.0**-24, bfloat16: 2.0**-133}
ROWS = [1, 4, 70]


def compare(each_isa, query, key, value, context="", **options):
    grad_out = grad_of(query, key, value)
    wide = widened((query, key, value))
    want = attend(*wide, return_lse=True, **widened(options))
    given = {"out": rounded(want[0], query.dtype), "lse": want[1]}
    of_want = upon(*widened((grad_out, query, key, value)), **widened(given), **widened(options))
    for isa in each_isa():
        got = attend(query, key, value, return_lse=True, **options)
        assert_rounded(got, want, f"{context} {isa}")
        of_got = upon(grad_out, query, key, value, **given, **options)
        assert_rounded(of_got, of_want, f"gradients {context} {isa}")
    return got, of_got


def specials(half):
    return [np.nan, np.inf, -np.inf, LARGEST[half], -LARGEST[half], LEAST[half], -0.0]


@each_half
@pytest.mark.parametrize("rows", ROWS)
def test_any_special_number_anywhere(each_isa, half, rows):
    for place in range(3):
        for special in specials(half):
            arrays = qkv((1, 2, rows, 16), seqlen_k=150, head_dim_v=8, dtype=half)
            with np.errstate(all="ignore"):
                arrays[place][0, 1, rows // 2, 3] = special
                arrays[place][0, 0, :, 5] = special
            compare(each_isa, *arrays, context=(place, special))


@each_half
@pytest.mark.parametrize("rows", ROWS)
def test_what_is_masked_is_not_read(each_isa, half, rows):
    """As if it were 0: by lengths, by bools, by -inf in either dtype, by ranges."""
    query, key, value = qkv((1, 2, rows, 16), seqlen_k=150, head_dim_v=8, dtype=half)
    seen = np.ones(150, bool)
    seen[[3, 77]] = seen[120:] = False
    bias = np.where(seen, 0.5, -np.inf)
    offset = {"query_offset": 119 - rows + 1}
    cases = [
        (seen, {"attn_mask": seen}),
        (seen, {"attn_mask": bias.astype(half)}),
        (seen, {"attn_mask": bias.astype(np.float32)}),
        (np.arange(150) < 120, {"kv_lengths": 120}),
        (np.arange(150) < 120, {"is_causal": True, **offset}),
    ]
    for visible, options in cases:
        for poison in (np.nan, np.inf, LARGEST[half]):
            clean, bad = [key.copy(), value.copy()], [key.copy(), value.copy()]
            for x, y in zip(clean, bad, strict=True):
                x[..., ~visible, :], y[..., ~visible, :] = 0, poison
            want = compare(each_isa, query, *clean, context=list(options), **options)
            got = compare(each_isa, query, *bad, context=list(options), **options)
            assert same_bits(got[0], want[0])
            assert np.isfinite(widened(got[0][0])).all()
            for name in ("query", "key", "value"):
                assert same_bits(got[1][name], want[1][name])


@each_half
@pytest.mark.parametrize("place", ["key", "value"])
def test_poison_in_a_later_head_alone(each_isa, half, place):
    """Copies of heads lie at one address: that one was finite says nothing of the next."""
    query, key, value = qkv((1, 3, 210, 16), seqlen_k=300, head_dim_v=8, dtype=half)
    options = {"is_causal": True, "query_offset": 40, "num_threads": 1}
    want = compare(each_isa, query, key, value, **options)
    bad = {"key": key.copy(), "value": value.copy()}
    bad[place][0, 1:, 200] = np.nan  # which queries up to the 159th do not see
    got = compare(each_isa, query, bad["key"], bad["value"], **options)
    for x, y in ((got[0][0], want[0][0]), (got[1]["query"], want[1]["query"])):
        assert same_bits(x[:, :, :160], y[:, :, :160])
        assert np.isnan(widened(x[:, 1:, 160:])).any()


@each_half
def test_poison_of_an_entry_before(each_isa, half):
    """What its copy has left before the first key that the next entry sees is not read."""
    query, key, value = qkv((2, 1, 110, 16), seqlen_k=500, head_dim_v=8, dtype=half)
    options = {"window_size": (40, 0), "query_offset": np.array([200, 301]), "num_threads": 1}
    want = compare(each_isa, query, key, value, **options)
    key[0], value[0] = np.nan, np.nan
    got = compare(each_isa, query, key, value, **options)
    assert np.isnan(widened(got[0][0][0])).all()
    assert same_bits(got[0][0][1], want[0][0][1])
    for name in ("query", "key", "value"):
        assert same_bits(got[1][name][1], want[1][name][1])


@each_half
@pytest.mark.parametrize("rows", ROWS)
def test_masks_of_the_least_finite_number(each_isa, half, rows):
    """finfo.min, as models write it: a row of nothing else is a mean of all keys, none is NaN."""
    query, key, value = qkv((1, 2, rows, 16), seqlen_k=150, head_dim_v=8, dtype=half)
    least = -half(LARGEST[half])
    mask = np.where(np.arange(150) < 100, half(0), least) * np.ones((rows, 1), half)
    mask[0] = least
    (out, lse), _ = compare(each_isa, query, key, value, attn_mask=mask)
    assert np.isfinite(widened(out)).all()
    assert np.isfinite(lse).all()
    if rows > 1:
        visible = attend(query[..., 1:, :], key[..., :100, :], value[..., :100, :])
        assert same_bits(out[..., 1:, :], visible)
    compare(each_isa, query, key, value, attn_mask=mask.astype(np.float32))


@each_half
@pytest.mark.parametrize("rows", ROWS)
def test_results_beyond_the_largest_are_infinite(each_isa, half, rows):
    """By rounding alone: dropout's factor takes a mean of the largest beyond it."""
    query, key, _ = qkv((1, 2, rows, 16), seqlen_k=150, dtype=half)
    value = np.full((1, 2, 150, 8), LARGEST[half], half)
    value[..., 1::2] *= half(-1)
    value[..., 2] = 1
    compare(each_isa, query, key, value)
    (out, _), _ = compare(each_isa, query, key, value, dropout_p=0.5, dropout_seed=1)
    assert np.isposinf(widened(out)).any()
    assert np.isneginf(widened(out)).any()
    assert np.isfinite(widened(out[..., 2])).all()


def test_scores_round_to_infinity_where_float32s_are_finite(each_isa):
    """Scores around the tie of 65504 and 65536, which goes to the even one, infinity."""
    query, key = np.array([[256.0, 1]], np.float16), np.zeros((7, 2), np.float16)
    key[:, 0] = 255.875  # 65504
    key[:, 1] = 0, 15.984375, 16, 16.015625, 32, 1000, -1
    scores = widened(query) @ widened(key).T
    assert (scores > 65504).sum() == 5
    want = np.array([[65504, 65504, *[np.inf] * 4, 65504]], np.float16)
    for _ in each_isa():
        assert same_bits(selfattn.scaled_dot_product(query, key, scale=1), want)


@pytest.mark.skipif(bfloat16 is None, reason="needs ml_dtypes")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("keys", [3, 150, 1300])
def test_sums_that_overflow_float32_are_computed_again(each_isa, rows, keys):
    """The mean of the largest bfloat16 numbers is one of them: fault 45 in a half type."""
    query, key, _ = qkv((1, 2, rows, 16), seqlen_k=keys, dtype=bfloat16)
    value = np.full((1, 2, keys, 8), LARGEST[bfloat16], bfloat16)
    want = attend(*widened((query, key, value)), return_lse=True)
    for isa in each_isa():
        got = attend(query, key, value, return_lse=True)
        assert_rounded(got, want, isa)
        assert (got[0] == value[:, :, :1]).all()
        for threads in (2, 3):
            assert_rounded(attend(query, key, value, num_threads=threads), want[0], isa)


@pytest.mark.skipif(bfloat16 is None, reason="needs ml_dtypes")
@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("threads", [1, 2])
def test_only_what_overflows_in_float32_is_computed_again(each_isa, rows, threads):
    """Row 0 is finite in float32 and infinite as bfloat16; row 1, of the same tile, overflows.

    Row 0's other column comes from a weight so small that it would lose bits where weights are made
    smaller for the sum's sake.
    """
    query, key = np.zeros((rows, 2), bfloat16), np.zeros((6, 2), bfloat16)
    value = np.zeros((6, 2), bfloat16)
    query[0, 0] = 128
    key[:, 0] = 1, -1, -1, -1, -1, 0.2421875
    value[:5, 0] = 2.0**127
    value[5, 1] = 1e38
    options = {"scale": 1.0, "dropout_p": 0.49943, "num_threads": threads}
    found = 0
    for seed in range(30):
        options["dropout_seed"] = seed
        want = attend(*widened((query, key, value)), **options)
        found += np.isfinite(want[0]).all() and np.isinf(rounded(want[0, 0], bfloat16))
        for isa in each_isa():
            assert_rounded(attend(query, key, value, **options), want, f"{isa} {seed}")
    assert found


@each_half
def test_subnormal_numbers_count(each_isa, half):
    """They are neither read nor written as 0."""
    least = half(LEAST[half])
    query, key = np.zeros((20, 8), half), np.zeros((40, 8), half)
    value = np.full((40, 3), least, half)
    value[::2, 1] *= half(3)
    for _ in each_isa():
        for rows in (1, 20):
            out = attend(query[:rows], key, value)
            assert (out[:, 0] == least).all()
            assert (out[:, 1] == half(2) * least).all()


@each_half
def test_numpys_error_state(half):
    """Nothing is raised or warned about where results overflow or are NaN, of gradients either."""
    x = normal(40, 8, dtype=half)
    x[3, 2], x[5, 1], x[7, 3] = np.nan, np.inf, LARGEST[half]
    with np.errstate(all="raise"):
        mask = normal(40, 1, dtype=half)  # whose gradient is rounded by NumPy
        out, lse = attend(x, x, x, mask, return_lse=True)
        selfattn.scaled_dot_product_attention_backward(
            *(out, x, x, x, out, lse, mask), mask_grad=True
        )
        selfattn.scaled_dot_product(x, x)
        selfattn.weighted_sum(selfattn.attention_weights(x, x), x)
        selfattn.project_backward(x, x, selfattn.project(x, x)[:8, :8])
        selfattn.merge_states(x, lse, x, lse)


MODES = {
    "flush to zero, denormals are zero": 0x9FC0,
    "round toward zero": 0x7F80,
    "round up": 0x5F80,
    "round down": 0x3F80,
}


@x86_linux
@each_half
@pytest.mark.parametrize("mode", MODES)
def test_the_callers_modes_change_nothing(half, mode):
    """In every function, in the caller's thread and in the pool's, with subnormals among inputs."""
    code = f"""
    import numpy as np, selfattn
    from selfattn import nn
    from support.arrays import HALF_DTYPES, normal
    half = {{np.dtype(x).name: x for x in HALF_DTYPES}}[{np.dtype(half).name!r}]
    x, mask, wide = (normal(*n, dtype=half) for n in ((2, 130, 16), (130, 1), (40, 16)))
    tiny = (normal(2, 130, 16) * {8 * LEAST[half]}).astype(half)
    f = selfattn.scaled_dot_product_attention

    def calls(n):
        for y in (x, tiny):
            out, lse = f(x, x, y, mask, return_lse=True, num_threads=n)
            yield from (out, lse)
            yield from selfattn.scaled_dot_product_attention_backward(
                *(y, x[:1], x, x, out, lse, mask), mask_grad=True, num_threads=n
            )[:4]
            yield f(x[:, :2], x, y, sinks=mask[:2, 0], num_threads=n)
            yield selfattn.scaled_dot_product(x, y, num_threads=n)
            yield selfattn.attention_weights(y, x, num_threads=n)
            yield selfattn.weighted_sum(y, x[:, :16], num_threads=n)
            yield selfattn.softmax(y, num_threads=n)
            yield selfattn.project(y, wide, num_threads=n)
            yield from selfattn.project_backward(y, x, wide[:16], wide[0], num_threads=n)
            yield from selfattn.merge_states(x, lse, y, lse)
            yield nn.rope(y, 7, num_threads=n)
    """
    compare_modes = f"""
    set_mxcsr({MODES[mode]:#x})
    results = [[y.tobytes() for y in calls(n)] for n in (1, 3)]
    set_mxcsr(0x1f80)
    assert results == [[y.tobytes() for y in calls(1)]] * 2
    """
    subprocesses.run(MXCSR, code, compare_modes)
