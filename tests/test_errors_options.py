"""Bad masks, slopes, sinks, segments, sequences, states: errors as test_errors.py has them.

Each names the argument, what was expected and what came, and nothing is written to `out` when it is
raised. Faults 16 and 20 for the arrays that options are.
"""

import math
import re

import numpy as np
import pytest
from arrays import normal, qkv

from selfattn import (
    attention_weights,
    merge_states,
    scaled_dot_product,
    scaled_dot_product_attention,
    varlen_attention,
    weighted_sum,
)

QUERY, KEY, VALUE = qkv((2, 4, 5, 8), seqlen_k=7)
PACKED = {
    "query": normal(9, 4, 8),
    "key": normal(12, 4, 8, seed=1),
    "value": normal(12, 4, 3, seed=2),
    "cu_seqlens_q": np.array([0, 3, 3, 9]),
    "cu_seqlens_k": np.array([0, 5, 6, 12]),
}
SWAPPED = np.dtype(np.float32).newbyteorder()
LONGDOUBLE_IS_DOUBLE = np.finfo(np.longdouble).nmant == np.finfo(np.float64).nmant


def raises(error, message, f, out_shape, *arguments, **options):
    """The error, by its message, and an `out` that is left as it was."""
    out = None if out_shape is None else np.full(out_shape, 7, np.float32)
    given = {} if out is None else {"out": out}
    with pytest.raises(error, match=message):
        f(*arguments, **options, **given)
    assert out is None or (out == 7).all()


def attention_raises(error, message, **options):
    """In the fused call, and in the steps that have the option."""
    raises(error, message, scaled_dot_product_attention, (2, 4, 5, 8), QUERY, KEY, VALUE, **options)
    for step in (scaled_dot_product, attention_weights):
        if set(options) <= {*step.__kwdefaults__, "attn_mask", "is_causal"}:
            raises(error, message, step, (2, 4, 5, 7), QUERY, KEY, **options)


def varlen_raises(error, message, **arguments):
    raises(error, message, varlen_attention, (9, 4, 3), **(PACKED | arguments))


# ------------------------------------------------------------------ kinds and dtypes

NO_ARRAYS = [
    (1.5, "float"),
    (3, "int"),
    (True, "bool"),
    ("text", "str"),
    (b"bytes", "bytes"),
    (object(), "object"),
    ({"a": 1}, "dict"),
]
LISTS = [([1.0, 2.0], "list"), ((1.0, 2.0), "tuple")]


def wrong_dtypes(shape):
    """What no option of floats takes, in a shape that would fit."""
    dtypes = {
        np.int64: "int64",
        np.uint8: "uint8",
        np.float16: "float16",
        np.complex64: "complex64",
        np.longdouble: "float128|longdouble|float96",
        object: "object|'O'",
        "U1": "U1",
        "M8[s]": "M8|datetime64",
        SWAPPED: "[<>]f4",
    }
    if LONGDOUBLE_IS_DOUBLE:
        del dtypes[np.longdouble]
    return [(np.ones(shape, dtype), came) for dtype, came in dtypes.items()]


FLOATS = {"attn_mask": (5, 7), "alibi_slopes": (4,), "sinks": (4,)}
FLOATS_OF_PACKED = FLOATS | {"attn_mask": (9, 6)}


@pytest.mark.parametrize("name", FLOATS)
def test_no_array_of_floats(name):
    """Fault 20: kinds and dtypes in the place of each option that is floats."""
    for wrong, came in [*NO_ARRAYS, *LISTS, *wrong_dtypes(FLOATS[name])]:
        attention_raises(TypeError, rf"^{name}: expected .*got.*({came})", **{name: wrong})
    for wrong, came in [*NO_ARRAYS, *LISTS, *wrong_dtypes(FLOATS_OF_PACKED[name])]:
        varlen_raises(TypeError, rf"^{name}: expected .*got.*({came})", **{name: wrong})


@pytest.mark.parametrize("name", FLOATS)
def test_float64_beside_float32(name):
    """Fault 16: what float32 could not hold is not cast to it."""
    message = rf"^{name}: expected .*float32.*got.*float64"
    for fill in (1.0, -1e308):
        attention_raises(TypeError, message, **{name: np.full(FLOATS[name], fill)})
    varlen_raises(TypeError, message, **{name: np.ones(FLOATS_OF_PACKED[name])})


@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
def test_bools_are_no_numbers(name):
    message = rf"^{name}: expected .*got.*bool"
    attention_raises(TypeError, message, **{name: np.ones(4, bool)})
    varlen_raises(TypeError, message, **{name: np.ones(4, bool)})


@pytest.mark.parametrize("name", FLOATS)
def test_float32_beside_float64(name):
    """And it is no error: in float64 every float32 is what it was."""
    arrays = [x.astype(np.float64) for x in (QUERY, KEY, VALUE)]
    option = normal(*FLOATS[name])
    got = scaled_dot_product_attention(*arrays, **{name: option})
    want = scaled_dot_product_attention(*arrays, **{name: option.astype(np.float64)})
    assert np.array_equal(got, want)


SEGMENT_KINDS = [
    *NO_ARRAYS,
    (np.ones((2, 5)), "float64"),
    (np.ones((2, 5), np.float32), "float32"),
    (np.ones((2, 5), np.complex64), "complex64"),
    (np.ones((2, 5), object), "object|'O'"),
    (np.ones((2, 5), "U1"), "U1"),
    (np.ones((2, 5), "M8[s]"), "M8|datetime64"),
    (np.ones((2, 5), np.dtype(np.int32).newbyteorder()), "[<>]i4"),
]


@pytest.mark.parametrize(("wrong", "came"), SEGMENT_KINDS, ids=[came for _, came in SEGMENT_KINDS])
def test_no_segments(wrong, came):
    """Alone, and as either one of a pair."""
    message = rf"^segment_ids: expected .*got.*({came})"
    ids_q, ids_k = np.ones((2, 5), np.int32), np.ones((2, 7), np.int32)
    for given in (wrong, (wrong, ids_k), (ids_q, wrong), [ids_q, wrong]):
        attention_raises(TypeError, message, segment_ids=given)
    varlen_raises(TypeError, message, segment_ids=(wrong, np.ones(12, np.int32)))


def test_segments_of_two_dtypes():
    message = r"^segment_ids: expected .*got.*int(32|64).*int(32|64)"
    for dtypes in ((np.int32, np.int64), (np.int64, np.int32)):
        ids = [np.ones((2, n), dtype) for n, dtype in zip((5, 7), dtypes, strict=True)]
        attention_raises(TypeError, message, segment_ids=tuple(ids))
    message = r"^segment_ids: expected .*got.*(bool|int8).*(bool|int8)"
    varlen_raises(TypeError, message, segment_ids=(np.ones(9, bool), np.ones(12, np.int8)))
    nothing = np.ones((2, 7), np.int32)
    for pair in ((None, nothing), (nothing[:, :5], None), (None, None), ([1] * 5, nothing)):
        attention_raises(
            TypeError, r"^segment_ids: expected .*got (NoneType|list)", segment_ids=pair
        )


# ------------------------------------------------------------------ shapes


MASK_SHAPES = [
    *[(5,), (0,), (6, 7), (5, 6), (5, 8), (0, 7), (2, 5, 7), (3, 5, 7), (4, 1, 5, 7), (2, 2, 5, 7)],
    *[(3, 4, 5, 7), (2, 0, 5, 7), (4, 5, 1, 7), (1, 2, 4, 5, 7), (2, 4, 5, 7, 1)],
]


@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_masks_that_do_not_fit(shape):
    """Only what broadcasts to the scores' shape, and never what would enlarge it."""
    message = rf"^attn_mask: expected .*\(2, 4, 5, 7\).*got {re.escape(str(shape))}"
    for dtype in (bool, np.float32):
        attention_raises(ValueError, message, attn_mask=np.ones(shape, dtype))


def test_masks_of_one_head():
    """2-D inputs have scores (L, S); a batch of masks does not make a batch of them."""
    query, key, value = QUERY[0, 0], KEY[0, 0], VALUE[0, 0]
    for shape in ((4, 5, 7), (2, 4, 5, 7), (7, 5), (5, 5), (2, 7)):
        came = re.escape(str(shape))
        message = rf"^attn_mask: expected .*\(5, 7\).*got {came}"
        raises(
            *(ValueError, message, scaled_dot_product_attention, (5, 8)),
            *(query, key, value),
            attn_mask=np.ones(shape, bool),
        )


@pytest.mark.parametrize("shape", [(3,), (5,), (3, 4), (2, 3), (4, 2), (2, 2, 4), (0,)], ids=str)
def test_slopes_that_do_not_fit(shape):
    message = rf"^alibi_slopes: expected .*\(2, 4\).*got {re.escape(str(shape))}"
    attention_raises(ValueError, message, alibi_slopes=np.ones(shape, np.float32))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5,), (2, 4), (1, 4), (4, 1), (0,)], ids=str)
def test_sinks_that_do_not_fit(shape):
    """One for each query head, and nothing that would broadcast."""
    message = rf"^sinks: expected .*\(4,\).*got {re.escape(str(shape))}"
    attention_raises(ValueError, message, sinks=np.ones(shape, np.float32))
    varlen_raises(ValueError, message, sinks=np.ones(shape, np.float32))


def test_heads_of_one_head():
    """2-D inputs have one query head."""
    arguments = QUERY[0, 0], KEY[0, 0], VALUE[0, 0]
    ones = np.ones(1, np.float32)
    scaled_dot_product_attention(*arguments, sinks=ones, alibi_slopes=ones)
    for name in ("sinks", "alibi_slopes"):
        message = rf"^{name}: expected .*\(1,\).*got \(4,\)"
        option = {name: np.ones(4, np.float32)}
        raises(ValueError, message, scaled_dot_product_attention, (5, 8), *arguments, **option)


def test_sinks_are_none_of_the_scores_options():
    """The scores know no sinks: they are no score of a key."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'sinks'"):
        scaled_dot_product(QUERY, KEY, sinks=np.ones(4, np.float32))


SEGMENT_SHAPES = [
    ((2, 4), (2, 7)),
    ((2, 6), (2, 7)),
    ((2, 5), (2, 6)),
    ((2, 5), (2, 8)),
    ((2, 1), (2, 7)),
    ((2, 5), (2, 1)),
    ((2, 5), (1,)),
    ((), (7,)),
    ((5,), ()),
    ((3, 5), (2, 7)),
    ((2, 5), (3, 7)),
    ((1, 2, 5), (2, 7)),
    ((2, 4, 5), (2, 4, 7)),
    ((0, 5), (2, 7)),
]


@pytest.mark.parametrize("shapes", SEGMENT_SHAPES, ids=str)
def test_segments_that_do_not_fit(shapes):
    """The last axis is L or S itself; those before it broadcast to the axes before the heads."""
    fits_q = shapes[0] in ((5,), (2, 5))
    expected, came = (r"\(2, 7\)", shapes[1]) if fits_q else (r"\(2, 5\)", shapes[0])
    message = rf"^segment_ids: expected .*{expected}.*got {re.escape(str(came))}"
    for kind in (tuple, list):
        ids = kind(np.zeros(shape, int) for shape in shapes)
        attention_raises(ValueError, message, segment_ids=ids)


def test_segments_one_or_two():
    one = np.zeros((2, 5), int)
    message = "^segment_ids: expected .*pair.*got"
    attention_raises(ValueError, message, segment_ids=one)  # 5 queries, 7 keys
    for n in (0, 1, 3):
        for kind in (tuple, list):
            attention_raises(ValueError, rf"{message} .*{n}", segment_ids=kind([one] * n))
    varlen_raises(ValueError, message, segment_ids=np.zeros(9, int))  # 9 queries, 12 keys


# ------------------------------------------------------------------ numbers

NUMBERS = [
    ({"softcap": -1.0}, ValueError, "softcap: expected .*got -1.0"),
    ({"softcap": -1e-300}, ValueError, "softcap: expected .*got -1e-300"),
    ({"softcap": math.nan}, ValueError, "softcap: expected .*got nan"),
    ({"softcap": math.inf}, ValueError, "softcap: expected .*got inf"),
    ({"softcap": -math.inf}, ValueError, "softcap: expected .*got -inf"),
    ({"softcap": np.float32(-2)}, ValueError, "softcap: expected .*got -2.0"),
    ({"softcap": "30"}, TypeError, "softcap: expected a number, got str"),
    ({"softcap": b"30"}, TypeError, "softcap: expected a number, got bytes"),
    ({"softcap": None}, TypeError, "softcap: expected a number, got NoneType"),
    ({"softcap": True}, TypeError, "softcap: expected a number, got bool"),
    ({"softcap": 1j}, TypeError, "softcap: expected a number, got complex"),
    ({"softcap": [30.0]}, TypeError, "softcap: expected a number, got list"),
    ({"dropout_p": "x"}, TypeError, "dropout_p: expected a number, got str"),
    ({"dropout_p": None}, TypeError, "dropout_p: expected a number, got NoneType"),
    ({"dropout_p": -0.1}, ValueError, "dropout_p: expected .*got -0.1"),
    ({"dropout_p": 1.5}, ValueError, "dropout_p: expected .*got 1.5"),
    ({"dropout_p": math.nan}, ValueError, "dropout_p: expected .*got nan"),
    ({"dropout_p": 0.1}, NotImplementedError, "dropout_p: not built yet"),
    ({"dropout_p": 1.0}, NotImplementedError, "dropout_p: not built yet"),
    ({"dropout_seed": 0.5}, TypeError, "dropout_seed: expected an int, got float"),
    ({"dropout_seed": None}, TypeError, "dropout_seed: expected an int, got NoneType"),
]


@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: str(case[0]))
def test_numbers(case):
    options, error, message = case
    attention_raises(error, f"^{message}", **options)
    varlen_raises(error, f"^{message}", **options)


def test_options_that_are_none_in_effect():
    """None, and zeros of any kind, are no error."""
    want = scaled_dot_product_attention(QUERY, KEY, VALUE)
    nothing = {"attn_mask": None, "alibi_slopes": None, "sinks": None, "segment_ids": None}
    for zero in (0, 0.0, -0.0, np.float32(0), np.int64(0)):
        got = scaled_dot_product_attention(QUERY, KEY, VALUE, softcap=zero, **nothing)
        assert np.array_equal(got, want)
    got = scaled_dot_product_attention(QUERY, KEY, VALUE, None, 0, False, dropout_seed=3)
    assert np.array_equal(got, want)


@pytest.mark.parametrize(
    ("weights", "value", "name"),
    [((5,), (5, 3), "weights"), ((), (5, 3), "weights"), ((2, 5), (5,), "value")],
    ids=str,
)
def test_weights_and_values_of_too_few_axes(weights, value, name):
    """The step that takes no query: it has a row and a column all the same."""
    message = rf"^{name}: expected 2 or more axes, got shape"
    raises(ValueError, message, weighted_sum, None, np.ones(weights), np.ones(value))


# ------------------------------------------------------------------ packed sequences

SEQUENCES = {
    "cu_seqlens_q": [
        (np.array([1, 3, 9]), "0.*9"),
        (np.array([-1, 3, 9]), "0.*9"),
        (np.array([0, 3, 8]), "9"),
        (np.array([0, 3, 10]), "9"),
        (np.array([0, 5, 3, 9]), "decrease"),
        (np.array([0, 12, 9]), "decrease"),
        (np.array([0, -1, 9]), "decrease"),
        (np.array([0]), "9"),
        (np.array([9]), "9"),
        (np.array([], int), "shape"),
        (np.array(9), "shape"),
        (np.array([[0, 9]]), "shape"),
        (np.array([0, 2**62, 9]), "decrease"),
        (np.array([0, 2**64 - 1, 9], np.uint64), "decrease"),
        (np.array([0, 2**32 + 9]), "9"),
    ],
    "cu_seqlens_k": [
        (np.array([1, 5, 6, 12]), "0.*12"),
        (np.array([0, 5, 6, 11]), "12"),
        (np.array([0, 6, 5, 12]), "decrease"),
        (np.array([0, 12]), "4|cu_seqlens_q"),
        (np.array([0, 1, 2, 3, 12]), "4|cu_seqlens_q"),
    ],
}


@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [(name, *case) for name, cases in SEQUENCES.items() for case in cases],
    ids=str,
)
def test_sequences(name, wrong, expected):
    """They start at 0, never decrease, end at the number of rows, and are as many of keys."""
    message = rf"(?s)^{name}: expected .*({expected}).*got .*"
    varlen_raises(ValueError, message, **{name: wrong})


@pytest.mark.parametrize("name", SEQUENCES)
def test_no_sequences(name):
    fits = PACKED[name]
    for wrong, came in (
        *NO_ARRAYS,
        (None, "NoneType"),
        (fits.tolist(), "list"),
        (tuple(fits.tolist()), "tuple"),
        (fits.astype(np.float64), "float64"),
        (fits.astype(np.float32), "float32"),
        (fits.astype(bool), "bool"),
        (fits.astype(object), "object|'O'"),
        (fits.astype(fits.dtype.newbyteorder()), "[<>]i8"),
    ):
        varlen_raises(TypeError, rf"^{name}: expected .*got.*({came})", **{name: wrong})


PACKED_ARRAYS = [
    ({"query": normal(9, 8)}, r"query: expected .*got .*\(9, 8\)"),
    ({"query": normal(1, 9, 4, 8)}, r"query: expected .*got .*\(1, 9, 4, 8\)"),
    ({"query": normal(9)}, r"query: expected .*got .*\(9,\)"),
    ({"key": normal(12, 8)}, r"key: expected .*got .*\(12, 8\)"),
    ({"value": normal(12, 8)}, r"value: expected .*got .*\(12, 8\)"),
    ({"value": normal(1, 12, 4, 8)}, r"value: expected .*got .*\(1, 12, 4, 8\)"),
    ({"key": normal(12, 4, 7)}, r"key: expected .*8.*got .*\(12, 4, 7\)"),
    ({"value": normal(11, 4, 3)}, r"value: expected .*12.*got .*\(11, 4, 3\)"),
    ({"value": normal(1, 4, 3)}, r"value: expected .*12.*got .*\(1, 4, 3\)"),
    ({"key": normal(12, 3, 8), "value": normal(12, 3, 3)}, r"key: expected .*4.*got 3"),
    ({"key": normal(12, 2, 8), "value": normal(12, 2, 3)}, r"key: expected .*4.*got 2.*enable_gqa"),
    ({"value": normal(12, 2, 3)}, r"value: expected .*4.*got 2"),
    (
        {"key": normal(12, 3, 8), "value": normal(12, 3, 3), "enable_gqa": True},
        r"key: expected .*divides.*4.*got 3",
    ),
]


@pytest.mark.parametrize("case", PACKED_ARRAYS, ids=lambda case: case[1])
def test_packed_arrays(case):
    """3 axes, whose totals, heads and head_dim fit together."""
    arguments, message = case
    varlen_raises(ValueError, f"^{message}", **arguments)


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_no_packed_arrays(name):
    """Fault 20."""
    for wrong, came in [*NO_ARRAYS, *LISTS, (None, "NoneType")]:
        varlen_raises(TypeError, rf"^{name}: expected .*got.*({came})", **{name: wrong})
    for dtype in (np.int64, bool, np.complex64, SWAPPED):
        wrong = PACKED[name].astype(dtype)
        varlen_raises(TypeError, rf"^{name}: expected .*got", **{name: wrong})
    wrong = PACKED[name].astype(np.float64)
    varlen_raises(TypeError, r"^(key|value): expected float.*got float", **{name: wrong})


PACKED_OPTIONS = [
    ({"query_offset": np.zeros(2, int)}, ValueError, r"query_offset: .*\(3,\).*got \(2,\)"),
    ({"query_offset": np.zeros((3, 4), int)}, ValueError, r"query_offset: .*got \(3, 4\)"),
    ({"query_offset": np.zeros(9, int)}, ValueError, r"query_offset: .*got \(9,\)"),
    ({"query_offset": 0.5}, TypeError, "query_offset: expected .*got float"),
    ({"query_offset": None}, TypeError, "query_offset: expected .*got NoneType"),
    ({"query_offset": [0, 0, 0]}, TypeError, "query_offset: expected .*got list"),
    ({"query_offset": 2**62}, ValueError, "query_offset: expected .*got"),
    ({"query_offset": np.array([0, 0, -(2**62)])}, ValueError, "query_offset: expected .*got"),
    ({"kv_lengths": np.array([5, 1, 7])}, ValueError, "kv_lengths: expected .*0 to 6.*got 7"),
    ({"kv_lengths": np.array([5, 2, 6])}, ValueError, "kv_lengths: expected .*0 to 1.*got 2"),
    ({"kv_lengths": np.array([-1, 1, 6])}, ValueError, "kv_lengths: expected .*0 .*got -1"),
    ({"kv_lengths": 2}, ValueError, "kv_lengths: expected .*0 to 1.*got 2"),
    ({"kv_lengths": -1}, ValueError, "kv_lengths: expected .*0 .*got -1"),
    ({"kv_lengths": 2**70}, ValueError, "kv_lengths: expected .*got"),
    ({"kv_lengths": np.array([1, 1])}, ValueError, r"kv_lengths: .*\(3,\).*got \(2,\)"),
    ({"kv_lengths": np.ones(3)}, TypeError, "kv_lengths: expected .*got.*float64"),
    ({"kv_lengths": np.ones(3, bool)}, TypeError, "kv_lengths: expected .*got.*bool"),
    ({"kv_lengths": [1, 1, 1]}, TypeError, "kv_lengths: expected .*got list"),
    ({"window_size": (-2, 0)}, ValueError, r"window_size: expected .*got \(-2, 0\)"),
    ({"window_size": 3}, TypeError, "window_size: expected .*got 3"),
    ({"is_causal": 1}, TypeError, "is_causal: expected a bool, got int"),
    ({"enable_gqa": 1}, TypeError, "enable_gqa: expected a bool, got int"),
    ({"scale": math.nan}, ValueError, "scale: expected a finite number, got nan"),
    ({"scale": "x"}, TypeError, "scale: expected a number, got str"),
    ({"num_threads": 0}, ValueError, "num_threads: expected .*got 0"),
    ({"attn_mask": np.ones((9, 12), bool)}, ValueError, r"attn_mask: .*\(4, 9, 6\).*got \(9, 12\)"),
    ({"attn_mask": np.ones((9, 5), bool)}, ValueError, r"attn_mask: .*\(4, 9, 6\).*got \(9, 5\)"),
    ({"attn_mask": np.ones((6, 6), bool)}, ValueError, r"attn_mask: .*\(4, 9, 6\).*got \(6, 6\)"),
    ({"attn_mask": np.ones((3, 9, 6), bool)}, ValueError, r"attn_mask: .*got \(3, 9, 6\)"),
    ({"attn_mask": np.ones((3, 4, 9, 6), bool)}, ValueError, r"attn_mask: .*got \(3, 4, 9, 6\)"),
    ({"alibi_slopes": np.ones(3, "f4")}, ValueError, r"alibi_slopes: .*\(3, 4\).*got \(3,\)"),
    ({"alibi_slopes": np.ones((2, 4), "f4")}, ValueError, r"alibi_slopes: .*got \(2, 4\)"),
    ({"alibi_slopes": np.ones((9, 4), "f4")}, ValueError, r"alibi_slopes: .*got \(9, 4\)"),
    (
        {"segment_ids": (np.ones(3, int), np.ones(12, int))},
        ValueError,
        r"segment_ids: .*\(9,\).*got \(3,\)",
    ),
    (
        {"segment_ids": (np.ones(9, int), np.ones(9, int))},
        ValueError,
        r"segment_ids: .*\(12,\).*got \(9,\)",
    ),
    (
        {"segment_ids": (np.ones((3, 9), int), np.ones((3, 12), int))},
        ValueError,
        r"segment_ids: .*\(9,\).*got \(3, 9\)",
    ),
]


@pytest.mark.parametrize("case", PACKED_OPTIONS, ids=lambda case: case[2])
def test_options_of_packed_sequences(case):
    options, error, message = case
    varlen_raises(error, f"^{message}", **options)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.ones((9, 4, 3)), TypeError, "out: expected .*float32.*got .*float64"),
        (np.ones((9, 4, 3), np.int32), TypeError, "out: expected .*float32.*got .*int32"),
        (np.ones((9, 4, 3)).tolist(), TypeError, "out: expected a NumPy array, got list"),
        (np.ones((4, 9, 3), np.float32), ValueError, r"out: .*\(9, 4, 3\), got \(4, 9, 3\)"),
        (np.ones((9, 4, 8), np.float32), ValueError, r"out: .*\(9, 4, 3\), got \(9, 4, 8\)"),
        (np.ones((9, 12), np.float32), ValueError, r"out: .*\(9, 4, 3\), got \(9, 12\)"),
        (np.broadcast_to(np.float32(1), (9, 4, 3)), ValueError, "out: .*writeable.*read-only"),
    ],
)
def test_out_of_packed_sequences(bad, error, message):
    """Fault 18's other half: it does not fit, and is left as it was."""
    with pytest.raises(error, match=f"^{message}"):
        varlen_attention(**PACKED, out=bad)
    assert (np.asarray(bad) == 1).all()


# ------------------------------------------------------------------ states

STATES = {
    "out_a": normal(2, 5, 3),
    "lse_a": normal(2, 5, seed=1),
    "out_b": normal(2, 5, 3, seed=2),
    "lse_b": normal(2, 5, seed=3),
}


@pytest.mark.parametrize("name", STATES)
def test_no_states(name):
    """Fault 20: kinds and dtypes in the place of each."""
    shape = STATES[name].shape
    swapped = STATES[name].astype(SWAPPED)
    for wrong, came in (
        *NO_ARRAYS,
        *LISTS,
        (None, "NoneType"),
        (np.ones(shape, np.int64), "int64"),
        (np.ones(shape, bool), "bool"),
        (np.ones(shape, np.complex64), "complex64"),
        (np.ones(shape, object), "object|'O'"),
        (swapped, "[<>]f4"),
    ):
        with pytest.raises(TypeError, match=rf"^{name}: expected .*got.*({came})"):
            merge_states(**(STATES | {name: wrong}))


@pytest.mark.parametrize("name", STATES)
def test_states_of_two_dtypes(name):
    """Of float64 outputs the lse is float64 too."""
    wrong = STATES | {name: STATES[name].astype(np.float64)}
    with pytest.raises(TypeError, match=r"^(out|lse)_[ab]: expected float(32|64), .*got float"):
        merge_states(**wrong)


def test_states_in_half_precision():
    half = {name: x.astype(np.float16) for name, x in STATES.items()}
    with pytest.raises(NotImplementedError, match=r"^out_a: float16 is not built yet"):
        merge_states(**half)


STATE_SHAPES = [
    ("out_a", (), "out_a"),
    ("out_b", (2, 5, 4), "out_b"),
    ("out_b", (2, 5, 1), "out_b"),
    ("out_b", (1, 5, 3), "out_b"),
    ("out_b", (5, 3), "out_b"),
    ("out_b", (1, 2, 5, 3), "out_b"),
    ("lse_a", (2, 5, 1), "lse_a"),
    ("lse_a", (2, 1), "lse_a"),
    ("lse_a", (5,), "lse_a"),
    ("lse_a", (5, 2), "lse_a"),
    ("lse_a", (), "lse_a"),
    ("lse_b", (2, 5, 3), "lse_b"),
    ("lse_b", (1, 5), "lse_b"),
    ("lse_b", (2, 6), "lse_b"),
]


@pytest.mark.parametrize(("name", "shape", "named"), STATE_SHAPES, ids=str)
def test_states_that_do_not_fit(name, shape, named):
    """All of one shape: nothing broadcasts."""
    wrong = STATES | {name: np.ones(shape, np.float32)}
    message = rf"^{named}: expected .*got .*{re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        merge_states(**wrong)
