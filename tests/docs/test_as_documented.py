"""What the docstring of attention says of options that are easily taken for something else."""

import numpy as np
import pytest

import selfattn
from support.arrays import normal, qkv, same_bits
from support.compare import check_attention


def attend(*arrays, **options):
    return selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)


@pytest.mark.parametrize("offset", [6, 64, 1000])
def test_a_common_distance_moves_lse_alone(isa, dtype, offset):
    """Every key lies before every query: another offset is more distance to each, as much."""
    arrays = qkv((2, 4, 5, 8), seqlen_k=6, dtype=dtype)
    slopes = np.array([0.5, 0.25, 1.0, 0.0], dtype)  # whose products with distances are exact
    want, want_lse = attend(*arrays, alibi_slopes=slopes, query_offset=6)
    out, lse = attend(*arrays, alibi_slopes=slopes, query_offset=offset)
    # A score is rounded where it stands, its distance in it: to eps of that.
    near = 16 * np.finfo(dtype).eps * (offset + 10)
    np.testing.assert_allclose(out, want, rtol=0, atol=near)
    moved = lse + slopes[:, None] * (offset - 6)
    np.testing.assert_allclose(moved, want_lse, rtol=0, atol=near)
    if offset > 6:
        assert (lse[:, :3] < want_lse[:, :3] - 10).all()


def test_the_digits_that_a_distance_takes(isa):
    """In float32, at 10**8, nothing of scores of size 1 is left; the nearest key still leads."""
    query, key, _ = qkv((1, 1, 1, 8), seqlen_k=64)
    options = {"alibi_slopes": np.full(1, 0.5, np.float32), "query_offset": 10**8}
    weights = selfattn.attention_weights(query, key, **options)[0, 0, 0]
    assert len(np.unique(weights)) < 32
    wide = (x.astype(np.float64) for x in (query, key))
    options["alibi_slopes"] = options["alibi_slopes"].astype(np.float64)
    assert len(np.unique(selfattn.attention_weights(*wide, **options))) == 64


def test_three_axes_of_a_mask_are_heads_rows_and_keys(isa, dtype):
    """Where there are as many batch entries as heads, too."""
    batch = heads = 3
    arrays = qkv((batch, heads, 5, 8), seqlen_k=7, dtype=dtype)
    for mask in (normal(3, 5, 7) > -0.5, normal(3, 5, 7, dtype=dtype)):
        got = attend(*arrays, attn_mask=mask)
        assert same_bits(got, attend(*arrays, attn_mask=np.stack([mask] * batch)))
        of_entries = attend(*arrays, attn_mask=mask[:, None])
        assert not same_bits(got, of_entries)
        for b in range(batch):
            alone = attend(*(x[b] for x in arrays), attn_mask=mask[b])
            assert same_bits(tuple(x[b] for x in of_entries), alone)


def test_bools_beside_floats(isa, dtype):
    """As -inf among the floats, or by an option that says the same: bit for bit alike."""
    arrays = qkv((2, 2, 5, 8), seqlen_k=7, dtype=dtype)
    bias, lengths = normal(2, 1, 5, 7, dtype=dtype), np.array([4, 7])
    keep = np.arange(7) < lengths[:, None, None, None]
    masked = np.where(keep, bias, dtype(-np.inf))
    got = attend(*arrays, attn_mask=masked)
    assert same_bits(got, attend(*arrays, attn_mask=bias, kv_lengths=lengths))
    check_attention(*arrays, attn_mask=masked)
    check_attention(*arrays, attn_mask=bias, kv_lengths=lengths)
    with pytest.raises(TypeError, match="attn_mask: expected an array, got tuple"):
        attend(*arrays, attn_mask=(bias, keep))
