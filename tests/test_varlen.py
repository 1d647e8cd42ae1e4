"""varlen_attention: packed sequences, each as a call of its own, bit for bit, and as the reference.

DESIGN.md, section 5, the case "varlen".
"""

import itertools

import numpy as np
import pytest
from arrays import normal, same_bits
from compare import assert_close, largest, moves, score_size, unit_of, wide

import selfattn
from selfattn import reference

# (queries, keys) of each sequence.
LENGTHS = {
    "alike": [(5, 5), (5, 5), (5, 5)],
    "one": [(7, 9)],
    "ones": [(1, 1)] * 9,
    "empty among others": [(0, 0), (3, 4), (0, 0), (0, 0), (2, 2), (0, 0)],
    "nothing but empty": [(0, 0)] * 4,
    "no sequence": [],
    "queries without keys": [(3, 0), (2, 5), (20, 0)],
    "keys without queries": [(0, 3), (2, 5), (0, 140)],
    "decoding": [(1, 30), (1, 1), (1, 200), (1, 129)],
    "ends of blocks": [(16, 127), (17, 128), (33, 129), (1, 512), (2, 513)],
    "one long among short": [(2, 3), (90, 700), (1, 1), (0, 0), (4, 2)],
    "many short": [(n % 5, (n * 7) % 11) for n in range(150)],
}
OPTIONS = {
    "plain": lambda p: {},
    "scale": lambda p: {"scale": -0.7},
    "causal": lambda p: {"is_causal": True},
    "an offset": lambda p: {"is_causal": True, "query_offset": 2},
    "offsets": lambda p: {"is_causal": True, "query_offset": p.lengths_k - p.lengths_q},
    "window": lambda p: {"window_size": (3, 1), "query_offset": p.lengths_k - p.lengths_q},
    "lengths": lambda p: {"kv_lengths": p.lengths_k - (p.lengths_k + 1) // 3},
    "softcap": lambda p: {"softcap": 0.8},
    "slopes": lambda p: {"alibi_slopes": normal(p.heads, dtype=p.dtype)},
    "slopes of sequences": lambda p: {"alibi_slopes": normal(p.batch, p.heads, dtype=p.dtype)},
    "sinks": lambda p: {"sinks": normal(p.heads, dtype=p.dtype)},
    "bool mask": lambda p: {"attn_mask": p.mask(p.heads, p.total_q, p.longest)},
    "bool mask of keys": lambda p: {"attn_mask": p.mask(p.longest)},
    "bool mask of rows": lambda p: {"attn_mask": p.mask(p.total_q, 1)},
    "float mask": lambda p: {"attn_mask": p.bias(p.total_q, p.longest)},
    "float mask of heads": lambda p: {"attn_mask": p.bias(p.heads, 1, p.longest)},
    "float32 mask": lambda p: {"attn_mask": p.bias(1, p.longest).astype(np.float32)},
    "segments": lambda p: {"segment_ids": (p.ids(p.total_q), p.ids(p.total_k))},
    "all": lambda p: {
        "attn_mask": p.bias(p.heads, p.total_q, p.longest),
        "is_causal": True,
        "query_offset": p.lengths_k - p.lengths_q,
        "kv_lengths": p.lengths_k - p.lengths_k // 5,
        "window_size": (40, -1),
        "softcap": 2.0,
        "alibi_slopes": normal(p.batch, p.heads, dtype=p.dtype, seed=3) / 8,
        "sinks": normal(p.heads, dtype=p.dtype, seed=4),
        "segment_ids": (p.ids(p.total_q), p.ids(p.total_k)),
    },
}


class Packed:
    """Sequences packed row after row, and what options need to know of them."""

    def __init__(self, lengths, dtype=np.float32, heads=4, heads_kv=2, head_dim=8, head_dim_v=5):
        self.dtype, self.heads, self.batch = dtype, heads, len(lengths)
        self.lengths_q, self.lengths_k = np.array(lengths, np.int64).reshape(-1, 2).T
        self.cu_q, self.cu_k = (
            np.concatenate(([0], np.cumsum(n))) for n in (self.lengths_q, self.lengths_k)
        )
        self.total_q, self.total_k = int(self.cu_q[-1]), int(self.cu_k[-1])
        self.longest = int(self.lengths_k.max(initial=0))
        self.query = normal(self.total_q, heads, head_dim, dtype=dtype)
        self.key = normal(self.total_k, heads_kv, head_dim, dtype=dtype, seed=1)
        self.value = normal(self.total_k, heads_kv, head_dim_v, dtype=dtype, seed=2)

    @property
    def arrays(self):
        return self.query, self.key, self.value

    def mask(self, *shape):
        keep = normal(*shape) > -0.5
        if shape[0] == self.total_q > 1:
            keep[1] = False  # a row that sees nothing
        return keep

    def bias(self, *shape):
        masked = self.dtype(-np.inf)
        return np.where(self.mask(*shape), normal(*shape, dtype=self.dtype, seed=5), masked)

    def ids(self, total):
        """Two segments in no order, and a third that is rare."""
        return np.where(np.arange(total) % 13 == 4, 2, np.arange(total) % 2)

    def attend(self, **options):
        """All of them in one call: (total_q, Hq, Ev) and (Hq, total_q)."""
        return selfattn.varlen_attention(
            *self.arrays, self.cu_q, self.cu_k, enable_gqa=True, return_lse=True, **options
        )


def of_sequence(packed, b, options):
    """Sequence b alone: its rows in the packed output, its arrays (H, rows, E), its options."""
    q, k = (slice(*cu[b : b + 2]) for cu in (packed.cu_q, packed.cu_k))
    alone = dict(options)
    for name in ("query_offset", "kv_lengths"):
        if np.ndim(options.get(name)) == 1:
            alone[name] = int(options[name][b])
    if np.ndim(options.get("alibi_slopes")) == 2:
        alone["alibi_slopes"] = options["alibi_slopes"][b]
    if "attn_mask" in options:
        shape = packed.heads, packed.total_q, packed.longest
        mask = np.broadcast_to(options["attn_mask"], shape)
        alone["attn_mask"] = mask[:, q, : packed.lengths_k[b]]
    if "segment_ids" in options:
        ids = options["segment_ids"]
        ids_q, ids_k = ids if isinstance(ids, (tuple, list)) else (ids, ids)
        alone["segment_ids"] = ids_q[q], ids_k[k]
    rows = packed.query[q], packed.key[k], packed.value[k]
    return q, [x.swapaxes(0, 1) for x in rows], alone


def calls(packed, **options):
    """What attend returns, by a call of scaled_dot_product_attention for each sequence."""
    out = np.empty((packed.total_q, packed.heads, packed.value.shape[2]), packed.dtype)
    lse = np.empty((packed.heads, packed.total_q), packed.dtype)
    for b in range(packed.batch):
        q, rows, alone = of_sequence(packed, b, options)
        one, lse[:, q] = selfattn.scaled_dot_product_attention(
            *rows, enable_gqa=True, return_lse=True, **alone
        )
        out[q] = one.swapaxes(0, 1)
    return out, lse


def check(packed, context="", **options):
    """Against the reference, and bit for bit against a call for each sequence."""
    out, lse = packed.attend(**options)
    assert out.shape == (packed.total_q, packed.heads, packed.value.shape[2]), context
    assert lse.shape == (packed.heads, packed.total_q), context
    assert out.dtype == lse.dtype == packed.dtype, context
    assert same_bits((out, lse), calls(packed, **options)), context

    want, want_lse = wide(
        lambda *arrays: reference.varlen_attention(
            *arrays, packed.cu_q, packed.cu_k, enable_gqa=True, return_lse=True, **options
        ),
        *packed.arrays,
    )
    u = unit_of(packed.dtype)
    for b in range(packed.batch):
        if packed.lengths_q[b] == 0:
            continue
        q, rows, alone = of_sequence(packed, b, options)
        size = score_size(*rows[:2], options.get("scale"))
        moved = moves(*rows[:2], enable_gqa=True, **alone)[2]
        plain_sum = packed.lengths_k[b] / 4 if packed.dtype == np.float64 else 0
        bound = u * (8 + 3 * size + plain_sum + 2 * moved) * largest(rows[2])
        at = f"{context}, sequence {b}"
        assert_close(out[q].swapaxes(0, 1), want[q].swapaxes(0, 1), bound, at)
        with np.errstate(invalid="ignore"):
            bound = u * (6 * (1 + size) + 3 * np.abs(want_lse[:, q]) + moved[..., 0])
        assert_close(lse[:, q], want_lse[:, q], np.nan_to_num(bound, nan=0.0), at)


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
        bound = 3 * unit_of(dtype) * (1 + np.abs(sinks[:, None].astype(np.float64)))
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
    u = 2 * unit_of(dtype)
    assert_close(out, want, u * (8 + 3 * size) * largest(packed.value))
    assert_close(lse, want_lse, u * (6 * (1 + size) + 3 * np.abs(want_lse)))


# ------------------------------------------------------------------ arrays in and out


def test_strides(isa, dtype):
    """Slices of one fused projection, heads first, every other row, backwards, broadcast heads."""
    lengths = [(5, 5), (0, 0), (30, 30), (1, 1)]
    packed = Packed(lengths, dtype, heads=2, head_dim_v=8)
    want = packed.attend(is_causal=True)
    total, heads, head_dim = packed.query.shape
    fused = np.full((total, 3, heads, head_dim), np.nan, dtype)
    views = {"fused": [fused[:, n] for n in range(3)]}
    views["heads first"] = [np.empty((heads, total, 8), dtype).swapaxes(0, 1) for _ in "qkv"]
    views["rows apart"] = [np.full((2 * total, heads, 9), np.nan, dtype)[::2, :, :8] for _ in "qkv"]
    views["backwards"] = [np.empty_like(packed.query)[::-1, ::-1, ::-1] for _ in "qkv"]
    for name, arrays in views.items():
        for view, x in zip(arrays, packed.arrays, strict=True):
            view[...] = x
        got = selfattn.varlen_attention(
            *arrays, packed.cu_q, packed.cu_k, is_causal=True, return_lse=True
        )
        assert same_bits(got, want), name

    one_head = [x[:, :1] for x in packed.arrays[1:]]
    broadcast = [np.broadcast_to(x, (total, heads, head_dim)) for x in one_head]
    got = selfattn.varlen_attention(packed.query, *broadcast, packed.cu_q, packed.cu_k)
    want = selfattn.varlen_attention(packed.query, *one_head, packed.cu_q, packed.cu_k)
    assert same_bits(got, want)


def test_strides_of_options(isa, dtype):
    """A mask, slopes, sinks and ids that are slices of something larger, or backwards."""
    packed = Packed([(5, 6), (3, 12), (1, 1)], dtype)
    options = OPTIONS["all"](packed)
    want = packed.attend(**options)

    def apart(x):
        whole = np.zeros(tuple(2 * n for n in x.shape), x.dtype)
        view = whole[tuple(slice(None, None, -2) for _ in x.shape)]
        view[...] = x
        return view

    strided = {
        name: tuple(map(apart, x)) if isinstance(x, tuple) and name == "segment_ids" else x
        for name, x in options.items()
    }
    for name in ("attn_mask", "query_offset", "kv_lengths", "alibi_slopes", "sinks"):
        strided[name] = apart(options[name])
    assert same_bits(packed.attend(**strided), want)
    packed.cu_q, packed.cu_k = apart(packed.cu_q), apart(packed.cu_k)
    assert same_bits(packed.attend(**strided), want)


def test_inputs_are_not_written(dtype):
    packed = Packed(LENGTHS["empty among others"], dtype)
    options = OPTIONS["all"](packed)
    given = [*packed.arrays, packed.cu_q, packed.cu_k]
    given += [x for x in options.values() if isinstance(x, np.ndarray)]
    before = [x.copy() for x in given]
    for x in given:
        x.flags.writeable = False
    packed.attend(**options)
    assert all(map(np.array_equal, given, before))


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint32, np.int16])
def test_dtypes_of_cu_seqlens(kind, dtype):
    packed = Packed([(5, 6), (3, 12), (1, 1)], dtype)
    want = packed.attend()
    packed.cu_q, packed.cu_k = packed.cu_q.astype(kind), packed.cu_k.astype(np.int64)
    assert same_bits(packed.attend(), want)


def test_out(isa, dtype):
    """It is returned; any strides, its gaps are left alone; it may be an input."""
    packed = Packed(LENGTHS["one long among short"], dtype, heads=2, head_dim_v=8)
    want, want_lse = packed.attend(is_causal=True)
    out = np.full_like(want, np.nan)
    got, lse = packed.attend(is_causal=True, out=out)
    assert got is out
    assert same_bits((out, lse), (want, want_lse))

    whole = np.full((2 * packed.total_q, 2, 11), 7, dtype)
    view = whole[::-2, :, 1:9]
    packed.attend(is_causal=True, out=view)
    assert same_bits(np.ascontiguousarray(view), want)
    view[...] = 7
    assert (whole == 7).all()

    memory = packed.query.copy()
    packed.query = memory
    got, lse = packed.attend(is_causal=True, out=memory)
    assert same_bits((memory, lse), (want, want_lse))


def test_out_over_the_values(isa, dtype):
    """Fault 18: shifted by some elements, over the packed values, with as many queries as keys."""
    packed = Packed([(5, 5), (30, 30), (1, 1)], dtype, heads=2, head_dim_v=8)
    want, _ = packed.attend()
    size = want.size
    for shift in (-17, -1, 1, 16, size // 2):
        buffer = np.zeros(3 * size, dtype)
        value = buffer[size : 2 * size].reshape(want.shape)
        value[...] = packed.value
        out = buffer[size + shift : 2 * size + shift].reshape(want.shape)
        arrays = packed.query, packed.key, value
        selfattn.varlen_attention(*arrays, packed.cu_q, packed.cu_k, out=out)
        assert same_bits(out, want), shift


def test_without_lse(dtype):
    """The output alone, and the same."""
    packed = Packed(LENGTHS["empty among others"], dtype)
    arguments = *packed.arrays, packed.cu_q, packed.cu_k
    out = selfattn.varlen_attention(*arguments, enable_gqa=True)
    assert isinstance(out, np.ndarray)
    assert same_bits(out, packed.attend()[0])


def test_names_and_order_of_arguments(dtype):
    """Positional up to is_causal, as scaled_dot_product_attention has them; then by name."""
    packed = Packed([(5, 6), (3, 12), (1, 1)], dtype, heads=2)
    mask = packed.mask(packed.total_q, packed.longest)
    arguments = (*packed.arrays, packed.cu_q, packed.cu_k)
    want = packed.attend(attn_mask=mask, is_causal=True)
    got = selfattn.varlen_attention(*arguments, mask, 0.0, True, return_lse=True)
    assert same_bits(got, want)
    got = selfattn.varlen_attention(
        value=packed.value,
        key=packed.key,
        query=packed.query,
        cu_seqlens_k=packed.cu_k,
        cu_seqlens_q=packed.cu_q,
        attn_mask=mask,
        dropout_p=0.0,
        is_causal=True,
        return_lse=True,
    )
    assert same_bits(got, want)
    with pytest.raises(TypeError, match="positional"):
        selfattn.varlen_attention(*arguments, mask, 0.0, True, 0.5)
