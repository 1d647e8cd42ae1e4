"""The learnable layer: three projections, attention in every head, one projection.

    q = x Wq' + bq      k = context Wk' + bk      v = context Wv' + bv
    out = [head 1, ..., head H] Wo' + bo

and for a projection y = x W' + b: dx = dy W, dW = dy' x, db = sum of dy. Parameters are those of
`nn.MultiheadAttention` by name; everything is in float64 until it is returned.
"""

from __future__ import annotations

import numpy as np

from .attention import scaled_dot_product_attention
from .axes import narrow, wide
from .backward import scaled_dot_product_attention_backward
from .rotary import rope as rotate
from .rotary import rope_backward as rotate_back
from .steps import project


def multihead_attention(
    params, x, context=None, *, num_heads, num_heads_kv=None, rope=None, **options
):
    """What the layer returns: (..., L, embed_dim)."""
    rows, _, _ = _rows(params, x, context, num_heads, num_heads_kv, rope, options)
    out = scaled_dot_product_attention(*rows, enable_gqa=True, **options)
    bias = params.get("out_proj.bias")
    return narrow(project(_side_by_side(out), wide(params["out_proj.weight"]), bias), x.dtype)


def multihead_attention_backward(
    grad_out,
    params,
    x,
    context=None,
    *,
    num_heads,
    num_heads_kv=None,
    rope=None,
    mask_grad=False,
    bias_grad=False,
    sinks_grad=False,
    **options,
):
    """The gradients of `sum(grad_out * out)`: of the inputs, as they were given, and by name."""
    rows, rope_arguments, inputs = _rows(params, x, context, num_heads, num_heads_kv, rope, options)
    out, lse = scaled_dot_product_attention(*rows, enable_gqa=True, return_lse=True, **options)
    grad_merged, *of_out = _project_backward(
        wide(grad_out), _side_by_side(out), wide(params["out_proj.weight"])
    )
    gradients = scaled_dot_product_attention_backward(
        _heads(grad_merged, num_heads),
        *rows,
        out,
        lse,
        enable_gqa=True,
        mask_grad=mask_grad,
        bias_grad=bias_grad,
        sinks_grad=sinks_grad,
        **options,
    )
    of_heads = list(gradients[:3])
    for n, arguments in enumerate(rope_arguments):
        of_heads[n] = rotate_back(of_heads[n], **arguments)
    of_inputs, of_weights, of_biases = zip(
        *(
            _project_backward(_side_by_side(grad), given, weight)
            for grad, given, (weight, _) in zip(of_heads, inputs, _projections(params), strict=True)
        ),
        strict=True,
    )
    grads = dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), of_weights, strict=True))
    if "in_proj_weight" in params:
        grads = {"in_proj_weight": np.concatenate(of_weights)}
    grads["in_proj_bias"] = np.concatenate(of_biases)
    grads["out_proj.weight"], grads["out_proj.bias"] = of_out
    grads = {name: narrow(grads[name], x.dtype) for name in params}
    grads |= {
        name: getattr(gradients, name)
        for name in ("attn_mask", "sinks", "attn_bias")
        if getattr(gradients, name) is not None
    }
    of_query, of_key, of_value = (narrow(grad, x.dtype) for grad in of_inputs)
    if context is None:
        return of_query + of_key + of_value, grads
    if isinstance(context, (tuple, list)):
        return (of_query, (of_key, of_value)), grads
    return (of_query, of_key + of_value), grads


def _rows(params, x, context, num_heads, num_heads_kv, rope, options):
    """Query, key and value by heads; what rotated the first two; what all were projected from."""
    context = x if context is None else context
    of_key, of_value = context if isinstance(context, (tuple, list)) else (context, context)
    inputs = [wide(given) for given in (x, of_key, of_value)]
    heads_kv = num_heads_kv or num_heads
    rows = [
        _heads(project(given, weight, bias), heads)
        for given, (weight, bias), heads in zip(
            inputs, _projections(params), (num_heads, heads_kv, heads_kv), strict=True
        )
    ]
    rope_arguments = []
    if rope is not None:
        offset = 0 if rope.get("positions") is not None else options.get("query_offset", 0)
        rope_arguments = [{"offset": offset, **rope}, rope]
    for n, arguments in enumerate(rope_arguments):
        rows[n] = rotate(rows[n], **arguments)
    return rows, rope_arguments, inputs


def _projections(params):
    """Weight and bias, or None, of query, key and value."""
    if "in_proj_weight" in params:
        embed_dim = params["in_proj_weight"].shape[1]
        shared = (params["in_proj_weight"].shape[0] - embed_dim) // 2
    else:
        embed_dim, shared = len(params["q_proj_weight"]), len(params["k_proj_weight"])
    ends = [embed_dim, embed_dim + shared]
    if "in_proj_weight" in params:
        weights = np.split(wide(params["in_proj_weight"]), ends)
    else:
        weights = [wide(params[f"{name}_proj_weight"]) for name in "qkv"]
    biases = [None] * 3
    if "in_proj_bias" in params:
        biases = np.split(wide(params["in_proj_bias"]), ends)
    return list(zip(weights, biases, strict=True))


def _project_backward(grad_y, x, weight):
    """dx, dW, db."""
    return (
        grad_y @ weight,
        np.einsum("ni,nj->ij", grad_y.reshape(-1, len(weight)), x.reshape(-1, weight.shape[1])),
        grad_y.reshape(-1, len(weight)).sum(0),
    )


def _heads(rows, count):
    """(..., L, count * head_dim) -> (..., count, L, head_dim)."""
    return np.stack(np.split(rows, count, -1), -3)


def _side_by_side(heads):
    """(..., count, L, head_dim) -> (..., L, count * head_dim)."""
    return np.concatenate([heads[..., n, :, :] for n in range(heads.shape[-3])], -1)
