"""Calls that must fail for an option of theirs, and arguments that are no arrays."""

import numpy as np
import pytest

from selfattn import (
    attention_weights,
    project,
    project_backward,
    scaled_dot_product,
    scaled_dot_product_attention,
    softmax,
    varlen_attention,
    weighted_sum,
)
from support.arrays import normal, qkv

QUERY, KEY, VALUE = qkv((2, 4, 5, 8), seqlen_k=7)
# Every function of dense arrays, with right arguments for it.
ARGUMENTS = [
    (scaled_dot_product_attention, {"query": QUERY, "key": KEY, "value": VALUE}),
    (scaled_dot_product, {"query": QUERY, "key": KEY}),
    (attention_weights, {"query": QUERY, "key": KEY}),
    (weighted_sum, {"weights": normal(2, 4, 5, 7), "value": VALUE}),
    (softmax, {"x": QUERY}),
    (project, {"x": QUERY, "weight": normal(3, 8), "bias": normal(3)}),
    (
        project_backward,
        {
            "grad_out": normal(2, 4, 5, 3),
            "x": QUERY,
            "weight": normal(3, 8),
            "bias": normal(3),
        },
    ),
]
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
