"""attn_mask, of bools and of floats: every shape that broadcasts, every tail, holes of every kind.

A block of keys that no row of a tile sees is skipped, one that all rows see in full needs no mask,
the rest is masked key by key: masks here make all three, at the edges of blocks of 128 keys and of
splits of 512. Strides are in test_strides.py, NaN and infinities in test_nonfinite_options.py.
"""

import itertools

import numpy as np
import pytest

import selfattn
from support.arrays import normal, one_head, qkv, same_bits
from support.compare import check_each
from support.option_arrays import bool_mask, broadcasts, float_mask

# Few rows take the shape of a kernel whose lanes are keys, many the one whose lanes are queries.
DECODE, PREFILL = 2, 37  # rows for either kernel


def masks(*shape, dtype):
    """Of bools, of the dtype, and of float32, which goes with every dtype."""
    yield bool_mask(*shape)
    yield float_mask(*shape, dtype=dtype)
    if dtype != np.float32:
        yield float_mask(*shape, dtype=np.float32)


@pytest.mark.parametrize("rows", [DECODE, 9])
def test_every_shape_that_broadcasts(each_isa, dtype, rows):
    """Each axis kept, of 1, or dropped from the left: 31 shapes, with grouped heads."""
    query, key, value = qkv((2, 6, rows, 5), 2, 133, 3, dtype=dtype)
    for shape in broadcasts((2, 6, rows, 133)):
        for mask in masks(*shape, dtype=dtype):
            check_each(each_isa, query, key, value, attn_mask=mask, enable_gqa=True)


@pytest.mark.parametrize("leading", [(), (3,), (2, 1, 2, 1)], ids=str)
def test_every_number_of_axes(each_isa, dtype, leading):
    """2-D to 6-D. Scores of 2-D inputs have the shape (L, S)."""
    query = normal(*leading, 9, 4, dtype=dtype)
    key = normal(*leading, 21, 4, dtype=dtype, seed=1)
    for shape in broadcasts((*leading, 9, 21)):
        for mask in masks(*shape, dtype=dtype):
            check_each(each_isa, query, key, key, attn_mask=mask)


def test_axes_that_query_key_and_value_broadcast(each_isa, dtype):
    """The mask has the axes of the scores, also where an input has 1 or none in their place."""
    query = normal(2, 1, 3, 9, 4, dtype=dtype)
    key, value = normal(3, 1, 21, 4, dtype=dtype, seed=1), normal(21, 4, dtype=dtype, seed=2)
    for shape in broadcasts((2, 3, 3, 9, 21)):
        for mask in masks(*shape, dtype=dtype):
            check_each(each_isa, query, key, value, attn_mask=mask)


def test_an_axis_of_value_alone(isa, dtype):
    """A mask may tell apart what only the values do."""
    query, key, value = one_head(9, 21, 4, dtype=dtype)
    value = np.stack([value, 2 * value])[:, None]
    mask = bool_mask(2, 1, 9, 21)
    out = selfattn.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    for b in range(2):
        alone = selfattn.scaled_dot_product_attention(query, key, value[b, 0], mask[b, 0])
        assert same_bits(out[b, 0], alone)


@pytest.mark.parametrize("rows", [DECODE, PREFILL])
def test_every_seqlen_k(each_isa, dtype, rows):
    """Tails of the mask's rows: every S up to 70, then around blocks and splits."""
    near = [n + d for n in (128, 256, 512, 640) for d in (-1, 0, 1, 3)]
    for seqlen_k in [*range(1, 71), *near]:
        query, key, value = one_head(rows, seqlen_k, 7, 3, dtype=dtype)
        for mask in masks(rows, seqlen_k, dtype=dtype):
            check_each(each_isa, query, key, value, attn_mask=mask)


def test_every_seqlen_q(each_isa, dtype):
    """Around the lanes of each set, and the rows of one and of two tiles."""
    for seqlen_q in [*range(1, 27), 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129, 193]:
        query, key, value = one_head(seqlen_q, 150, 6, 5, dtype=dtype)
        for mask in masks(seqlen_q, 150, dtype=dtype):
            check_each(each_isa, query, key, value, attn_mask=mask)


@pytest.mark.parametrize("rows", [DECODE, PREFILL])
@pytest.mark.parametrize("head_dim", [1, 2, 15, 16, 17, 31, 64, 127, 256, 1024])
def test_head_dims(each_isa, dtype, rows, head_dim):
    query, key, value = one_head(rows, 150, head_dim, dtype=dtype)
    for mask in masks(rows, 150, dtype=dtype):
        check_each(each_isa, query, key, value, attn_mask=mask)


def holes(rows, seqlen_k):
    """Masks of bools by name: which blocks and rows are whole, empty or partly seen."""
    i, j = np.arange(rows)[:, None], np.arange(seqlen_k)
    yield "all", (i + j) >= 0
    yield "none", (i + j) < 0
    yield "every other key", (j % 2 == 0) & (i >= 0)
    yield "every other row", (i % 2 == 0) & (j >= 0)
    yield "checkered", (i + j) % 2 == 0
    yield "checkered blocks", (i // 8 + j // 128) % 2 == 0
    yield "one row", (i == rows // 2) & (j >= 0)
    yield "all but one row", (i != rows // 2) & (j >= 0)
    yield "a split left out", (j // 512 != 1) & (i >= 0)
    yield "only the last key", (j == seqlen_k - 1) & (i >= 0)
    yield "only the first key", (j == 0) & (i >= 0)
    yield "a diagonal band", (j >= 9 * i) & (j < 9 * i + 40)
    for n in (0, 127, 128, 129, 255, 511, 512, 600):
        yield f"all but key {n}", (j != n) & (i >= 0)
        yield f"one row does not see key {n}", (j != n) | (i != rows - 1)
    for first, last in ((0, 128), (128, 256), (100, 300), (128, 640), (512, 640), (5, 700)):
        yield f"all but keys {first} to {last}", ((j < first) | (j >= last)) & (i >= 0)
        yield f"keys {first} to {last}", (j >= first) & (j < last) & (i >= 0)


@pytest.mark.parametrize("rows", [1, 5, PREFILL])
def test_holes(each_isa, dtype, rows):
    """Whole blocks and splits that no row sees, or all, or some; as floats too, over the scores."""
    query, key, value = one_head(rows, 700, 6, 4, dtype=dtype)
    for name, mask in holes(rows, 700):
        check_each(each_isa, query, key, value, name, attn_mask=mask, scores=False)
        for seen in (0.0, -2.5):
            added = np.where(mask, dtype(seen), dtype(-np.inf))
            check_each(each_isa, query, key, value, name, attn_mask=added, scores=False)


def test_one_key_for_each_row(isa, dtype):
    """The result is that key's value, exactly, whichever kernel and wherever the key is."""
    keys = [0, 1, 3, 4, 15, 16, 126, 127, 128, 129, 255, 256, 510, 511, 512, 513, 640, 699]
    for rows in (1, 3, PREFILL):
        query, key, value = one_head(rows, 700, 6, 4, dtype=dtype)
        for first in range(len(keys)):
            chosen = np.resize(np.roll(keys, first), rows)
            mask = np.arange(700) == chosen[:, None]
            scores = selfattn.scaled_dot_product(query, key)[np.arange(rows), chosen]
            for floats in (False, True):
                given = np.where(mask, dtype(0), dtype(-np.inf)) if floats else mask
                out, lse = selfattn.scaled_dot_product_attention(
                    query, key, value, given, return_lse=True
                )
                assert np.array_equal(out, value[chosen]), chosen
                # The score itself, that may have been in base 2 on its way.
                np.testing.assert_allclose(lse, scores, rtol=0, atol=16 * np.finfo(dtype).eps)


RANGES = [
    {"is_causal": True, "query_offset": 100},
    {"window_size": (40, 10), "query_offset": 120},
    {"kv_lengths": np.array([130, 7])},
    {"is_causal": True, "query_offset": np.array([128, -3]), "kv_lengths": np.array([140, 128])},
]


@pytest.mark.parametrize("options", RANGES, ids=str)
@pytest.mark.parametrize("rows", [DECODE, PREFILL])
def test_with_a_range_of_keys(each_isa, dtype, rows, options):
    """Both apply, whichever lets fewer keys through."""
    query, key, value = qkv((2, 4, rows, 6), 2, 150, dtype=dtype)
    for shape in ((rows, 150), (2, 1, rows, 150), (2, 4, 1, 150), (4, rows, 1)):
        for mask in masks(*shape, dtype=dtype):
            check_each(each_isa, query, key, value, attn_mask=mask, enable_gqa=True, **options)


def test_what_both_rules_say_in_plain_words(isa):
    """Not by the reference: all scores are equal, so the weights are not 0 where a key is seen."""
    query, key = np.zeros((5, 1), np.float32), np.zeros((9, 1), np.float32)
    mask = bool_mask(5, 9)
    for causal, offset in itertools.product((False, True), (-2, 0, 3)):
        want = [
            [bool(mask[i, j]) and (not causal or j <= i + offset) for j in range(9)]
            for i in range(5)
        ]
        for given in (mask, np.where(mask, np.float32(0), np.float32(-np.inf))):
            got = selfattn.attention_weights(query, key, given, causal, query_offset=offset)
            assert np.array_equal(got > 0, want)


@pytest.mark.parametrize("size", [1e-20, 1.0, 30.0, 1e4])
def test_size_of_a_float_mask(each_isa, dtype, size):
    """From nothing to all of the score: a large number is added at the score's own size."""
    for rows in (DECODE, PREFILL):
        query, key, value = one_head(rows, 300, 16, dtype=dtype)
        mask = float_mask(rows, 300, dtype=dtype) * dtype(size)
        check_each(each_isa, query, key, value, attn_mask=mask)


def test_the_largest_sum_may_come_at_any_key(each_isa, dtype):
    """It is the sum's maximum that is subtracted, not the score's: it may rise in every block."""
    for rows in (DECODE, PREFILL):
        query, key, value = one_head(rows, 700, 4, dtype=dtype)
        for at in (0, 127, 128, 511, 512, 699):
            mask = np.zeros(700, dtype)
            mask[at] = 60
            check_each(
                each_isa, query, key, value, f"largest at {at}", attn_mask=mask, scores=False
            )
        for step in (0.25, -0.25):
            mask = np.arange(700, dtype=dtype) * dtype(step)
            check_each(
                each_isa, query, key, value, f"steps of {step}", attn_mask=mask, scores=False
            )


def test_out_over_the_mask(isa, dtype):
    """Fault 18: out that lies where the mask does is right all the same."""
    for rows in (DECODE, PREFILL):
        query, key, value = one_head(rows, 64, 8, 64, dtype=dtype)
        mask = float_mask(rows, 64, dtype=dtype)
        want = selfattn.scaled_dot_product_attention(query, key, value, mask)
        memory = mask.copy()
        selfattn.scaled_dot_product_attention(query, key, value, memory, out=memory)
        assert same_bits(memory, want)
        for step in (selfattn.scaled_dot_product, selfattn.attention_weights):
            want, memory = step(query, key, mask), mask.copy()
            step(query, key, memory, out=memory)
            assert same_bits(memory, want)


def test_the_mask_is_only_read(isa, dtype):
    """Fault 20: a read-only mask serves, and no mask is ever written."""
    query, key, value = one_head(PREFILL, 150, 8, dtype=dtype)
    for mask in masks(PREFILL, 150, dtype=dtype):
        before = mask.copy()
        want = selfattn.scaled_dot_product_attention(query, key, value, mask)
        assert np.array_equal(mask, before)
        mask.flags.writeable = False
        assert same_bits(selfattn.scaled_dot_product_attention(query, key, value, mask), want)


def test_bytes_that_are_not_zero_are_true(isa):
    """What is not 0 in a mask of bools is True, as it is in NumPy: no test of one bit alone."""
    query, key, value = one_head(PREFILL, 150, 8)
    mask = bool_mask(PREFILL, 150)
    want = selfattn.scaled_dot_product_attention(query, key, value, mask)
    for byte in (2, 128, 255):
        odd = (mask * np.uint8(byte)).view(bool)
        assert same_bits(selfattn.scaled_dot_product_attention(query, key, value, odd), want), byte


def test_against_torch(dtype):
    """The same call of torch's, where each row sees a key: both are within a bound of the truth."""
    torch = pytest.importorskip("torch")
    query, key, value = qkv((2, 4, 20, 16), seqlen_k=150, dtype=dtype)
    for shape in ((20, 150), (2, 1, 20, 150), (2, 4, 1, 150)):
        for mask in (bool_mask(*shape), float_mask(*shape, dtype=dtype)):
            got = selfattn.scaled_dot_product_attention(query, key, value, mask)
            want = torch.nn.functional.scaled_dot_product_attention(
                *(torch.from_numpy(x) for x in (query, key, value, mask))
            )
            atol = 40 * np.finfo(dtype).eps / 2 * float(np.abs(value).max())
            np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=atol)
