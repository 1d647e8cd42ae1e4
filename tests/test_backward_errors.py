"""Bad input to the backward pass: an error that names the argument, what was expected, what came.

Faults 16 and 20, as test_errors.py and test_errors_options.py have them of the forward pass. And of
good input not a byte is written.
"""

import inspect
import math
import re

import numpy as np
import pytest
from arrays import normal, qkv, same_bits
from option_arrays import float_mask
from wrong import LISTS, LONGDOUBLE_IS_DOUBLE, NO_ARRAYS, PACKED, SWAPPED

from selfattn import (
    AttentionGradients,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    varlen_attention,
    varlen_attention_backward,
)


def with_forward(forward, arrays):
    """Arguments of a backward call, by name: grad_out, the arrays, out and lse."""
    out, lse = forward(**arrays, return_lse=True)
    return {"grad_out": np.ones_like(out), **arrays, "out": out, "lse": lse}


QUERY, KEY, VALUE = qkv((2, 4, 5, 8), seqlen_k=7, head_dim_v=3)
DENSE = with_forward(scaled_dot_product_attention, {"query": QUERY, "key": KEY, "value": VALUE})
SEQUENCES = with_forward(varlen_attention, PACKED)
FUNCTIONS = [(scaled_dot_product_attention_backward, DENSE), (varlen_attention_backward, SEQUENCES)]
ARRAYS = ["grad_out", "query", "key", "value", "out", "lse"]


def raises(error, message, **arguments):
    """In both functions."""
    for f, right in FUNCTIONS:
        with pytest.raises(error, match=message):
            f(**(right | arguments))


def dense_raises(error, message, **arguments):
    with pytest.raises(error, match=message):
        scaled_dot_product_attention_backward(**(DENSE | arguments))


def packed_raises(error, message, **arguments):
    with pytest.raises(error, match=message):
        varlen_attention_backward(**(SEQUENCES | arguments))


def test_what_is_right_is_no_error():
    for f, right in FUNCTIONS:
        gradients = f(**right)
        assert type(gradients) is AttentionGradients
        assert gradients._fields == ("query", "key", "value", "attn_mask", "sinks")
        assert gradients.attn_mask is gradients.sinks is None
        for name in ("query", "key", "value"):
            assert getattr(gradients, name).shape == right[name].shape
            assert getattr(gradients, name).dtype == np.float32


# ------------------------------------------------------------------ signatures


def test_signatures():
    """The forward's, and before it what the forward gave; no out, no return_lse."""
    for backward, forward, first in (
        (scaled_dot_product_attention_backward, scaled_dot_product_attention, 4),
        (varlen_attention_backward, varlen_attention, 4),
    ):
        ours, theirs = (inspect.signature(f).parameters for f in (backward, forward))
        names = list(ours)
        assert names[:1] + names[first : first + 2] == ["grad_out", "out", "lse"]
        for name in ("grad_out", "out", "lse", "mask_grad", "sinks_grad"):
            names.remove(name)
        assert names == [name for name in theirs if name not in ("return_lse", "out")]
        for name in names:
            assert ours[name].default == theirs[name].default
            assert ours[name].kind == theirs[name].kind
        assert ours["mask_grad"].kind is ours["sinks_grad"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("option", ["return_lse", "causal", "grad_query"])
def test_unknown_options(option):
    raises(TypeError, "unexpected keyword", **{option: True})


def test_options_are_keyword_only():
    arrays = list(DENSE.values())
    order = [*arrays[:4], *arrays[4:]]
    scaled_dot_product_attention_backward(*order, None, 0.0, False)
    with pytest.raises(TypeError, match="positional"):
        scaled_dot_product_attention_backward(*order, None, 0.0, False, 0.5)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_not_given(name):
    for f, right in FUNCTIONS:
        with pytest.raises(TypeError, match=f"missing 1 required positional argument: '{name}'"):
            f(**{other: x for other, x in right.items() if other != name})


# ------------------------------------------------------------------ kinds and dtypes


def wrong_dtypes(shape):
    dtypes = {
        np.int64: "int64",
        bool: "bool",
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


@pytest.mark.parametrize("name", ARRAYS)
def test_no_arrays(name):
    """Fault 20: kinds, dtypes and byte orders in the place of each."""
    for f, right in FUNCTIONS:
        dtypes = wrong_dtypes(right[name].shape)
        for wrong, came in [*NO_ARRAYS, *LISTS, (None, "NoneType"), *dtypes]:
            with pytest.raises(TypeError, match=rf"^{name}: expected .*got.*({came})"):
                f(**(right | {name: wrong}))


@pytest.mark.parametrize("name", ARRAYS)
def test_dtypes_are_not_mixed(name):
    """Nor is an lse of float64 taken beside float32, or the other way around."""
    for f, right in FUNCTIONS:
        named = name if name not in ("query", "key", "value") else "key|value"
        with pytest.raises(TypeError, match=rf"^({named}): expected float(32|64), .*got float"):
            f(**(right | {name: right[name].astype(np.float64)}))
        wide = {n: x.astype(np.float64) if x.dtype == np.float32 else x for n, x in right.items()}
        with pytest.raises(TypeError, match=rf"^({named}): expected float(32|64), .*got float"):
            f(**(wide | {name: right[name]}))


@pytest.mark.parametrize("name", ARRAYS)
def test_half_precision_is_to_come(name):
    for f, right in FUNCTIONS:
        with pytest.raises(NotImplementedError, match=f"^{name}: float16 is not built yet"):
            f(**(right | {name: right[name].astype(np.float16)}))


def test_a_masked_array_does_not_lose_its_mask():
    for name in ARRAYS:
        wrong = np.ma.masked_less(DENSE[name], 1.5)
        assert np.ma.is_masked(wrong)
        dense_raises(TypeError, rf"^{name}: .*without a mask of its own", **{name: wrong})


# ------------------------------------------------------------------ shapes


def shape_error(name, shape, expected):
    return rf"^{name}: expected .*{re.escape(str(expected))}.*got .*{re.escape(str(shape))}"


OUT_SHAPES = [
    (), (3,), (5, 3), (4, 5, 3), (1, 4, 5, 3), (2, 1, 5, 3), (2, 4, 1, 3), (2, 4, 5, 1),
    (2, 4, 5, 8), (2, 4, 7, 3), (2, 4, 3, 5), (2, 5, 4, 3), (1, 2, 4, 5, 3), (2, 4, 5, 3, 1),
    (2, 4, 0, 3), (2, 4, 15), (120,),
]  # fmt: skip


@pytest.mark.parametrize("shape", OUT_SHAPES, ids=str)
@pytest.mark.parametrize("name", ["grad_out", "out"])
def test_outputs_that_do_not_fit(name, shape):
    """They are of out's own shape: nothing broadcasts, not by stride 0 either."""
    message = shape_error(name, shape, (2, 4, 5, 3))
    dense_raises(ValueError, message, **{name: np.ones(shape, np.float32)})
    still = np.broadcast_to(np.float32(1), shape)
    dense_raises(ValueError, message, **{name: still})


LSE_SHAPES = [
    (), (5,), (4, 5), (2, 4), (1, 4, 5), (2, 1, 5), (2, 4, 1), (2, 4, 7), (2, 5, 4),
    (2, 4, 5, 1), (1, 2, 4, 5), (2, 4, 5, 3), (2, 4, 0), (40,),
]  # fmt: skip


@pytest.mark.parametrize("shape", LSE_SHAPES, ids=str)
def test_lse_that_does_not_fit(shape):
    message = shape_error("lse", shape, (2, 4, 5))
    dense_raises(ValueError, message, lse=np.ones(shape, np.float32))


def test_one_head():
    """2-D arrays: out (L, Ev), lse (L,)."""
    arrays = {"query": QUERY[0, 0], "key": KEY[0, 0], "value": VALUE[0, 0]}
    right = with_forward(scaled_dot_product_attention, arrays)
    assert right["lse"].shape == (5,)
    scaled_dot_product_attention_backward(**right)
    for name, shape in (
        ("grad_out", (1, 5, 3)),
        ("grad_out", (5, 8)),
        ("out", (1, 5, 3)),
        ("lse", (1, 5)),
        ("lse", (5, 1)),
    ):
        expected = (5,) if name == "lse" else (5, 3)
        with pytest.raises(ValueError, match=shape_error(name, shape, expected)):
            scaled_dot_product_attention_backward(**(right | {name: np.ones(shape, np.float32)}))


def test_outputs_of_axes_that_broadcast():
    """out has the axes of all inputs together."""
    arrays = {"query": QUERY[:1, :1], "key": KEY[:, :1], "value": VALUE}
    right = with_forward(scaled_dot_product_attention, arrays)
    assert right["out"].shape == (2, 4, 5, 3)
    scaled_dot_product_attention_backward(**right)
    for name in ("grad_out", "out"):
        for part in (np.s_[:1], np.s_[:, :1]):
            with pytest.raises(
                ValueError, match=shape_error(name, right[name][part].shape, (2, 4, 5, 3))
            ):
                scaled_dot_product_attention_backward(**(right | {name: right[name][part]}))


PACKED_SHAPES = [
    ("grad_out", (4, 9, 3)), ("grad_out", (9, 4, 8)), ("grad_out", (9, 4)), ("grad_out", (9, 12)),
    ("grad_out", (12, 4, 3)), ("grad_out", (1, 9, 4, 3)), ("out", (4, 9, 3)), ("out", (8, 4, 3)),
    ("out", (9, 1, 3)), ("lse", (9, 4)), ("lse", (4, 12)), ("lse", (4,)), ("lse", (1, 4, 9)),
    ("lse", (36,)), ("lse", (4, 9, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape"), PACKED_SHAPES, ids=str)
def test_outputs_of_packed_sequences_that_do_not_fit(name, shape):
    expected = (4, 9) if name == "lse" else (9, 4, 3)
    message = shape_error(name, shape, expected)
    packed_raises(ValueError, message, **{name: np.ones(shape, np.float32)})


INPUT_SHAPES = [
    ({"query": normal(8)}, r"query: expected 2 or more axes, got shape \(8,\)"),
    ({"key": KEY[..., :7]}, r"key: expected head_dim 8, .*got shape \(2, 4, 7, 7\)"),
    ({"value": VALUE[:, :, :6]}, r"value: expected 7 rows, .*got shape \(2, 4, 6, 3\)"),
    ({"key": KEY[:, :2], "value": VALUE[:, :2]}, "key: expected 4 heads, .*got 2 .*enable_gqa"),
    ({"key": KEY[:, :3], "value": VALUE[:, :3]}, "key: expected 4 heads, .*got 3"),
    ({"query": normal(3, 4, 5, 8)}, "key: expected leading axes that broadcast"),
]


@pytest.mark.parametrize("case", INPUT_SHAPES, ids=lambda case: case[1])
def test_inputs_that_do_not_fit(case):
    arguments, message = case
    dense_raises(ValueError, f"^{message}", **arguments)


PACKED_INPUTS = [
    ({"cu_seqlens_q": np.array([0, 3, 3, 8])}, ValueError, "cu_seqlens_q: expected .*9"),
    ({"cu_seqlens_q": np.array([0, 5, 3, 9])}, ValueError, "cu_seqlens_q: expected .*decrease"),
    ({"cu_seqlens_k": np.array([0, 12])}, ValueError, "cu_seqlens_k: expected 4 numbers"),
    ({"cu_seqlens_k": np.array([0.0, 5, 6, 12])}, TypeError, "cu_seqlens_k: expected .*float64"),
    ({"cu_seqlens_k": None}, TypeError, "cu_seqlens_k: expected .*got NoneType"),
    ({"query": normal(9, 8)}, ValueError, r"query: expected 3 axes, .*got shape \(9, 8\)"),
    ({"key": normal(12, 4, 7)}, ValueError, r"key: expected head_dim 8, .*\(12, 4, 7\)"),
    ({"value": normal(11, 4, 3)}, ValueError, r"value: expected 12 rows, .*\(11, 4, 3\)"),
    ({"attn_mask": np.ones((9, 12), bool)}, ValueError, r"attn_mask: .*\(4, 9, 6\).*got \(9, 12\)"),
    ({"segment_ids": np.zeros(9, int)}, ValueError, "segment_ids: expected a pair"),
    ({"kv_lengths": np.array([5, 2, 6])}, ValueError, "kv_lengths: expected .*0 to 1.*got 2"),
    ({"query_offset": np.zeros(2, int)}, ValueError, r"query_offset: .*\(3,\).*got \(2,\)"),
]


@pytest.mark.parametrize("case", PACKED_INPUTS, ids=lambda case: case[2])
def test_packed_sequences(case):
    arguments, error, message = case
    packed_raises(error, f"^{message}", **arguments)


# ------------------------------------------------------------------ options


BOOLS, FLOATS = np.ones((), bool), np.ones((), np.float32)
ONES = np.ones(4, np.float32)
OPTIONS = [
    # For what there is no gradient.
    ({"mask_grad": True}, ValueError, "mask_grad: expected .*attn_mask.*got none"),
    ({"mask_grad": True, "attn_mask": BOOLS}, ValueError, "mask_grad: expected .*got .*bool"),
    ({"mask_grad": True, "sinks": ONES}, ValueError, "mask_grad: expected .*got none"),
    ({"sinks_grad": True}, ValueError, "sinks_grad: expected sinks, got none"),
    ({"sinks_grad": True, "attn_mask": FLOATS}, ValueError, "sinks_grad: expected sinks"),
    # Flags.
    ({"mask_grad": 1}, TypeError, "mask_grad: expected a bool, got int"),
    ({"mask_grad": None}, TypeError, "mask_grad: expected a bool, got NoneType"),
    ({"mask_grad": "yes"}, TypeError, "mask_grad: expected a bool, got str"),
    ({"mask_grad": np.array([True])}, TypeError, "mask_grad: expected a bool, got ndarray"),
    ({"sinks_grad": 1}, TypeError, "sinks_grad: expected a bool, got int"),
    ({"sinks_grad": 0.0}, TypeError, "sinks_grad: expected a bool, got float"),
    ({"sinks_grad": "no"}, TypeError, "sinks_grad: expected a bool, got str"),
    ({"is_causal": 1}, TypeError, "is_causal: expected a bool, got int"),
    ({"enable_gqa": None}, TypeError, "enable_gqa: expected a bool, got NoneType"),
    # Dropout.
    ({"dropout_p": "x"}, TypeError, "dropout_p: expected a number, got str"),
    ({"dropout_p": None}, TypeError, "dropout_p: expected a number, got NoneType"),
    ({"dropout_p": True}, TypeError, "dropout_p: expected a number, got bool"),
    ({"dropout_p": [0.1]}, TypeError, "dropout_p: expected a number, got list"),
    ({"dropout_p": np.ones(2)}, TypeError, "dropout_p: expected a number, got ndarray"),
    ({"dropout_p": -1e-300}, ValueError, "dropout_p: expected .*0 to 1.*got -1e-300"),
    ({"dropout_p": 1.0000000000000002}, ValueError, "dropout_p: expected .*0 to 1.*got 1.0000000"),
    ({"dropout_p": math.nan}, ValueError, "dropout_p: expected .*got nan"),
    ({"dropout_p": math.inf}, ValueError, "dropout_p: expected .*got inf"),
    ({"dropout_p": 10**400}, ValueError, "dropout_p: expected a finite number"),
    # The others, as the forward has them.
    ({"scale": math.nan}, ValueError, "scale: expected a finite number, got nan"),
    ({"scale": 1e39}, ValueError, "scale: expected a number that float32 can hold"),
    ({"scale": "x"}, TypeError, "scale: expected a number, got str"),
    ({"softcap": -1.0}, ValueError, "softcap: expected .*got -1.0"),
    ({"softcap": None}, TypeError, "softcap: expected a number, got NoneType"),
    ({"window_size": 3}, TypeError, "window_size: expected two ints"),
    ({"window_size": (-2, 0)}, ValueError, r"window_size: expected .*got \(-2, 0\)"),
    ({"query_offset": 0.5}, TypeError, "query_offset: expected .*got float"),
    ({"kv_lengths": -1}, ValueError, "kv_lengths: expected .*got -1"),
    ({"attn_mask": 1.5}, TypeError, "attn_mask: expected .*got float"),
    ({"attn_mask": np.ones((3, 3, 3, 3), bool)}, ValueError, "attn_mask: expected .*got"),
    ({"attn_mask": np.ones(())}, TypeError, "attn_mask: expected .*float32.*got .*float64"),
    ({"attn_mask": FLOATS.astype(SWAPPED)}, TypeError, "attn_mask: expected .*got .*[<>]f4"),
    ({"alibi_slopes": np.ones(3, "f4")}, ValueError, r"alibi_slopes: .*got \(3,\)"),
    ({"sinks": np.ones(3, "f4")}, ValueError, r"sinks: .*\(4,\).*got \(3,\)"),
    ({"sinks": np.ones(4)}, TypeError, "sinks: expected float32.*got .*float64"),
    ({"segment_ids": 3}, TypeError, "segment_ids: expected .*got int"),
    ({"num_threads": 0}, ValueError, "num_threads: expected 1 to 1024 threads, got 0"),
    ({"num_threads": 1025}, ValueError, "num_threads: expected 1 to 1024 threads, got 1025"),
    ({"num_threads": 2.0}, TypeError, "num_threads: expected an int, got float"),
    ({"num_threads": True}, TypeError, "num_threads: expected an int, got bool"),
]


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: f"{next(iter(case[0]))}-{case[2]}")
def test_options(case):
    options, error, message = case
    raises(error, f"^{message}", **options)


SEEDS = [
    (2**64, ValueError, "got 18446744073709551616"),
    (-(2**63) - 1, ValueError, "got -9223372036854775809"),
    (10**30, ValueError, "got 1000000000000000000000000000000"),
    (0.5, TypeError, "an int, got float"),
    (1.0, TypeError, "an int, got float"),
    (None, TypeError, "an int, got NoneType"),
    ("1", TypeError, "an int, got str"),
    (True, TypeError, "an int, got bool"),
    (np.True_, TypeError, "an int, got bool"),
    ([1], TypeError, "an int, got list"),
    (np.array([1, 2]), TypeError, "an int, got ndarray"),
    (np.float32(3), TypeError, "an int, got float32"),
]


@pytest.mark.parametrize("case", SEEDS, ids=lambda case: repr(case[0]))
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_seeds(case, p):
    """With dropout or without, forward and backward."""
    seed, error, message = case
    message = f"^dropout_seed: expected .*{message}"
    raises(error, message, dropout_seed=seed, dropout_p=p)
    with pytest.raises(error, match=message):
        scaled_dot_product_attention(QUERY, KEY, VALUE, dropout_p=p, dropout_seed=seed)
    with pytest.raises(error, match=message):
        varlen_attention(**PACKED, dropout_p=p, dropout_seed=seed)


def test_flags_of_numpy_and_options_that_are_none_in_effect():
    """numpy.bool, None and zeros of any kind are no error."""
    want = scaled_dot_product_attention_backward(**DENSE)
    no = {"attn_mask": None, "alibi_slopes": None, "sinks": None, "segment_ids": None}
    for zero in (0, 0.0, -0.0, np.float32(0), np.int64(0)):
        got = scaled_dot_product_attention_backward(
            **DENSE, **no, softcap=zero, dropout_p=zero, mask_grad=np.False_, sinks_grad=np.False_
        )
        assert same_bits(tuple(got[:3]), tuple(want[:3]))
    sinks = np.ones(4, np.float32)
    assert scaled_dot_product_attention_backward(**DENSE, sinks=sinks).sinks is None
    got = scaled_dot_product_attention_backward(**DENSE, sinks=sinks, sinks_grad=np.True_)
    assert got.sinks.shape == (4,)


def test_gradients_of_options_of_float32_beside_float64():
    """They are of the dtype of their input."""
    wide = {name: x.astype(np.float64) for name, x in DENSE.items()}
    for dtype in (np.float32, np.float64):
        got = scaled_dot_product_attention_backward(
            **wide,
            attn_mask=np.zeros((5, 7), dtype),
            sinks=np.zeros(4, dtype),
            mask_grad=True,
            sinks_grad=True,
        )
        assert got.attn_mask.dtype == got.sinks.dtype == dtype
        assert got.query.dtype == np.float64


# ------------------------------------------------------------------ inputs


def test_inputs_are_read_only(isa, dtype):
    """Fault 20: a read-only array is accepted, and no input is ever written."""
    for rows in (2, 37):
        query, key, value = qkv((2, 4, rows, 12), 2, 141, dtype=dtype)
        options = {
            "attn_mask": float_mask(2, 4, rows, 141, dtype=dtype),
            "sinks": normal(4, dtype=dtype),
            "alibi_slopes": normal(2, 4, dtype=dtype),
            "segment_ids": (np.arange(rows) % 2, np.arange(141) // 80),
            "query_offset": np.array([3, 100]),
            "kv_lengths": np.array([141, 100]),
        }
        out, lse = scaled_dot_product_attention(
            query, key, value, enable_gqa=True, return_lse=True, **options
        )
        inputs = [normal(*out.shape, dtype=dtype), query, key, value, out, lse]
        given = [*inputs]
        for x in options.values():
            given += x if isinstance(x, tuple) else [x]
        before = [x.tobytes() for x in given]
        more = {"enable_gqa": True, "mask_grad": True, "sinks_grad": True, "is_causal": True}
        want = scaled_dot_product_attention_backward(*inputs, **options, **more)
        assert [x.tobytes() for x in given] == before
        for x in given:
            x.flags.writeable = False
        got = scaled_dot_product_attention_backward(*inputs, **options, **more)
        assert same_bits(tuple(got), tuple(want))
        for x in got:
            assert x.flags.writeable
            assert not any(np.may_share_memory(x, y) for y in given)


def test_one_array_in_many_places(isa, dtype):
    """As query, key, value, grad_out and out at once."""
    x = normal(2, 33, 16, dtype=dtype)
    lse = scaled_dot_product_attention(x, x, x, return_lse=True)[1]
    got = scaled_dot_product_attention_backward(x, x, x, x, x, lse)
    want = scaled_dot_product_attention_backward(*(x.copy() for _ in range(5)), lse)
    assert same_bits(tuple(got[:3]), tuple(want[:3]))


def test_array_likes(dtype):
    """Gradients of objects that lend their memory, and of subclasses, are plain arrays."""

    class Subclass(np.ndarray):
        def __getitem__(self, index):
            raise AssertionError("an input is read by its own rules")

    class OfArray:
        def __init__(self, x):
            self.x = x

        def __array__(self, dtype=None, copy=None):
            return self.x

    arrays = {name: x.astype(dtype) for name, x in DENSE.items()}
    mask, sinks = np.zeros((5, 7), dtype), np.zeros(4, dtype)
    more = {"mask_grad": True, "sinks_grad": True}
    want = scaled_dot_product_attention_backward(**arrays, attn_mask=mask, sinks=sinks, **more)
    for like in (OfArray, lambda x: x.view(Subclass), np.ma.asarray):
        got = scaled_dot_product_attention_backward(
            **{name: like(x) for name, x in arrays.items()},
            attn_mask=like(mask),
            sinks=like(sinks),
            **more,
        )
        assert all(type(x) is np.ndarray for x in got)
        assert same_bits(tuple(got), tuple(want))


def test_results_too_large_for_any_memory():
    """Fault 15: products that overflow are a clear error."""
    one = np.ones((1, 1), np.float32)
    many = np.broadcast_to(np.float32(1), (2**60, 1))
    for query, key in ((many, one), (one, many)):
        with pytest.raises((ValueError, MemoryError)):
            scaled_dot_product_attention_backward(query, query, key, key, query, query[:, 0])
