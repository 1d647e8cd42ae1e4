"""merge_states: attention over two disjoint sets of keys, from the attention over each.

The bounds. A weight of the merge is 1 / (1 + exp(d)) with d the difference of the two lse: rounding
d, exp and the quotient moves it by a few u, as d * exp(-d) is less than 1 / 2 whatever d is, and
however large the lse are. Two products and a sum follow: 16 u of the larger side is twice of what
all can add up to. `lse` is the larger one plus a logarithm up to log 2: 6 u and, as in compare.py,
3 u |lse|.
"""

import itertools

import numpy as np
import pytest

import selfattn
from selfattn import merge_states, reference
from support.array_likes import KINDS
from support.arrays import normal, one_head, qkv, same_bits
from support.compare import assert_close, largest, score_size, unit_roundoff, wide

attend = selfattn.scaled_dot_product_attention
INF, NAN = np.inf, np.nan


def states(*shape, dtype=np.float32, size=3.0):
    """out_a, lse_a, out_b, lse_b for out of this shape."""
    return [
        (1 if n % 2 == 0 else size) * normal(*(shape, shape[:-1])[n % 2], dtype=dtype, seed=n)
        for n in range(4)
    ]


def check(out_a, lse_a, out_b, lse_b, context=""):
    """Against the reference, in float64 from the same numbers."""
    out, lse = merge_states(out_a, lse_a, out_b, lse_b)
    assert out.dtype == lse.dtype == out_a.dtype, context
    assert (out.shape, lse.shape) == (out_a.shape, lse_a.shape), context
    want, want_lse = wide(reference.merge_states, out_a, lse_a, out_b, lse_b)
    u = unit_roundoff(out_a.dtype)
    finite = [largest(x[np.isfinite(x)]) for x in (out_a, out_b)]
    assert_close(out, want, 16 * u * max(finite), f"out {context}")
    bound = np.nan_to_num(6 * u + 3 * u * np.abs(want_lse), nan=0.0)
    assert_close(lse, want_lse, bound, f"lse {context}")


def check_split(query, key, value, cut, **options):
    """Keys before the cut and from it on, merged, against the reference over all of them."""
    parts = [
        attend(query, key[..., at, :], value[..., at, :], return_lse=True, **options)
        for at in (slice(None, cut), slice(cut, None))
    ]
    out, lse = merge_states(*parts[0], *parts[1])
    want, want_lse = wide(
        reference.scaled_dot_product_attention, query, key, value, return_lse=True, **options
    )
    # The bounds of compare.py for each side; what their lse are off by moves a weight by half of
    # that, and out by as much of the larger value; and those of the merge.
    u, size = unit_roundoff(query.dtype), score_size(query, key)
    plain_sum = key.shape[-2] / 4 if query.dtype == np.float64 else 0
    off = 6 * (1 + size) + 3 * max(largest(x[1][np.isfinite(x[1])]) for x in parts)
    bound = u * (8 + 3 * size + plain_sum + off + 16) * largest(value)
    assert_close(out, want, bound, f"out {key.shape} {cut} {options}")
    bound = np.nan_to_num(u * (off + 6 + 3 * np.abs(want_lse)), nan=0.0)
    assert_close(lse, want_lse, bound, f"lse {key.shape} {cut} {options}")


# ------------------------------------------------------------------ keys cut in two


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_any_cut(isa, dtype, rows):
    """Each number of keys from 0 to 12, cut at each place; a side without keys is one."""
    for seqlen_k in range(13):
        arrays = one_head(rows, seqlen_k, 4, 3, dtype=dtype)
        for cut in range(seqlen_k + 1):
            check_split(*arrays, cut)


@pytest.mark.parametrize("cut", [1, 127, 128, 129, 500, 512, 513, 699])
def test_cuts_at_blocks_and_splits(isa, dtype, cut):
    for rows in (1, 3, 33):
        check_split(*one_head(rows, 700, 16, dtype=dtype), cut)


def test_heads_and_batch(isa, dtype):
    query, key, value = qkv((2, 6, 7, 8), 3, 30, 5, dtype=dtype)
    for cut in (0, 1, 17, 30):
        check_split(query, key, value, cut, enable_gqa=True)
        check_split(query, key, value, cut, enable_gqa=True, scale=4.0)


def test_causal_chunks(isa, dtype):
    """Chunks of keys, query_offset says where each begins; a row may see none of one.

    What a query does not see of a chunk has lse -inf, and adds nothing.
    """
    query, key, value = one_head(50, 50, 8, dtype=dtype)
    for bounds in ((0, 50), (0, 1, 50), (0, 20, 20, 35, 50), tuple(range(51))):
        out, lse = np.full((50, 8), NAN, dtype), np.full(50, -INF, dtype)
        for begin, end in itertools.pairwise(bounds):
            part = attend(
                query,
                key[begin:end],
                value[begin:end],
                is_causal=True,
                query_offset=-begin,
                return_lse=True,
            )
            out, lse = merge_states(out, lse, *part)
        want, want_lse = wide(
            reference.scaled_dot_product_attention,
            *(query, key, value),
            is_causal=True,
            return_lse=True,
        )
        # As for one cut, once for each merge.
        u, size, merges = unit_roundoff(dtype), score_size(query, key), len(bounds) - 1
        off = 6 * (1 + size) + 3 * largest(want_lse) + merges * (6 + 3 * largest(want_lse))
        bound = u * (8 + 3 * size + 50 / 4 + off + 16 * merges) * largest(value)
        assert_close(out, want, bound, bounds)
        assert_close(lse, want_lse, u * off, bounds)


def test_a_sink_on_one_side(isa, dtype):
    """It is a key without a value: on either side it counts once."""
    query, key, value = qkv((3, 9, 8), seqlen_k=40, dtype=dtype)
    sinks = 2 * normal(3, dtype=dtype, seed=9)
    want, want_lse = wide(
        lambda q, k, v: reference.scaled_dot_product_attention(
            q, k, v, sinks=sinks, return_lse=True
        ),
        *(query, key, value),
    )
    u, size = unit_roundoff(dtype), score_size(query, key)
    off = 6 * (1 + size) + 3 * largest(want_lse) + 2 * largest(sinks)
    for side in (0, 1):
        given = [{"sinks": sinks} if side == n else {} for n in (0, 1)]
        a = attend(query, key[:, :15], value[:, :15], return_lse=True, **given[0])
        b = attend(query, key[:, 15:], value[:, 15:], return_lse=True, **given[1])
        out, lse = merge_states(*a, *b)
        bound = u * (8 + 3 * size + 40 / 4 + 2 * off + 16) * largest(value)
        assert_close(out, want, bound, side)
        assert_close(lse, want_lse, u * (2 * off + 6), side)


def test_packed_sequences(isa, dtype):
    """varlen_attention's results merge with the heads first, as lse has them."""
    query, key, value = (normal(12, 2, 8, dtype=dtype, seed=n) for n in range(3))
    cu, half = np.array([0, 5, 5, 12]), np.array([2, 0, 3])
    offset = normal(12, 2, 8, dtype=dtype, seed=3)
    for keys in (key, key + offset):
        keep = np.arange(7) < np.repeat(half, np.diff(cu))[:, None]
        a, b = (
            selfattn.varlen_attention(query, keys, value, cu, cu, mask, return_lse=True)
            for mask in (keep, ~keep)
        )
        out, lse = merge_states(a[0].swapaxes(0, 1), a[1], b[0].swapaxes(0, 1), b[1])
        want, want_lse = selfattn.varlen_attention(query, keys, value, cu, cu, return_lse=True)
        # Both are off: the bound of check_split, twice.
        u = unit_roundoff(dtype)
        size = score_size(query.swapaxes(0, 1), keys.swapaxes(0, 1))
        off = 6 * (1 + size) + 3 * largest(want_lse)
        bound = 2 * u * (8 + 3 * size + off + 16) * largest(value)
        assert_close(out.swapaxes(0, 1), want, bound)
        assert_close(lse, want_lse, 2 * u * (off + 6))


# ------------------------------------------------------------------ any states


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1),
        (3, 1),
        (1, 17),
        (9, 64),
        (2, 3, 5, 33),
        (1, 2, 1, 2, 3, 4),
        (300, 2),
        (2, 40, 1, 128),
    ],
    ids=str,
)
def test_shapes(isa, dtype, shape):
    for size in (0.0, 1.0, 30.0, 1000.0):
        check(*states(*shape, dtype=dtype, size=size), context=f"{shape} {size}")


@pytest.mark.parametrize(
    "shape", [(0, 4), (3, 0), (0, 0), (0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str
)
def test_empty_axes(isa, dtype, shape):
    """Fault 9: nothing to merge; without a width there are lse all the same."""
    out_a, lse_a, out_b, lse_b = states(*shape, dtype=dtype)
    check(out_a, lse_a, out_b, lse_b)
    out, lse = merge_states(out_a, lse_a, out_b, lse_b)
    assert out.shape == shape
    assert lse.shape == shape[:-1]


def test_large_lse(isa, dtype):
    """They never overflow, and their size takes nothing from out: a table of every two."""
    greatest = float(np.finfo(dtype).max)
    table = [0.0, 1.0, -1.0, 80.0, -80.0, 1e4, 1e4 + 1, -1e4, -1e4 - 1, 1e30, -1e30]
    table += [greatest, -greatest, greatest / 2, -greatest / 2, float(np.finfo(dtype).tiny), -INF]
    lse_a, lse_b = np.array(list(itertools.product(table, repeat=2)), dtype).T
    out_a, out_b = (normal(len(lse_a), 5, dtype=dtype, seed=n) for n in range(2))
    check(out_a, lse_a, out_b, lse_b)
    out, lse = merge_states(out_a, lse_a, out_b, lse_b)
    assert np.isfinite(out).all()
    assert not np.isnan(lse).any()


def test_equal_sides(isa, dtype):
    """Equal lse are two halves; equal outputs stay what they are, to the last places."""
    out_a, lse_a, out_b, _ = states(50, 9, dtype=dtype, size=20.0)
    out, _ = merge_states(out_a, lse_a, out_b, lse_a)
    exact = (out_a.astype(np.float64) + out_b) / 2
    assert_close(out, exact, 2 * unit_roundoff(dtype) * (np.abs(out_a) + np.abs(out_b)))
    out, _ = merge_states(out_a, lse_a, out_a, lse_a + 1)
    assert_close(out, out_a, 4 * unit_roundoff(dtype) * np.abs(out_a))


# ------------------------------------------------------------------ sides that add nothing


@pytest.mark.parametrize("poison", [0.0, 7.0, NAN, INF, -INF])
def test_a_dead_side_adds_nothing(isa, dtype, poison):
    """Fault 5: lse -inf; whatever its out holds, the other side comes out bit for bit."""
    for shape in ((5, 3), (2, 3, 20, 16), (300, 1)):
        out, lse, _, _ = states(*shape, dtype=dtype, size=50.0)
        dead = np.full(shape, poison, dtype), np.full(shape[:-1], -INF, dtype)
        assert same_bits(merge_states(out, lse, *dead), (out, lse)), shape
        assert same_bits(merge_states(*dead, out, lse), (out, lse)), shape


def test_dead_rows_among_others(isa, dtype):
    """Row by row: one side, the other, both or none."""
    out_a, lse_a, out_b, lse_b = states(64, 5, dtype=dtype)
    want, want_lse = merge_states(out_a, lse_a, out_b, lse_b)
    dead_a, dead_b = np.arange(64) % 2 == 0, np.arange(64) % 3 == 0
    for dead, out, lse in ((dead_a, out_a, lse_a), (dead_b, out_b, lse_b)):
        out[dead], lse[dead] = NAN, -INF
    want[dead_a & ~dead_b], want_lse[dead_a & ~dead_b] = (
        x[dead_a & ~dead_b] for x in (out_b, lse_b)
    )
    want[dead_b & ~dead_a], want_lse[dead_b & ~dead_a] = (
        x[dead_b & ~dead_a] for x in (out_a, lse_a)
    )
    want[dead_a & dead_b], want_lse[dead_a & dead_b] = 0, -INF
    assert same_bits(merge_states(out_a, lse_a, out_b, lse_b), (want, want_lse))


@pytest.mark.parametrize("poison", [0.0, 7.0, NAN, INF, -INF])
def test_both_dead(isa, dtype, poison):
    """Fault 1: 0 and -inf, whatever is in them."""
    dead = np.full((7, 20), poison, dtype), np.full(7, -INF, dtype)
    want = np.zeros((7, 20), dtype), np.full(7, -INF, dtype)
    assert same_bits(merge_states(*dead, *dead), want)


def test_nan_and_inf_of_a_live_side(isa, dtype):
    """They go to their own element, of lse to their own row, and nowhere else."""
    given = states(20, 5, dtype=dtype)
    want, want_lse = merge_states(*given)
    for side, poison in itertools.product((0, 2), (NAN, INF, -INF)):
        spoiled = [x.copy() for x in given]
        spoiled[side][11, 2] = poison
        out, lse = merge_states(*spoiled)
        assert np.isnan(out[11, 2]) if np.isnan(poison) else out[11, 2] == poison
        out[11, 2] = want[11, 2]
        assert same_bits((out, lse), (want, want_lse)), (side, poison)
    for side in (1, 3):
        spoiled = [x.copy() for x in given]
        spoiled[side][11] = NAN
        out, lse = merge_states(*spoiled)
        assert np.isnan(out[11]).all()
        assert np.isnan(lse[11])
        out[11], lse[11] = want[11], want_lse[11]
        assert same_bits((out, lse), (want, want_lse)), side


# ------------------------------------------------------------------ arrays


def test_strides(isa, dtype):
    """Any strides, and the same bits: strided, backwards, transposed, broadcast, unaligned."""
    given = states(2, 3, 8, 4, dtype=dtype)
    want = merge_states(*given)

    def strided(x):
        whole = np.full(tuple(2 * n for n in x.shape), NAN, dtype)
        whole[tuple(np.s_[::2] for _ in x.shape)] = x
        return whole[tuple(np.s_[::2] for _ in x.shape)]

    def unaligned(x):
        memory = np.zeros(x.nbytes + 8, np.uint8)
        view = np.ndarray(x.shape, dtype, memory, 1)
        view[...] = x
        return view

    for layout in (
        strided,
        unaligned,
        lambda x: np.ascontiguousarray(x[::-1])[::-1],
        lambda x: np.ascontiguousarray(x.T).T,
        lambda x: np.ascontiguousarray(x.swapaxes(0, 2)).swapaxes(0, 2),
    ):
        assert same_bits(merge_states(*map(layout, given)), want)
        for n in range(4):
            assert same_bits(
                merge_states(*(layout(x) if m == n else x for m, x in enumerate(given))), want
            )
    shapes = [x.shape for x in given]
    few = [x[:1, :, :1] for x in given]
    broadcast = [np.broadcast_to(x, shape) for x, shape in zip(few, shapes, strict=True)]
    whole = [np.ascontiguousarray(x) for x in broadcast]
    assert same_bits(merge_states(*broadcast), merge_states(*whole))


def test_bits_do_not_depend_on_the_other_rows(isa, dtype):
    """Fault 30: each row alone, and a slice of the rows."""
    given = states(3, 70, 9, dtype=dtype)
    out, lse = merge_states(*given)
    for rows in (np.s_[:, 5:6], np.s_[1:, 3:60], np.s_[2, ::7]):
        assert same_bits(merge_states(*(x[rows] for x in given)), (out[rows], lse[rows]))


def test_isas_agree(each_isa, dtype):
    given = states(3, 70, 9, dtype=dtype, size=10.0)
    results = [merge_states(*given) for _ in each_isa()]
    assert all(same_bits(x, results[0]) for x in results)


def test_inputs_are_not_written(dtype):
    given = states(3, 7, 9, dtype=dtype)
    before = [x.copy() for x in given]
    for x in given:
        x.flags.writeable = False
    out, lse = merge_states(*given)
    assert all(map(same_bits, given, before))
    assert not any(np.shares_memory(x, y) for x in (out, lse) for y in given)


def test_the_same_state_twice(isa, dtype):
    """The same arrays as both sides."""
    out_a, lse_a, _, _ = states(3, 7, 9, dtype=dtype)
    copies = out_a.copy(), lse_a.copy()
    assert same_bits(merge_states(out_a, lse_a, out_a, lse_a), merge_states(out_a, lse_a, *copies))


@pytest.mark.parametrize("kind", KINDS)
def test_array_likes(kind, dtype):
    given = states(7, 9, dtype=dtype)
    got = merge_states(*map(KINDS[kind], given))
    assert all(type(x) is np.ndarray for x in got)
    assert same_bits(got, merge_states(*given))


def test_names_of_arguments(dtype):
    names = ("out_a", "lse_a", "out_b", "lse_b")
    given = states(7, 9, dtype=dtype)
    assert same_bits(merge_states(**dict(zip(names, given, strict=True))), merge_states(*given))
