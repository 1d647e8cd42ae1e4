"""Gradients have the same bits under masks, over axes that broadcast, in packed sequences, dropped.

Fault 30, as test_bits_of_options.py has it of the forward pass: what several threads add up, and
what a mask, a range of keys, segments or the absence of keys all say.
"""

import itertools

import numpy as np
import pytest

import selfattn
from support.arrays import normal, qkv, same_bits
from support.gradients import (
    DROPOUT,
    ROWS,
    assert_same,
    backward,
    grad_of,
    options_of,
    packed_backward,
    part,
)
from support.option_arrays import bool_mask, broadcasts, float_mask, option, range_mask
from support.packed import LENGTHS, OPTIONS, Packed

THREADS = [1, 2, 3, 5, 16]


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
@pytest.mark.parametrize("group", [2, 3])
def test_threads_and_masks_of_every_shape(isa, dtype, kind, group):
    """The mask's gradient is a sum over every axis that the mask broadcasts."""
    if dtype == np.float32 and kind == np.float64:
        return
    scores = 2, 2 * group, 33, 130
    arrays = qkv((*scores[:3], 8), 2, 130, dtype=dtype)
    grad_out = grad_of(*arrays)
    for shape in {(), *broadcasts(scores)}:
        mask = float_mask(*shape, dtype=kind) if shape else np.asarray(0.5, kind)
        options = {"attn_mask": mask, "enable_gqa": True}
        want = backward(grad_out, *arrays, num_threads=1, **options)
        assert want["attn_mask"].shape == shape
        for n in (5,) if isa == "portable" else (2, 5):
            assert_same(backward(grad_out, *arrays, num_threads=n, **options), want, (shape, n))


@pytest.mark.parametrize("group", [3, 5])
def test_threads_and_a_row_of_a_mask_that_tiles_part(isa, dtype, group):
    """Fault 13: a tile of 64 rows ends amid the heads of a group, which share a row of the mask.

    There are as many batch entries as leave them whole for one thread, and not for more.
    """
    arrays = qkv((5, 2 * group, 60, 8), 2, 40, dtype=dtype)
    grad_out = grad_of(*arrays)
    mask = float_mask(5, 1, 60, 40, dtype=dtype)
    options = {"attn_mask": mask, "enable_gqa": True}
    want = backward(grad_out, *arrays, num_threads=1, **options)
    for n in THREADS[1:]:
        assert_same(backward(grad_out, *arrays, num_threads=n, **options), want, n)


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
        ids_q = np.arange(rows) % 7  # two of which no key has
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
