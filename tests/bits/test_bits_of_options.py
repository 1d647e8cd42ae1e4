"""The same query gets the same bits under masks, segments, slopes, caps and sinks too.

Fault 30, and more, as test_bits.py says of plain calls: threads, splits, batches, slices, single
rows, padding, instruction sets; and what a mask, a range of keys or the absence of keys all say.
Every comparison is of bits: not a single one may differ.
"""

import itertools

import numpy as np
import pytest

import selfattn
from support.arrays import normal, one_head, qkv, same_bits
from support.option_arrays import KINDS, bool_mask, option, part_of, range_mask, runs, without_sinks

STEPS = [selfattn.scaled_dot_product, selfattn.attention_weights]


def attend(*arrays, **options):
    return selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)


def score(step, *arrays, **options):
    """A step of scores or weights: the scores have no sinks."""
    return step(*arrays, **(without_sinks(options) if step is STEPS[0] else options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [70, 3], ids=["prefill", "decode"])
def test_threads(isa, dtype, kind, rows):
    arrays = qkv((1, 4, rows, 20), 2, 530, dtype=dtype)
    options = option(kind, 1, 4, rows, 530, dtype) | {"enable_gqa": True}
    want = attend(*arrays, num_threads=1, **options)
    for n in (2, 5):
        assert same_bits(attend(*arrays, num_threads=n, **options), want), n
    for step in STEPS:
        want = score(step, *arrays[:2], num_threads=1, **options)
        assert same_bits(score(step, *arrays[:2], num_threads=3, **options), want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_threads_that_share_the_splits_of_a_row(isa, dtype, kind, rows):
    """One head, many keys: the splits go to the threads, and the sink to none of them twice."""
    arrays = qkv((1, 1, rows, 40), seqlen_k=3000, dtype=dtype)
    options = option(kind, 1, 1, rows, 3000, dtype)
    want = attend(*arrays, num_threads=1, **options)
    for n in (2, 5):
        assert same_bits(attend(*arrays, num_threads=n, **options), want), n


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [2, 45])
def test_batch_and_head_slices(isa, dtype, kind, rows):
    query, key, value = qkv((2, 6, rows, 12), 2, 300, dtype=dtype)
    options = option(kind, 2, 6, rows, 300, dtype)
    whole = attend(query, key, value, enable_gqa=True, **options)
    weights = selfattn.attention_weights(query, key, enable_gqa=True, **options)
    for b, head in itertools.product(range(2), range(6)):
        one, heads = slice(b, b + 1), slice(head, head + 1)
        kv = slice(head // 3, head // 3 + 1)
        part = part_of(options, one, heads)
        alone = attend(query[one, heads], key[one, kv], value[one, kv], **part)
        assert same_bits(alone, tuple(x[one, heads] for x in whole)), (b, head)
        alone = selfattn.attention_weights(query[one, heads], key[one, kv], **part)
        assert same_bits(alone, weights[one, heads]), (b, head)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone(isa, dtype, kind):
    """Decode against prefill: each row, and each run of rows, as a call of its own."""
    query, key, value = qkv((1, 2, 70, 40), 2, 260, 20, dtype=dtype)
    options = option(kind, 1, 2, 70, 260, dtype)
    for more in ({}, {"is_causal": True}):
        whole = attend(query, key, value, **options | {"query_offset": 150}, **more)
        for count in (1, 8, 9, 64):
            for first in range(0, 70, count):
                rows = slice(first, min(first + count, 70))
                part = part_of(options | {"query_offset": 150}, rows=rows)
                alone = attend(query[:, :, rows], key, value, **part, **more)
                assert same_bits(alone, tuple(x[:, :, rows] for x in whole)), rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_in_a_group(isa, dtype, kind):
    """Where the tile's rows are (position, head), the position alone, and the head alone."""
    query, key, value = qkv((1, 8, 21, 16), 2, 140, dtype=dtype)
    options = option(kind, 1, 8, 21, 140, dtype) | {"enable_gqa": True}
    whole = attend(query, key, value, **options)
    for i in range(21):
        rows = slice(i, i + 1)
        alone = attend(query[:, :, rows], key, value, **part_of(options, rows=rows))
        assert same_bits(alone, tuple(x[:, :, rows] for x in whole)), i


@pytest.mark.parametrize("kind", KINDS)
def test_instruction_sets(each_isa, dtype, kind):
    """Our own tanh, and the same operations in the same order: no set differs from another."""
    for rows in (1, 3, 40):
        for seqlen_k, head_dim, head_dim_v in (
            (60, 7, 5),
            (530, 64, 64),
            (90, 1024, 1),
            (300, 1, 33),
        ):
            arrays = qkv((1, 2, rows, head_dim), 2, seqlen_k, head_dim_v, dtype=dtype)
            options = option(kind, 1, 2, rows, seqlen_k, dtype)
            for more in ({}, {"is_causal": True, "scale": 3.0}):
                calls = {
                    isa: (
                        *attend(*arrays, **options, **more),
                        *(score(step, *arrays[:2], **options, **more) for step in STEPS),
                    )
                    for isa in each_isa()
                }
                first, want = next(iter(calls.items()))
                for isa, got in calls.items():
                    assert same_bits(got, want), (isa, first, rows, seqlen_k, more)


RANGES = [
    {"is_causal": True},
    {"is_causal": True, "query_offset": 127},
    {"is_causal": True, "query_offset": -20},
    {"window_size": (150, 3), "query_offset": 100},
    {"window_size": (0, 0), "query_offset": 128},
    {"window_size": (5, 200), "query_offset": 300},
]
CHANGED = ["plain", "softcap", "alibi", "sinks"]


@pytest.mark.parametrize("changed", CHANGED)
@pytest.mark.parametrize("rows", [1, 3, 40, 70])
def test_a_mask_of_bools_that_says_what_a_range_says(isa, dtype, rows, changed):
    """Causal, windows and lengths as masks: with all else that may stand beside them."""
    query, key, value = qkv((1, 2, rows, 12), seqlen_k=530, dtype=dtype)
    more = option(changed, 1, 2, rows, 530, dtype)
    for options in RANGES if changed == "plain" else RANGES[1:4:2]:
        mask = range_mask(rows, 530, **options)
        offset = {"query_offset": options.get("query_offset", 0)}
        beside = more | offset
        want = attend(query, key, value, **beside | options)
        assert same_bits(attend(query, key, value, mask, **beside), want), options
        assert same_bits(attend(query, key, value, mask, **beside | options), want), options
        for step in STEPS:
            want = score(step, query, key, **beside | options)
            assert same_bits(score(step, query, key, mask, **beside), want), options
    for length in (0, 1, 4, 127, 128, 129, 511, 512, 513, 530):
        mask = np.arange(530) < length
        want = attend(query, key, value, kv_lengths=length, **more)
        assert same_bits(attend(query, key, value, mask, **more), want), length
        short = attend(query, key[:, :, :length], value[:, :, :length], **more)
        assert same_bits(short, want), length


@pytest.mark.parametrize("rows", [1, 40])
def test_a_mask_that_masks_nothing(isa, dtype, rows):
    """True everywhere, and one segment for all, are no mask."""
    arrays = qkv((1, 2, rows, 12), seqlen_k=530, dtype=dtype)
    for changed in CHANGED:
        options = option(changed, 1, 2, rows, 530, dtype)
        want = attend(*arrays, **options)
        for none in (
            {"attn_mask": np.ones((rows, 530), bool)},
            {"attn_mask": np.ones((), bool)},
            {"segment_ids": (np.zeros(rows, int), np.zeros(530, int))},
        ):
            assert same_bits(attend(*arrays, **none, **options), want), (changed, none)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 40])
def test_right_padding(isa, dtype, kind, rows):
    """Masked keys at the end against keys that are not there, however they are masked."""
    query, key, value = qkv((1, 2, rows, 12), seqlen_k=700, dtype=dtype)
    options = option(kind, 1, 2, rows, 700, dtype)
    for length in (1, 4, 63, 127, 128, 129, 512, 513, 640):
        short = dict(options)
        hidden = dict(options)
        if "attn_mask" in options:
            mask = options["attn_mask"]
            short["attn_mask"] = mask[..., :length]
            hidden["attn_mask"] = mask.copy()
            hidden["attn_mask"][..., length:] = False if mask.dtype == bool else -np.inf
        if "segment_ids" in options:
            ids_q, ids_k = options["segment_ids"]
            short["segment_ids"] = ids_q, ids_k[:, :length]
            hidden["segment_ids"] = ids_q, np.where(np.arange(700) < length, ids_k, 1000)
        if "attn_bias" in options:  # what it holds where the mask is False says nothing
            short["attn_bias"] = options["attn_bias"][..., :length]
            hidden["attn_bias"] = options["attn_bias"].copy()
            hidden["attn_bias"][..., length:] = np.nan
        if "kv_starts" in options:
            short["kv_starts"] = np.minimum(options["kv_starts"], length)
        if "attn_mask" in options or "segment_ids" in options:
            padded = attend(query, key, value, **hidden)
        else:
            padded = attend(query, key, value, np.arange(700) < length, **hidden)
        want = attend(query, key[:, :, :length], value[:, :, :length], **short)
        assert same_bits(padded, want), length
        assert same_bits(attend(query, key, value, kv_lengths=length, **options), want), length


@pytest.mark.parametrize("rows", [1, 40])
def test_masked_keys_in_front(isa, dtype, rows):
    """Whole masked blocks are skipped: no bit tells that they were there, by mask or by segment."""
    query, key, value = one_head(rows, 300, 12, dtype=dtype)
    for blocks in (1, 4, 8):  # all fits one split of 512 keys, or whole ones are in front
        before = 128 * blocks
        front = normal(before, 12, dtype=dtype, seed=9) * 1000
        moved = np.concatenate([front, key]), np.concatenate([front, value])
        hidden = np.arange(before + 300) >= before
        want = attend(query, key, value)
        assert same_bits(attend(query, *moved, attn_mask=hidden), want), blocks
        ids = np.ones(rows, int), runs(before + 300, before)
        assert same_bits(attend(query, *moved, segment_ids=ids), want), blocks
        for mask in (bool_mask(rows, 300), normal(rows, 300, dtype=dtype)):
            want = attend(query, key, value, mask)
            masked = False if mask.dtype == bool else -np.inf
            padded = np.pad(mask, ((0, 0), (before, 0)), constant_values=masked)
            assert same_bits(attend(query, *moved, padded), want), blocks
        want = attend(query, key, value, alibi_slopes=np.array([0.25], dtype), query_offset=20)
        got = attend(
            query, *moved, hidden, alibi_slopes=np.array([0.25], dtype), query_offset=20 + before
        )
        assert same_bits(got, want), blocks


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_tiles_that_see_nothing_where_the_first_splits_are_left_out(isa, threads):
    """Fault 13: threads share the splits, of which no query sees the first; some rows see no key.

    Their partial result must be one of the plan's own splits: it was once looked for before them.
    """
    query, key, value = qkv((2, 1, 1, 64), seqlen_k=4000)
    ids = (np.zeros((2, 1), int), np.repeat([[0], [1]], 4000, 1))
    options = {"window_size": (3000, 0), "query_offset": 3999}
    out, lse = attend(query, key, value, segment_ids=ids, num_threads=threads, **options)
    assert same_bits((out[0], lse[0]), attend(query[0], key[0], value[0], **options))
    assert not out[1].any()
    assert (lse[1] == -np.inf).all()

    query, key, value = one_head(240, 1100, 64)
    options = {"window_size": (10, -1), "query_offset": 1000}
    want = attend(query, key, value, num_threads=1, **options)
    assert same_bits(attend(query, key, value, num_threads=threads, **options), want)
    assert not want[0][110:].any()


def test_the_sign_of_a_zero_score(each_isa):
    """A mask of 0 is added to a score of -0 whatever the masks of the tile's other rows are."""
    query, key = np.full((64, 4), -1e-30, np.float32), np.full((3, 4), 1e-30, np.float32)
    mask = np.zeros((64, 3), np.float32)
    mask[40] = 1
    for isa in each_isa():
        scores = selfattn.scaled_dot_product(query, key, mask)
        assert same_bits(scores, mask), isa
        assert same_bits(selfattn.scaled_dot_product(query[:7], key, mask[:7]), mask[:7]), isa
