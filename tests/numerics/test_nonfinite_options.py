"""NaN, infinity and rows that see nothing, under masks, segments, slopes, caps and sinks.

Faults 1, 3, 4, 5 and 6, as far as these options go; those of plain calls are in
test_nonfinite.py, very large numbers in test_extreme_masks.py. The tables of expected values
are plain Python floats.
"""

import itertools
import math

import numpy as np
import pytest

import selfattn
from support.arrays import one_head, qkv, same_bits
from support.compare import check_attention, check_scores
from support.nonfinite import (
    INF,
    NAN,
    POISON,
    ROWS,
    attend,
    check_poisoned_key,
    expected,
    is_masked,
)
from support.option_arrays import bool_mask, float_mask, option, without_sinks


def nothing_seen(rows, seqlen_k, dtype):
    """Every way of these options to see no key, alone and on top of what changes scores."""
    ways = [
        {"attn_mask": np.zeros((rows, seqlen_k), bool)},
        {"attn_mask": np.zeros((), bool)},
        {"attn_mask": np.full((rows, 1), -INF, dtype)},
        {"attn_mask": np.full(seqlen_k, -INF, np.float32)},
        {"segment_ids": (np.zeros(rows, int), np.ones(seqlen_k, int))},
        {"segment_ids": (np.full(rows, 5), np.arange(seqlen_k) % 3)},
    ]
    changed = {"softcap": 2.0, "alibi_slopes": np.array([0.5, 0.1], dtype), "query_offset": 7}
    yield from ways
    yield from (way | changed for way in ways)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("seqlen_k", [1, 127, 128, 300, 700])
def test_rows_that_see_no_key(isa, dtype, rows, seqlen_k):
    """Fault 1, "fully masked row": 0 and -inf, whatever stands in q, K and V."""
    arrays = qkv((1, 2, rows, 8), seqlen_k=seqlen_k, dtype=dtype)
    for poison in (1.0, *POISON):
        query, key, value = (x * dtype(poison) for x in arrays)
        for options in nothing_seen(rows, seqlen_k, dtype):
            for n in (1, 2):
                got = attend(query, key, value, num_threads=n, **options)
                assert is_masked(*got), (options, poison)
            assert not selfattn.attention_weights(query, key, **options).any(), options
            scores = selfattn.scaled_dot_product(query, key, **options)
            assert (scores == -INF).all(), options


@pytest.mark.parametrize("rows", [3, 9, 40, 70])
def test_masked_rows_beside_others(isa, dtype, rows):
    """Fault 1: some rows of a tile see nothing; the others are what they are alone."""
    query, key, value = one_head(rows, 300, 8, dtype=dtype)
    mask = bool_mask(rows, 300)
    blind = np.arange(rows) % 3 == 1
    mask[blind] = False
    ids_k = np.arange(300) // 40
    ids_q = np.where(blind, 99, np.arange(rows) % 5)
    for options in (
        {"attn_mask": mask},
        {"attn_mask": np.where(mask, dtype(0.5), dtype(-INF))},
        {"segment_ids": (ids_q, ids_k)},
        {"segment_ids": (ids_q, ids_k % 6)},
    ):
        out, lse = attend(query, key, value, **options)
        assert is_masked(out[blind], lse[blind])
        assert np.isfinite(lse[~blind]).all()
        rest = dict(options)
        if "attn_mask" in options:
            rest["attn_mask"] = options["attn_mask"][~blind]
        else:
            rest["segment_ids"] = ids_q[~blind], options["segment_ids"][1]
        assert same_bits((out[~blind], lse[~blind]), attend(query[~blind], key, value, **rest))


def test_every_seqlen_k_of_nothing_but_minus_infinity(isa, dtype):
    """Fault 3: a mask of -inf at every S, for one row, few and many; those beside it are finite."""
    for seqlen_k in range(1, 301):
        for rows in (1, 4, 40):
            query, key, value = one_head(rows, seqlen_k, 3, dtype=dtype)
            for seen in (dtype(0), True):
                mask = np.full((rows, seqlen_k), seen)
                mask[0] = -INF if seen is not True else False
                out, lse = attend(query, key, value, attn_mask=mask)
                assert is_masked(out[0], lse[0]), (seqlen_k, rows)
                assert np.isfinite(out[1:]).all(), (seqlen_k, rows)
                assert np.isfinite(lse[1:]).all(), (seqlen_k, rows)


@pytest.mark.parametrize("kind", ["bool", "float", "segments", "unsorted", "alibi", "softcap"])
def test_poisoned_query(isa, dtype, kind):
    """Fault 4: a NaN query gives NaN at every S where it sees a key, and reaches no other row."""
    for seqlen_k in range(1, 71):
        for rows, bad in ((1, 0), (3, 1), (40, 17)):
            query, key, value = qkv((1, 1, rows, 8), seqlen_k=seqlen_k, dtype=dtype)
            options = option(kind, 1, 1, rows, seqlen_k, dtype)
            want = attend(query, key, value, **options)
            sees = np.isfinite(want[1][0, 0, bad])
            query[0, 0, bad, 5] = NAN
            out, lse = attend(query, key, value, **options)
            if sees:
                assert np.isnan(out[0, 0, bad]).all(), (seqlen_k, rows)
                assert np.isnan(lse[0, 0, bad]), (seqlen_k, rows)
            else:
                assert is_masked(out[0, 0, bad], lse[0, 0, bad]), (seqlen_k, rows)
            others = np.arange(rows) != bad
            got = out[0, 0, others], lse[0, 0, others]
            assert same_bits(got, tuple(x[0, 0, others] for x in want))


def masked(kind, rows, seqlen_k, dtype):
    """Options under which each key is masked for some rows."""
    if kind in ("bool", "float", "segments", "unsorted", "all"):
        return option(kind, 1, 1, rows, seqlen_k, dtype)
    causal = {"is_causal": True, "query_offset": 200}
    if kind == "bool and softcap":
        return option("bool", 1, 1, rows, seqlen_k) | {"softcap": 1.5}
    if kind == "float and softcap":
        return option("float", 1, 1, rows, seqlen_k, dtype) | {"softcap": 1.5}
    return option(kind, 1, 1, rows, seqlen_k, dtype) | causal


MASKED = [
    "bool", "float", "segments", "unsorted", "bool and softcap", "float and softcap",
    "alibi", "softcap", "sinks", "all",
]  # fmt: skip


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("rows", ROWS)
def test_poison_in_masked_keys(isa, dtype, rows, kind):
    """Fault 5: NaN and inf in K or V change no bit of a row that does not see them, capped or not.

    "NaN or inf that is attended": it reaches every row that does see them.
    """
    query, key, value = qkv((1, 1, rows, 8), seqlen_k=300, head_dim_v=21, dtype=dtype)
    options = masked(kind, rows, 300, dtype)
    scores = selfattn.scaled_dot_product(query, key, **without_sinks(options))[0, 0]
    visible = np.isfinite(scores)
    assert not visible.all()
    for j in (0, 1, 31, 63, 126, 127, 128, 150, 191, 220, 254, 256, 298, 299):
        check_poisoned_key(query, key, value, j, visible[:, j], **options)


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("rows", ROWS)
def test_poison_in_every_masked_key(isa, dtype, rows, kind):
    """Fault 5: all keys that no row sees, at once; and through the steps on their own."""
    query, key, value = qkv((1, 1, rows, 8), seqlen_k=300, head_dim_v=21, dtype=dtype)
    options = masked(kind, rows, 300, dtype)
    options["kv_lengths"] = 280
    unseen = np.arange(300) >= 280
    if "attn_mask" in options:
        mask = options["attn_mask"].copy()
        unseen |= np.arange(300) % 7 < 3
        unseen[128:256] |= np.arange(128) < 100
        mask[..., unseen] = False if mask.dtype == bool else -INF
        options["attn_mask"] = mask
    no_sinks = without_sinks(options)
    want = attend(query, key, value, **options)
    weights = selfattn.attention_weights(query, key, **options)
    scores = selfattn.scaled_dot_product(query, key, **no_sinks)
    for poison in POISON:
        bad_key, bad_value = key.copy(), value.copy()
        bad_key[:, :, unseen] = bad_value[:, :, unseen] = poison
        for n in (1, 3):
            got = attend(query, bad_key, bad_value, num_threads=n, **options)
            assert same_bits(got, want), poison
        assert same_bits(selfattn.attention_weights(query, bad_key, **options), weights), poison
        assert same_bits(selfattn.scaled_dot_product(query, bad_key, **no_sinks), scores), poison


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("poison", POISON)
def test_poison_in_one_element_of_a_value(isa, dtype, rows, poison):
    """It reaches its own column, of the rows whose mask lets its key through, and no other."""
    query, key, value = qkv((1, 1, rows, 8), seqlen_k=140, head_dim_v=37, dtype=dtype)
    for kind in ("bool", "float", "unsorted"):
        options = option(kind, 1, 1, rows, 140, dtype)
        want, want_lse = attend(query, key, value, **options)
        visible = selfattn.attention_weights(query, key, **options)[0, 0] > 0
        for j, e in itertools.product((0, 1, 127, 128, 139), (0, 15, 16, 31, 36)):
            bad = value.copy()
            bad[0, 0, j, e] = poison
            out, lse = attend(query, key, bad, **options)
            reached = np.zeros((rows, 37), bool)
            reached[visible[:, j], e] = True
            assert same_bits(out[0, 0][~reached], want[0, 0][~reached]), (kind, j, e)
            assert same_bits(out[0, 0][reached], np.full(reached.sum(), poison, dtype))
            assert same_bits(lse, want_lse)


def test_infinite_scores_masks_and_caps(isa, dtype):
    """Fault 6: score, mask and cap over a table of 0, 1, infinities and NaN, at two keys.

    "What masked means": exactly -inf in the mask, whatever the score; else it is arithmetic, which
    a cap makes finite first, and a row of nothing but -inf is as masked.
    """
    table = [0.0, 1.0, INF, -INF, NAN]
    values = [1.0, 2.0]
    value = np.array(values, dtype)[:, None]
    for *scores, first, second in itertools.product(table, repeat=4):
        masks = [first, second]
        query, key = np.ones((20, 1), dtype), np.array(scores, dtype)[:, None]
        for cap in (0.0, 2.0):
            capped = [cap * math.tanh(s / cap) if cap else s for s in scores]
            kept = [k for k in range(2) if masks[k] != -INF]
            out, lse = expected([capped[k] + masks[k] for k in kept], [values[k] for k in kept])
            for rows in (1, 20):
                got, got_lse = attend(
                    query[:rows], key, value, np.array(masks, dtype), scale=1.0, softcap=cap
                )
                # 4 rounded numbers of size 4: 2e-6, 4e-15
                close = {"rtol": 8 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).eps}
                context = str((scores, masks, cap))
                np.testing.assert_allclose(got, np.full((rows, 1), out), err_msg=context, **close)
                np.testing.assert_allclose(got_lse, np.full(rows, lse), err_msg=context, **close)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("poison", [NAN, INF])
def test_poison_in_a_float_mask(isa, dtype, rows, poison):
    """It makes NaN of the row that attends to the key, and reaches no other."""
    for seqlen_k in (1, 5, 17, 128, 300, 520):
        query, key, value = one_head(rows, seqlen_k, 8, dtype=dtype)
        mask = float_mask(rows, seqlen_k, dtype=dtype)
        want = attend(query, key, value, mask)
        for bad, j in {(0, 0), (rows // 2, seqlen_k // 2), (rows - 1, seqlen_k - 1)}:
            worse = mask.copy()
            worse[bad, j] = poison
            out, lse = attend(query, key, value, worse)
            assert np.isnan(out[bad]).all()
            assert np.isnan(lse[bad])
            others = np.arange(rows) != bad
            assert same_bits((out[others], lse[others]), tuple(x[others] for x in want))
            assert np.isnan(selfattn.attention_weights(query, key, worse)[bad]).any()


@pytest.mark.parametrize("rows", ROWS)
def test_poison_in_a_mask_where_another_rule_masks(isa, dtype, rows):
    """NaN and +inf of a float mask count only where they are attended."""
    query, key, value = one_head(rows, 300, 8, dtype=dtype)
    ids_k = np.arange(300) % 3
    for options, unseen in (
        ({"kv_lengths": 130}, np.arange(300) >= 130),
        ({"window_size": (-1, 20), "query_offset": 100}, np.arange(300) > 160),
        ({"segment_ids": (np.ones(rows, int), ids_k)}, ids_k != 1),
    ):
        mask = float_mask(rows, 300, dtype=dtype)
        want = attend(query, key, value, mask, **options)
        weights = selfattn.attention_weights(query, key, mask, **options)
        for poison in (NAN, INF):
            mask[:, unseen] = poison
            assert same_bits(attend(query, key, value, mask, **options), want)
            assert same_bits(selfattn.attention_weights(query, key, mask, **options), weights)


@pytest.mark.parametrize("rows", ROWS)
def test_scores_that_are_minus_infinity_by_arithmetic(isa, dtype, rows):
    """ "Fully masked row": under any option that lets them through they count as masked.

    A cap makes them finite, so there they do not.
    """
    for seqlen_k in (1, 17, 128, 300, 600):
        query, key, value = qkv((1, 1, rows, 4), seqlen_k=seqlen_k, dtype=dtype)
        query[..., 0] = 1
        key[..., 0] = -INF
        for kind in ("bool", "float", "segments", "unsorted", "alibi"):
            options = option(kind, 1, 1, rows, seqlen_k, dtype)
            assert is_masked(*attend(query, key, value, **options)), (kind, seqlen_k)
            assert not selfattn.attention_weights(query, key, **options).any(), (kind, seqlen_k)
        sinks = np.array([0.7], dtype)
        out, lse = attend(query, key, value, sinks=sinks)
        assert same_bits(out, np.zeros_like(out))
        assert (lse == sinks[0]).all()
        out, lse = attend(query, key, value, softcap=2.0)
        mean = np.broadcast_to(value.astype(np.float64).mean(-2, keepdims=True), out.shape)
        near = {"rtol": 0, "atol": 16 * np.finfo(dtype).eps}
        np.testing.assert_allclose(out, mean, **near)
        np.testing.assert_allclose(lse, np.full((1, 1, rows), math.log(seqlen_k) - 2), **near)


@pytest.mark.parametrize("poison", POISON)
def test_slopes_and_sinks_that_are_not_finite(isa, dtype, poison):
    """Arithmetic says what comes of them, in their own head and in no other."""
    for rows in ROWS:
        query, key, value = qkv((3, rows, 8), seqlen_k=140, dtype=dtype)
        for name in ("alibi_slopes", "sinks"):
            given = np.array([0.5, 0.25, 0.125], dtype)
            want = attend(query, key, value, query_offset=500, **{name: given})
            given[1] = poison
            got = attend(query, key, value, query_offset=500, **{name: given})
            assert same_bits(tuple(x[::2] for x in got), tuple(x[::2] for x in want))
            check_attention(query, key, value, query_offset=500, **{name: given})
            check_scores(query, key, query_offset=500, **{name: given})


@pytest.mark.parametrize("sinks", [False, True])
def test_huge_scales(isa, dtype, sinks):
    """The largest scales that the dtype holds leave one key a row, and never NaN."""
    query, key, value = one_head(40, 140, 6, dtype=dtype)
    top = (query.astype(np.float64) @ key.T.astype(np.float64)).argmax(-1)
    options = {"sinks": np.zeros(1, dtype)} if sinks else {}
    largest = float(np.finfo(dtype).max)
    for scale in (largest, largest / 1.2, largest / 1e4, largest**0.5):
        for rows in (slice(0, 2), slice(None)):
            out = selfattn.scaled_dot_product_attention(
                query[rows], key, value, scale=scale, **options
            )
            np.testing.assert_allclose(out, value[top[rows]], rtol=1e-6, err_msg=str(scale))


@pytest.mark.parametrize("rows", [3, 70])
def test_poison_in_the_values_of_one_head(isa, dtype, rows):
    """Fault 5: what a thread has found out of one head's values is not taken for another's."""
    query, key, value = qkv((2, 3, rows, 8), seqlen_k=300, dtype=dtype)
    mask = np.ones(300, bool)
    mask[[7, 200]] = False
    want = selfattn.scaled_dot_product_attention(query, key, value, mask, num_threads=1)
    for b, h in np.ndindex(2, 3):
        bad = value.copy()
        bad[b, h, ~mask] = np.nan
        out = selfattn.scaled_dot_product_attention(query, key, bad, mask, num_threads=1)
        assert same_bits(out, want), (b, h)
