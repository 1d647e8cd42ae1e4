"""PyTorch as a contestant: scaled_dot_product_attention, its autograd, softmax and linear.

Used by peers.py.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .contest import Call, Peer, Way, group_as_rows, positions_first, repeated_heads

FLASH_BACKWARD = "ScaledDotProductFlashAttentionForCpuBackward0"


class Torch(Peer):
    """PyTorch's functions, on tensors that share the arrays."""

    name = "torch"
    packages = ("torch",)

    def unfit(self, row):
        return "no int8 attention" if row.dtype == "int8" else ""

    def attention(self, row, num_threads):
        torch = _torch(num_threads)
        attend = torch.nn.functional.scaled_dot_product_attention

        mask = {"is_causal": row.is_causal}
        if row.query_offset:
            visible = torch.ones(row.seqlen_q, row.seqlen_k, dtype=torch.bool)
            mask = {"attn_mask": visible.tril(row.query_offset)}

        def bind(arrays, lay_out=_tensor, gqa=row.is_gqa):
            tensors = [lay_out(x) for x in arrays]
            return Call(partial(attend, *tensors, enable_gqa=gqa, **mask), _array)

        ways = [Way("BHSD", bind), Way("BSHD", partial(bind, lay_out=_bshd))]
        if row.is_gqa and row.seqlen_q == 1:
            ways.append(Way("group as rows", partial(group_as_rows, row, partial(bind, gqa=False))))
        elif row.is_gqa:
            ways.append(Way("repeated heads", partial(repeated_heads, partial(bind, gqa=False))))
        return ways

    def cache(self, row, num_threads):
        """Its cache is the key and value themselves; a group goes as rows, which is its best."""
        attend = _torch(num_threads).nn.functional.scaled_dot_product_attention

        def bind(arrays):
            return Call(partial(attend, *map(_tensor, arrays)), _array)

        return [Way("group as rows", partial(group_as_rows, row, bind))]

    def backward(self, row, num_threads):
        torch = _torch(num_threads)
        attend = torch.nn.functional.scaled_dot_product_attention

        def bind(arrays, lay_out=_tensor, attend=attend):
            *inputs, grad_out = map(lay_out, arrays)
            for x in inputs:
                x.requires_grad_()
            forward = partial(attend, *inputs, is_causal=row.is_causal, enable_gqa=row.is_gqa)
            out = forward()
            if out.grad_fn.name() != FLASH_BACKWARD:
                raise RuntimeError(f"torch: not its flash kernel but {out.grad_fn.name()} on {row}")
            if row.with_forward:
                return Call(lambda: torch.autograd.grad(forward(), inputs, grad_out), _arrays)
            retained = partial(torch.autograd.grad, out, inputs, grad_out, retain_graph=True)
            return Call(retained, _arrays)

        ways = [Way("BHSD", bind), Way("BSHD", partial(bind, lay_out=_bshd))]
        if row.is_gqa:
            repeating = partial(_to_repeated_heads, attend)
            ways.append(Way("repeated heads", partial(bind, attend=repeating)))
        return ways

    def softmax(self, row, num_threads):
        torch = _torch(num_threads)

        def bind(arrays):
            x, out = map(_tensor, arrays)
            return Call(partial(torch.softmax, x, -1, out=out), _array)

        return [Way("softmax, out=", bind)]

    def linear(self, row, num_threads):
        torch = _torch(num_threads)

        def bind(arrays):
            x, weight, _ = map(_tensor, arrays)
            return Call(partial(torch.nn.functional.linear, x, weight), _array)

        return [Way("linear", bind)]


def _torch(num_threads):
    """The module, set to as many threads."""
    import torch

    torch.set_num_threads(num_threads)
    return torch


def _tensor(x):
    """A tensor that shares the array; NumPy's bfloat16 goes by its bits."""
    import torch

    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def _bshd(x):
    """The same numbers in the BSHD layout."""
    return _tensor(positions_first(x)).transpose(1, 2)


def _to_repeated_heads(attend, query, key, value, *, is_causal, enable_gqa):
    """Each key head repeated as part of the call: autograd sums their gradients again."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    return attend(query, key, value, is_causal=is_causal)


def _array(x):
    return np.asarray(x.float() if x.itemsize == 2 else x)


def _arrays(tensors):
    return [_array(x) for x in tensors]
