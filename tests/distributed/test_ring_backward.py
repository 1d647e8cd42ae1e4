"""Gradients over many ranks: the bits of one call, whatever their number, layout and options."""

import threading

import numpy as np
import pytest

import selfattn
from selfattn import distributed
from selfattn.distributed import backward, sinks_gradient
from support.arrays import DTYPES, HALF_DTYPES, normal, qkv, same_bits
from support.option_arrays import bool_mask, float_mask, runs, slopes

SEQLEN, HEADS = 6000, 3
OFFSETS = np.array([0, -500])
IDS = runs(SEQLEN, 900, 500)
OPTIONS = {
    "causal": {"is_causal": True, "query_offset": OFFSETS},
    "window": {"window_size": (1700, 2), "scale": -0.3},
    "lengths": {"kv_lengths": np.array([SEQLEN - 1, 1900]), "softcap": 2.0},
    "bools": {"attn_mask": bool_mask(HEADS, 1, SEQLEN)},
    "floats": {"attn_mask": float_mask(SEQLEN, SEQLEN), "is_causal": True},
    "alibi": {"alibi_slopes": slopes(HEADS), "is_causal": True},
    "segments": {"segment_ids": IDS},
    "dropout": {"dropout_p": 0.3, "dropout_seed": 5, "sinks": slopes(HEADS)},
    "large": {"scale": 40.0, "is_causal": True},
    "large and sinks": {"scale": -30.0, "sinks": 50 * slopes(HEADS)},
}


def inputs(shape, heads_kv, seqlen_k, head_dim_v, options, dtype=np.float32):
    """grad_out, query, key, value, out, lse, grad_lse of the whole."""
    arrays = qkv(shape, heads_kv, seqlen_k, head_dim_v, dtype=dtype)
    out, lse = selfattn.scaled_dot_product_attention(
        *arrays, return_lse=True, enable_gqa=True, **options
    )
    grad_out = normal(*out.shape, dtype=dtype, seed=7)
    grad_lse = normal(*lse.shape, dtype=lse.dtype, seed=8) / 8
    return grad_out, *arrays, out, lse, grad_lse


def at_once(given, options, with_grad_lse=True):
    *arrays, grad_lse = given
    grad_lse = grad_lse if with_grad_lse else None
    return selfattn.scaled_dot_product_attention_backward(
        *arrays, grad_lse=grad_lse, enable_gqa=True, **options
    )


def in_shards(comm, given, options, layout, with_grad_lse):
    def shard(x, axis=-2):
        return distributed.shard(x, comm.ranks, comm.rank, axis, layout)

    options = dict(options)
    for name in {"attn_mask", "attn_bias"} & options.keys():
        if options[name].shape[-2] > 1:
            options[name] = shard(options[name])
    if isinstance(options.get("segment_ids"), tuple):
        options["segment_ids"] = tuple(shard(ids, -1) for ids in options["segment_ids"])
    elif "segment_ids" in options:
        options["segment_ids"] = shard(options["segment_ids"], -1)
    *arrays, lse, grad_lse = given
    return distributed.ring_attention_backward(
        *map(shard, arrays),
        shard(lse, -1),
        comm,
        grad_lse=shard(grad_lse, -1) if with_grad_lse else None,
        layout=layout,
        enable_gqa=True,
        num_threads=1,
        **options,
    )


def ring(ranks, given, options, layout, with_grad_lse=True):
    """query's, key's and value's gradients of the whole."""
    shards = distributed.run_ranks(ranks, in_shards, given, options, layout, with_grad_lse)
    return [distributed.unshard([s[i] for s in shards], layout=layout) for i in range(3)]


@pytest.mark.parametrize("name", OPTIONS)
def test_bits_of_one_call(name):
    options = OPTIONS[name]
    given = inputs((2, HEADS, SEQLEN, 8), None, SEQLEN, 6, options)
    want = at_once(given, options)[:3]
    for ranks, layout in ((2, "zigzag"), (3, "contiguous")):
        for got, gradient, which in zip(
            ring(ranks, given, options, layout), want, "qkv", strict=True
        ):
            assert same_bits(got, gradient), (ranks, layout, which)


@pytest.mark.parametrize("dtype", [*DTYPES, *HALF_DTYPES], ids=lambda dtype: np.dtype(dtype).name)
def test_dtypes_and_groups(dtype):
    options = {"is_causal": True, "query_offset": 100}
    given = inputs((4, SEQLEN, 16), 2, SEQLEN, 8, options, dtype)
    want = at_once(given, options, with_grad_lse=False)[:3]
    for ranks, layout in ((1, "zigzag"), (2, "contiguous"), (4, "zigzag"), (7, "contiguous")):
        got = ring(ranks, given, options, layout, with_grad_lse=False)
        assert all(map(same_bits, got, want)), (ranks, layout)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(0, 2000), (1, 1), (600, 4000), (4000, 600)])
def test_shards_without_positions(seqlen_q, seqlen_k):
    for options in ({"is_causal": True, "query_offset": -700}, {"kv_lengths": 0}):
        given = inputs((1, seqlen_q, 8), None, seqlen_k, 5, options)
        want = at_once(given, options)[:3]
        for layout in ("contiguous", "zigzag"):
            assert all(map(same_bits, ring(3, given, options, layout), want)), (options, layout)


SHORT, KEYS = 1700, 3100  # two blocks and three, of which some ranks have none
SEEN = np.add.outer(np.arange(SHORT), np.arange(KEYS)) % 7 > 2  # by each query some keys
SEEN[100:200] = False
WANTED = {
    "sinks": {
        "sinks": slopes(4),
        "is_causal": True,
        "query_offset": OFFSETS,
        "dropout_p": 0.2,
    },
    "large sinks": {
        "sinks": 60 * slopes(4),
        "scale": 20.0,
        "segment_ids": (runs(SHORT, 900, 500), runs(KEYS, 1000, 1900)),
        "attn_mask": SEEN,
        "query_lengths": np.array([SHORT, 1600]),
        "kv_starts": np.array([100, 0]),
    },
    "mask": {
        "segment_ids": (runs(SHORT, 900, 500), runs(KEYS, 1000, 1900)),
        "attn_mask": float_mask(SHORT, KEYS),
        "attn_bias": float_mask(2, 1, SHORT, KEYS),
        "kv_lengths": np.array([KEYS - 1, 1900]),
        "query_lengths": np.array([SHORT, 1600]),
        "sinks": slopes(4),
        "softcap": 3.0,
    },
}
RANKS = ((1, "zigzag"), (2, "zigzag"), (3, "contiguous"), (4, "zigzag"), (7, "contiguous"))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, np.float32) for name in WANTED), ("sinks", HALF_DTYPES[0]), ("sinks", np.float64)],
)
def test_gradients_of_options(name, dtype):
    """Of mask and bias each rank has its rows; of sinks all ranks have the whole."""
    options = WANTED[name] | {"sinks": WANTED[name]["sinks"].astype(dtype)}
    given = inputs((2, 4, SHORT, 8), 2, KEYS, 6, options, dtype)
    options["sinks_grad"] = True
    if name == "mask":
        options |= {"mask_grad": True, "bias_grad": True}
    want = at_once(given, options)
    for ranks, layout in RANKS:
        shards = distributed.run_ranks(ranks, in_shards, given, options, layout, True)
        assert all(same_bits(of_rank.sinks, want.sinks) for of_rank in shards), (ranks, layout)
        for which, gradient in want._asdict().items():
            parts = [getattr(of_rank, which) for of_rank in shards]
            if gradient is None:
                assert parts == [None] * ranks
            elif which != "sinks":
                got = distributed.unshard(parts, layout=layout)
                assert same_bits(got, gradient), (ranks, layout, which)


def test_one_query_with_a_mask_of_rows():
    """As in decoding: the ranks without a query have masks of no rows."""
    options = {"attn_mask": float_mask(1, SEQLEN)}
    given = inputs((2, HEADS, 1, 8), HEADS, SEQLEN, 8, {"attn_mask": options["attn_mask"]})
    want = at_once(given, options)

    def differentiate(comm):
        def shard(x, axis=-2):
            return distributed.shard(x, comm.ranks, comm.rank, axis)

        *arrays, lse, grad_lse = given
        mask = shard(options["attn_mask"])
        return distributed.ring_attention_backward(
            *map(shard, arrays), shard(lse, -1), comm, attn_mask=mask, grad_lse=shard(grad_lse, -1)
        )

    found = distributed.run_ranks(3, differentiate)
    for i in range(3):
        assert same_bits(distributed.unshard([gradients[i] for gradients in found]), want[i]), i


@pytest.mark.parametrize("step", ["QueryGradient", "rows_that_travel"])
def test_a_rank_that_fails_between_rings(monkeypatch, step):
    """It has no memory there, and lives on: the others do not wait for it."""
    x, ended = normal(2, 4000, 8), []
    lacking = threading.local()

    def fails_where_lacking(f):
        def call(*arguments):
            if getattr(lacking, "memory", False):
                raise MemoryError("no room")
            return f(*arguments)

        return call

    owner = backward if step == "QueryGradient" else backward.KeyGradients
    monkeypatch.setattr(owner, step, fails_where_lacking(getattr(owner, step)))

    def differentiate(comm):
        mine = distributed.shard(x, comm.ranks, comm.rank)
        out, lse = distributed.ring_attention(mine, mine, mine, comm, return_lse=True)
        lacking.memory = comm.rank == 1
        with pytest.raises((MemoryError, distributed.RankError)):
            distributed.ring_attention_backward(out, mine, mine, mine, out, lse, comm)
        ended.append(comm.rank)

    distributed.run_ranks(3, differentiate)
    assert sorted(ended) == [0, 1, 2]


def test_a_rank_that_fails_at_its_sinks(monkeypatch):
    """It passes on the others' sums; then all raise."""
    inner = sinks_gradient._Adder.__call__

    def add(self, sums, entry, piece):
        if piece.owner == 1:
            raise MemoryError("none left")
        inner(self, sums, entry, piece)

    monkeypatch.setattr(sinks_gradient._Adder, "__call__", add)
    options = {"sinks": slopes(2)}
    given = inputs((2, 3100, 4), None, 1536, 4, options)

    def attempt(comm):
        try:
            in_shards(comm, given, options | {"sinks_grad": True}, "contiguous", False)
        except Exception as error:
            return type(error)

    errors = distributed.run_ranks(3, attempt)
    assert errors == [distributed.RankError, MemoryError, distributed.RankError]


def test_errors():
    given = inputs((2, 1536, 8), None, 1536, 8, {})

    def attempt(comm, changed):
        try:
            arrays = [*given[:6]]
            for place, x in changed.items():
                arrays[place] = x
            distributed.ring_attention_backward(
                *arrays, comm, grad_lse=given[6] if comm.rank else None
            )
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    for changed, message in (
        ({}, "ValueError: grad_lse: expected the same on all ranks, got False on rank 0"),
        ({0: given[0][:, :5]}, "ValueError: rank 0: grad_out: expected shape (2, 1536, 8), got"),
        ({5: given[5].astype("f8")}, "TypeError: rank 0: lse: expected float32"),
        ({3: given[3][:1]}, "ValueError: rank 0: key: expected, with value, query's axes"),
    ):
        errors = distributed.run_ranks(2, attempt, changed)
        assert len(set(errors)) == 1
        assert errors[0].startswith(message)


def test_errors_of_wanted_gradients():
    *given, _ = inputs((2, 1536, 8), None, 1536, 8, {})
    rows = np.zeros((1536, 3072), "f4")

    def attempt(comm, of_rank):
        try:
            distributed.ring_attention_backward(*given, comm, **of_rank(comm.rank))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    for of_rank, message in (
        (
            lambda rank: {"attn_mask": rows[:1], "mask_grad": True},
            "ValueError: rank 0: mask_grad: expected one of shape (..., 1536, 3072), this rank's",
        ),
        (
            lambda rank: {"attn_bias": rows, "bias_grad": rank == 0},
            "ValueError: bias_grad: expected the same on all ranks, got True on rank 0 and False",
        ),
        (lambda rank: {"sinks_grad": True}, "ValueError: rank 0: sinks_grad: expected sinks"),
        (
            lambda rank: {"attn_mask": rows > 0, "mask_grad": True},
            "ValueError: rank 0: mask_grad: expected an attn_mask of floats, got one of bools",
        ),
    ):
        errors = distributed.run_ranks(2, attempt, of_rank)
        assert len(set(errors)) == 1
        assert errors[0].startswith(message)
