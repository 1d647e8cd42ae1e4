"""The reference's varlen_attention against plain Python, sequence by sequence."""

import itertools

import numpy as np
import pytest

from selfattn import reference
from support.arrays import normal
from support.scalars import attention


@pytest.mark.parametrize("per_sequence", [False, True])
def test_varlen_is_a_call_for_each_sequence(per_sequence):
    """Sequences of no query, of no key, of neither; all that may be given one for each of them."""
    cu_q, cu_k = np.array([0, 2, 5, 5, 6, 6, 9]), np.array([0, 4, 6, 9, 9, 9, 16])
    batch, heads, longest = 6, 4, 7
    query = normal(9, heads, 3, dtype=np.float64)
    key = normal(16, 2, 3, dtype=np.float64)
    value = normal(16, 2, 5, dtype=np.float64, seed=1)
    bias = normal(heads, 9, longest, dtype=np.float64)
    slopes = normal(*((batch,) if per_sequence else ()), heads, dtype=np.float64)
    offsets, lengths = np.array([1, 0, 2, 5, -1, 3]), np.array([3, 2, 1, 0, 0, 6])
    options = {"query_offset": offsets, "kv_lengths": lengths} if per_sequence else {}
    sinks, ids = normal(heads, dtype=np.float64), (normal(9) > -1, normal(16) > -1)
    for attn_mask in (None, bias, bias > -0.5, bias[0, :, :1], bias[:, :1] > -0.5, bias[0, 0]):
        out, lse = reference.varlen_attention(
            query, key, value, cu_q, cu_k, attn_mask, True, enable_gqa=True, softcap=2.0,
            alibi_slopes=slopes, sinks=sinks, segment_ids=ids, return_lse=True, **options,
        )  # fmt: skip
        assert (out.shape, lse.shape) == ((9, heads, 5), (heads, 9))
        whole = None if attn_mask is None else np.broadcast_to(attn_mask, (heads, 9, longest))
        for b, head in itertools.product(range(batch), range(heads)):
            rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
            count = keys.stop - keys.start
            want = attention(
                query[rows, head], key[keys, head // 2], value[keys, head // 2],
                is_causal=True, softcap=2.0, sink=sinks[head],
                slope=slopes[b, head] if per_sequence else slopes[head],
                ids=(ids[0][rows], ids[1][keys]),
                attn_mask=None if whole is None else whole[head, rows, :count],
                query_offset=int(offsets[b]) if per_sequence else 0,
                kv_length=int(lengths[b]) if per_sequence else None,
            )  # fmt: skip
            wanted_out = np.array(want[0]).reshape(-1, 5)
            np.testing.assert_allclose(out[rows, head], wanted_out, rtol=1e-13, atol=1e-14)
            np.testing.assert_allclose(lse[head, rows], want[1], rtol=1e-14, atol=1e-14)


def test_varlen_of_one_array_of_ids_and_of_nothing():
    """One array of ids serves queries and keys; no sequence at all is an empty result."""
    query, key, value = (normal(6, 2, 3, seed=seed) for seed in range(3))
    cu, ids = [0, 4, 6], np.array([0, 0, 1, 1, 0, 1])
    out = reference.varlen_attention(query, key, value, cu, cu, segment_ids=ids)
    assert out.dtype == np.float32
    for rows in (slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 6)):
        want = reference.scaled_dot_product_attention(
            *(x[rows].swapaxes(0, 1) for x in (query, key, value))
        )
        np.testing.assert_allclose(out[rows], want.swapaxes(0, 1), rtol=1e-6)
    out, lse = reference.varlen_attention(
        query[:0], key[:0], value[:0], [0], [0], normal(2, 1, 1)[:, :, :0], return_lse=True
    )
    assert (out.shape, lse.shape) == ((0, 2, 3), (2, 0))
