"""Attention over many ranks: the bits of one call, whatever their number, layout and options.

The ranks are threads here; `test_mpi.py` has processes.
"""

import inspect

import numpy as np
import pytest

import selfattn
from selfattn import distributed
from selfattn._args import table
from selfattn.demo import ring as demo
from support.arrays import DTYPES, HALF_DTYPES, qkv, same_bits
from support.option_arrays import bool_mask, float_mask, runs, slopes

SEQLEN, HEADS = 3700, 4
RANKS = (
    (1, "zigzag"),
    (2, "contiguous"),
    (3, "zigzag"),
    (4, "contiguous"),
    (7, "zigzag"),
)
OFFSETS = np.array([0, -500])
IDS = runs(SEQLEN, 600, 500)
OPTIONS = {
    "none": {},
    "causal": {"is_causal": True, "query_offset": OFFSETS},
    "window": {"window_size": (700, 2), "query_offset": OFFSETS, "scale": -0.3},
    "lengths": {"kv_lengths": np.array([SEQLEN - 1, 900]), "sinks": slopes(HEADS)},
    "bools": {"attn_mask": bool_mask(HEADS, 1, SEQLEN)},
    "floats": {"attn_mask": float_mask(2, 1, SEQLEN, SEQLEN), "is_causal": True},
    "bias": {"attn_mask": bool_mask(HEADS, 1, SEQLEN), "attn_bias": float_mask(SEQLEN, SEQLEN)},
    "padding": {
        "kv_starts": np.array([300, 2100]),
        "kv_lengths": np.array([SEQLEN, 2900]),
        "query_lengths": np.array([SEQLEN - 1, 1200]),
        "window_size": (1500, 700),
        "alibi_slopes": slopes(HEADS),
    },
    "alibi": {"alibi_slopes": slopes(HEADS), "is_causal": True},
    "softcap": {"softcap": 2.0, "scale": 3.0},
    "segments": {"segment_ids": IDS, "window_size": (-1, 100)},
    "dropout": {"dropout_p": 0.3, "dropout_seed": 5},
}


def in_shards(comm, arrays, options, layout, block=512):
    """This rank's result, of its shards of what is given for the whole."""

    def shard(x, axis=-2):
        return distributed.shard(x, comm.ranks, comm.rank, axis, layout, block)

    options = dict(options)
    for name in {"attn_mask", "attn_bias"} & options.keys():
        if options[name].shape[-2] > 1:
            options[name] = shard(options[name])
    if "segment_ids" in options:
        options["segment_ids"] = shard(options["segment_ids"], -1)
    return distributed.ring_attention(
        *map(shard, arrays),
        comm,
        layout=layout,
        block=block,
        enable_gqa=True,
        return_lse=True,
        num_threads=1,
        **options,
    )


def ring(ranks, arrays, options, layout, block=512):
    results = distributed.run_ranks(ranks, in_shards, arrays, options, layout, block)
    out, lse = zip(*results, strict=True)
    return (
        distributed.unshard(out, -2, layout, block),
        distributed.unshard(lse, -1, layout, block),
    )


def at_once(arrays, options):
    return selfattn.scaled_dot_product_attention(
        *arrays, return_lse=True, enable_gqa=True, **options
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_bits_of_one_call(name):
    arrays = qkv((2, HEADS, SEQLEN, 16), 2, SEQLEN, 12)
    want = at_once(arrays, OPTIONS[name])
    for ranks, layout in RANKS:
        got = ring(ranks, arrays, OPTIONS[name], layout)
        assert same_bits(got, want), (ranks, layout)


@pytest.mark.parametrize(
    "dtype", [*DTYPES[1:], *HALF_DTYPES], ids=lambda dtype: np.dtype(dtype).name
)
def test_dtypes(dtype):
    arrays = qkv((4, SEQLEN, 24), 1, SEQLEN, 8, dtype=dtype)
    options = {"is_causal": True, "window_size": (2000, -1)}
    want = at_once(arrays, options)
    for ranks, layout in ((2, "zigzag"), (4, "contiguous")):
        assert same_bits(ring(ranks, arrays, options, layout), want), (ranks, layout)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(0, 2000), (1, 1), (600, 3000), (3000, 600)])
def test_shards_without_positions(seqlen_q, seqlen_k):
    """There are more ranks than blocks; and keys that none of a rank's queries sees."""
    arrays = [x[0] for x in qkv((1, seqlen_q, 16), None, seqlen_k, 5)]
    for options in ({}, {"is_causal": True, "query_offset": -700}, {"kv_lengths": 0}):
        want = at_once(arrays, options)
        for layout in ("contiguous", "zigzag"):
            assert same_bits(ring(4, arrays, options, layout), want), (options, layout)


def test_shards():
    x = np.arange(2 * 5000).reshape(2, 5000, 1)
    for ranks in (1, 2, 3, 7):
        for layout in ("contiguous", "zigzag"):
            shards = [distributed.shard(x, ranks, rank, layout=layout) for rank in range(ranks)]
            assert np.array_equal(distributed.unshard(shards, layout=layout), x)
            ends = [piece.end for piece in distributed.pieces(5000, ranks, layout)]
            assert all(end % distributed.BLOCK == 0 or end == 5000 for end in ends)
    for bad, message in (
        ({"rank": 2}, "rank"),
        ({"layout": "z"}, "layout"),
        ({"block": 96}, "block"),
    ):
        with pytest.raises(ValueError, match=f"^{message}: expected"):
            distributed.shard(x, **{"ranks": 2, "rank": 0} | bad)
    with pytest.raises(ValueError, match=r"^shards: expected 3072 positions on rank 0"):
        distributed.unshard([x[:, :2500], x[:, 2500:]])


def test_what_travels():
    """Causal: a shard goes to later ranks alone, from each to the next."""
    arrays = qkv((1, 4096, 16), None, 4096)
    piece = 2 * 1024 * 16 * 4  # a key and a value of 1024 positions

    def bytes_sent(comm, options):
        comm = distributed.MeasuredTransport(comm)
        in_shards(comm, arrays, options, "contiguous")
        return comm.bytes_sent // 1000 * 1000  # less the ranks' words

    def of(options):
        sent = distributed.run_ranks(4, bytes_sent, options)
        return [round(x / piece) for x in sent]

    assert of({}) == [4, 4, 3, 1]  # 12: each of 4 shards goes 3 ways
    assert of({"is_causal": True}) == [1, 2, 3, 0]
    assert of({"is_causal": True, "window_size": (1000, 0)}) == [1, 1, 1, 0]
    assert of({"kv_lengths": 1024}) == [1, 1, 1, 0]
    assert of({"kv_starts": 3000}) == [2, 2, 1, 1]
    assert of({"query_lengths": 1000}) == [0, 1, 1, 1]


def failures(ranks, function):
    """What each rank raises."""

    def run(comm):
        try:
            function(comm)
        except Exception as error:
            return error

    return distributed.run_ranks(ranks, run)


def of_rank(comm, rank, changed, **unchanged):
    """A call in which one rank gives other arguments."""
    arrays = dict(zip(("query", "key", "value"), qkv((2, 1024, 16), None, 1024), strict=True))
    given = arrays | {"block": 512} | unchanged | (changed if comm.rank == rank else {})
    return distributed.ring_attention(comm=comm, **given)


WRONG = [
    ({"layout": "zigzag"}, ValueError, "layout: expected the same on all ranks, got contiguous"),
    ({"query": np.ones((2, 1024, 16))}, TypeError, "rank 1: key: expected float64"),
    (
        {"is_causal": True},
        ValueError,
        "is_causal: expected the same on all ranks, got 0 on rank 0 and 1 on",
    ),
    ({"sinks": np.ones(2, "f4")}, ValueError, "sinks: expected the same on all ranks, got None"),
    ({"scale": "x"}, ValueError, "scale: expected the same on all ranks, got None"),
    ({"value": np.ones((2, 1024, 8), "f4")}, ValueError, "value's shape but for its rows: "),
    ({"query": np.ones((2, 1000, 16), "f4")}, ValueError, "query: expected 1024 positions on rank"),
    ({"attn_mask": np.ones((1, 1), bool)}, ValueError, "attn_mask: expected the same"),
    ({"num_threads": 0}, ValueError, "rank 1: num_threads: expected"),
    ({"block": 100}, ValueError, "rank 1: block: expected a multiple of 512, got 100"),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG)
def test_all_ranks_raise_one_error(changed, error, message):
    errors = failures(3, lambda comm: of_rank(comm, 1, changed))
    assert {str(e) for e in errors} == {str(errors[0])}
    assert [type(e) for e in errors] == [error] * 3
    assert str(errors[0]).startswith(message)


def test_options_are_checked_over_all_keys():
    mask = np.ones((1024, 3072), bool)
    assert (
        failures(3, lambda comm: of_rank(comm, 0, {}, attn_mask=mask, kv_lengths=3072))
        == [None] * 3
    )
    for wrong, message in (
        ({"attn_mask": mask[:, 1:]}, "rank 0: attn_mask: expected"),
        ({"kv_lengths": 3073}, "rank 0: kv_lengths: expected values from 0 to 3072"),
        ({"query_lengths": 3073}, "rank 0: query_lengths: expected values from 0 to 3072"),
        ({"attn_bias": mask}, "rank 0: attn_bias: expected floats"),
        ({"scale": "x"}, "rank 0: scale: "),
    ):
        errors = failures(3, lambda comm, wrong=wrong: of_rank(comm, 0, {}, **wrong))
        assert all(str(e).startswith(message) for e in errors), errors


def test_a_rank_that_fails_midway(monkeypatch):
    """It passes on what others wait for; then all raise."""
    inner = selfattn.AttentionState.update

    def update(self, key, value, **options):
        if self.num_keys == 1024 and self._first_query == 1024:  # rank 1's second piece
            raise MemoryError("none left")
        inner(self, key, value, **options)

    monkeypatch.setattr(selfattn.AttentionState, "update", update)
    errors = failures(4, lambda comm: of_rank(comm, 0, {}))
    assert [type(e) for e in errors] == [distributed.RankError, MemoryError] + [
        distributed.RankError
    ] * 2
    assert str(errors[3]) == "rank 1 failed: MemoryError: none left"


def test_a_rank_that_ends():
    """Those that wait for it end too."""

    def run(comm):
        if comm.rank == 2:
            raise KeyError("gone")
        of_rank(comm, 0, {})

    with pytest.raises(KeyError, match="gone"):
        distributed.run_ranks(4, run)


def test_what_is_no_communicator():
    with pytest.raises(TypeError, match=r"^comm: expected a communicator of mpi4py"):
        distributed.ring_attention(*qkv((1, 8, 4), None, 8), comm=3)


@pytest.mark.parametrize(
    "function", ["scaled_dot_product_attention", "scaled_dot_product_attention_backward"]
)
def test_options_are_those_of_attention(function):
    ring = getattr(distributed, function.replace("scaled_dot_product", "ring"))
    parameters = inspect.signature(ring).parameters.values()
    options = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}
    assert options - {"layout", "block"} == {row.name for row in table.options_of(function)} - {
        "out"
    }


def test_the_demo(monkeypatch, capsys):
    for name in demo._LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    assert demo.run(10000)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[4:]]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert sum(int(row[1]) for row in rows) == 10000
