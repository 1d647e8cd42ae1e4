"""The backward pass on arrays that stand directly against memory which no one may touch: guard.py.

Run as a program, by test_guard_pages.py:

    python guard_backward.py ISA DTYPE [N]

The gradients are written to guarded arrays too, which the public functions allocate themselves: the
problem that they make of their arguments is given them here.
"""

import itertools
import sys

import numpy as np

import selfattn
from selfattn import _args, _core
from selfattn._args import real_dtype
from support.guard import Bench, dtype_named, option_shapes, options_of, shapes
from support.option_arrays import float_mask


def transposed(arrays, is_transposed):
    """The arrays with their last two axes exchanged, but for those of one axis less, as lse is."""
    return [x.swapaxes(-1, -2) if is_transposed and x.ndim == 3 else x for x in arrays]


def backward(options, names=(), is_transposed=False):
    """The call as a function of arrays alone: inputs, options by name, then all the gradients."""

    def call(*arrays):
        count = 6 + len(names)
        grad_out, query, key, value, out, lse = transposed(arrays[:6], is_transposed)
        gradients = [*transposed(arrays[count : count + 3], is_transposed), *arrays[count + 3 :]]
        for x in gradients:
            x[...] = 0
        for i, name in ((3, "attn_mask"), (4, "sinks"), (5, "attn_bias")):
            if name not in names:
                gradients.insert(i, None)
        more = options_of(names, arrays[6:count])
        problem = _args.attention_problem(query, key, value, **options, **more)
        problem.differentiate(grad_out, out, lse, tuple(gradients), 1)

    return call


def case(query, key, value, options, arrays=(), is_transposed=False):
    """A call, its inputs and the gradients that it must give; `arrays` are options by name."""
    arrays = dict(arrays)
    names, given = tuple(arrays), tuple(arrays.values())
    all_options = options | options_of(names, given)
    inputs = query, key, value
    out, lse = selfattn.scaled_dot_product_attention(*inputs, return_lse=True, **all_options)
    grad_out = np.random.default_rng(1).standard_normal(out.shape).astype(out.dtype)
    asked = {
        wanted: name in arrays
        for wanted, name in (
            ("mask_grad", "attn_mask"), ("sinks_grad", "sinks"), ("bias_grad", "attn_bias"),
        )
    }  # fmt: skip
    found = selfattn.scaled_dot_product_attention_backward(
        grad_out, *inputs, out, lse, **all_options, **asked
    )
    want = [x for x in (*found, found.attn_bias) if x is not None]
    inputs = transposed((grad_out, *inputs, out, lse), is_transposed)
    want = [*transposed(want[:3], is_transposed), *want[3:]]
    return backward(options, names, is_transposed), (*inputs, *given), want


def calls_on(query, key, value):
    for options in (
        {},
        {"is_causal": True, "query_offset": 2, "dropout_p": 0.3},
        {"window_size": (5, 3), "query_offset": 4, "softcap": 2.0},
    ):
        yield case(query, key, value, options)
    yield case(query, key, value, {"is_causal": True, "query_offset": 1}, is_transposed=True)


def calls_with_options(query, key, value):
    # Gradients of masks and sinks are written to arrays of these.
    dtype, (heads, length, _), keys = real_dtype(query.dtype), query.shape, key.shape[1]
    rng = np.random.default_rng(0)
    mask = float_mask(heads, length, keys, dtype=dtype)
    per_head = rng.standard_normal((2, heads)).astype(dtype)
    large = np.resize(np.array([0, 600, -2000], dtype), (length, 1))  # lse does not serve there
    ids = {"ids_q": rng.integers(0, 3, length), "ids_k": rng.integers(0, 3, keys)}
    for arrays in (
        {"attn_mask": mask},
        {"attn_mask": mask[0, :, :1], **ids},
        {"attn_mask": mask[0, :1]},
        {"attn_mask": mask[0, 0] + large},
        {"attn_mask": mask[0, :1], "attn_bias": mask},
        {"attn_mask": mask[:, :1], "alibi_slopes": per_head[0], "sinks": per_head[1]},
    ):
        yield case(query, key, value, {"dropout_p": 0.2} if "ids_q" in arrays else {}, arrays)


def run_all(dtype, step=1):
    bench, rng = Bench(), np.random.default_rng(0)
    for shape, calls in (
        *((shape, calls_on) for shape in [*shapes()][::step]),
        *((shape, calls_with_options) for shape in [*option_shapes()][::step]),
    ):
        heads, length, keys, head_dim, head_dim_v = shape
        query = rng.standard_normal((heads, length, head_dim)).astype(dtype)
        key = rng.standard_normal((heads, keys, head_dim)).astype(dtype)
        value = rng.standard_normal((heads, keys, head_dim_v)).astype(dtype)
        for i, (f, inputs, want) in enumerate(calls(query, key, value)):
            for end, rows in itertools.product((True, False), repeat=2):
                print(calls.__name__, shape, i, end, rows, file=sys.stderr)
                bench.call(f, inputs, want, end, rows)


if __name__ == "__main__":
    assert _core.force_isa(sys.argv[1])
    run_all(dtype_named(sys.argv[2]), *map(int, sys.argv[3:]))
