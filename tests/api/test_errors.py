"""Bad input: an error that names the argument, what was expected and what came.

Faults 16 and 20. That nothing is written then is tested in test_out.py.
"""

import itertools
import math
import re

import numpy as np
import pytest

import selfattn
from selfattn import (
    attention_weights,
    project,
    scaled_dot_product,
    scaled_dot_product_attention,
    softmax,
    weighted_sum,
)
from support.arrays import HALF_DTYPES, normal, qkv
from support.errors import ARGUMENTS, KEY, QUERY, VALUE

WRONG_ARRAYS = [
    (None, "NoneType"),
    ([[1.0, 2.0]], "list"),
    (((1.0, 2.0),), "tuple"),
    (1.5, "float"),
    (3, "int"),
    ("text", "str"),
    (b"bytes", "bytes"),
    (np.ones((5, 8), np.int64), "int64"),
    (np.ones((5, 8), bool), "bool"),
    (np.ones((5, 8), np.complex64), "complex64"),
    (np.ones((5, 8), np.longdouble), "float128|longdouble|float64"),
    (np.ones((5, 8), object), "object|'O'"),
    (np.ones((5, 8), "U1"), "U1"),
    (np.ones((5, 8), "M8[s]"), "M8|datetime64"),
    (np.ones((5, 8), np.dtype(np.float32).newbyteorder()), ">f4|<f4"),
    (np.ones((5, 8), np.dtype(np.float64).newbyteorder()), ">f8|<f8"),
    (np.ones((5, 8), [("x", "f4")]), "x"),
    (object(), "object"),
    ({"a": 1}, "dict"),
]
if np.finfo(np.longdouble).nmant == np.finfo(np.float64).nmant:
    WRONG_ARRAYS = [pair for pair in WRONG_ARRAYS if "longdouble" not in pair[1]]

PLACES = [(f, arrays, name) for f, arrays in ARGUMENTS for name in arrays]


@pytest.mark.parametrize(("wrong", "came"), WRONG_ARRAYS, ids=[came for _, came in WRONG_ARRAYS])
@pytest.mark.parametrize(
    ("f", "arrays", "name"), PLACES, ids=[f"{f.__name__}-{name}" for f, _, name in PLACES]
)
def test_no_array_of_a_dtype_we_compute_in(f, arrays, name, wrong, came):
    """Fault 20: in the place of each array of each function."""
    if name == "bias" and wrong is None:
        return  # there is none
    with pytest.raises(TypeError, match=rf"^{name}: expected .*got.*({came})"):
        f(**(arrays | {name: wrong}))


@pytest.mark.parametrize(
    ("f", "arrays", "name"), PLACES, ids=[f"{f.__name__}-{name}" for f, _, name in PLACES]
)
def test_dtypes_are_not_mixed(f, arrays, name):
    if len(arrays) == 1:
        return
    with pytest.raises(TypeError, match=r"^\w+: expected float(32|64), .*got float(64|32)"):
        f(**(arrays | {name: arrays[name].astype(np.float64)}))


@pytest.mark.parametrize(
    ("f", "arrays", "name"), PLACES, ids=[f"{f.__name__}-{name}" for f, _, name in PLACES]
)
def test_half_types_are_not_mixed(f, arrays, name):
    """Neither one with float32, nor one with the other."""
    if len(arrays) == 1:
        return
    dtypes = "float16|bfloat16|float32"
    message = rf"^\w+: expected ({dtypes}), \w+'s dtype, got ({dtypes})$"
    for others, dtype in itertools.permutations([*HALF_DTYPES, np.float32], 2):
        mixed = {n: x.astype(dtype if n == name else others) for n, x in arrays.items()}
        with pytest.raises(TypeError, match=message):
            f(**mixed)


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize(
    ("f", "arrays", "name"), PLACES, ids=[f"{f.__name__}-{name}" for f, _, name in PLACES]
)
def test_half_types_in_the_other_byte_order(f, arrays, name, dtype):
    """NumPy takes bfloat16's for the same type by its number and its name."""
    half = {n: x.astype(dtype) for n, x in arrays.items()}
    wrong = half[name].view(np.uint16).byteswap().view(np.dtype(dtype).newbyteorder())
    message = f"^{name}: expected float16, bfloat16, float32 or float64 in native byte order, got "
    with pytest.raises(TypeError, match=message):
        f(**(half | {name: wrong}))


def shape_errors():
    ones = np.ones
    f4 = np.float32
    q, k, v = ones((2, 4, 5, 8), f4), ones((2, 4, 7, 8), f4), ones((2, 4, 7, 3), f4)
    return [
        (ones(8, f4), k, v, r"query: expected 2 or more axes, got shape \(8,\)"),
        (ones((), f4), k, v, r"query: expected 2 or more axes, got shape \(\)"),
        (q, ones(8, f4), v, r"key: expected 2 or more axes, got shape \(8,\)"),
        (q, k, ones(3, f4), r"value: expected 2 or more axes, got shape \(3,\)"),
        (q, k[..., :7], v, r"key: expected head_dim 8, .*got shape \(2, 4, 7, 7\)"),
        (q, k[..., :1], v, r"key: expected head_dim 8, .*got shape \(2, 4, 7, 1\)"),
        (q, k, v[:, :, :6], r"value: expected 7 rows, .*got shape \(2, 4, 6, 3\)"),
        (q, k, v[:, :, :1], r"value: expected 7 rows, .*got shape \(2, 4, 1, 3\)"),
        (q, k[:, :3], v[:, :3], r"key: expected 4 heads, .*got 3"),
        (q, k[:, :2], v[:, :2], r"key: expected 4 heads, .*got 2 .*enable_gqa"),
        (q, k, v[:, :2], r"value: expected 4 heads, .*got .*2"),
        (ones((3, 4, 5, 8), f4), k, v, r"key: expected leading axes that broadcast, got query \(3"),
        (q, k, ones((3, 4, 7, 3), f4), r"leading axes that broadcast.*value \(3, 4, 7, 3\)"),
    ]


@pytest.mark.parametrize("case", shape_errors(), ids=lambda case: case[3])
def test_shapes_that_do_not_fit(case):
    *arrays, message = case
    with pytest.raises(ValueError, match=message):
        scaled_dot_product_attention(*arrays)


def test_groups_that_do_not_divide():
    query, key, value = qkv((1, 6, 3, 4), 4)
    with pytest.raises(ValueError, match=r"key: expected a number .*divides .*6, got 4"):
        scaled_dot_product_attention(query, key, value, enable_gqa=True)
    with pytest.raises(ValueError, match=r"value: expected a number .*divides .*got 4"):
        weighted_sum(normal(1, 6, 3, 3), value, enable_gqa=True)


def test_shapes_of_the_steps():
    with pytest.raises(ValueError, match=r"value: expected 7 rows, .*got shape \(2, 4, 5, 8\)"):
        weighted_sum(normal(2, 4, 5, 7), QUERY)
    for weight in (normal(3, 7), normal(8), normal(1, 3, 8)):
        with pytest.raises(ValueError, match=r"weight: expected shape \(n_out, 8\), got \("):
            project(QUERY, weight)
    for bias in (normal(4), normal(1, 3), normal(1), np.float32(1)):
        with pytest.raises((ValueError, TypeError), match=r"bias: expected"):
            project(QUERY, normal(3, 8), bias)
    with pytest.raises(ValueError, match=r"x: expected 1 or more axes, got shape \(\)"):
        project(np.array(1.0), np.ones((3, 1)))


@pytest.mark.parametrize(
    ("axis", "error", "message"),
    [
        (4, ValueError, r"axis: expected an axis of shape \(2, 4, 5, 8\), got 4"),
        (-5, ValueError, "axis: expected an axis .*got -5"),
        (1.0, TypeError, "axis: expected an int, got float"),
        (None, TypeError, "axis: expected an int, got NoneType"),
        ((0, 1), TypeError, "axis: expected an int, got tuple"),
    ],
)
def test_axis(axis, error, message):
    with pytest.raises(error, match=message):
        softmax(QUERY, axis)
    with pytest.raises(ValueError, match=r"axis: expected an axis of shape \(\)"):
        softmax(np.array(1.0))


OPTION_ERRORS = [
    ({"scale": math.nan}, ValueError, "scale: expected a finite number, got nan"),
    ({"scale": math.inf}, ValueError, "scale: expected a finite number, got inf"),
    ({"scale": -math.inf}, ValueError, "scale: expected a finite number, got -inf"),
    ({"scale": "x"}, TypeError, "scale: expected a number, got str"),
    ({"scale": "0.5"}, TypeError, "scale: expected a number, got str"),
    ({"scale": True}, TypeError, "scale: expected a number, got bool"),
    ({"window_size": (True, 0)}, TypeError, "window_size: expected two ints"),
    ({"scale": 1j}, TypeError, "scale: expected a number, got complex"),
    ({"scale": [1, 2]}, TypeError, "scale: expected a number, got list"),
    ({"is_causal": 2}, ValueError, "is_causal: expected a bool, or 0 or 1, got 2"),
    ({"is_causal": 1.0}, TypeError, "is_causal: expected a bool, got float"),
    ({"is_causal": None}, TypeError, "is_causal: expected a bool, got NoneType"),
    ({"is_causal": np.array([True])}, TypeError, "is_causal: expected a bool, got ndarray"),
    ({"enable_gqa": 3}, ValueError, "enable_gqa: expected a bool, or 0 or 1, got 3"),
    ({"enable_gqa": "yes"}, TypeError, "enable_gqa: expected a bool, got str"),
    ({"window_size": 3}, TypeError, r"window_size: expected two ints \(left, right\), got 3"),
    ({"window_size": 3}, TypeError, "window_size: expected two ints .*got 3"),
    ({"window_size": (1,)}, ValueError, r"window_size: expected two ints .*got \(1,\)"),
    ({"window_size": (1, 2, 3)}, ValueError, r"window_size: expected two ints .*got \(1, 2, 3\)"),
    ({"window_size": (1.0, 2)}, TypeError, r"window_size: expected two ints .*got \(1.0, 2\)"),
    ({"window_size": (-2, 0)}, ValueError, r"window_size: expected sides of -1 .*got \(-2, 0\)"),
    ({"query_offset": 0.5}, TypeError, "query_offset: expected .*int.*got float"),
    ({"query_offset": None}, TypeError, "query_offset: expected"),
    ({"query_offset": np.ones(2)}, TypeError, "query_offset: expected .*int.*got .*float64"),
    ({"query_offset": np.ones(3, int)}, ValueError, r"query_offset: expected .*\(2,\), got \(3,\)"),
    ({"query_offset": np.ones((2, 4), int)}, ValueError, r"query_offset: .*\(2,\), got \(2, 4\)"),
    ({"query_offset": 2**62}, ValueError, "query_offset: expected values from -"),
    ({"query_offset": -(2**70)}, ValueError, "query_offset: expected values from -"),
    ({"query_offset": np.array([0, 2**62])}, ValueError, "query_offset: expected values from -"),
    ({"kv_lengths": np.array([1.0, 2.0])}, TypeError, "kv_lengths: expected .*int.*got .*float64"),
    ({"kv_lengths": np.array([True, False])}, TypeError, "kv_lengths: expected .*got .*bool"),
    ({"kv_lengths": np.ones(2, ">i4")}, TypeError, "kv_lengths: expected .*got .*i4"),
    ({"kv_lengths": [1, None]}, TypeError, "kv_lengths: expected .*array.*got a list"),
    ({"kv_lengths": np.array([1, 8])}, ValueError, "kv_lengths: .*from 0 to 7, got 8"),
    ({"kv_lengths": np.array([-1, 3])}, ValueError, "kv_lengths: .*from 0 to 7, got -1"),
    ({"kv_lengths": np.array([1, 2**64 - 1], np.uint64)}, ValueError, "kv_lengths: expected"),
    ({"kv_lengths": np.array([1, 2, 3])}, ValueError, r"kv_lengths: .*\(2,\), got \(3,\)"),
    ({"num_threads": 0}, ValueError, "num_threads: expected 1 to 1024 threads, got 0"),
    ({"num_threads": -1}, ValueError, "num_threads: expected 1 to 1024 threads, got -1"),
    ({"num_threads": 2000}, ValueError, "num_threads: expected 1 to 1024 threads, got 2000"),
    ({"num_threads": 2.0}, TypeError, "num_threads: expected an int, got float"),
    ({"num_threads": True}, TypeError, "num_threads: expected an int, got bool"),
    ({"num_threads": "2"}, TypeError, "num_threads: expected an int, got str"),
]


@pytest.mark.parametrize("case", OPTION_ERRORS, ids=lambda case: re.sub(r"\s+", " ", str(case[0])))
def test_options(case):
    options, error, message = case
    with pytest.raises(error, match=message):
        scaled_dot_product_attention(QUERY, KEY, VALUE, **options)
    for step in (scaled_dot_product, attention_weights):
        with pytest.raises(error, match=message):
            step(QUERY, KEY, **options)


def test_options_are_keyword_only():
    """What follows torch's own arguments cannot be taken for one of them."""
    with pytest.raises(TypeError, match="positional"):
        scaled_dot_product_attention(QUERY, KEY, VALUE, None, 0.0, False, 0.5)
    with pytest.raises(TypeError, match="unexpected keyword"):
        selfattn.scaled_dot_product_attention(QUERY, KEY, VALUE, causal=True)
