"""Bad packed sequences, and bad states to merge: errors as test_errors.py has them.

Each names the argument, what was expected and what came, and nothing is written to `out`.
"""

import math
import re

import numpy as np
import pytest

from selfattn import (
    merge_states,
    varlen_attention,
)
from support.arrays import HALF_DTYPES, normal
from support.errors import LISTS, NO_ARRAYS, PACKED, SWAPPED, varlen_raises

# ------------------------------------------------------------------ packed sequences

SEQUENCES = {
    "cu_seqlens_q": [
        (np.array([1, 3, 9]), "0.*9"),
        (np.array([-1, 3, 9]), "0.*9"),
        (np.array([0, 3, 10]), "9"),
        (np.array([0, 5, 3, 9]), "decrease"),
        (np.array([0, 12, 9]), "decrease"),
        (np.array([0, -1, 9]), "decrease"),
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
        (np.array([0, 6, 5, 12]), "decrease"),
        (np.array([0, 12]), "3 sequences, as many as cu_seqlens_q"),
        (np.array([0, 1, 2, 3, 12]), "3 sequences, as many as cu_seqlens_q"),
    ],
}
THREE, FIVES = np.array([0, 3, 6]), np.array([5, 5, 5])
PAIRS = {
    "cu_seqlens_q": [
        ((THREE, np.array([3, 4, 3])), "share no rows"),
        ((np.array([0, 3, 5]), np.array([3, 2, 5])), "9 rows.*got.*5 rows from 5"),
        ((np.array([0, 3, 10]), np.array([3, 2, 0])), "9 rows.*got.*0 rows from 10"),
        ((np.array([0, 3, -1]), np.array([3, 2, 1])), "9 rows.*got.*1 rows from -1"),
        ((np.array([0, 3, 9]), np.array([3, 2, -1])), "9 rows.*got.*-1 rows from 9"),
        ((np.array([0, 3, 2**62]), np.array([3, 2, 2**62])), "9 rows.*got"),
        ((np.array([0, 3, 2**64 - 1], np.uint64), np.array([3, 2, 1])), "9 rows.*got.*from 18446"),
        ((THREE, FIVES[:2]), r"pair of shape.*got \(3,\) and \(2,\)"),
        ((THREE[:, None], FIVES[:, None]), r"pair of shape.*got \(3, 1\)"),
    ],
    "cu_seqlens_k": [
        ((THREE, 2 * FIVES), "12 rows.*got.*10 rows from 3"),
        ((THREE[:2], FIVES[:2]), "3 sequences, as many as cu_seqlens_q has, got 2"),
    ],
}


@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [(name, *case) for name, cases in SEQUENCES.items() for case in cases],
    ids=str,
)
def test_sequences(name, wrong, expected):
    """They start at 0, never decrease, end within the rows, and are as many of keys."""
    message = rf"(?s)^{name}: expected .*({expected}).*got .*"
    varlen_raises(ValueError, message, **{name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [(name, *case) for name, cases in PAIRS.items() for case in cases],
    ids=str,
)
def test_starts_and_lengths(name, wrong, expected):
    """Each sequence is within the rows; queries share none."""
    varlen_raises(ValueError, f"^{name}: expected .*{expected}", **{name: wrong})


@pytest.mark.parametrize("name", SEQUENCES)
def test_no_sequences(name):
    fits = PACKED[name]
    for wrong, came in (
        *NO_ARRAYS,
        (None, "NoneType"),
        (fits.astype(float).tolist(), "list of dtype.'float64'"),
        (tuple(fits.astype(bool).tolist()), "tuple of dtype.'bool'"),
        ((fits[:-1], np.diff(fits), fits), "tuple of 3"),
        ((fits[:-1], np.diff(fits).astype(float).tolist()), "list of dtype.'float64'"),
        ((fits[:-1], np.diff(fits).astype(float)), "float64"),
        ((fits[:-1], None), "NoneType"),
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
    ({"query_offset": [0, 0]}, ValueError, r"query_offset: expected .*got \(2,\)"),
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
    ({"kv_lengths": [1.0, 1.0, 1.0]}, TypeError, "kv_lengths: expected .*got a list of .*float64"),
    ({"kv_starts": np.array([5, 2, 6])}, ValueError, "kv_starts: expected .*0 to 1.*got 2"),
    ({"query_lengths": np.array([3, 1, 6])}, ValueError, "query_lengths: expected .*0 to 0.*got 1"),
    ({"query_lengths": -1}, ValueError, "query_lengths: expected .*0 .*got -1"),
    ({"attn_bias": np.ones((9, 5), "f4")}, ValueError, r"attn_bias: .*\(4, 9, 6\).*got \(9, 5\)"),
    ({"window_size": (-2, 0)}, ValueError, r"window_size: expected .*got \(-2, 0\)"),
    ({"window_size": 3}, TypeError, "window_size: expected .*got 3"),
    ({"is_causal": 2}, ValueError, "is_causal: expected a bool, or 0 or 1, got 2"),
    ({"enable_gqa": 1.0}, TypeError, "enable_gqa: expected a bool, got float"),
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


@pytest.mark.parametrize("name", STATES)
def test_states_in_half_precision(name):
    """Outputs of a half type have an lse of float32."""
    for dtype in HALF_DTYPES:
        half = STATES | {n: STATES[n].astype(dtype) for n in ("out_a", "out_b")}
        merge_states(**half)
        wrong = half[name].astype(dtype if name.startswith("lse") else np.float32)
        expected = (
            "float32, that of the lse where out_a is b?float16, got b?float16"
            if name.startswith("lse")
            else "b?float16, out_a's dtype, got float32|float32, out_a's dtype, got b?float16"
        )
        with pytest.raises(TypeError, match=rf"^(out|lse)_[ab]: expected ({expected})$"):
            merge_states(**(half | {name: wrong}))


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
