"""Gradients where there is NaN, infinity or nothing to see: DESIGN.md's table, line by line.

Faults 1, 2, 4, 5, 6, 7 and 9. What is masked has no part in any gradient, whatever it holds: not a
bit of another one tells what stands there. What is attended reaches what depends on it, and
nothing else: exactly the elements that the reference's plain arithmetic says.
"""

import itertools
import math

import numpy as np
import pytest
from arrays import DTYPES, normal, plain, qkv, same_bits
from gradients import ROWS, assert_same, backward, expected, grad_of
from option_arrays import bool_mask, float_mask, option
from special import INF, NAN, POISON, is_masked

import selfattn

DROPOUT = {"dropout_p": 0.4, "dropout_seed": 11}


def no_gradient(gradients, context=""):
    """All of them exactly 0; a NaN is not."""
    for name, x in gradients.items():
        assert not x.any(), (name, context)


def by_kind(gradients):
    """Where each is NaN, +inf, -inf."""
    return {
        name: np.select([np.isnan(x), x == INF, x == -INF], [1.0, 2.0, 3.0], 0.0)
        for name, x in gradients.items()
    }


def check_reach(clean, poisoned, options, context=""):
    """The gradients of `poisoned` are NaN and inf where the reference's are.

    Those that are by the reference what they are of `clean` have the very same bits. `clean` and
    `poisoned` are grad_out, query, key and value.
    """
    got, want = backward(*poisoned, **options), expected(*poisoned, **options)
    untouched, before = backward(*clean, **options), expected(*clean, **options)
    reached = by_kind(want)
    for name, kind in by_kind(got).items():
        wrong = np.argwhere(kind != reached[name])
        at = tuple(map(int, wrong[0])) if len(wrong) else ()
        assert not len(wrong), (
            f"{name}: {len(wrong)} of {kind.size} not as expected, first at {at}: got "
            f"{got[name][at]}, expected {want[name][at]}; {context}"
        )
        same = want[name] == before[name]
        assert same_bits(got[name][same], untouched[name][same]), (name, context)
    return {name: kind != 0 for name, kind in reached.items()}


# ------------------------------------------------------------------ rows that see no key


def nothing_seen(rows, seqlen_k, dtype):
    """Every way to see no key, alone and on top of what changes scores and weights."""
    ways = [
        {"attn_mask": np.zeros((rows, seqlen_k), bool)},
        {"attn_mask": np.zeros((), bool)},
        {"attn_mask": np.full((rows, 1), -INF, dtype)},
        {"attn_mask": np.full(seqlen_k, -INF, np.float32)},
        {"segment_ids": (np.zeros(rows, int), np.ones(seqlen_k, int))},
        {"segment_ids": (np.full(rows, 5), np.arange(seqlen_k) % 3)},
        {"kv_lengths": 0},
        {"kv_lengths": np.zeros(1, int)},
        {"is_causal": True, "query_offset": -rows},
        {"window_size": (3, 5), "query_offset": seqlen_k + 3},
        {"window_size": (3, 5), "query_offset": -rows - 5},
    ]
    heads = np.array([0.5, 0.1], dtype)
    changed = [
        {},
        {"sinks": heads},
        {"softcap": 2.0, "alibi_slopes": heads, "sinks": heads},
        DROPOUT,
    ]
    for way, more in itertools.product(ways, changed):
        yield way | more


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("seqlen_k", [1, 128, 300])
def test_rows_that_see_no_key(isa, dtype, rows, seqlen_k):
    """Faults 1 and 7, "fully masked row": all is 0, whatever stands in q, K, V and grad_out."""
    arrays = qkv((1, 2, rows, 8), seqlen_k=seqlen_k, dtype=dtype)
    inputs = grad_of(*arrays), *arrays
    for poison in (1.0, *POISON):
        poisoned = [x * dtype(poison) for x in inputs]
        for options in nothing_seen(rows, seqlen_k, dtype):
            for n in (1, 3):
                no_gradient(backward(*poisoned, num_threads=n, **options), (poison, options))


def blind_rows(rows, seqlen_k, dtype):
    """Options under which rows 1, 4, 7, ... see no key, and that say of no other row the same."""
    blind = np.arange(rows) % 3 == 1
    mask = bool_mask(rows, seqlen_k, share=0.6)
    mask[:, 0] = True
    mask[blind] = False
    ids = np.where(blind, 99, np.arange(rows) % 5)
    heads = np.array([0.3, -0.2], dtype)
    for options in (
        {"attn_mask": mask},
        {"attn_mask": np.where(mask, dtype(0.5), dtype(-INF))},
        {"attn_mask": np.where(mask, np.float32(0.5), np.float32(-INF))},
        {"segment_ids": (ids, np.arange(seqlen_k) * 5 // seqlen_k)},
        {"segment_ids": (ids, np.arange(seqlen_k) % 5)},
    ):
        yield blind, options
        yield blind, options | {"sinks": heads}
        yield blind, options | {"sinks": heads, "softcap": 2.0, "alibi_slopes": heads}
        yield blind, options | DROPOUT
    first = np.arange(rows) < (rows + 1) // 2
    for sinks in ({}, {"sinks": heads}):
        yield first, {"is_causal": True, "query_offset": -int(first.sum())} | sinks
        last = {"window_size": (4, 2), "query_offset": seqlen_k + 4 - int(first.sum())}
        yield ~first, last | sinks


@pytest.mark.parametrize("rows", [3, 9, 40, 70])
def test_masked_rows_beside_others(isa, dtype, rows):
    """Faults 1 and 7: what stands in their q and grad_out changes no bit of anything."""
    arrays = qkv((1, 2, rows, 8), seqlen_k=200, dtype=dtype)
    grad_out = grad_of(*arrays)
    query, key, value = arrays
    for blind, options in blind_rows(rows, 200, dtype):
        want = backward(grad_out, query, key, value, **options)
        assert not want["query"][:, :, blind].any(), options
        for x in want.values():
            assert np.isfinite(x).all(), options
        for poison in POISON:
            bad_query, bad_grad = query.copy(), grad_out.copy()
            bad_query[:, :, blind] = bad_grad[:, :, blind] = poison
            for pair in ((grad_out, bad_query), (bad_grad, query), (bad_grad, bad_query)):
                got = backward(*pair, key, value, **options)
                assert_same(got, want, (poison, options))


def test_every_seqlen_k_of_nothing_but_minus_infinity(isa, dtype):
    """Faults 3 and 7: a row of -inf at every S, for one row, few and many."""
    for seqlen_k in range(1, 301):
        for rows in (1, 4, 40):
            if rows == 40 and seqlen_k % 3:
                continue
            query, key, value = plain(rows, seqlen_k, 3, dtype=dtype)
            grad_out = normal(rows, 3, dtype=dtype)
            grad_out[0] = query[0] = NAN
            for seen in (dtype(0), True):
                mask = np.full((rows, seqlen_k), seen)
                mask[0] = -INF if seen is not True else False
                got = backward(grad_out, query, key, value, attn_mask=mask)
                assert not got["query"][0].any(), (seqlen_k, rows)
                for x in got.values():
                    assert np.isfinite(x).all(), (seqlen_k, rows)


# ------------------------------------------------------------------ poison that is masked


KINDS = [
    "bool", "float", "segments", "unsorted", "alibi", "softcap", "sinks", "all",
    "causal", "window", "lengths", "bool, cap", "float, cap", "bool, dropout", "all, dropout",
]  # fmt: skip


def masked(kind, rows, seqlen_k, dtype):
    """Options under which each key is masked for some rows."""
    kind, _, more = kind.partition(", ")
    more = {"": {}, "cap": {"softcap": 1.5}, "dropout": DROPOUT}[more]
    ranges = {
        "causal": {"is_causal": True, "query_offset": seqlen_k // 2},
        "window": {"window_size": (seqlen_k // 3, 2), "query_offset": seqlen_k // 2},
        "lengths": {"kv_lengths": seqlen_k // 2},
    }
    if kind in ranges:
        return ranges[kind] | more
    options = option(kind, 1, 2, rows, seqlen_k, dtype) | more
    if kind in ("alibi", "softcap", "sinks"):
        options |= ranges["causal"]
    return options


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ROWS)
def test_poison_in_keys_that_no_row_sees(isa, dtype, rows, kind):
    """Fault 5: NaN and inf in their K and V change no bit, and their own gradients are 0."""
    query, key, value = qkv((1, 2, rows, 8), seqlen_k=200, head_dim_v=21, dtype=dtype)
    grad_out = grad_of(query, key, value)
    options = masked(kind, rows, 200, dtype)
    options["kv_lengths"] = min(180, options.get("kv_lengths", 200))
    unseen = np.arange(200) >= options["kv_lengths"]
    if "attn_mask" in options:
        mask = options["attn_mask"].copy()
        unseen |= np.arange(200) % 7 < 3
        mask[..., unseen] = False if mask.dtype == bool else -INF
        options["attn_mask"] = mask
    want = backward(grad_out, query, key, value, **options)
    for name in ("key", "value"):
        assert not want[name][:, :, unseen].any()
        assert np.isfinite(want[name]).all()
    for poison in POISON:
        bad_key, bad_value = key.copy(), value.copy()
        bad_key[:, :, unseen] = bad_value[:, :, unseen] = poison
        for pair in ((bad_key, value), (key, bad_value), (bad_key, bad_value)):
            for n in (1, 3):
                got = backward(grad_out, query, *pair, num_threads=n, **options)
                assert_same(got, want, poison)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", ROWS)
def test_poison_reaches_what_depends_on_it(isa, dtype, rows, kind):
    """Fault 5, "NaN or inf that is attended": in an element of q, K, V or grad_out.

    The rows that see a poisoned key, the keys that a poisoned row sees, and nothing else.
    """
    seqlen_k = 150
    arrays = qkv((1, 2, rows, 8), seqlen_k=seqlen_k, head_dim_v=11, dtype=dtype)
    inputs = grad_of(*arrays), *arrays
    options = masked(kind, rows, seqlen_k, dtype)
    places = [(0, 0, 3), (0, rows - 1, 10), (1, rows // 2, 5), (1, 0, 7)]
    places += [(2, j, e) for j, e in ((0, 0), (31, 7), (127, 2), (128, 4))]
    places += [(3, j, e) for j, e in ((1, 10), (64, 0), (126, 7), (149, 8))]
    for (which, row, column), poison in itertools.product(places, POISON):
        poisoned = [x.copy() for x in inputs]
        poisoned[which][0, 1, row, column] = poison
        context = which, row, column, poison
        reached = check_reach(inputs, poisoned, options, context)
        for name, x in reached.items():  # the other head's
            if name != "sinks":
                assert not x[0, 0].any(), context


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("rows", [2, 33])
def test_poison_stays_in_its_head_and_batch_entry(isa, dtype, rows, poison):
    """Fault 5: what a thread has found out of one head's arrays is not taken for another's."""
    arrays = qkv((2, 4, rows, 8), 2, 150, dtype=dtype)
    inputs = grad_of(*arrays), *arrays
    mask = np.ones((rows, 150), bool)
    mask[:, [7, 140]] = False
    mask[rows // 2] = False
    options = {"attn_mask": mask, "enable_gqa": True, "num_threads": 1}
    want = backward(*inputs, **options)
    for which, x in enumerate(inputs):
        for b, h in np.ndindex(x.shape[:2]):
            poisoned = list(inputs)
            poisoned[which] = x.copy()
            poisoned[which][b, h, rows // 2 if which < 2 else [7, 140]] = poison
            assert_same(backward(*poisoned, **options), want, (which, b, h))


@pytest.mark.parametrize("which", range(4), ids=["grad_out", "query", "key", "value"])
def test_poison_in_a_group(isa, dtype, which):
    """GQA: it reaches its own group, and in it the rows and keys that see one another."""
    arrays = qkv((2, 4, 20, 8), 2, 150, dtype=dtype)
    inputs = grad_of(*arrays), *arrays
    for options in ({}, {"is_causal": True, "query_offset": 60}, DROPOUT):
        for poison in POISON:
            poisoned = [x.copy() for x in inputs]
            poisoned[which][1, 1, 3, 2] = poison
            check_reach(inputs, poisoned, options | {"enable_gqa": True}, (poison, options))


def test_a_poisoned_query_at_every_seqlen_k(isa, dtype):
    """Fault 4: it reaches every key that it sees, at every S, and its row alone."""
    for seqlen_k in range(1, 71):
        for rows, bad in ((1, 0), (3, 1), (40, 17)):
            query, key, value = plain(rows, seqlen_k, 8, dtype=dtype)
            grad_out = normal(rows, 8, dtype=dtype)
            want = backward(grad_out, query, key, value)
            query[bad, 5] = NAN
            got = backward(grad_out, query, key, value)
            assert np.isnan(got["query"][bad]).all(), (seqlen_k, rows)
            assert np.isnan(got["key"]).all(), (seqlen_k, rows)
            assert np.isnan(got["value"]).all(), (seqlen_k, rows)
            others = np.arange(rows) != bad
            assert same_bits(got["query"][others], want["query"][others])


# ------------------------------------------------------------------ poison in options


@pytest.mark.parametrize("poison", [NAN, INF])
@pytest.mark.parametrize("rows", ROWS)
def test_poison_in_a_float_mask(isa, dtype, rows, poison):
    """It makes NaN of the row that attends to the key, of the keys that it sees, and no other."""
    for seqlen_k in (1, 17, 140):
        arrays = plain(rows, seqlen_k, 8, dtype=dtype)
        inputs = normal(rows, 8, dtype=dtype), *arrays
        mask = float_mask(rows, seqlen_k, dtype=dtype)
        clean = backward(*inputs, attn_mask=mask)
        for bad, j in {(0, 0), (rows // 2, seqlen_k // 2), (rows - 1, seqlen_k - 1)}:
            worse = mask.copy()
            worse[bad, j] = poison
            got = backward(*inputs, attn_mask=worse)
            want = expected(*inputs, attn_mask=worse)
            assert_same(by_kind(got), by_kind(want), (seqlen_k, bad, j))
            others = np.arange(rows) != bad
            for name in ("query", "attn_mask"):
                assert same_bits(got[name][others], clean[name][others])


@pytest.mark.parametrize("rows", ROWS)
def test_poison_in_a_mask_where_another_rule_masks(isa, dtype, rows):
    """NaN and +inf of a float mask count only where they are attended; their gradient is 0."""
    arrays = plain(rows, 200, 8, dtype=dtype)
    inputs = normal(rows, 8, dtype=dtype), *arrays
    ids_k = np.arange(200) % 3
    for options, unseen in (
        ({"kv_lengths": 130}, np.arange(200) >= 130),
        ({"window_size": (-1, 20), "query_offset": 100}, np.arange(200) > 160),
        ({"segment_ids": (np.ones(rows, int), ids_k)}, ids_k != 1),
    ):
        mask = float_mask(rows, 200, dtype=dtype)
        want = backward(*inputs, attn_mask=mask, **options)
        assert not want["attn_mask"][:, unseen].any()
        for poison in (NAN, INF):
            mask[:, unseen] = poison
            assert_same(backward(*inputs, attn_mask=mask, **options), want, poison)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
def test_slopes_and_sinks_that_are_not_finite(isa, dtype, name, poison):
    """In their own head, and in no other."""
    for rows in ROWS:
        arrays = qkv((3, rows, 8), seqlen_k=140, dtype=dtype)
        inputs = grad_of(*arrays), *arrays
        given = np.array([0.5, 0.25, 0.125], dtype)
        clean = backward(*inputs, query_offset=500, **{name: given})
        given[1] = poison
        got = backward(*inputs, query_offset=500, **{name: given})
        want = expected(*inputs, query_offset=500, **{name: given})
        assert_same(by_kind(got), by_kind(want), rows)
        for gradient, x in got.items():
            assert same_bits(x[::2], clean[gradient][::2]), (gradient, rows)


# ------------------------------------------------------------------ infinite scores


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_infinite_scores_masks_and_caps(isa, dtype, cap):
    """Fault 6: score, mask and cap over a table of 0, 1, infinities and NaN, at two keys."""
    table = [0.0, 1.0, INF, -INF, NAN]
    value = np.array([[1.0], [2.0]], dtype)
    query, grad_out = np.ones((20, 1), dtype), np.full((20, 1), 1.5, dtype)
    # Of numbers of size 4 at most, 20 rows are summed.
    near = 20 * 32 * np.finfo(dtype).eps
    for scores in itertools.product(table, repeat=2):
        key = np.array(scores, dtype)[:, None]
        for masks in itertools.product(table, repeat=2):
            options = {"attn_mask": np.array(masks, dtype), "scale": 1.0, "softcap": cap}
            for rows in (1, 20):
                inputs = grad_out[:rows], query[:rows], key, value
                got, want = backward(*inputs, **options), expected(*inputs, **options)
                context = str((scores, masks, rows))
                assert_same(by_kind(got), by_kind(want), context)
                for name, x in want.items():
                    np.testing.assert_allclose(got[name], x, rtol=0, atol=near, err_msg=context)


@pytest.mark.parametrize("rows", ROWS)
def test_scores_that_are_minus_infinity_by_arithmetic(isa, dtype, rows):
    """Fault 7, "fully masked row": under any option that lets them through they count as masked."""
    for seqlen_k in (1, 17, 128, 300):
        query, key, value = qkv((1, 2, rows, 4), 1, seqlen_k, dtype=dtype)
        grad_out = grad_of(query, key, value)
        query[..., 0] = 1
        key[..., 0] = -INF
        for kind in ("bool", "float", "segments", "unsorted", "alibi", "sinks"):
            options = option(kind, 1, 2, rows, seqlen_k, dtype)
            for poison in (1.0, *POISON):
                got = backward(grad_out * dtype(poison), query, key, value, **options)
                no_gradient(got, (kind, seqlen_k, poison))


@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_of_minus_infinity_beside_others(isa, dtype, rows, sinks):
    """Fault 7: of odd rows, all that the mask lets through is -inf by arithmetic."""
    query, key, value = qkv((1, 2, rows, 4), seqlen_k=160, dtype=dtype)
    grad_out = grad_of(query, key, value)
    odd, bad = np.arange(rows) % 2 == 1, np.arange(160) % 5 == 2
    mask = np.where(odd[:, None], bad, ~bad)
    options = {"sinks": np.array([0.2, -0.3], dtype)} if sinks else {}
    query[..., 0] = np.abs(query[..., 0])
    query[:, :, ~odd, 0] = -query[:, :, ~odd, 0]
    hidden = backward(grad_out, query, key, value, attn_mask=mask & ~odd[:, None], **options)
    key[:, :, bad, 0] = -INF
    for poison in (1.0, NAN, INF):
        bad_grad = grad_out.copy()
        bad_grad[:, :, odd] *= dtype(poison)
        assert_same(
            backward(bad_grad, query, key, value, attn_mask=mask, **options), hidden, poison
        )


@pytest.mark.parametrize("rows", ROWS)
def test_scores_that_overflow(isa, dtype, rows):
    """To -inf, of finite numbers: all of a row, and it counts as masked; some, and they weigh 0."""
    large = dtype(np.sqrt(np.finfo(dtype).max) * 16)
    query, key, value = qkv((1, 1, rows, 4), seqlen_k=140, dtype=dtype)
    grad_out = grad_of(query, key, value)
    query[..., 0], key[..., 0] = large, -large
    out, lse = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True)
    assert is_masked(out, lse)
    no_gradient(backward(grad_out, query, key, value))
    no_gradient(backward(grad_out, query, key, value, sinks=np.ones(1, dtype)))
    key[:, :, ::2, 0] = 0
    query[..., 1:] = 0
    got = backward(grad_out, query, key, value)
    assert not got["key"][:, :, 1::2].any()
    assert not got["value"][:, :, 1::2].any()
    for x in got.values():
        assert not np.isnan(x).any()
    # The keys that are left are alike to the queries: their values are averaged.
    mean = grad_out.astype(np.float64).sum(-2, keepdims=True) / 70
    np.testing.assert_allclose(
        got["value"][:, :, ::2],
        np.broadcast_to(mean, (1, 1, 70, 4)),
        rtol=0,
        atol=32 * np.finfo(dtype).eps,
    )


# ------------------------------------------------------------------ empty axes


@pytest.mark.parametrize("kind", ["plain", "float", "sinks", "dropout"])
def test_empty_axes(isa, dtype, kind):
    """Fault 9: every axis 0, 1 or 2: batch, heads, queries, keys, head_dim, head_dim_v."""
    for batch, heads, rows, seqlen_k, e, e_v in itertools.product((0, 2), *[(0, 1, 2)] * 5):
        arrays = (
            normal(batch, heads, rows, e, dtype=dtype),
            normal(batch, heads, seqlen_k, e, dtype=dtype, seed=1),
            normal(batch, heads, seqlen_k, e_v, dtype=dtype, seed=2),
        )
        grad_out = normal(batch, heads, rows, e_v, dtype=dtype, seed=3)
        options = {
            "plain": {},
            "float": {"attn_mask": normal(rows, seqlen_k, dtype=dtype)},
            "sinks": {"sinks": normal(heads, dtype=dtype)},
            "dropout": DROPOUT,
        }[kind]
        got, want = backward(grad_out, *arrays, **options), expected(grad_out, *arrays, **options)
        for name, x in want.items():
            context = name, batch, heads, rows, seqlen_k, e, e_v
            assert got[name].dtype == dtype, context
            assert got[name].shape == x.shape, context
            # Sums of at most 8 numbers of size 5.
            assert np.abs(got[name] - x).max(initial=0) < 200 * np.finfo(dtype).eps, context


def test_numpy_error_state(isa):
    """Fault 17: nothing is raised or warned about, under any np.errstate, and the state stays."""
    x = normal(40, 8)
    x[3, 2], x[5, 1], x[7, 3], x[9, 0] = NAN, INF, 3e38, 1e-42
    with np.errstate(all="raise"):
        state = np.geterr()
        for dtype in DTYPES:
            y = x.astype(dtype)
            out, lse = selfattn.scaled_dot_product_attention(y, y, y, return_lse=True)
            for options in ({}, {"is_causal": True, "query_offset": -9}):
                selfattn.scaled_dot_product_attention_backward(y, y, y, y, out, lse, **options)
        assert np.geterr() == state
        assert math.isnan(lse[3])
