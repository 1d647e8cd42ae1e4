"""Bad arrays for the backward pass: an error that names the argument, what was expected, what came.

Faults 16 and 20, as test_errors.py has them of the forward pass: signatures, kinds, dtypes, byte
orders and shapes. Options are in test_backward_errors_options.py.
"""

import inspect
import itertools
import re

import numpy as np
import pytest

from selfattn import (
    AttentionGradients,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    varlen_attention,
    varlen_attention_backward,
)
from support.arrays import HALF_DTYPES, normal
from support.errors import LISTS, LONGDOUBLE_IS_DOUBLE, NO_ARRAYS, SWAPPED
from support.errors_backward import (
    DENSE,
    FUNCTIONS,
    KEY,
    QUERY,
    VALUE,
    dense_raises,
    packed_raises,
    raises,
    with_forward,
)

ARRAYS = ["grad_out", "query", "key", "value", "out", "lse"]


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
    for backward, forward in (
        (scaled_dot_product_attention_backward, scaled_dot_product_attention),
        (varlen_attention_backward, varlen_attention),
    ):
        ours, theirs = (inspect.signature(f).parameters for f in (backward, forward))
        names = list(ours)
        assert names[:6] == ARRAYS
        for name in ("grad_out", "out", "lse", "grad_lse", "mask_grad", "bias_grad", "sinks_grad"):
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
    arrays = [DENSE[name] for name in ARRAYS]
    scaled_dot_product_attention_backward(*arrays, None, 0.0, False)
    with pytest.raises(TypeError, match="positional"):
        scaled_dot_product_attention_backward(*arrays, None, 0.0, False, 0.5)


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
def test_half_types_are_not_mixed(name):
    """All arrays but lse, which is float32, are of query's dtype."""
    for (f, right), dtype in itertools.product(FUNCTIONS, HALF_DTYPES):
        half = {
            n: x.astype(dtype) if x.dtype == np.float32 and n != "lse" else x
            for n, x in right.items()
        }
        f(**half)
        wrong = half[name].astype(dtype if name == "lse" else np.float32)
        named = name if name not in ("query", "key", "value") else "key|value"
        with pytest.raises(TypeError, match=rf"^({named}): expected b?float(16|32), .*got b?float"):
            f(**(half | {name: wrong}))


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


def test_results_too_large_for_any_memory():
    """Fault 15: products that overflow are a clear error."""
    one = np.ones((1, 1), np.float32)
    many = np.broadcast_to(np.float32(1), (2**60, 1))
    for query, key in ((many, one), (one, many)):
        with pytest.raises((ValueError, MemoryError)):
            scaled_dot_product_attention_backward(query, query, key, key, query, query[:, 0])
