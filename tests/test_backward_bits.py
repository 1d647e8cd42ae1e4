"""A gradient has the same bits, whatever else is in the call and whatever computes it.

Fault 30, as test_bits.py has it of the forward pass, for all gradients at once: threads, threads
that share one head, batches, slices, layouts, padding, what a mask and a range both say, packed
sequences, dropout and the instruction sets. Of keys and values the gradient is a sum over all
queries of a head, and the order of that sum may depend on nothing but the head's own shape.
Every comparison is of bits: not a single one may differ.
"""

import itertools

import numpy as np
import pytest
from arrays import normal, qkv, same_bits
from gradients import ROWS, assert_same, backward, grad_of, packed_backward, part, upon
from option_arrays import KINDS, bool_mask, broadcasts, float_mask, option, part_of, range_mask
from packed import LENGTHS, OPTIONS, Packed, of_sequence

import selfattn

THREADS = [1, 2, 3, 5, 16]
DROPOUT = {"dropout_p": 0.3, "dropout_seed": 5}
ALL_KINDS = ["plain", *KINDS, "causal", "window", "lengths", "dropout", "all and dropout"]


def options_of(kind, batch, heads, seqlen_q, seqlen_k, dtype):
    """Those of option_arrays.option, of ranges, and dropout alone or on top of all of them."""
    ranges = {
        "plain": {},
        "causal": {"is_causal": True, "query_offset": seqlen_k // 2},
        "window": {"window_size": (seqlen_k // 3, 2), "query_offset": seqlen_k // 2},
        "lengths": {"kv_lengths": np.resize([seqlen_k * 3 // 4, 1], batch)},
        "dropout": DROPOUT,
    }
    if kind in ranges:
        return ranges[kind]
    if kind == "all and dropout":
        return option("all", batch, heads, seqlen_q, seqlen_k, dtype) | DROPOUT
    return option(kind, batch, heads, seqlen_q, seqlen_k, dtype)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("rows", [70, 3])
def test_threads(isa, dtype, kind, rows):
    arrays = qkv((2, 4, rows, 20), 2, 300, 12, dtype=dtype)
    options = options_of(kind, 2, 4, rows, 300, dtype) | {"enable_gqa": True}
    grad_out = grad_of(*arrays)
    want = backward(grad_out, *arrays, num_threads=1, **options)
    for n in THREADS[1:]:
        assert_same(backward(grad_out, *arrays, num_threads=n, **options), want, n)


@pytest.mark.parametrize("kind", ["plain", "causal", "float", "sinks", "all and dropout"])
@pytest.mark.parametrize(
    ("rows", "seqlen_k"), [(1, 2500), (3, 1100), (700, 40), (1300, 300), (200, 700)]
)
def test_threads_that_share_one_head(isa, dtype, kind, rows, seqlen_k):
    """More threads than heads: many keys, many queries, or both are cut among them.

    Several times, since who takes which part is chance.
    """
    arrays = qkv((1, 1, rows, 24), seqlen_k=seqlen_k, dtype=dtype)
    options = options_of(kind, 1, 1, rows, seqlen_k, dtype)
    grad_out = grad_of(*arrays)
    want = backward(grad_out, *arrays, num_threads=1, **options)
    for n in THREADS[1:] * (3 if rows * seqlen_k < 50_000 else 1):
        assert_same(backward(grad_out, *arrays, num_threads=n, **options), want, n)


@pytest.mark.parametrize("group", [2, 5, 8])
def test_threads_that_share_one_group(isa, dtype, group):
    """One key/value head of many query heads: its gradient is a sum over all of them."""
    arrays = qkv((1, group, 90, 16), 1, 200, dtype=dtype)
    options = {"enable_gqa": True, "is_causal": True, "query_offset": 60}
    grad_out = grad_of(*arrays)
    want = backward(grad_out, *arrays, num_threads=1, **options)
    for n in THREADS[1:] * 2:
        assert_same(backward(grad_out, *arrays, num_threads=n, **options), want, n)


def test_every_number_of_threads(dtype):
    """Fault 13: 1 to 40 and far more than there are tiles, rows or blocks."""
    for shape, seqlen_k in (((1, 1, 150, 8), 300), ((2, 3, 20, 8), 30)):
        arrays = qkv(shape, seqlen_k=seqlen_k, dtype=dtype)
        grad_out = grad_of(*arrays)
        want = backward(grad_out, *arrays, num_threads=1)
        for n in [*range(2, 41), 96, 500, 1024]:
            assert_same(backward(grad_out, *arrays, num_threads=n), want, n)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("rows", [2, 75])
def test_batch_and_head_slices(isa, dtype, kind, rows):
    """A batch entry alone, and a group of heads alone, with the key/value head that they share.

    Dropout counts batch and heads from the first, so that only leading slices keep its mask.
    """
    arrays = qkv((3, 6, rows, 12), 2, 300, 9, dtype=dtype)
    options = options_of(kind, 3, 6, rows, 300, dtype) | {"enable_gqa": True}
    grad_out = grad_of(*arrays)
    whole = backward(grad_out, *arrays, **options)
    leading = "dropout_p" in options
    batches = [slice(0, 1), slice(0, 2), *([] if leading else [slice(2, 3), slice(1, 3)])]
    for b, kv in itertools.product(batches, (slice(0, 2), slice(0, 1), slice(1, 2))):
        if leading and kv.start:
            continue
        heads = slice(kv.start * 3, kv.stop * 3)
        index = b, heads
        query, key, value = arrays[0][index], arrays[1][b, kv], arrays[2][b, kv]
        less = part_of(options, b, heads)
        if "kv_lengths" in less:
            less["kv_lengths"] = less["kv_lengths"][b]
        alone = backward(grad_out[index], query, key, value, **less)
        want = part(whole, query=index, key=(b, kv), value=(b, kv), attn_mask=index)
        assert_same(part(alone, **dict.fromkeys(want, ...)), want, (b, kv))
    if "sinks" in whole:  # a sum over the batch, so of all of it
        query, key, value = arrays[0][:, :3], arrays[1][:, :1], arrays[2][:, :1]
        alone = backward(grad_out[:, :3], query, key, value, **part_of(options, heads=slice(0, 3)))
        assert same_bits(alone["sinks"], whole["sinks"][:3])


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 2, 0]])
def test_order_of_the_batch(isa, dtype, order):
    """Fault 30: entries in another order, and one of them twice."""
    arrays = qkv((3, 2, 33, 12), seqlen_k=140, dtype=dtype)
    grad_out = grad_of(*arrays)
    whole = backward(grad_out, *arrays)
    moved = backward(grad_out[order], *(x[order] for x in arrays))
    assert_same(moved, part(whole, query=order, key=order, value=order))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4,), (2, 2)], ids=str)
def test_axes_of_one_change_nothing(isa, dtype, shape):
    """No batch axis, one, several, of one entry or four: in dropout's mask neither."""
    size = int(np.prod(shape))
    arrays = qkv((size, 2, 20, 8), seqlen_k=50, dtype=dtype)
    grad_out = grad_of(*arrays)
    # Entries of a batch are counted along each axis: a mask of its own for each shape.
    for options in ({}, {"is_causal": True}, *([DROPOUT] if shape != (2, 2) else [])):
        want = backward(grad_out, *arrays, **options)
        shaped = [x.reshape(*shape, *x.shape[1:]) for x in (grad_out, *arrays)]
        got = backward(*shaped, **options)
        assert_same({name: x.reshape(want[name].shape) for name, x in got.items()}, want, options)


@pytest.mark.parametrize("kind", ["plain", "float", "alibi", "all"])
def test_a_run_of_rows_alone(isa, dtype, kind):
    """Of a query, and of its row of the mask, the gradient is its own: no other row has a part."""
    query, key, value = qkv((1, 4, 70, 24), 2, 260, 20, dtype=dtype)
    grad_out = grad_of(query, key, value)
    options = options_of(kind, 1, 4, 70, 260, dtype) | {"enable_gqa": True, "is_causal": True}
    options["query_offset"] = 150
    whole = backward(grad_out, query, key, value, **options)
    for count in (1, 3, 8, 17, 64):
        for first in range(0, 70, count * (5 if count == 1 else 1)):
            rows = slice(first, min(first + count, 70))
            index = np.s_[:, :, rows]
            less = part_of(options, rows=rows)
            alone = backward(grad_out[index], query[index], key, value, **less)
            want = part(whole, query=index, attn_mask=index)
            assert_same(part(alone, **dict.fromkeys(want, ...)), want, rows)


@pytest.mark.parametrize("rows", [1, 40])
def test_right_padding(isa, dtype, rows):
    """Keys behind kv_lengths against keys that are not there: their gradients are 0."""
    query, key, value = qkv((1, 2, rows, 12), seqlen_k=700, dtype=dtype)
    grad_out = grad_of(query, key, value)
    for length in (0, 1, 4, 31, 32, 33, 127, 128, 129, 200, 511, 512, 513, 699):
        padded = backward(grad_out, query, key, value, kv_lengths=np.array([length]))
        short = backward(grad_out, query, key[:, :, :length], value[:, :, :length])
        kept = np.s_[:, :, :length]
        assert_same(part(padded, query=..., key=kept, value=kept), short, length)
        assert not padded["key"][:, :, length:].any(), length
        assert not padded["value"][:, :, length:].any(), length


def test_queries_that_see_nothing_at_the_end(isa, dtype):
    """Rows that pad a batch at its end change no bit of what the keys get, whatever they hold."""
    query, key, value = qkv((1, 4, 100, 12), 2, 150, dtype=dtype)
    grad_out = grad_of(query, key, value)
    for length in (1, 15, 16, 31, 33, 63, 64, 65, 99):
        rows = np.s_[:, :, :length]
        mask = np.ones((100, 150), bool)
        mask[length:] = False
        options = {"enable_gqa": True}
        padded = backward(grad_out, query, key, value, attn_mask=mask, **options)
        short = backward(grad_out[rows], query[rows], key, value, **options)
        assert_same(part(padded, query=rows, key=..., value=...), short, length)
        assert not padded["query"][:, :, length:].any(), length


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_instruction_sets(each_isa, dtype, kind):
    """The same operations in the same order: no set differs from another."""
    for rows in ROWS:
        for seqlen_k, head_dim, head_dim_v in (
            (60, 7, 5),
            (300, 64, 64),
            (90, 130, 1),
            (140, 1, 33),
        ):
            arrays = qkv((1, 2, rows, head_dim), 1, seqlen_k, head_dim_v, dtype=dtype)
            options = options_of(kind, 1, 2, rows, seqlen_k, dtype) | {"enable_gqa": True}
            grad_out = grad_of(*arrays)
            results = {isa: backward(grad_out, *arrays, **options) for isa in each_isa()}
            first, want = next(iter(results.items()))
            for isa, got in results.items():
                assert_same(got, want, (isa, first, rows, seqlen_k, head_dim))


@pytest.mark.parametrize("scale", [-3.0, 0.0, 1e-3, 30.0])
def test_instruction_sets_and_scales(each_isa, dtype, scale):
    for rows in ROWS:
        arrays = qkv((1, 2, rows, 20), seqlen_k=170, dtype=dtype)
        grad_out = grad_of(*arrays)
        for softcap in (0.0, 2.0):
            results = [
                backward(grad_out, *arrays, scale=scale, softcap=softcap) for _ in each_isa()
            ]
            for got in results[1:]:
                assert_same(got, results[0], (rows, softcap))


# ------------------------------------------------------------------ layouts


LAYOUTS = {
    "BSHD": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
    "Fortran": np.asfortranarray,
    "columns first": lambda x: np.ascontiguousarray(x.swapaxes(-2, -1)).swapaxes(-2, -1),
    "every other": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
    "all reversed": lambda x: np.flip(np.flip(x).copy()),
    "padded": lambda x: np.pad(x, 2)[(slice(2, -2),) * x.ndim],
    "unaligned": lambda x: np.ndarray(x.shape, x.dtype, b"." + x.tobytes(), 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("rows", [2, 37])
def test_memory_layout(isa, dtype, name, rows):
    """Faults 10 and 19: each input as it may lie in memory, one at a time, then all."""
    arrays = qkv((2, 4, rows, 20), 2, 150, 13, dtype=dtype)
    mask = float_mask(2, 4, rows, 150, dtype=dtype)
    options = {"enable_gqa": True, "is_causal": True, "query_offset": 100}
    options["sinks"] = normal(4, dtype=dtype)
    out, lse = selfattn.scaled_dot_product_attention(
        *arrays, attn_mask=mask, return_lse=True, **options
    )
    inputs = grad_of(*arrays), *arrays, out, lse, mask

    def call(grad_out, query, key, value, out, lse, mask):
        return upon(grad_out, query, key, value, out=out, lse=lse, attn_mask=mask, **options)

    want = call(*inputs)
    for which in (*((i,) for i in range(len(inputs))), range(len(inputs))):
        moved = [LAYOUTS[name](x) if i in which else x for i, x in enumerate(inputs)]
        assert all(map(same_bits, moved, inputs))
        assert_same(call(*moved), want, which)


@pytest.mark.parametrize("name", LAYOUTS)
def test_memory_layout_of_packed_sequences(isa, dtype, name):
    packed = Packed(LENGTHS["ends of blocks"], dtype)
    out, lse = packed.attend()
    inputs = normal(*out.shape, dtype=dtype), *packed.arrays, out, lse

    def call(*inputs):
        gradients = selfattn.varlen_attention_backward(
            *inputs, packed.cu_q, packed.cu_k, enable_gqa=True
        )
        return dict(zip(("query", "key", "value"), gradients[:3], strict=True))

    layout = LAYOUTS["Fortran" if name == "BSHD" else name]
    want = call(*inputs)
    for which in (*((i,) for i in range(len(inputs))), range(len(inputs))):
        assert_same(call(*(layout(x) if i in which else x for i, x in enumerate(inputs))), want)


@pytest.mark.parametrize("seqlen_k", [1, 31, 33, 129])
def test_inputs_by_stride_zero(isa, dtype, seqlen_k):
    """Fault 11: an input that repeats itself by a stride of 0 has a gradient of its whole shape."""
    arrays = qkv((2, 3, 20, 12), seqlen_k=seqlen_k, dtype=dtype)
    inputs = grad_of(*arrays), *arrays
    for index in (np.s_[:1], np.s_[:, :1], np.s_[:, :, :1], np.s_[..., :1]):
        for which in ((0,), (1,), (2,), (3,), (0, 1, 2, 3)):
            moved = [
                np.broadcast_to(x[index], x.shape) if i in which else x
                for i, x in enumerate(inputs)
            ]
            want = backward(*map(np.ascontiguousarray, moved))
            assert_same(backward(*moved), want, (index, which))


# ------------------------------------------------------------------ axes that broadcast


SHARED = [
    ((2, 3, 4, 20, 8), (1, 3, 4, 30, 8), (2, 1, 4, 30, 8)),
    ((1, 1, 4, 20, 8), (2, 3, 4, 30, 8), (2, 3, 4, 30, 8)),
    ((4, 20, 8), (2, 3, 2, 30, 8), (3, 2, 30, 8)),
    ((2, 3, 6, 20, 8), (1, 30, 8), (30, 8)),
    ((1, 1, 1, 1, 8), (2, 3, 4, 300, 8), (1, 1, 1, 300, 8)),
    ((5, 1, 2, 150, 8), (1, 1, 1, 30, 8), (1, 1, 1, 30, 8)),
]


@pytest.mark.parametrize("shapes", SHARED, ids=str)
def test_threads_and_inputs_that_broadcast(isa, dtype, shapes):
    """An axis that an input lacks or has 1 of: several threads add to its gradient."""
    query, key, value = (normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    out = selfattn.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    grad_out = normal(*out.shape, dtype=dtype, seed=7)
    for options in ({}, DROPOUT):
        options = options | {"enable_gqa": True}
        want = backward(grad_out, query, key, value, num_threads=1, **options)
        assert [x.shape for x in want.values()] == list(shapes)
        for n in THREADS[1:] * 2:
            assert_same(backward(grad_out, query, key, value, num_threads=n, **options), want, n)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_threads_and_masks_of_every_shape(isa, dtype, kind):
    """The mask's gradient is a sum over every axis that the mask broadcasts."""
    if dtype == np.float32 and kind == np.float64:
        return
    scores = 2, 4, 21, 140
    arrays = qkv((2, 4, 21, 8), 2, 140, dtype=dtype)
    grad_out = grad_of(*arrays)
    for shape in {(), *broadcasts(scores)}:
        mask = np.asarray(float_mask(*shape, dtype=kind))
        if not shape:
            mask = np.asarray(0.5, kind)
        options = {"attn_mask": mask, "enable_gqa": True}
        want = backward(grad_out, *arrays, num_threads=1, **options)
        assert want["attn_mask"].shape == shape
        for n in (2, 3, 16):
            assert_same(backward(grad_out, *arrays, num_threads=n, **options), want, (shape, n))


def test_what_is_asked_for_changes_no_other_gradient(isa, dtype):
    """With the mask's and the sinks' gradients, or without."""
    for rows in ROWS:
        arrays = qkv((1, 4, rows, 12), 2, 150, dtype=dtype)
        options = option("float", 1, 4, rows, 150, dtype) | option("sinks", 1, 4, rows, 150, dtype)
        out, lse = selfattn.scaled_dot_product_attention(
            *arrays, enable_gqa=True, return_lse=True, **options
        )
        results = [
            selfattn.scaled_dot_product_attention_backward(
                *(grad_of(*arrays), *arrays, out, lse),
                enable_gqa=True,
                mask_grad=mask_grad,
                sinks_grad=sinks_grad,
                **options,
            )
            for mask_grad, sinks_grad in itertools.product((True, False), repeat=2)
        ]
        both, mask, sinks, neither = results
        assert neither.attn_mask is neither.sinks is mask.sinks is sinks.attn_mask is None
        assert same_bits(mask.attn_mask, both.attn_mask)
        assert same_bits(sinks.sinks, both.sinks)
        for result in results[1:]:
            assert same_bits(tuple(result[:3]), tuple(both[:3]))


# ------------------------------------------------------------------ what says the same


RANGES = [
    {"is_causal": True},
    {"is_causal": True, "query_offset": 127},
    {"is_causal": True, "query_offset": -20},
    {"window_size": (150, 3), "query_offset": 100},
    {"window_size": (0, 0), "query_offset": 128},
    {"window_size": (5, 200), "query_offset": 250},
]


@pytest.mark.parametrize("changed", ["plain", "softcap", "alibi", "sinks", "dropout"])
@pytest.mark.parametrize("rows", [1, 3, 40, 70])
def test_a_mask_of_bools_that_says_what_a_range_says(isa, dtype, rows, changed):
    """Causal, windows and lengths as masks: with all else that may stand beside them."""
    query, key, value = qkv((1, 2, rows, 12), seqlen_k=300, dtype=dtype)
    grad_out = grad_of(query, key, value)
    more = options_of(changed, 1, 2, rows, 300, dtype)
    for options in RANGES if changed == "plain" else RANGES[1:4:2]:
        mask = range_mask(rows, 300, **options)
        beside = more | {"query_offset": options.get("query_offset", 0)}
        want = backward(grad_out, query, key, value, **beside | options)
        got = backward(grad_out, query, key, value, attn_mask=mask, **beside)
        assert_same(got, want, options)
        got = backward(grad_out, query, key, value, attn_mask=mask, **beside | options)
        assert_same(got, want, options)
    for length in (0, 1, 4, 33, 127, 128, 129, 300):
        mask = np.arange(300) < length
        want = backward(grad_out, query, key, value, kv_lengths=length, **more)
        got = backward(grad_out, query, key, value, attn_mask=mask, **more)
        assert_same(got, want, length)


@pytest.mark.parametrize("rows", [1, 40])
def test_a_mask_that_masks_nothing(isa, dtype, rows):
    """True everywhere, one segment for all, a range that holds every key: they are no mask."""
    arrays = qkv((1, 2, rows, 12), seqlen_k=300, dtype=dtype)
    grad_out = grad_of(*arrays)
    for changed in ("plain", "softcap", "alibi", "sinks", "dropout"):
        options = options_of(changed, 1, 2, rows, 300, dtype)
        want = backward(grad_out, *arrays, **options)
        for nothing in (
            {"attn_mask": np.ones((rows, 300), bool)},
            {"attn_mask": np.ones((), bool)},
            {"segment_ids": (np.zeros(rows, int), np.zeros(300, int))},
            {"window_size": (1000, 1000)},
            {"kv_lengths": 300},
        ):
            got = backward(grad_out, *arrays, **nothing, **options)
            assert_same(got, want, (changed, nothing))


@pytest.mark.parametrize("rows", [3, 40])
def test_segments_and_masks_that_say_the_same(isa, dtype, rows):
    """In order, where they are ranges, and in none, where each key is asked; as bools, as -inf."""
    arrays = qkv((1, 2, rows, 12), seqlen_k=300, dtype=dtype)
    grad_out = grad_of(*arrays)
    for ids_k in (np.arange(300) // 60, np.arange(300) % 5):
        ids_q = np.arange(rows) % 7  # of which two are nobody's
        want = backward(grad_out, *arrays, segment_ids=(ids_q, ids_k))
        mask = ids_q[:, None] == ids_k
        assert_same(backward(grad_out, *arrays, attn_mask=mask), want)
    hidden = np.where(mask, dtype(0), dtype(-np.inf))
    want = backward(
        grad_out, *arrays, attn_mask=np.zeros((rows, 300), dtype), segment_ids=(ids_q, ids_k)
    )
    assert_same(backward(grad_out, *arrays, attn_mask=hidden), want)


def test_groups_against_heads_that_are_repeated(isa, dtype):
    """GQA: a query's gradient is that of keys and values repeated for each head."""
    query, key, value = qkv((2, 6, 30, 12), 2, 150, dtype=dtype)
    grad_out = grad_of(query, key, value)
    want = backward(grad_out, query, key, value, enable_gqa=True)
    repeated = [np.repeat(x, 3, axis=1) for x in (key, value)]
    got = backward(grad_out, query, *repeated)
    assert same_bits(got["query"], want["query"])


# ------------------------------------------------------------------ packed sequences


@pytest.mark.parametrize("name", LENGTHS)
def test_threads_and_packed_sequences(isa, dtype, name):
    packed = Packed(LENGTHS[name], dtype)
    grad_out = normal(packed.total_q, packed.heads, 5, dtype=dtype, seed=7)
    for options in ({}, OPTIONS["all"](packed), DROPOUT):
        want = packed_backward(grad_out, packed, num_threads=1, **options)
        for n in THREADS[1:]:
            assert_same(packed_backward(grad_out, packed, num_threads=n, **options), want, n)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", ["ends of blocks", "queries without keys", "one long among short"])
def test_each_packed_sequence_is_a_call_of_its_own(isa, dtype, name, kind):
    """Of its rows; what a mask or the sinks get is a sum over all sequences, unless it is not."""
    packed = Packed(LENGTHS[name], dtype)
    options = OPTIONS[kind](packed)
    if "attn_mask" in options:  # its gradient is then one of each row alone
        shape = packed.heads, packed.total_q, packed.longest
        options["attn_mask"] = np.broadcast_to(options["attn_mask"], shape).copy()
    grad_out = normal(packed.total_q, packed.heads, 5, dtype=dtype, seed=7)
    whole = packed_backward(grad_out, packed, **options)
    for b in range(packed.batch):
        q, rows, alone = of_sequence(packed, b, options)
        k = slice(*packed.cu_k[b : b + 2])
        one = backward(grad_out[q].swapaxes(0, 1), *rows, enable_gqa=True, **alone)
        want = {name: one[name].swapaxes(0, 1) for name in ("query", "key", "value")}
        got = part(whole, query=q, key=k, value=k)
        if "attn_mask" in one:
            want["attn_mask"] = one["attn_mask"]
            got["attn_mask"] = whole["attn_mask"][:, q, : packed.lengths_k[b]]
            assert not whole["attn_mask"][:, q, packed.lengths_k[b] :].any()
        assert_same(got, want, b)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, DROPOUT], ids=str)
def test_packed_sequences_of_one_length_are_a_batch(isa, dtype, options):
    """With dropout too: a sequence is counted as an entry of a batch is."""
    query, key, value = qkv((3, 4, 20, 8), 2, 140, 5, dtype=dtype)
    grad_out = grad_of(query, key, value)
    want = backward(grad_out, query, key, value, enable_gqa=True, **options)

    def pack(x):
        return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])

    cu_q, cu_k = np.arange(4) * 20, np.arange(4) * 140
    rows = [pack(x) for x in (query, key, value)]
    options = options | {"enable_gqa": True}
    out, lse = selfattn.varlen_attention(*rows, cu_q, cu_k, return_lse=True, **options)
    got = selfattn.varlen_attention_backward(pack(grad_out), *rows, out, lse, cu_q, cu_k, **options)
    for name, x in want.items():
        assert same_bits(getattr(got, name), pack(x)), name


# ------------------------------------------------------------------ dropout


@pytest.mark.parametrize("rows", ROWS)
def test_leading_slices_keep_their_dropout(isa, dtype, rows):
    """Of the batch, the heads, the queries and the keys."""
    query, key, value = qkv((2, 4, rows, 12), 2, 140, dtype=dtype)
    grad_out = grad_of(query, key, value)
    options = DROPOUT | {"enable_gqa": True}
    whole = backward(grad_out, query, key, value, **options)
    first = np.s_[:1, :2]
    alone = backward(grad_out[first], query[first], key[:1, :1], value[:1, :1], **options)
    assert_same(alone, part(whole, query=first, key=np.s_[:1, :1], value=np.s_[:1, :1]))
    for n in {1, (rows + 1) // 2}:
        index = np.s_[:, :, :n]
        alone = backward(grad_out[index], query[index], key, value, **options)
        assert same_bits(alone["query"], whole["query"][index])
    padded = backward(grad_out, query, key, value, kv_lengths=np.array([90, 90]), **options)
    short = backward(grad_out, query, key[:, :, :90], value[:, :, :90], **options)
    assert_same(part(padded, query=..., key=np.s_[:, :, :90], value=np.s_[:, :, :90]), short)


def test_no_dropout_is_a_probability_of_zero(isa, dtype):
    """0, of any kind, with any seed; and one so small that 1 / (1 - p) is 1."""
    arrays = qkv((1, 2, 30, 12), seqlen_k=140, dtype=dtype)
    grad_out = grad_of(*arrays)
    want = backward(grad_out, *arrays)
    for p, seed in ((0, 3), (0.0, -1), (-0.0, 2**64 - 1), (np.float32(0), 7), (1e-17, 0)):
        assert_same(backward(grad_out, *arrays, dropout_p=p, dropout_seed=seed), want, p)


@pytest.mark.parametrize("rows", [5, 40])
def test_a_bool_mask_beside_dropout(isa, dtype, rows):
    """What is masked has no part in the dropout of the rest."""
    arrays = qkv((1, 2, rows, 12), seqlen_k=140, dtype=dtype)
    grad_out = grad_of(*arrays)
    mask = bool_mask(rows, 140)
    mask[:, 100:] = False
    want = backward(grad_out, *arrays, attn_mask=mask, **DROPOUT)
    got = backward(grad_out, *arrays, attn_mask=mask, kv_lengths=100, **DROPOUT)
    assert_same(got, want)
