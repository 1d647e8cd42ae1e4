"""varlen_attention: packed sequences, each as a call of its own, bit for bit, and as the reference.

docs/semantics.md, packed sequences.
"""

import itertools

import numpy as np
import pytest

import selfattn
from support.arrays import normal, same_bits
from support.compare import assert_close, largest, score_size, unit_roundoff
from support.packed import LENGTHS, OPTIONS, Packed, check, of_sequence

# ------------------------------------------------------------------ lengths and options


@pytest.mark.parametrize("lengths", LENGTHS)
def test_lengths(isa, dtype, lengths):
    """Sequences of none, one, many and few rows, with no options and with all of them."""
    packed = Packed(LENGTHS[lengths], dtype)
    for name in ("plain", "causal", "offsets", "all"):
        check(packed, f"{lengths}, {name}", **OPTIONS[name](packed))


@pytest.mark.parametrize("option", OPTIONS)
def test_options(isa, dtype, option):
    for lengths in ("empty among others", "one long among short", "many short"):
        packed = Packed(LENGTHS[lengths], dtype)
        check(packed, f"{lengths}, {option}", **OPTIONS[option](packed))


@pytest.mark.parametrize(("heads", "heads_kv"), [(1, 1), (3, 3), (6, 3), (6, 2), (6, 1), (40, 2)])
def test_heads(isa, dtype, heads, heads_kv):
    packed = Packed([(4, 6), (0, 2), (19, 19), (1, 150)], dtype, heads, heads_kv)
    check(packed)
    check(packed, **OPTIONS["all"](packed))


@pytest.mark.parametrize("head_dim", [1, 3, 17, 64])
def test_head_dims(isa, dtype, head_dim):
    for head_dim_v in (1, 16, 33):
        lengths = [(4, 6), (20, 140), (1, 3)]
        packed = Packed(lengths, dtype, head_dim=head_dim, head_dim_v=head_dim_v)
        check(packed, f"{head_dim}, {head_dim_v}", is_causal=True)


def test_random_lengths(isa, dtype, rng):
    for _ in range(15):
        lengths = rng.integers(0, rng.choice([3, 20, 150]), (rng.integers(1, 12), 2))
        packed = Packed(lengths, dtype)
        name = str(rng.choice(list(OPTIONS)))
        check(packed, f"{lengths.tolist()}, {name}", **OPTIONS[name](packed))


def test_one_number_for_every_sequence(isa, dtype):
    """query_offset and kv_lengths are an int, or as many as there are sequences."""
    packed = Packed([(3, 8), (2, 5), (6, 9)], dtype)
    for options in (
        {"is_causal": True, "query_offset": 3},
        {"is_causal": True, "query_offset": -1},
        {"kv_lengths": 5},
        {"kv_lengths": 0},
    ):
        check(packed, str(options), **options)
        many = {
            name: np.full(3, x) if name in ("query_offset", "kv_lengths") else x
            for name, x in options.items()
        }
        assert same_bits(packed.attend(**many), packed.attend(**options))


def test_one_array_of_segments(isa, dtype):
    """Where there are as many queries as keys, even if not in each sequence."""
    for lengths in ([(5, 5), (1, 1), (9, 9)], [(5, 2), (1, 9), (9, 4)]):
        packed = Packed(lengths, dtype)
        ids = packed.ids(15)
        check(packed, str(lengths), segment_ids=ids)
        assert same_bits(packed.attend(segment_ids=ids), packed.attend(segment_ids=(ids, ids)))
        assert same_bits(packed.attend(segment_ids=ids), packed.attend(segment_ids=[ids, ids]))


def test_fully_masked_rows(isa, dtype):
    """Fault 1: 0 and -inf, or the sink; in one sequence of several, in each by another rule."""
    packed = Packed([(3, 4), (3, 4), (3, 4)], dtype)
    second = np.s_[3:6]
    keep = np.ones((9, 4), bool)
    keep[second] = False
    ids = np.zeros(9, int)
    ids[second] = 7
    sinks = normal(4, dtype=dtype)
    for options in (
        {"attn_mask": keep},
        {"attn_mask": np.where(keep, dtype(0), dtype(-np.inf))},
        {"kv_lengths": np.array([4, 0, 4])},
        {"is_causal": True, "query_offset": np.array([0, -3, 0])},
        {"window_size": (0, 0), "query_offset": np.array([0, 50, 0])},
        {"segment_ids": (ids, np.zeros(12, int))},
    ):
        check(packed, str(options), **options)
        out, lse = packed.attend(**options)
        assert not out[second].any(), options
        assert (lse[:, second] == -np.inf).all(), options
        assert np.isfinite(lse[:, 0]).all(), options
        out, lse = packed.attend(**options, sinks=sinks)
        assert not out[second].any(), options
        # The sink is all there is under the logarithm: log(exp(x)), with a last place of log.
        bound = 3 * unit_roundoff(dtype) * (1 + np.abs(sinks[:, None].astype(np.float64)))
        assert_close(lse[:, second], np.broadcast_to(sinks[:, None], (4, 3)), bound, options)


# ------------------------------------------------------------------ bits


@pytest.mark.parametrize("lengths", ["one long among short", "many short", "decoding", "one"])
def test_threads(isa, dtype, lengths):
    """Fault 30: one to eight threads."""
    packed = Packed(LENGTHS[lengths], dtype)
    for name in ("plain", "all"):
        options = OPTIONS[name](packed)
        want = packed.attend(num_threads=1, **options)
        for n in range(2, 9):
            assert same_bits(packed.attend(num_threads=n, **options), want), (name, n)


def test_as_a_padded_batch(isa, dtype):
    """The same bits as the sequences padded to one length, with kv_lengths."""
    packed = Packed([(6, 9), (1, 1), (4, 130), (6, 0)], dtype)
    rows, keys = 6, 130
    query = np.full((4, 4, rows, 8), np.nan, dtype)
    key, value = np.full((4, 2, keys, 8), np.nan, dtype), np.full((4, 2, keys, 5), np.nan, dtype)
    for b in range(4):
        _, (of_query, of_key, of_value), _ = of_sequence(packed, b, {})
        query[b, :, : packed.lengths_q[b]] = of_query
        key[b, :, : packed.lengths_k[b]] = of_key
        value[b, :, : packed.lengths_k[b]] = of_value
    for causal in (False, True):
        out, lse = packed.attend(is_causal=causal)
        padded, padded_lse = selfattn.scaled_dot_product_attention(
            *(query, key, value),
            is_causal=causal,
            enable_gqa=True,
            kv_lengths=packed.lengths_k,
            return_lse=True,
        )
        for b in range(4):
            q, *_ = of_sequence(packed, b, {})
            n = packed.lengths_q[b]
            assert same_bits(out[q], padded[b, :, :n].swapaxes(0, 1)), (causal, b)
            assert same_bits(lse[:, q], padded_lse[b, :, :n]), (causal, b)


def test_sequences_do_not_see_each_other(isa, dtype):
    """Fault 5: all rows of the others may be NaN or inf; and they get what they hold, alone."""
    packed = Packed([(3, 5), (17, 140), (2, 2), (1, 9)], dtype)
    for name in ("plain", "causal", "softcap", "sinks"):
        options = OPTIONS[name](packed)
        want = packed.attend(**options)
        for b, poison in itertools.product(range(4), (np.nan, np.inf, -np.inf)):
            spoiled = Packed([(3, 5), (17, 140), (2, 2), (1, 9)], dtype)
            q, rows, _ = of_sequence(spoiled, b, {})
            for x in rows:
                x[...] = poison
            out, lse = spoiled.attend(**options)
            others = np.ones(packed.total_q, bool)
            others[q] = False
            assert same_bits(out[others], want[0][others]), (name, b, poison)
            assert same_bits(lse[:, others], want[1][:, others]), (name, b, poison)
            assert not np.isfinite(out[q]).any(), (name, b, poison)


def test_columns_past_a_sequences_keys(isa, dtype):
    """A mask's columns are counted from the first key; those past the last are not looked at."""
    packed = Packed(LENGTHS["one long among short"], dtype)
    past = np.arange(packed.longest) >= np.repeat(packed.lengths_k, packed.lengths_q)[:, None]
    assert past.any()
    bias = packed.bias(packed.heads, packed.total_q, packed.longest)
    keep = packed.mask(packed.total_q, packed.longest)
    for mask, fillings in ((bias, (np.nan, np.inf, -np.inf)), (keep, (True, False))):
        want = packed.attend(attn_mask=mask)
        for filling in fillings:
            filled = np.where(past, mask.dtype.type(filling), mask)
            assert same_bits(packed.attend(attn_mask=filled), want), filling


def test_a_sequence_cut_in_two(isa, dtype):
    """Segments do within one sequence what cu_seqlens does: the same distribution."""
    packed = Packed([(7, 7), (4, 4)], dtype)
    want, want_lse = packed.attend()
    packed.cu_q = packed.cu_k = np.array([0, 11])
    out, lse = packed.attend(segment_ids=np.repeat([3, -8], [7, 4]))
    # Other places of the keys in a block: another order of the sums, so not the bits.
    size = score_size(*(x.swapaxes(0, 1) for x in packed.arrays[:2]))
    u = 2 * unit_roundoff(dtype)
    assert_close(out, want, u * (8 + 3 * size) * largest(packed.value))
    assert_close(lse, want_lse, u * (6 * (1 + size) + 3 * np.abs(want_lse)))
