"""What dropout has made of weights, as the forward and the backward pass show it.

Values that are the unit matrix show the weights as they are after dropout; so does the gradient of
the values where grad_out is the unit matrix, and the mask's gradient shows what the backward pass
has made of dP.
"""

import numpy as np

import selfattn
from support.arrays import qkv, same_bits
from support.gradients import backward

P, SEED = 0.4, 12345


DROPOUT = {"dropout_p": P, "dropout_seed": SEED}


def attend(*arrays, **options):
    return selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)


def unit(*leading, n, dtype):
    """The unit matrix n x n, for all of the leading axes."""
    return np.broadcast_to(np.eye(n, dtype=dtype), (*leading, n, n))


def mild(*shape, dtype, heads_kv=None, seqlen_k=None):
    """query and key whose weights are all of about the same size."""
    query, key, _ = qkv(shape, heads_kv, seqlen_k, 1, dtype=dtype)
    return query / 2, key


def seen_by_forward(query, key, **options):
    """What is left of the weights, by out: where it is not 0, and its size there is checked."""
    value = unit(*key.shape[:-2], n=key.shape[-2], dtype=query.dtype)
    out, lse = attend(query, key, value, **options)
    no_dropout = {name: x for name, x in options.items() if not name.startswith("dropout")}
    weights, plain_lse = attend(query, key, value, **no_dropout)
    assert same_bits(lse, plain_lse)
    kept = out != 0
    scaled = weights.astype(np.float64) / (1 - options["dropout_p"])
    np.testing.assert_allclose(out, kept * scaled, rtol=8 * np.finfo(query.dtype).eps, atol=0)
    return kept, weights > 0


def seen_by_backward(query, key, **options):
    """The same by the gradients of value, and of a mask of 0 under values of 1.

    dV is (P D)' where grad_out is 1 for one query each. dmask / P = D dP - delta, where dP is 1.
    """
    rows, dtype = query.shape[-2], query.dtype
    leading = np.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    ones = np.ones((*key.shape[:-1], 1), dtype)
    grad_out = unit(*leading, n=rows, dtype=dtype)
    value = np.broadcast_to(ones, (*key.shape[:-1], rows))
    kept = backward(grad_out, query, key, value, **options)["value"].swapaxes(-1, -2) != 0

    mask = np.zeros((*leading, rows, key.shape[-2]), dtype)
    grad_out = np.ones((*leading, rows, 1), dtype)
    out, _ = attend(query, key, ones, **options)
    dmask = backward(grad_out, query, key, ones, attn_mask=mask, **options)["attn_mask"]
    no_dropout = {name: x for name, x in options.items() if not name.startswith("dropout")}
    weights = selfattn.attention_weights(query, key, **no_dropout)
    with np.errstate(invalid="ignore", divide="ignore"):
        of_dp = np.where(weights > 0, dmask / weights + out, 0)
    return kept, of_dp > 0.5
