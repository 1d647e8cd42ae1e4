"""Bad masks, slopes, sinks, segments, numbers: errors as test_errors.py has them.

Each names the argument, what was expected and what came, and nothing is written to `out` when it is
raised. Faults 16 and 20 for the arrays that options are.
"""

import math
import re

import numpy as np
import pytest

from selfattn import (
    scaled_dot_product,
    scaled_dot_product_attention,
    weighted_sum,
)
from support.arrays import normal
from support.errors import (
    KEY,
    LISTS,
    LONGDOUBLE_IS_DOUBLE,
    NO_ARRAYS,
    QUERY,
    SWAPPED,
    VALUE,
    attention_raises,
    raises,
    varlen_raises,
)

# ------------------------------------------------------------------ kinds and dtypes


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


FLOATS = {"attn_mask": (5, 7), "attn_bias": (5, 7), "alibi_slopes": (4,), "sinks": (4,)}
FLOATS_OF_PACKED = FLOATS | {"attn_mask": (9, 6), "attn_bias": (9, 6)}


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


@pytest.mark.parametrize("name", ["attn_bias", "alibi_slopes", "sinks"])
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
    message = rf"expected .*\(2, 4, 5, 7\).*got {re.escape(str(shape))}"
    for dtype in (bool, np.float32):
        attention_raises(ValueError, f"^attn_mask: {message}", attn_mask=np.ones(shape, dtype))
    attention_raises(ValueError, f"^attn_bias: {message}", attn_bias=np.ones(shape, np.float32))


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
    ({"softcap": "1"}, TypeError, "softcap: expected a number, got str"),
    ({"softcap": True}, TypeError, "softcap: expected a number, got bool"),
    ({"softcap": 1j}, TypeError, "softcap: expected a number, got complex"),
    ({"softcap": [30.0]}, TypeError, "softcap: expected a number, got list"),
    ({"dropout_p": "x"}, TypeError, "dropout_p: expected a number, got str"),
    ({"dropout_p": None}, TypeError, "dropout_p: expected a number, got NoneType"),
    ({"dropout_p": -0.1}, ValueError, "dropout_p: expected .*got -0.1"),
    ({"dropout_p": 1.5}, ValueError, "dropout_p: expected .*got 1.5"),
    ({"dropout_p": math.nan}, ValueError, "dropout_p: expected .*got nan"),
    ({"dropout_p": True}, TypeError, "dropout_p: expected a number, got bool"),
    ({"kv_starts": -1}, ValueError, "kv_starts: expected values from 0 to .*got -1"),
    ({"kv_starts": 8}, ValueError, "kv_starts: expected values from 0 to .*got 8"),
    ({"kv_starts": 2**70}, ValueError, "kv_starts: expected values from 0 to .*got"),
    ({"kv_starts": 1.0}, TypeError, "kv_starts: expected .*got float"),
    ({"kv_starts": np.zeros(5, int)}, ValueError, r"kv_starts: .*before the heads.*got \(5,\)"),
    ({"query_lengths": -1}, ValueError, "query_lengths: expected values from 0 to .*got -1"),
    ({"query_lengths": 7}, ValueError, "query_lengths: expected values from 0 to .*got 7"),
    ({"query_lengths": True}, TypeError, "query_lengths: expected .*got bool"),
    ({"query_lengths": np.zeros(5, int)}, ValueError, r"query_lengths: .*got \(5,\)"),
    ({"dropout_seed": 0.5}, TypeError, "dropout_seed: expected an int, got float"),
    ({"dropout_seed": None}, TypeError, "dropout_seed: expected an int, got NoneType"),
    ({"dropout_seed": True}, TypeError, "dropout_seed: expected an int, got bool"),
    ({"dropout_seed": 2**64}, ValueError, "dropout_seed: expected .*got 18446744073709551616"),
    (
        {"dropout_seed": -(2**63) - 1},
        ValueError,
        "dropout_seed: expected .*got -9223372036854775809",
    ),
]


@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: str(case[0]))
def test_numbers(case):
    options, error, message = case
    attention_raises(error, f"^{message}", **options)
    varlen_raises(error, f"^{message}", **options)


def test_options_that_are_none_in_effect():
    """None, and zeros of any kind, are no error."""
    want = scaled_dot_product_attention(QUERY, KEY, VALUE)
    arrays = ("attn_mask", "attn_bias", "query_lengths", "kv_starts", "alibi_slopes", "sinks")
    nothing = dict.fromkeys((*arrays, "segment_ids"))
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


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"scale": 10**400}, ValueError, "scale: expected a finite number"),
        ({"scale": 1e39}, ValueError, "scale: expected a number that float32 can hold, got 1e"),
        ({"scale": np.array(True)}, TypeError, "scale: expected a number, got ndarray"),
        ({"softcap": 10**400}, ValueError, "softcap: expected a finite number"),
        ({"softcap": np.ones(2)}, TypeError, "softcap: expected a number, got ndarray"),
        ({"dropout_p": 10**400}, ValueError, "dropout_p: expected a finite number"),
        ({"window_size": {1: 2, 3: 4}}, TypeError, "window_size: expected two ints"),
        ({"window_size": iter((1, 2))}, TypeError, "window_size: expected two ints"),
        ({"return_lse": "x"}, TypeError, "return_lse: expected a bool, got str"),
        (
            {"attn_mask": np.ma.masked_equal(np.ones((5, 7), bool), 1)},
            TypeError,
            "attn_mask: .*got MaskedArray",
        ),
    ],
)
def test_numbers_and_kinds_at_the_edge(option, error, message):
    query, key = np.ones((5, 4), np.float32), np.ones((7, 4), np.float32)
    with pytest.raises(error, match=f"^{message}"):
        scaled_dot_product_attention(query, key, key, **option)


def test_a_masked_array_does_not_lose_its_mask():
    query = np.ma.masked_less(np.arange(20, dtype=np.float32).reshape(5, 4), 3)
    with pytest.raises(TypeError, match=r"^query: .*without a mask of its own, got MaskedArray"):
        scaled_dot_product_attention(query, query, query)
