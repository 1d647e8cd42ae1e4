"""Empty results are no work, however many rows without elements or empty sequences there are.

Fault 49. Arrays of no elements may have axes of any length. Each function is called with such ones
in a process of its own, whose time would run out if it walked them, or whose memory would if it
made a table of them.
"""

import itertools
import tracemalloc

import numpy as np
import pytest

import selfattn
from support import subprocesses
from support.arrays import normal, same_bits
from support.packed import OPTIONS, Packed

MANY = 2**50
SHAPES = [
    (MANY, 1, 3, 0),
    (MANY, 1, 0, 4),
    (MANY, 0, 3, 4),
    (0, 1, MANY, 4),
    (0, MANY, 1, 4),
    (0, 1, 1, MANY),
    (1, 1, MANY, 0),
    (1, MANY, 3, 0),
]
CALLS = {
    "scaled_dot_product_attention": """
        f = selfattn.scaled_dot_product_attention
        assert f(x, x, x).shape == shape
        assert f(x, x, x, is_causal=True, window_size=(5, 5), scale=0.5, softcap=2.0).shape == shape
        assert f(x, x[..., :0, :], x[..., :0, :0]).shape == (*shape[:-1], 0)
        assert f(x, x, x, query_offset=np.int64(3), dropout_p=0.5, out=x) is x
        if shape[-2] < 10:  # even a view of L x S is refused where it could not be addressed
            assert f(x, x, x, np.ones((1, 1), bool), query_offset=np.array([3])).shape == shape
    """,
    "the steps": """
        assert selfattn.scaled_dot_product(x, x[..., :0, :]).shape == (*shape[:-1], 0)
        assert selfattn.attention_weights(x, x[..., :0, :]).shape == (*shape[:-1], 0)
        transposed = x.swapaxes(-1, -2)
        assert selfattn.weighted_sum(x, transposed[..., :0]).shape == (*shape[:-1], 0)
        weight = np.empty((0, shape[-1]), "f4")
        y = selfattn.project(x, weight)
        assert y.shape == (*shape[:-1], 0)
        if 0 in shape:
            assert selfattn.project_backward(y, x, weight).x.shape == shape
        if shape[-1] == 0:
            grad_out = np.broadcast_to(np.float32(1), (*shape[:-1], 3))
            assert selfattn.project_backward(grad_out, x, np.empty((3, 0), "f4")).x.shape == shape
        for axis in range(4):
            assert selfattn.softmax(x, axis).shape == shape
    """,
    "merge_states": """
        if 0 in shape[:-1]:  # else the lse of all rows are a result that is not empty
            lse = np.empty(shape[:-1], "f4")
            out, merged = selfattn.merge_states(x, lse, x, lse)
            assert (out.shape, merged.shape) == (shape, shape[:-1])
            outs, lses = [np.broadcast_to(y, (3, *y.shape)) for y in (x, lse)]
            out, merged = selfattn.merge_states_many(outs, lses)
            assert (out.shape, merged.shape) == (shape, shape[:-1])
            assert selfattn.merge_states_backward(x, lse, outs, lses).outs.shape == outs.shape
    """,
    "backward": """
        lse = np.broadcast_to(np.float32(0), shape[:-1])
        f = selfattn.scaled_dot_product_attention_backward
        for options in ({}, {"is_causal": True}):
            for gradient in f(x, x, x, x, x, lse, **options)[:3]:
                assert gradient.shape == shape
    """,
    "rope": """
        for offset in (3, np.int64(3), np.array(3), np.array([3])):
            for layout in ("half", "interleaved"):
                assert nn.rope(x, offset, layout=layout).shape == shape
        assert nn.rope(x, theta=0.01, rotary_dim=0, out=x) is x
        assert nn.rope_backward(x).shape == shape
        table = np.broadcast_to(np.float32(1), (*shape[:-3], shape[-2], shape[-1]))
        assert nn.rope_backward(x, cos=table, sin=table).shape == shape
        for options, message in (
            ({"offset": 2**60}, "offset: expected values from"),
            ({"offset": np.array([2**60])}, "offset: expected values from"),
            ({"theta": 0.0}, "theta: expected a number above 0"),
            ({"layout": "x"}, "layout: expected 'half'"),
            ({"num_threads": 0}, "num_threads: expected 1 to"),
        ):
            try:
                nn.rope(x, **options)
            except ValueError as error:
                assert str(error).startswith(message), error
            else:
                raise AssertionError(options)
    """,
}


@pytest.mark.parametrize("what", CALLS)
def test_axes_without_end(what):
    """2**50 of something that has no elements: no loop over them, no table of them."""
    setup = f"""
    import numpy as np, selfattn
    from selfattn import nn
    for shape in {SHAPES}:
        x = np.empty(shape, "f4")
    """
    subprocesses.run(setup + CALLS[what])


def test_layers_of_inputs_without_end():
    code = f"""
    import numpy as np
    from selfattn import nn
    layer = nn.MultiheadAttention(8, 2)
    for shape in (({MANY}, 0, 8), (0, {MANY}, 8)):
        x = np.empty(shape, "f4")
        for options in ({{}}, {{"rope": {{}}}}, {{"rope": {{}}, "query_offset": np.array([1])}}):
            assert layer.forward(x, **options).shape == shape
            assert layer.backward(x).shape == shape
            assert not any(gradient.any() for gradient in layer.grads.values())
    """
    subprocesses.run(code)


def test_packed_rows_without_end():
    code = f"""
    import numpy as np, selfattn
    starts = np.array([0, {MANY}])
    for shape in (({MANY}, 0, 4), ({MANY}, 1, 0)):
        x = np.empty(shape, "f4")
        assert selfattn.varlen_attention(x, x, x, starts, starts).shape == shape
        lse = np.broadcast_to(np.float32(0), (shape[1], shape[0]))
        for gradient in selfattn.varlen_attention_backward(x, x, x, x, x, lse, starts, starts)[:3]:
            assert gradient.shape == shape
    """
    subprocesses.run(code)


# ------------------------------------------------------------------ empty sequences


def spread(packed, runs):
    """The same sequences with so many empty ones before each, in turn; and where they stand."""
    before = list(itertools.islice(itertools.cycle(runs), packed.batch))
    places = np.cumsum(before) + np.arange(packed.batch)
    ends = np.append(places, places[-1] + 1 + runs[0])
    cu_q, cu_k = np.zeros((2, ends[-1] + 1), np.int64)
    for b, place in enumerate(places):
        cu_q[place + 1 : ends[b + 1] + 1] = packed.cu_q[b + 1]
        cu_k[place + 1 : ends[b + 1] + 1] = packed.cu_k[b + 1]
    return cu_q, cu_k, places


def of_entries(options, places, count):
    """Options given by sequence, for all of `count`; those of the empty ones are 0."""
    spread_out = dict(options)
    for name in ("query_offset", "kv_lengths", "alibi_slopes"):
        x = options.get(name)
        if np.ndim(x) and len(x) == len(places):
            spread_out[name] = np.zeros((count, *x.shape[1:]), x.dtype)
            spread_out[name][places] = x
    return spread_out


@pytest.mark.parametrize("options", ["plain", "causal", "all"])
@pytest.mark.parametrize("runs", [(1, 0), (0, 3, 700), (2000,)], ids=str)
def test_sequences_among_empty_ones(isa, dtype, runs, options):
    """Bit for bit what they are without, forward and backward, at any number of threads."""
    lengths = [(3, 4), (0, 3), (2, 0), (90, 130), (1, 1), (16, 600), (5, 5), (200, 3)]
    packed = Packed(lengths, dtype)
    options = OPTIONS[options](packed)
    arguments = packed.arrays
    want = packed.attend(**options)
    names = {"attn_mask": "mask_grad", "sinks": "sinks_grad"}
    gradients = {flag: True for name, flag in names.items() if name in options}
    back = selfattn.varlen_attention_backward
    grad_out = normal(*want[0].shape, dtype=dtype, seed=9)
    want_back = back(
        grad_out,
        *arguments,
        *want,
        packed.cu_q,
        packed.cu_k,
        enable_gqa=True,
        **options,
        **gradients,
    )
    cu_q, cu_k, places = spread(packed, runs)
    options = of_entries(options, places, len(cu_q) - 1)
    for num_threads in (1, 3):
        more = {"enable_gqa": True, "num_threads": num_threads, **options}
        got = selfattn.varlen_attention(*arguments, cu_q, cu_k, return_lse=True, **more)
        assert same_bits(got, want)
        got = back(grad_out, *arguments, *want, cu_q, cu_k, **more, **gradients)
        for name, x in want_back._asdict().items():
            assert x is None or same_bits(getattr(got, name), x), name


def test_ten_million_empty_sequences():
    """Among them one of five rows, which gets what it gets alone."""
    x, starts = normal(5, 2, 4), np.zeros(10**7 + 1, np.int64)
    starts[6_000_000:] = 5
    out, lse = selfattn.varlen_attention(x, x, x, starts, starts, return_lse=True)
    alone = np.array([0, 5])
    want, want_lse = selfattn.varlen_attention(x, x, x, alone, alone, return_lse=True)
    assert same_bits((out, lse), (want, want_lse))
    got = selfattn.varlen_attention_backward(out, x, x, x, out, lse, starts, starts)
    back = selfattn.varlen_attention_backward(out, x, x, x, out, lse, alone, alone)
    assert same_bits(tuple(got[:3]), tuple(back[:3]))


def test_empty_sequences_need_no_memory_but_their_starts():
    """A copy of the starts, 8 bytes a sequence, which the user's array is not read beside."""
    count = 200_000
    x, starts = np.ones((5, 2, 4), np.float32), np.zeros(count + 1, np.int64)
    starts[count // 2 :] = 5
    out, lse = selfattn.varlen_attention(x, x, x, starts, starts, return_lse=True)
    slack = 2**20  # pieces that are checked at once
    for copies, of_keys in ((1, starts), (2, starts.copy())):
        for call in (
            lambda k=of_keys: selfattn.varlen_attention(x, x, x, starts, k),
            lambda k=of_keys: selfattn.varlen_attention_backward(out, x, x, x, out, lse, starts, k),
        ):
            tracemalloc.start()
            try:
                call()
                assert tracemalloc.get_traced_memory()[1] < 8 * copies * count + slack
            finally:
                tracemalloc.stop()
