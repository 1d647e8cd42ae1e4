"""AttentionState: the bits of one call where pieces end at multiples of 512 keys, else its result.

The one call is compared with the reference elsewhere.
"""

import inspect
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import selfattn
from selfattn._args import table
from support import subprocesses
from support.arrays import DTYPES, HALF_DTYPES, normal, qkv, same_bits
from support.compare import assert_close
from support.option_arrays import bool_mask, float_mask, runs, slopes
from support.pieces import in_pieces, state_of
from support.process import posix
from support.strategies import dropouts, problems, repeatable

SEQLEN_K, HEADS = 1700, 4
OFFSETS = np.array([SEQLEN_K - 70, 3])
OPTIONS = {
    "none": {},
    "causal": {"is_causal": True, "query_offset": OFFSETS},
    "window": {"window_size": (700, 2), "query_offset": OFFSETS, "scale": -0.3},
    "lengths": {"kv_lengths": np.array([SEQLEN_K, 900])},
    "bools": {"attn_mask": bool_mask(HEADS, 1, SEQLEN_K)},
    "floats": {"attn_mask": float_mask(2, 1, 70, SEQLEN_K), "sinks": slopes(HEADS)},
    "alibi": {"alibi_slopes": slopes(HEADS), "query_offset": OFFSETS, "is_causal": True},
    "softcap": {"softcap": 2.0, "scale": 3.0},
    "segments": {"segment_ids": (runs(70, 20, 30), runs(SEQLEN_K, 600, 500))},
    "dropout": {"dropout_p": 0.3, "dropout_seed": 5},
    "sinks": {"sinks": slopes(HEADS)},
}


def at_once(query, key, value, options, **more):
    return selfattn.scaled_dot_product_attention(
        query, key, value, return_lse=True, **options, **more
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_bits_of_one_call(each_isa, name):
    """Few rows and many, one head each and groups, alone and on threads."""
    options, want = OPTIONS[name] | {"enable_gqa": True}, {}
    for isa in each_isa():
        for dtype in (*DTYPES, *HALF_DTYPES):
            arrays = qkv((2, HEADS, 70, 24), 2, SEQLEN_K, 20, dtype=dtype)
            if isa == "portable":  # the bits of the others, which took both ways
                got = in_pieces(*arrays, options, [512, 512, 1536], num_threads=2)
                assert same_bits(got, want[dtype]), dtype
                continue
            want[dtype] = at_once(*arrays, options)
            for ends, threads in (([512, 1024], 1), ([1536], 2), ([0, 512, 512, 1024], 2)):
                got = in_pieces(*arrays, options, ends, num_threads=threads)
                assert same_bits(got, want[dtype]), (isa, dtype, ends, threads)
    query, key, value = qkv((2, HEADS, 1, 24), 2, SEQLEN_K, 20)
    if name in ("none", "causal", "window", "sinks", "dropout", "alibi"):
        for threads in (1, 3):
            got = in_pieces(query, key, value, options, [512, 1024], num_threads=threads)
            assert same_bits(got, at_once(query, key, value, options))


@given(problem=problems(), options=dropouts(), data=st.data())
@repeatable(60)
def test_any_problem_in_any_pieces(isa, problem, options, data):
    """To rounding: within what the two may be off by each, by the scores that the other has."""
    (query, key, value), given = problem
    options = given | options
    seqlen_k = key.shape[-2]
    ends = sorted(data.draw(st.lists(st.integers(0, seqlen_k), max_size=4)))
    got = in_pieces(query, key, value, options, ends)
    want = at_once(query, key, value, options)
    eps = np.finfo(query.dtype).eps
    size = float(np.abs(query).max() * np.abs(key).max() * query.shape[-1])
    size = 16 + size + float(np.nan_to_num(np.abs(want[1]), posinf=0).max(initial=0.0))
    if options.get("alibi_slopes") is not None:
        size += 1000 * float(np.abs(options["alibi_slopes"]).max())
    largest = float(np.abs(value).max(initial=0.0)) / (1 - min(options.get("dropout_p", 0), 0.9))
    assert_close(got[0], want[0], eps * size * largest)
    assert_close(got[1], want[1], eps * size)


@pytest.mark.parametrize("options", [{"softcap": 3.0}, {"alibi_slopes": slopes(2)}], ids=str)
def test_units(options):
    """Scores are scaled early or late, as options ask for; a mask of floats may come in between."""
    query, key, value = qkv((2, 5, 24), None, 1200)  # a scale that is no power of two
    mask = float_mask(2, 5, 1200)
    mask[..., :600] = 0
    for others, exact in (({}, False), (options, True)):
        state = state_of(query, others)
        state.update(key[:, :512], value[:, :512])
        state.update(key[:, 512:], value[:, 512:], attn_mask=mask[..., 512:])
        want = at_once(query, key, value, others | {"attn_mask": mask})
        got = state.result(return_lse=True)
        assert same_bits(got, want) or not exact
        assert_close(got[0], want[0], 2e-6)
        assert_close(got[1], want[1], 2e-6)


def test_units_of_rows_that_see_no_key_of_a_piece():
    """The piece's mask has scores scaled early, those of before too."""
    query, key, value = qkv((2, 2, 5, 24), None, 1024)
    mask = float_mask(2, 2, 5, 1024)
    mask[..., :512] = 0
    state = selfattn.AttentionState(query)
    state.update(key[..., :512, :], value[..., :512, :])
    state.update(
        key[..., 512:, :], value[..., 512:, :], attn_mask=mask[..., 512:], kv_lengths=[0, 512]
    )
    want = at_once(query, key, value, {"attn_mask": mask, "kv_lengths": [512, 1024]})
    for got, whole in zip(state.result(return_lse=True), want, strict=True):
        assert_close(got, whole, 2e-6)


def test_a_result_changes_nothing():
    """It may be asked for at any time, of copies too, and more keys may come after it."""
    query, key, value = qkv((2, 3, 16), None, 1536)
    state, copies = selfattn.AttentionState(query), []
    for begin in range(0, 1536, 512):
        copies.append(state.copy())
        state.update(key[:, begin : begin + 512], value[:, begin : begin + 512])
        for _ in range(2):
            want = selfattn.scaled_dot_product_attention(
                query, key[:, : begin + 512], value[:, : begin + 512]
            )
            assert same_bits(state.result(), want)
    for i, copy in enumerate(copies):
        assert copy.num_keys == 512 * i
        copy.update(key[:, 512 * i :], value[:, 512 * i :])
        assert same_bits(copy.result(), state.result())


def test_before_any_key():
    query = normal(2, 3, 4)
    out, lse = selfattn.AttentionState(query).result(return_lse=True)
    assert same_bits(out, np.zeros_like(query))
    assert (lse == -np.inf).all()
    sinks = np.array([1, 2], "f4")
    state = selfattn.AttentionState(query, sinks=sinks)
    assert same_bits(state.result(return_lse=True)[1], np.repeat(sinks[:, None], 3, 1))
    state.update(query[:, :0], normal(2, 0, 7))
    assert state.result().shape == (2, 3, 7)


@pytest.mark.parametrize("rows", [1, 3, 60])
def test_sums_that_overflow(isa, dtype, rows):
    """The mean of values near the largest number is finite, and right, as in one call."""
    largest = np.finfo(dtype).max
    query, key = normal(rows, 8, dtype=dtype), normal(1536, 8, dtype=dtype)
    value = normal(1536, 3, dtype=dtype)
    value[..., 1:] = largest * dtype(0.75)  # column 0 is small
    value[1024:, 2] *= -1
    ends = [512, 1024]
    got = in_pieces(query, key, value, {}, ends)
    assert np.isfinite(got[0]).all()
    want = at_once(query, key, value, {})
    assert same_bits(got[1], want[1])
    assert np.abs(got[0][:, 0] - want[0][:, 0]).max() <= 8 * np.finfo(dtype).eps
    assert np.abs(got[0][:, 1:] / largest - want[0][:, 1:] / largest).max() <= (
        32 * np.finfo(dtype).eps
    )
    # Once its sums are small again it is an ordinary state.
    state = selfattn.AttentionState(query)
    state.update(key[:512], value[:512])
    state.update(key[:512], -value[:512])
    state.update(np.resize(100 * query[:1], (512, 8)), np.ones((512, 3), dtype))
    assert np.isfinite(state.result()).all()


def test_what_is_masked_holds_anything():
    query, key, value = qkv((2, 40, 16), None, 1100)
    key[:, 600:700] = value[:, 600:700] = np.nan
    mask = np.ones(1100, bool)
    mask[600:700] = False
    options = {"attn_mask": mask}
    assert same_bits(
        in_pieces(query, key, value, options, [512]), at_once(query, key, value, options)
    )
    got = in_pieces(query, key, value, {"kv_lengths": 600}, [512])
    assert same_bits(got, at_once(query, key, value, {"kv_lengths": 600}))
    value[:, 0, 3] = np.inf  # attended to
    got = in_pieces(query, key, value, options, [512])
    assert same_bits(got, at_once(query, key, value, options))


def test_what_is_given_may_change_afterwards():
    query, key, value = qkv((2, 3, 16), None, 512)
    sinks, offset = np.ones(2, "f4"), np.array(509)
    options = {"sinks": sinks, "query_offset": offset, "is_causal": True}
    want = at_once(query, key, value, options)[0]
    state = selfattn.AttentionState(query, **options)
    query[:] = sinks[:] = 0
    offset[...] = 0
    state.update(key, value)
    key[:] = value[:] = 0
    assert same_bits(state.result(), want)


def test_first_query():
    """Rows of a larger problem drop what they drop there."""
    query, key, value = qkv((2, 50, 16), None, 700)
    options = {"dropout_p": 0.5, "dropout_seed": 3}
    want = at_once(query, key, value, options)[0]
    got = in_pieces(query[:, 20:], key, value, options, [512], first_query=20)[0]
    assert same_bits(got, want[:, 20:])


def test_keys_that_no_query_sees():
    """They need not be there: before the first keys, and between others."""
    query, key, value = qkv((2, 40, 16), None, 3072)
    options = {"window_size": (600, 0), "query_offset": 2600, "dropout_p": 0.5}
    state = selfattn.AttentionState(query, **options)
    state.skip(1536)
    state.update(key[:, 1536:2560], value[:, 1536:2560])
    state.update(key[:, 2560:2700], value[:, 2560:2700])
    state.skip(0)
    state.skip(400)
    assert state.num_keys == 3100
    assert same_bits(state.result(), at_once(query, key, value, options)[0])
    for wrong, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=r"^num_keys: expected"):
            state.skip(wrong)


def test_out():
    query, key, value = qkv((2, 3, 16), None, 512)
    state = selfattn.AttentionState(query)
    state.update(key, value)
    out = np.empty((2, 3, 16), "f4")
    assert state.result(out=out) is out
    assert same_bits(out, selfattn.scaled_dot_product_attention(query, key, value))
    with pytest.raises(ValueError, match=r"^out: expected shape"):
        state.result(out=out[:1])


def test_options_are_those_of_attention():
    own = ["self", "query", "first_query"]
    names = [n for n in inspect.signature(selfattn.AttentionState).parameters if n not in own]
    call = [row.name for row in table.options_of("scaled_dot_product_attention")]
    of_update = [*inspect.signature(selfattn.AttentionState.update).parameters]
    elsewhere = {"return_lse", "out", *of_update} - {"segment_ids"}
    assert sorted(names) == sorted(name for name in call if name not in elsewhere)


BAD = [
    ({"scale": "x"}, {}, TypeError, "scale: "),
    ({"window_size": (1, 2, 3)}, {}, ValueError, "window_size: "),
    ({"sinks": np.ones(5, "f4")}, {}, ValueError, "sinks: "),
    ({"num_threads": 0}, {}, ValueError, "num_threads: "),
    ({"first_query": 1.5}, {}, TypeError, "first_query: expected an int"),
    ({"segment_ids": np.zeros(3)}, {"segment_ids": np.zeros(512)}, TypeError, "segment_ids: "),
    ({}, {"kv_lengths": 600}, ValueError, "kv_lengths: expected values from 0 to 512"),
    ({}, {"attn_mask": np.ones((3, 7), bool)}, ValueError, "attn_mask: "),
    ({}, {"segment_ids": np.zeros(512, int)}, ValueError, "segment_ids: expected as the state"),
    ({"segment_ids": np.zeros(3, int)}, {}, ValueError, "segment_ids: expected as the state"),
    ({}, {"key": np.ones((2, 512, 16))}, TypeError, "key: expected float32"),
    ({}, {"key": np.ones((2, 512, 15), "f4")}, ValueError, "key: "),
    ({}, {"value": np.ones((2, 500, 16), "f4")}, ValueError, "value: "),
]


@pytest.mark.parametrize(("options", "piece", "error", "message"), BAD)
def test_errors(options, piece, error, message):
    """A failed update changes nothing."""
    query, key, value = qkv((2, 3, 16), None, 512)
    with pytest.raises(error, match="^" + re.escape(message)):
        selfattn.AttentionState(query, **options).update(**{"key": key, "value": value} | piece)
    state = selfattn.AttentionState(query)
    state.update(key, value)
    before = state.result()
    with pytest.raises(ValueError, match=r"^key: expected, with value, what makes a result of"):
        state.update(key, value[..., :5])
    assert state.num_keys == 512
    assert same_bits(state.result(), before)


@posix
def test_an_interrupted_update_changes_nothing():
    code = """
    import os, signal, threading, time
    import numpy as np, selfattn

    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Many tiles: some are done when the signal comes.
    query = np.random.default_rng(0).standard_normal((4000, 64, 16)).astype("f4")
    state = selfattn.AttentionState(query)
    state.update(query, query)
    before = state.result()
    long = np.broadcast_to(query[:, :1], (4000, 2**14, 16))
    def interrupt():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        state.update(long, long)
        raise SystemExit("not interrupted")
    except KeyboardInterrupt:
        pass
    assert state.num_keys == 64
    assert np.array_equal(state.result(), before)
    state.update(query, query)
    assert np.array_equal(state.copy().result(), state.result())
    """
    subprocesses.run(code)


def test_a_score_that_overflows():
    """Even a masked one sets the processor's flag: small values keep their bits all the same."""
    query, (key, value) = np.ones((1, 16), "f4"), normal(2, 1024, 16)
    value = value * np.float32(1e-30)
    key[7] = 3e38
    mask = np.arange(1024)[None] != 7
    options = {"attn_mask": mask}
    got = in_pieces(query, key, value, options, [512])
    assert same_bits(got, at_once(query, key, value, options))
    value[:, 0] = 3e38  # and this column's sum overflows
    got = in_pieces(query, key, value, options, [512])
    assert same_bits(got, at_once(query, key, value, options))


@pytest.mark.parametrize(
    "offset", [np.array(700, np.uint16), np.array([700, 100], np.int16), [700, 100]]
)
def test_offsets_of_any_type(offset):
    """How many keys there were is subtracted from them."""
    query, key, value = qkv((2, 1, 3, 16), None, 1024)
    options = {"is_causal": True, "query_offset": offset}
    want = at_once(query, key, value, options | {"query_offset": np.array(offset, np.int64)})
    assert same_bits(in_pieces(query, key, value, options, [512]), want)
