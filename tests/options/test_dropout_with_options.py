"""Dropout beside masks, sinks, packed sequences, NaN; its bits, its accuracy and its gradients.

Bits of gradients under dropout are in test_backward_bits.py and test_backward_bits_of_options.py,
NaN and infinity in the backward pass in test_backward_poison.py.
"""

import itertools

import numpy as np
import pytest

from selfattn import reference
from support.arrays import normal, qkv, same_bits
from support.compare import assert_close, largest, score_size, unit_roundoff
from support.dropout import DROPOUT, SEED, P, attend, mild, seen_by_backward, seen_by_forward
from support.gradients import backward, grad_of, packed_backward
from support.nonfinite import INF, NAN, is_masked
from support.option_arrays import KINDS, bool_mask, option, part_of, range_mask
from support.packed import LENGTHS, Packed

# ------------------------------------------------------------------ bits of the forward pass


@pytest.mark.parametrize("kind", ["plain", *KINDS])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_bits(each_isa, dtype, kind, rows):
    """Threads, instruction sets, leading slices: the same result, and lse is that of no dropout."""
    query, key, value = qkv((2, 4, rows, 12), 2, 530, 9, dtype=dtype)
    options = {} if kind == "plain" else option(kind, 2, 4, rows, 530, dtype)
    _, lse = attend(query, key, value, enable_gqa=True, **options)
    options = options | DROPOUT | {"enable_gqa": True}
    want = None
    for isa in each_isa():
        got = attend(query, key, value, num_threads=1, **options)
        want = want or got
        assert same_bits(got, want), isa
        assert same_bits(got[1], lse), isa
        for n in (2, 3, 5):
            assert same_bits(attend(query, key, value, num_threads=n, **options), want), (isa, n)
        for b, heads in ((slice(0, 1), slice(0, 4)), (slice(0, 2), slice(0, 2))):
            for queries in (slice(0, rows), slice(0, (rows + 1) // 2)):
                index = b, heads, queries
                kv = slice(0, heads.stop // 2)
                part = part_of(options, *index)
                alone = attend(query[index], key[b, kv], value[b, kv], **part)
                assert same_bits(alone, tuple(x[index] for x in want)), (isa, index)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_threads_that_share_the_splits_of_a_row(isa, dtype, rows):
    arrays = qkv((1, 1, rows, 40), seqlen_k=3000, dtype=dtype)
    want = attend(*arrays, num_threads=1, **DROPOUT)
    for n in (2, 5, 16) * 2:
        assert same_bits(attend(*arrays, num_threads=n, **DROPOUT), want), n


@pytest.mark.parametrize("rows", [1, 40])
def test_right_padding(isa, dtype, rows):
    """Keys behind a length have no part in the elements of those before it."""
    query, key, value = qkv((1, 2, rows, 12), seqlen_k=700, dtype=dtype)
    for length in (0, 1, 31, 128, 129, 511, 513):
        short = attend(query, key[:, :, :length], value[:, :, :length], **DROPOUT)
        padded = attend(query, key, value, kv_lengths=length, **DROPOUT)
        assert same_bits(padded, short), length
        mask = np.arange(700) < length
        assert same_bits(attend(query, key, value, mask, **DROPOUT), short), length


# ------------------------------------------------------------------ masks, sinks, packed sequences


OPTIONS = [
    {"is_causal": True, "query_offset": 50},
    {"window_size": (30, 4), "query_offset": 60},
    {"kv_lengths": np.array([100, 33])},
    {"is_causal": True, "window_size": (20, -1), "query_offset": np.array([-5, 90])},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rows", [2, 40])
def test_what_is_masked_and_what_is_dropped(isa, dtype, options, rows):
    """Each by its own rule; the weights are of all that is seen, dropped or not."""
    query, key = mild(2, 3, rows, 8, dtype=dtype, seqlen_k=140)
    want = reference.dropout_kept((2, 3, rows, 140), P, SEED)
    kept, visible = seen_by_forward(query, key, **options, **DROPOUT)
    assert not visible.all()
    assert np.array_equal(kept, want & visible)
    for kept in seen_by_backward(query, key, **options, **DROPOUT):
        assert np.array_equal(kept, want & visible)


def test_masks_and_segments(isa, dtype):
    for rows in (2, 40):
        query, key = mild(1, 2, rows, 8, dtype=dtype, seqlen_k=140)
        dropped = reference.dropout_kept((1, 2, rows, 140), P, SEED)
        mask = bool_mask(rows, 140)
        ids = np.arange(rows) % 3, np.arange(140) % 3
        for visible, options in (
            (mask, {"attn_mask": mask}),
            (mask, {"attn_mask": np.where(mask, dtype(0.5), dtype(-INF))}),
            (ids[0][:, None] == ids[1], {"segment_ids": ids}),
            (range_mask(rows, 140, True, 70), {"is_causal": True, "query_offset": 70}),
        ):
            kept, weighs = seen_by_forward(query, key, **options, **DROPOUT)
            assert np.array_equal(weighs, np.broadcast_to(visible, weighs.shape))
            assert np.array_equal(kept, dropped & visible)


def test_sinks_are_not_dropped(isa, dtype):
    """They have a share of the sum, kept or not, and lse is what it is without dropout."""
    for rows in (2, 40):
        query, key = mild(1, 2, rows, 8, dtype=dtype, seqlen_k=140)
        sinks = np.array([1.5, -0.5], dtype)
        kept, _ = seen_by_forward(query, key, sinks=sinks, **DROPOUT)
        assert np.array_equal(kept, reference.dropout_kept(kept.shape, P, SEED))


def packed_rows(lengths):
    return [max(pair) for pair in lengths]


@pytest.mark.parametrize("name", ["alike", "ends of blocks", "queries without keys", "many short"])
def test_packed_sequences(isa, dtype, name):
    """Each is an entry of the batch, whose rows and keys count from its own first."""
    packed = Packed(LENGTHS[name], dtype, head_dim_v=max(packed_rows(LENGTHS[name])))
    packed.query /= 2
    for b in range(packed.batch):  # unit matrices, a sequence below the other
        keys = slice(*packed.cu_k[b : b + 2])
        packed.value[keys] = np.eye(*packed.value[keys].shape[::2])[:, None]
    out, lse = packed.attend(**DROPOUT)
    assert same_bits(lse, packed.attend()[1])
    grad_out = np.zeros((packed.total_q, 4, max(packed_rows(LENGTHS[name]))), dtype)
    for b in range(packed.batch):
        rows = slice(*packed.cu_q[b : b + 2])
        grad_out[rows, 0] = np.eye(rows.stop - rows.start, grad_out.shape[2])
    dv = packed_backward(grad_out, packed, **DROPOUT)["value"]
    for b in range(packed.batch):
        rows, keys = (slice(*cu[b : b + 2]) for cu in (packed.cu_q, packed.cu_k))
        count_q, count_k = int(packed.lengths_q[b]), int(packed.lengths_k[b])
        want = reference.dropout_kept((4, count_q, count_k), P, SEED, sequence=b)
        got = out[rows, :, :count_k].swapaxes(0, 1) != 0
        assert np.array_equal(got, want), b
        assert np.array_equal(dv[keys, 0, :count_q].T != 0, want[0]), b


@pytest.mark.parametrize("p", [0.25, 0.9])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_accuracy(isa, dtype, rows, p):
    """out is what the reference says, each weight 1 / (1 - p) as large."""
    for kind in ("plain", "bool", "sinks"):
        query, key, value = qkv((1, 2, rows, 24), seqlen_k=600, dtype=dtype)
        options = {} if kind == "plain" else option(kind, 1, 2, rows, 600, dtype)
        options = options | {"dropout_p": p, "dropout_seed": 3}
        wide = [x.astype(np.float64) for x in (query, key, value)]
        want = reference.scaled_dot_product_attention(*wide, **options)
        got, _ = attend(query, key, value, **options)
        bound = unit_roundoff(dtype) * (8 + 3 * score_size(query, key)) * largest(value) / (1 - p)
        assert_close(got, want, bound, kind)


# ------------------------------------------------------------------ NaN, infinity, nothing to see


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_rows_that_see_nothing(isa, dtype, rows):
    """Fault 1: under dropout too."""
    for seqlen_k in (1, 128, 300):
        query, key, value = (
            x * dtype(NAN) for x in qkv((1, 2, rows, 8), seqlen_k=seqlen_k, dtype=dtype)
        )
        for options in ({"attn_mask": np.zeros((), bool)}, {"kv_lengths": 0}):
            for p in (0.5, 1.0):
                assert is_masked(*attend(query, key, value, dropout_p=p, **options))


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_dropped_is_not_masked(isa, dtype, rows, p):
    """A dropped weight is 0 times its value, which is NaN where that is not finite.

    Fault 5: a masked value is not looked at, dropped or not.
    """
    query, key, value = qkv((1, 1, rows, 8), seqlen_k=200, dtype=dtype)
    mask = bool_mask(rows, 200, share=0.6)
    options = {"attn_mask": mask, "dropout_p": p, "dropout_seed": 2}
    want, _ = attend(query, key, value, **options)
    for j, poison in itertools.product((0, 100, 130, 199), (NAN, INF, -INF)):
        bad = value.copy()
        bad[0, 0, j, 3] = poison
        got, _ = attend(query, key, bad, **options)
        wide = [x.astype(np.float64) for x in (query, key, bad)]
        expected = reference.scaled_dot_product_attention(*wide, **options)
        assert np.array_equal(np.isnan(got), np.isnan(expected)), (j, poison)
        assert np.array_equal(np.isinf(got), np.isinf(expected)), (j, poison)
        reached = ~np.isfinite(expected)
        assert reached[0, 0, mask[:, j], 3].all()
        assert same_bits(got[~reached], want[~reached])


# ------------------------------------------------------------------ gradients


def finite_differences(f, x, step=1e-5):
    """The derivative of f() by each element of x, which f reads, by central differences."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        was = x[index]
        x[index] = was + step
        above = f()
        x[index] = was - step
        below = f()
        x[index] = was
        gradient[index] = (above - below) / (2 * step)
    return gradient


GRADIENTS = {
    "plain": {},
    "causal": {"is_causal": True, "query_offset": 2},
    "window": {"window_size": (3, 1), "query_offset": 3},
    "softcap": {"softcap": 0.8},
    "alibi": {"alibi_slopes": np.array([0.5, 0.1, -0.2, 0.3]), "query_offset": 4},
    "float32 slopes": {"alibi_slopes": np.array([0.5, 0.1, -0.2, 0.3], np.float32)},
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradients_are_those_of_the_function_itself(isa, kind, p):
    """By finite differences of the forward pass in float64, the elements that are kept fixed."""
    query, key, value = qkv((2, 4, 5, 3), 2, 9, 2, dtype=np.float64)
    mask, sinks = normal(1, 4, 5, 9, dtype=np.float64), normal(4, dtype=np.float64)
    mask[0, 1, 2] = -INF
    mask[0, :, :, 4] = -INF
    grad_out = grad_of(query, key, value)
    options = GRADIENTS[kind] | {
        "attn_mask": mask, "sinks": sinks, "enable_gqa": True, "dropout_p": p, "dropout_seed": 7,
    }  # fmt: skip
    got = backward(grad_out, query, key, value, **options)

    def f():
        return (attend(query, key, value, **options)[0] * grad_out).sum()

    inputs = {"query": query, "key": key, "value": value, "attn_mask": mask, "sinks": sinks}
    assert got.keys() == inputs.keys()
    for name, x in inputs.items():
        with np.errstate(invalid="ignore"):
            want = finite_differences(f, x)
        want = np.where(np.isfinite(x), want, 0)
        # The third derivative, times step^2 / 6; the roundings of f, over the step.
        np.testing.assert_allclose(got[name], want, rtol=0, atol=3e-8, err_msg=name)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradients_of_packed_sequences(isa, p):
    packed = Packed([(3, 5), (2, 0), (4, 7)], np.float64, head_dim=3, head_dim_v=2)
    mask, sinks = normal(7, dtype=np.float64), normal(4, dtype=np.float64)
    options = {"attn_mask": mask, "sinks": sinks, "dropout_p": p, "dropout_seed": 7}
    grad_out = normal(packed.total_q, 4, 2, dtype=np.float64, seed=7)
    got = packed_backward(grad_out, packed, **options)

    def f():
        return (packed.attend(**options)[0] * grad_out).sum()

    inputs = dict(zip(("query", "key", "value"), packed.arrays, strict=True))
    for name, x in (inputs | {"attn_mask": mask, "sinks": sinks}).items():
        want = finite_differences(f, x)
        np.testing.assert_allclose(got[name], want, rtol=0, atol=3e-8, err_msg=name)
