"""A gradient has the same bits, whatever else is in the call and whatever computes it.

Fault 30, as test_bits.py has it of the forward pass, for all gradients at once: threads, threads
that share one head, batches, slices, layouts, padding and the instruction sets. Of keys and values
the gradient is a sum over all queries of a head, and the order of that sum may depend on nothing
but the head's own shape. Masks, broadcasting, packed sequences and dropout have more of it in
test_backward_bits_of_options.py. Every comparison is of bits: not a single one may differ.
"""

import itertools

import numpy as np
import pytest

import selfattn
from support.arrays import normal, qkv, same_bits
from support.gradients import DROPOUT, ROWS, assert_same, backward, grad_of, options_of, part, upon
from support.option_arrays import KINDS, float_mask, part_of
from support.packed import LENGTHS, Packed

THREADS = [1, 2, 3, 5, 16]


def more_threads(isa):
    """Than one. Who computes what is decided above the kernels, and the portable ones are slow."""
    return [2, 16] if isa == "portable" else THREADS[1:]


ALL_KINDS = ["plain", *KINDS, "causal", "window", "lengths", "dropout", "all and dropout"]


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("rows", [70, 3])
def test_threads(isa, dtype, kind, rows):
    arrays = qkv((2, 4, rows, 20), 2, 300, 12, dtype=dtype)
    options = options_of(kind, 2, 4, rows, 300, dtype) | {"enable_gqa": True}
    grad_out = grad_of(*arrays)
    want = backward(grad_out, *arrays, num_threads=1, **options)
    for n in more_threads(isa):
        assert_same(backward(grad_out, *arrays, num_threads=n, **options), want, n)


@pytest.mark.parametrize("kind", ["plain", "causal", "float", "sinks", "all and dropout"])
@pytest.mark.parametrize(
    ("rows", "seqlen_k"), [(1, 1300), (3, 1100), (700, 40), (700, 150), (130, 520)]
)
def test_threads_that_share_one_head(isa, dtype, kind, rows, seqlen_k):
    """More threads than heads: many keys, many queries, or both are cut among them.

    Several times, since who takes which part is chance.
    """
    arrays = qkv((1, 1, rows, 24), seqlen_k=seqlen_k, dtype=dtype)
    options = options_of(kind, 1, 1, rows, seqlen_k, dtype)
    grad_out = grad_of(*arrays)
    want = backward(grad_out, *arrays, num_threads=1, **options)
    for n in more_threads(isa) * (3 if rows * seqlen_k < 50_000 else 1):
        assert_same(backward(grad_out, *arrays, num_threads=n, **options), want, n)


@pytest.mark.parametrize("group", [2, 5, 8])
def test_threads_that_share_one_group(isa, dtype, group):
    """One key/value head of many query heads: its gradient is a sum over all of them."""
    arrays = qkv((1, group, 90, 16), 1, 200, dtype=dtype)
    options = {"enable_gqa": True, "is_causal": True, "query_offset": 60}
    grad_out = grad_of(*arrays)
    want = backward(grad_out, *arrays, num_threads=1, **options)
    for n in THREADS[1:] * 2:
        assert_same(backward(grad_out, *arrays, num_threads=n, **options), want, n)


def test_every_number_of_threads(dtype):
    """Fault 13: 1 to 40 and far more than there are tiles, rows or blocks."""
    for shape, seqlen_k in (((1, 1, 150, 8), 300), ((2, 3, 20, 8), 30)):
        arrays = qkv(shape, seqlen_k=seqlen_k, dtype=dtype)
        grad_out = grad_of(*arrays)
        want = backward(grad_out, *arrays, num_threads=1)
        for n in [*range(2, 41), 96, 500, 1024]:
            assert_same(backward(grad_out, *arrays, num_threads=n), want, n)


# ------------------------------------------------------------------ slices


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("rows", [2, 75])
def test_batch_and_head_slices(isa, dtype, kind, rows):
    """A batch entry alone, and a group of heads alone, with the key/value head that they share.

    Dropout counts batch and heads from the first, so that only leading slices keep its mask.
    """
    arrays = qkv((3, 6, rows, 12), 2, 150, 9, dtype=dtype)
    options = options_of(kind, 3, 6, rows, 150, dtype) | {"enable_gqa": True}
    grad_out = grad_of(*arrays)
    whole = backward(grad_out, *arrays, **options)
    leading = "dropout_p" in options
    batches = [slice(0, 1), slice(0, 2), *([] if leading else [slice(2, 3), slice(1, 3)])]
    for b, kv in itertools.product(batches, (slice(0, 2), slice(0, 1), slice(1, 2))):
        if leading and kv.start:
            continue
        heads = slice(kv.start * 3, kv.stop * 3)
        index = b, heads
        query, key, value = arrays[0][index], arrays[1][b, kv], arrays[2][b, kv]
        less = part_of(options, b, heads)
        if "kv_lengths" in less:
            less["kv_lengths"] = less["kv_lengths"][b]
        alone = backward(grad_out[index], query, key, value, **less)
        want = part(
            whole, query=index, key=(b, kv), value=(b, kv), attn_mask=index, attn_bias=index
        )
        assert_same(part(alone, **dict.fromkeys(want, ...)), want, (b, kv))
    if "sinks" in whole:  # a sum over the batch, so of all of it
        query, key, value = arrays[0][:, :3], arrays[1][:, :1], arrays[2][:, :1]
        alone = backward(grad_out[:, :3], query, key, value, **part_of(options, heads=slice(0, 3)))
        assert same_bits(alone["sinks"], whole["sinks"][:3])


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 2, 0]])
def test_order_of_the_batch(isa, dtype, order):
    """Fault 30: entries in another order, and one of them twice."""
    arrays = qkv((3, 2, 33, 12), seqlen_k=140, dtype=dtype)
    grad_out = grad_of(*arrays)
    whole = backward(grad_out, *arrays)
    moved = backward(grad_out[order], *(x[order] for x in arrays))
    assert_same(moved, part(whole, query=order, key=order, value=order))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4,), (2, 2)], ids=str)
def test_axes_of_one_change_nothing(isa, dtype, shape):
    """No batch axis, one, several, of one entry or four: in dropout's mask neither."""
    size = int(np.prod(shape))
    arrays = qkv((size, 2, 20, 8), seqlen_k=50, dtype=dtype)
    grad_out = grad_of(*arrays)
    # Entries of a batch are counted along each axis: a mask of its own for each shape.
    for options in ({}, {"is_causal": True}, *([DROPOUT] if shape != (2, 2) else [])):
        want = backward(grad_out, *arrays, **options)
        shaped = [x.reshape(*shape, *x.shape[1:]) for x in (grad_out, *arrays)]
        got = backward(*shaped, **options)
        assert_same({name: x.reshape(want[name].shape) for name, x in got.items()}, want, options)


@pytest.mark.parametrize("kind", ["plain", "float", "alibi", "all"])
def test_a_run_of_rows_alone(isa, dtype, kind):
    """Of a query, and of its row of the mask, the gradient is its own: no other row has a part."""
    query, key, value = qkv((1, 4, 70, 24), 2, 260, 20, dtype=dtype)
    grad_out = grad_of(query, key, value)
    options = options_of(kind, 1, 4, 70, 260, dtype) | {"enable_gqa": True, "is_causal": True}
    options["query_offset"] = 150
    whole = backward(grad_out, query, key, value, **options)
    for count in (1, 3, 8, 17, 64):
        for first in range(0, 70, count * (5 if count == 1 else 1)):
            rows = slice(first, min(first + count, 70))
            index = np.s_[:, :, rows]
            less = part_of(options, rows=rows)
            alone = backward(grad_out[index], query[index], key, value, **less)
            want = part(whole, query=index, attn_mask=index, attn_bias=index)
            assert_same(part(alone, **dict.fromkeys(want, ...)), want, rows)


@pytest.mark.parametrize("rows", [1, 40])
def test_right_padding(isa, dtype, rows):
    """Keys behind kv_lengths against keys that are not there: their gradients are 0."""
    query, key, value = qkv((1, 2, rows, 12), seqlen_k=700, dtype=dtype)
    grad_out = grad_of(query, key, value)
    for length in (0, 1, 4, 31, 32, 33, 127, 128, 129, 200, 511, 512, 513, 699):
        padded = backward(grad_out, query, key, value, kv_lengths=np.array([length]))
        short = backward(grad_out, query, key[:, :, :length], value[:, :, :length])
        kept = np.s_[:, :, :length]
        assert_same(part(padded, query=..., key=kept, value=kept), short, length)
        assert not padded["key"][:, :, length:].any(), length
        assert not padded["value"][:, :, length:].any(), length


def test_queries_that_see_nothing_at_the_end(isa, dtype):
    """Rows that pad a batch at its end change no bit of what the keys get, whatever they hold."""
    query, key, value = qkv((1, 4, 100, 12), 2, 150, dtype=dtype)
    grad_out = grad_of(query, key, value)
    for length in (1, 15, 16, 31, 33, 63, 64, 65, 99):
        rows = np.s_[:, :, :length]
        mask = np.ones((100, 150), bool)
        mask[length:] = False
        options = {"enable_gqa": True}
        padded = backward(grad_out, query, key, value, attn_mask=mask, **options)
        short = backward(grad_out[rows], query[rows], key, value, **options)
        assert_same(part(padded, query=rows, key=..., value=...), short, length)
        assert not padded["query"][:, :, length:].any(), length


# ------------------------------------------------------------------ instruction sets and layouts


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_instruction_sets(each_isa, dtype, kind):
    """The same operations in the same order: no set differs from another."""
    for rows in ROWS:
        for seqlen_k, head_dim, head_dim_v in (
            (60, 7, 5),
            (300, 64, 64),
            (90, 130, 1),
            (140, 1, 33),
        ):
            arrays = qkv((1, 2, rows, head_dim), 1, seqlen_k, head_dim_v, dtype=dtype)
            options = options_of(kind, 1, 2, rows, seqlen_k, dtype) | {"enable_gqa": True}
            grad_out = grad_of(*arrays)
            results = {isa: backward(grad_out, *arrays, **options) for isa in each_isa()}
            first, want = next(iter(results.items()))
            for isa, got in results.items():
                assert_same(got, want, (isa, first, rows, seqlen_k, head_dim))


@pytest.mark.parametrize("scale", [-3.0, 0.0, 1e-3, 30.0])
def test_instruction_sets_and_scales(each_isa, dtype, scale):
    for rows in ROWS:
        arrays = qkv((1, 2, rows, 20), seqlen_k=170, dtype=dtype)
        grad_out = grad_of(*arrays)
        for softcap in (0.0, 2.0):
            results = [
                backward(grad_out, *arrays, scale=scale, softcap=softcap) for _ in each_isa()
            ]
            for got in results[1:]:
                assert_same(got, results[0], (rows, softcap))


LAYOUTS = {
    "BSHD": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
    "Fortran": np.asfortranarray,
    "columns first": lambda x: np.ascontiguousarray(x.swapaxes(-2, -1)).swapaxes(-2, -1),
    "every other": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
    "all reversed": lambda x: np.flip(np.flip(x).copy()),
    "padded": lambda x: np.pad(x, 2)[(slice(2, -2),) * x.ndim],
    "unaligned": lambda x: np.ndarray(x.shape, x.dtype, b"." + x.tobytes(), 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("rows", [2, 37])
def test_memory_layout(isa, dtype, name, rows):
    """Faults 10 and 19: each input as it may lie in memory, one at a time, then all."""
    arrays = qkv((2, 4, rows, 20), 2, 150, 13, dtype=dtype)
    mask = float_mask(2, 4, rows, 150, dtype=dtype)
    options = {"enable_gqa": True, "is_causal": True, "query_offset": 100}
    options["sinks"] = normal(4, dtype=dtype)
    out, lse = selfattn.scaled_dot_product_attention(
        *arrays, attn_mask=mask, return_lse=True, **options
    )
    inputs = grad_of(*arrays), *arrays, out, lse, mask

    def call(grad_out, query, key, value, out, lse, mask):
        return upon(grad_out, query, key, value, out=out, lse=lse, attn_mask=mask, **options)

    want = call(*inputs)
    for which in (*((i,) for i in range(len(inputs))), range(len(inputs))):
        moved = [LAYOUTS[name](x) if i in which else x for i, x in enumerate(inputs)]
        assert all(map(same_bits, moved, inputs))
        assert_same(call(*moved), want, which)


@pytest.mark.parametrize("name", LAYOUTS)
def test_memory_layout_of_packed_sequences(isa, dtype, name):
    packed = Packed(LENGTHS["ends of blocks"], dtype)
    out, lse = packed.attend()
    inputs = normal(*out.shape, dtype=dtype), *packed.arrays, out, lse

    def call(*inputs):
        gradients = selfattn.varlen_attention_backward(
            *inputs, packed.cu_q, packed.cu_k, enable_gqa=True
        )
        return dict(zip(("query", "key", "value"), gradients[:3], strict=True))

    layout = LAYOUTS["Fortran" if name == "BSHD" else name]
    want = call(*inputs)
    for which in (*((i,) for i in range(len(inputs))), range(len(inputs))):
        assert_same(call(*(layout(x) if i in which else x for i, x in enumerate(inputs))), want)
