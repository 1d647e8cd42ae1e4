"""NaN and infinity in what the backward pass is given: they reach what depends on them alone.

Faults 4, 5 and 7. What is masked has no part in any gradient, whatever it holds: not a bit of
another one tells what stands there. What is attended reaches exactly the elements that the
reference's plain arithmetic says.
"""

import itertools

import numpy as np
import pytest

from support.arrays import normal, one_head, qkv, same_bits
from support.gradients import DROPOUT, ROWS, assert_same, backward, by_kind, expected, grad_of
from support.nonfinite import INF, NAN, POISON
from support.option_arrays import float_mask, option


def before(each_isa, inputs, options):
    """The gradients of what is not poisoned yet: each kernel set's and the reference's."""
    return {isa: backward(*inputs, **options) for isa in each_isa()}, expected(*inputs, **options)


def check_reach(each_isa, clean, poisoned, options, context=""):
    """In every kernel set the gradients of `poisoned` are NaN and inf where the reference's are.

    Those that by the reference are what they were before have the very same bits. Where others
    are, by name, is returned.
    """
    of_kernels, of_reference = clean
    want = expected(*poisoned, **options)
    reached = by_kind(want)
    for isa in each_isa():
        got = backward(*poisoned, **options)
        for name, kind in by_kind(got).items():
            wrong = np.argwhere(kind != reached[name])
            at = tuple(map(int, wrong[0])) if len(wrong) else ()
            assert not len(wrong), (
                f"{name}: {len(wrong)} of {kind.size} not as expected, first at {at}: got "
                f"{got[name][at]}, expected {want[name][at]}; {isa}, {context}"
            )
            same = want[name] == of_reference[name]
            assert same_bits(got[name][same], of_kernels[isa][name][same]), (name, isa, context)
    return {name: kind != 0 for name, kind in reached.items()}


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
def test_poison_reaches_what_depends_on_it(each_isa, dtype, rows, kind):
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
    clean = before(each_isa, inputs, options)
    for (which, row, column), poison in itertools.product(places, POISON):
        poisoned = [x.copy() for x in inputs]
        poisoned[which][0, 1, row, column] = poison
        context = which, row, column, poison
        reached = check_reach(each_isa, clean, poisoned, options, context)
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
def test_poison_in_a_group(each_isa, dtype, which):
    """GQA: it reaches its own group, and in it the rows and keys that see one another."""
    arrays = qkv((2, 4, 20, 8), 2, 150, dtype=dtype)
    inputs = grad_of(*arrays), *arrays
    for more in ({}, {"is_causal": True, "query_offset": 60}, DROPOUT):
        options = more | {"enable_gqa": True}
        clean = before(each_isa, inputs, options)
        for poison in POISON:
            poisoned = [x.copy() for x in inputs]
            poisoned[which][1, 1, 3, 2] = poison
            check_reach(each_isa, clean, poisoned, options, (poison, more))


def test_a_poisoned_query_at_every_seqlen_k(isa, dtype):
    """Fault 4: it reaches every key that it sees, at every S, and its row alone."""
    for seqlen_k in range(1, 71):
        for rows, bad in ((1, 0), (3, 1), (40, 17)):
            query, key, value = one_head(rows, seqlen_k, 8, dtype=dtype)
            grad_out = normal(rows, 8, dtype=dtype)
            want = backward(grad_out, query, key, value)
            query[bad, 5] = NAN
            got = backward(grad_out, query, key, value)
            assert np.isnan(got["query"][bad]).all(), (seqlen_k, rows)
            assert np.isnan(got["key"]).all(), (seqlen_k, rows)
            assert np.isnan(got["value"]).all(), (seqlen_k, rows)
            others = np.arange(rows) != bad
            assert same_bits(got["query"][others], want["query"][others])


# ------------------------------------------------------------------ options


@pytest.mark.parametrize("poison", [NAN, INF])
@pytest.mark.parametrize("rows", ROWS)
def test_poison_in_a_float_mask(isa, dtype, rows, poison):
    """It makes NaN of the row that attends to the key, of the keys that it sees, and no other."""
    for seqlen_k in (1, 17, 140):
        arrays = one_head(rows, seqlen_k, 8, dtype=dtype)
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
    arrays = one_head(rows, 200, 8, dtype=dtype)
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
