"""Keys and values that a call copies first, since their rows are strided, and options for them."""

import numpy as np

OPTIONS = [
    {},
    {"is_causal": True},
    {"is_causal": True, "query_offset": 101},
    {"is_causal": True, "query_offset": -30},
    {"window_size": (70, 9), "query_offset": 200},
    {"kv_lengths": np.array([395, 3])},
    {"attn_mask": np.arange(400) % 3 > 0},
    {"segment_ids": (np.arange(250) // 60, np.arange(400) // 99)},
]


def bshd(rng, shape, dtype):
    """A (batch, heads, positions, dim) view of an array in BSHD layout: its rows are strided."""
    batch, heads, positions, dim = shape
    return rng.standard_normal((batch, positions, heads, dim)).astype(dtype).swapaxes(1, 2)
