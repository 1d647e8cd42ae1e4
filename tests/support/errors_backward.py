"""Right arguments of the backward functions, and calls that must fail for one that is not."""

import numpy as np
import pytest

from selfattn import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    varlen_attention,
    varlen_attention_backward,
)
from support.arrays import qkv
from support.errors import PACKED


def with_forward(forward, arrays):
    """Arguments of a backward call, by name: grad_out, the arrays, out and lse."""
    out, lse = forward(**arrays, return_lse=True)
    return {"grad_out": np.ones_like(out), **arrays, "out": out, "lse": lse}


QUERY, KEY, VALUE = qkv((2, 4, 5, 8), seqlen_k=7, head_dim_v=3)


DENSE = with_forward(scaled_dot_product_attention, {"query": QUERY, "key": KEY, "value": VALUE})


SEQUENCES = with_forward(varlen_attention, PACKED)


FUNCTIONS = [(scaled_dot_product_attention_backward, DENSE), (varlen_attention_backward, SEQUENCES)]


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
