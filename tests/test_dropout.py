"""Dropout, forward and backward: which weights it keeps, and what becomes of all the others.

Values that are the unit matrix show the weights as they are after dropout; so does the gradient of
the values where grad_out is the unit matrix, and the mask's gradient shows what the backward pass
has made of dP. All three are compared with the reference's own elements exactly: not one may
differ, whatever the tile, the thread, the instruction set or the slice. Bits of gradients under
dropout are in test_backward_bits.py too, NaN and infinity in test_backward_special.py.
"""

import itertools

import numpy as np
import pytest
from arrays import normal, qkv, same_bits
from compare import assert_close, largest, score_size, unit_of
from gradients import backward, grad_of, packed_backward
from option_arrays import KINDS, bool_mask, option, part_of, range_mask
from packed import LENGTHS, Packed
from special import INF, NAN, is_masked

import selfattn
from selfattn import reference

P, SEED = 0.4, 12345
DROPOUT = {"dropout_p": P, "dropout_seed": SEED}


def attend(*arrays, **options):
    return selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)


def unit(*leading, n, dtype):
    """The unit matrix n x n, for all of the leading axes."""
    return np.broadcast_to(np.eye(n, dtype=dtype), (*leading, n, n))


def mild(*shape, dtype, heads_kv=None, seqlen_k=None):
    """query and key whose weights are all of about the same size."""
    query, key, _ = qkv(shape, heads_kv, seqlen_k, 1, dtype=dtype)
    return query / 2, key


def seen_by_forward(query, key, **options):
    """What is left of the weights, by out: where it is not 0, and its size there is checked."""
    value = unit(*key.shape[:-2], n=key.shape[-2], dtype=query.dtype)
    out, lse = attend(query, key, value, **options)
    no_dropout = {name: x for name, x in options.items() if not name.startswith("dropout")}
    weights, plain_lse = attend(query, key, value, **no_dropout)
    assert same_bits(lse, plain_lse)
    kept = out != 0
    scaled = weights.astype(np.float64) / (1 - options["dropout_p"])
    np.testing.assert_allclose(out, kept * scaled, rtol=8 * np.finfo(query.dtype).eps, atol=0)
    return kept, weights > 0


def seen_by_backward(query, key, **options):
    """The same by the gradients of value, and of a mask of 0 under values of 1.

    dV is (P D)' where grad_out is 1 for one query each. dmask / P = D dP - delta, where dP is 1.
    """
    rows, dtype = query.shape[-2], query.dtype
    leading = np.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    ones = np.ones((*key.shape[:-1], 1), dtype)
    grad_out = unit(*leading, n=rows, dtype=dtype)
    value = np.broadcast_to(ones, (*key.shape[:-1], rows))
    kept = backward(grad_out, query, key, value, **options)["value"].swapaxes(-1, -2) != 0

    mask = np.zeros((*leading, rows, key.shape[-2]), dtype)
    grad_out = np.ones((*leading, rows, 1), dtype)
    out, _ = attend(query, key, ones, **options)
    dmask = backward(grad_out, query, key, ones, attn_mask=mask, **options)["attn_mask"]
    no_dropout = {name: x for name, x in options.items() if not name.startswith("dropout")}
    weights = selfattn.attention_weights(query, key, **no_dropout)
    with np.errstate(invalid="ignore", divide="ignore"):
        of_dp = np.where(weights > 0, dmask / weights + out, 0)
    return kept, of_dp > 0.5


LENGTHS_Q = [1, 2, 3, 7, 16, 17, 63, 64, 65, 130]
LENGTHS_K = [1, 2, 5, 31, 32, 33, 127, 128, 129, 300]


@pytest.mark.parametrize("rows", LENGTHS_Q)
def test_the_elements_that_are_kept(isa, dtype, rows):
    """By place alone: in few rows and many, around the edges of lanes, chunks, tiles and blocks."""
    for seqlen_k in LENGTHS_K:
        query, key = mild(2, 3, rows, 8, dtype=dtype, seqlen_k=seqlen_k)
        want = reference.dropout_kept((2, 3, rows, seqlen_k), P, SEED)
        kept, weighs = seen_by_forward(query, key, **DROPOUT)
        assert weighs.all()
        assert np.array_equal(kept, want), seqlen_k
        for kept in seen_by_backward(query, key, **DROPOUT):
            assert np.array_equal(kept, want), seqlen_k


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_the_elements_of_many_keys(isa, dtype, rows):
    """Over several splits, and by threads that share them."""
    query, key = mild(1, 1, rows, 8, dtype=dtype, seqlen_k=1300)
    want = reference.dropout_kept((1, 1, rows, 1300), P, SEED)
    for n in (1, 2, 5):
        kept, _ = seen_by_forward(query, key, num_threads=n, **DROPOUT)
        assert np.array_equal(kept, want), n
        for kept in seen_by_backward(query, key, num_threads=n, **DROPOUT):
            assert np.array_equal(kept, want), n


@pytest.mark.parametrize("heads", [(6, 6), (6, 2), (6, 1), (8, 1), (9, 3)], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_heads_are_those_of_the_query(isa, dtype, heads, rows):
    """GQA: each head of a group has elements of its own, wherever in a tile its rows stand."""
    heads_q, heads_kv = heads
    query, key = mild(2, heads_q, rows, 8, dtype=dtype, heads_kv=heads_kv, seqlen_k=70)
    want = reference.dropout_kept((2, heads_q, rows, 70), P, SEED)
    kept, _ = seen_by_forward(query, key, enable_gqa=True, **DROPOUT)
    assert np.array_equal(kept, want)
    grad_out = np.zeros((2, heads_q, rows, rows), dtype)
    for head in range(heads_q):  # one at a time: what a group's share of dV is made of
        grad_out[:] = 0
        grad_out[:, head] = np.eye(rows)
        value = np.ones((2, heads_kv, 70, rows), dtype)
        dv = backward(grad_out, query, key, value, enable_gqa=True, **DROPOUT)["value"]
        of_head = dv[:, head // (heads_q // heads_kv)].swapaxes(-1, -2) != 0
        assert np.array_equal(of_head, want[:, head]), head


BATCHES = [
    ((), ()),
    ((4,), (4,)),
    ((3, 4), (3, 4)),
    ((2, 1, 3, 2), (1, 2, 1, 2)),
    ((2, 3, 2), (2,)),
    ((2,), (3, 2, 2)),
    ((1, 1, 1, 2), (1, 1, 1, 2)),
]


@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_batch_axes_are_counted_from_the_last(isa, dtype, batches):
    """Those of the problem: an entry that an input is broadcast to has its own elements."""
    of_query, of_key = batches
    for rows in (2, 20):
        query = normal(*of_query, rows, 8, dtype=dtype) / 2
        key = normal(*of_key, 40, 8, dtype=dtype, seed=1)
        shape = *np.broadcast_shapes(of_query, of_key), rows, 40
        want = reference.dropout_kept(shape, P, SEED)
        assert np.array_equal(seen_by_forward(query, key, **DROPOUT)[0], want)
        # The last axis before the rows is the heads.
        if of_key == shape[:-2]:
            for kept in seen_by_backward(query, key, **DROPOUT):
                assert np.array_equal(kept, want)


def test_an_axis_that_only_the_values_have(isa, dtype):
    """It is an axis of the batch like any other."""
    query, key = mild(1, 2, 20, 8, dtype=dtype, seqlen_k=30)
    value = unit(3, 2, n=30, dtype=dtype)
    out, _ = attend(query, key, value, **DROPOUT)
    assert np.array_equal(out != 0, reference.dropout_kept((3, 2, 20, 30), P, SEED))


# ------------------------------------------------------------------ seeds and probabilities


def test_seeds(isa, dtype):
    """Whole numbers of 64 bits, with a sign or without; each has its own elements."""
    query, key = mild(1, 2, 20, 8, dtype=dtype, seqlen_k=60)
    masks = []
    for seed in (0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1):
        kept, _ = seen_by_forward(query, key, dropout_p=P, dropout_seed=seed)
        assert np.array_equal(kept, reference.dropout_kept(kept.shape, P, seed)), seed
        masks.append(kept)
        same = [seed - 2**64] if seed >= 2**63 else []
        same += [np.uint64(seed), np.array(seed, np.uint64)]
        for other in same:
            again, _ = seen_by_forward(query, key, dropout_p=P, dropout_seed=other)
            assert np.array_equal(again, kept), other
    for a, b in itertools.combinations(masks, 2):
        agree = (a == b).mean()
        assert abs(agree - (P**2 + (1 - P) ** 2)) < 0.07  # 2,400 elements: 7 sigma


PROBABILITIES = [
    2.0**-34, 2.0**-33, 2.0**-32, 1e-3, 0.1, 1 / 3, 0.5, 0.9, 0.999,
    1 - 2.0**-31, 1 - 2.0**-33, 1 - 2.0**-53, 1.0,
]  # fmt: skip


@pytest.mark.parametrize("p", PROBABILITIES)
def test_probabilities(isa, dtype, p):
    """From the least that drops anything to those that drop all."""
    query, key = mild(1, 2, 40, 8, dtype=dtype, seqlen_k=300)
    value = unit(1, 2, n=300, dtype=dtype)
    want = reference.dropout_kept((1, 2, 40, 300), p, SEED)
    if p > 1 - 1e-6:
        assert not want.any()
    options = {"dropout_p": p, "dropout_seed": SEED}
    if p < 1:
        kept, _ = seen_by_forward(query, key, **options)
        assert np.array_equal(kept, want)
        grad_out = unit(1, 2, n=40, dtype=dtype)
        dv = backward(grad_out, query, key, value[..., :40], **options)["value"]
        assert np.array_equal(dv.swapaxes(-1, -2) != 0, want)
        np.testing.assert_allclose(
            dv.swapaxes(-1, -2),
            np.where(want, selfattn.attention_weights(query, key).astype(np.float64) / (1 - p), 0),
            rtol=64 * np.finfo(dtype).eps,
        )
    if not want.any():
        out, lse = attend(query, key, value, **options)
        assert not out.any()
        assert same_bits(lse, attend(query, key, value)[1])
        mask, sinks = normal(40, 300, dtype=dtype), normal(2, dtype=dtype)
        gradients = backward(
            np.ones_like(out), query, key, value, attn_mask=mask, sinks=sinks, **options
        )
        for name, x in gradients.items():
            assert not x.any(), name


def test_a_probability_of_zero_is_no_dropout(isa, dtype):
    arrays = qkv((1, 2, 40, 8), seqlen_k=300, dtype=dtype)
    want = attend(*arrays)
    for p in (0, 0.0, -0.0, np.float32(0), False * 1.0):
        for seed in (0, 1, -5):
            assert same_bits(attend(*arrays, dropout_p=p, dropout_seed=seed), want)


def test_numbers_of_any_kind(isa, dtype):
    """A probability may be an int, a NumPy number, an array of one."""
    arrays = qkv((1, 2, 9, 8), seqlen_k=30, dtype=dtype)
    want = attend(*arrays, dropout_p=0.5)
    for p in (np.float32(0.5), np.float64(0.5), np.array(0.5), np.float16(0.5)):
        assert same_bits(attend(*arrays, dropout_p=p), want)
    assert not attend(*arrays, dropout_p=1)[0].any()


def test_the_steps_have_no_dropout():
    arrays = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    for step in (selfattn.scaled_dot_product, selfattn.attention_weights):
        with pytest.raises(TypeError, match="unexpected keyword argument 'dropout_p'"):
            step(*arrays, dropout_p=0.5)


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
        for index in (np.s_[:1], np.s_[:, :2], np.s_[:1, :2], np.s_[:, :, : (rows + 1) // 2]):
            b, heads, queries = (
                (*index, *[slice(None)] * 3)[:3]
                if type(index) is tuple
                else (index, slice(None), slice(None))
            )
            kv = slice(0, 1) if heads.stop else slice(None)
            part = part_of(options, b, heads, queries)
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


# ------------------------------------------------------------------ beside other options


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


def packed_rows(lengths):
    return [max(pair) for pair in lengths]


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
        bound = unit_of(dtype) * (8 + 3 * score_size(query, key)) * largest(value) / (1 - p)
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


# ------------------------------------------------------------------ statistics


def test_the_kept_fraction_and_independence(isa):
    """Of the kernels' own elements, 500,000 of them: within 5 standard deviations of chance.

    The fraction, and how neighbours along keys, rows and heads, and two seeds, go together.
    """
    query, key = mild(1, 4, 250, 4, dtype=np.float32, seqlen_k=500)
    for p in (0.1, 0.5, 0.8):
        masks = []
        for seed in (0, 1):
            kept, _ = seen_by_forward(query, key, dropout_p=p, dropout_seed=seed)
            x = kept[0].astype(np.float64) - (1 - p)
            variance = p * (1 - p)
            assert abs(x.mean()) < 5 * np.sqrt(variance / x.size), (p, seed)
            pairs = {
                "keys": (x[..., 1:], x[..., :-1]),
                "keys a vector apart": (x[..., 8:], x[..., :-8]),
                "keys a block apart": (x[..., 128:], x[..., :-128]),
                "rows": (x[:, 1:], x[:, :-1]),
                "rows and keys": (x[:, 1:, 1:], x[:, :-1, :-1]),
                "rows and keys back": (x[:, 1:, :-1], x[:, :-1, 1:]),
                "heads": (x[1:], x[:-1]),
            }
            for name, (a, b) in pairs.items():
                assert abs((a * b).mean()) < 5 * variance / np.sqrt(a.size), (p, seed, name)
            for axis in (-1, -2):  # as many in a row, or in a column, as of so many draws
                sums = x.sum(axis) / np.sqrt(variance * x.shape[axis])
                spread = (sums**2).mean()
                assert abs(spread - 1) < 5 * np.sqrt(2 / sums.size), (p, seed, axis)
            masks.append(x)
        assert abs((masks[0] * masks[1]).mean()) < 5 * variance / np.sqrt(x.size), p


def test_the_mean_over_seeds_is_the_result_without(isa):
    """Inverted dropout: nothing is to be scaled afterwards."""
    query, key, value = qkv((1, 1, 4, 8), seqlen_k=50, dtype=np.float64)
    want, _ = attend(query, key, value)
    outs = np.stack(
        [attend(query, key, value, dropout_p=0.5, dropout_seed=s)[0] for s in range(1000)]
    )
    off = np.abs(outs.mean(0) - want)
    assert (off < 5 * outs.std(0) / np.sqrt(1000)).all()


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
