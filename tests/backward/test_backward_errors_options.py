"""Bad options for the backward pass: errors as test_backward_errors.py has them of the arrays.

Faults 16 and 20: what there is no gradient of, flags, dropout, packed sequences, and all that the
forward pass refuses too. And of what is right not a byte is written.
"""

import math

import numpy as np
import pytest

from selfattn import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    varlen_attention,
)
from support.arrays import normal, qkv, same_bits
from support.errors import PACKED, SWAPPED
from support.errors_backward import DENSE, KEY, QUERY, VALUE, packed_raises, raises
from support.option_arrays import float_mask

BOOLS, FLOATS = np.ones((), bool), np.ones((), np.float32)


ONES = np.ones(4, np.float32)


OPTIONS = [
    # For what there is no gradient.
    ({"mask_grad": True}, ValueError, "mask_grad: expected .*attn_mask.*got none"),
    ({"mask_grad": True, "attn_mask": BOOLS}, ValueError, "mask_grad: expected .*got .*bool"),
    ({"mask_grad": True, "sinks": ONES}, ValueError, "mask_grad: expected .*got none"),
    ({"bias_grad": True}, ValueError, "bias_grad: expected an attn_bias, got none"),
    ({"bias_grad": True, "attn_mask": FLOATS}, ValueError, "bias_grad: expected an attn_bias"),
    ({"mask_grad": True, "attn_bias": FLOATS}, ValueError, "mask_grad: expected .*got none"),
    ({"sinks_grad": True}, ValueError, "sinks_grad: expected sinks, got none"),
    ({"sinks_grad": True, "attn_mask": FLOATS}, ValueError, "sinks_grad: expected sinks"),
    # Flags.
    ({"mask_grad": 2}, ValueError, "mask_grad: expected a bool, or 0 or 1, got 2"),
    ({"mask_grad": None}, TypeError, "mask_grad: expected a bool, got NoneType"),
    ({"mask_grad": "yes"}, TypeError, "mask_grad: expected a bool, got str"),
    ({"mask_grad": np.array([True])}, TypeError, "mask_grad: expected a bool, got ndarray"),
    ({"bias_grad": 2}, ValueError, "bias_grad: expected a bool, or 0 or 1, got 2"),
    ({"sinks_grad": -1}, ValueError, "sinks_grad: expected a bool, or 0 or 1, got -1"),
    ({"sinks_grad": 0.0}, TypeError, "sinks_grad: expected a bool, got float"),
    ({"sinks_grad": "no"}, TypeError, "sinks_grad: expected a bool, got str"),
    ({"is_causal": 2}, ValueError, "is_causal: expected a bool, or 0 or 1, got 2"),
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
    ({"softcap": [1]}, TypeError, "softcap: expected a number, got list"),
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


PACKED_INPUTS = [
    ({"cu_seqlens_q": np.array([0, 3, 3, 10])}, ValueError, "cu_seqlens_q: expected .*9"),
    ({"cu_seqlens_q": np.array([0, 5, 3, 9])}, ValueError, "cu_seqlens_q: expected .*decrease"),
    ({"cu_seqlens_k": np.array([0, 12])}, ValueError, "cu_seqlens_k: expected 3 sequences"),
    (
        {"cu_seqlens_k": (np.array([0, 4, 9]), np.array([5, 1, 3]))},
        ValueError,
        "cu_seqlens_k: expected sequences that share no rows of key where gradients are asked for",
    ),
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


# ------------------------------------------------------------------ what is right


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
