"""Random problems (hypothesis): shapes, strides, dtypes, and all options in combination.

A problem is (query, key, value), options. The axes before the heads are up to three, each of them
kept, 1 or missing in each input; options that are arrays have any shape that broadcasts. A problem
of the backward pass has a grad_out before them, and dropout among the options.
"""

import math
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from support.arrays import DTYPES, in_structs, unaligned
from support.gradients import grad_of


def repeatable(examples):
    """No deadline, since the machine may be busy; every run has the same examples."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def _with_swapped_axes(a, b):
    """As an array whose axes a and b lie in memory the other way around."""
    return lambda x: x.swapaxes(a, b).copy().swapaxes(a, b)


def _alike_columns(x):
    return np.broadcast_to(x[..., :1], x.shape)


# How an array may lie in memory, and how many axes that takes.
LAYOUTS = [
    (0, lambda x: x),
    (0, np.asfortranarray),
    (0, unaligned),
    (0, in_structs),
    (1, lambda x: np.repeat(x, 2, -1)[..., ::2]),
    (1, lambda x: x[..., ::-1].copy()[..., ::-1]),
    (1, _alike_columns),
    (1, lambda x: np.broadcast_to(x[:1], x.shape)),
    (2, _with_swapped_axes(-1, -2)),
    (2, lambda x: x[..., ::-1, :].copy()[..., ::-1, :]),
    (2, lambda x: np.broadcast_to(x[..., :1, :], x.shape)),
    (3, _with_swapped_axes(-2, -3)),
    (3, lambda x: np.broadcast_to(x[..., :1, :, :], x.shape)),
]


@st.composite
def laid_out(draw, x, columns_differ=False):
    """x, or for a stride of 0 a part of x repeated, as it may lie in memory."""
    layouts = [f for axes, f in LAYOUTS if x.ndim >= axes]
    if columns_differ and _alike_columns in layouts:
        layouts.remove(_alike_columns)
    return draw(st.sampled_from(layouts))(x)


def lengths(most):
    """Short ones, and those around the edges of lanes, tiles, blocks and splits."""
    edges = (4, 8, 16, 17, 24, 32, 33, 48, 64, 65, 127, 128, 129, 300, 511, 513)
    near = [n for n in edges if n <= most]
    return st.one_of(st.integers(1, 9), st.integers(1, most), st.sampled_from(near))


def head_dims():
    return st.one_of(lengths(130), lengths(130), st.sampled_from([1, 2, 256, 1000, 1024]))


@st.composite
def shape_within(draw, shape, shortest=0):
    """A shape that broadcasts to `shape`, whose last `shortest` axes are kept."""
    free = len(shape) - shortest
    first = draw(st.integers(0, free))
    kept = [1 if draw(st.booleans()) else n for n in shape[first:free]]
    return (*kept, *shape[free:])


@dataclass
class Axes:
    """Those of the scores, (*batch, heads_q, seqlen_q, seqlen_k), and the inputs' shapes."""

    batch: tuple
    has_heads: bool
    heads_q: int
    seqlen_q: int
    seqlen_k: int
    query: tuple
    key: tuple
    value: tuple
    enable_gqa: bool

    @property
    def scores(self):
        heads = (self.heads_q,) if self.has_heads else ()
        return (*self.batch, *heads, self.seqlen_q, self.seqlen_k)


@st.composite
def axes(draw):
    """2-D to 6-D. Between them, query and key have every axis of the batch in full."""
    has_heads = draw(st.sampled_from([True, True, True, False]))
    batch = tuple(draw(st.lists(st.integers(1, 3), max_size=3))) if has_heads else ()
    of_query, of_key, of_value = (list(batch) for _ in range(3))
    for axis in range(len(batch)):
        lacks = draw(st.sampled_from(["none", "none", "query", "key", "value", "key and value"]))
        for name, shape in (("query", of_query), ("key", of_key), ("value", of_value)):
            if name in lacks:
                shape[axis] = 1
    heads_kv, group, sharing = draw(st.integers(1, 3)), draw(st.integers(1, 4)), "none"
    if not has_heads:
        heads_kv = group = 1
    elif group > 1:
        sharing = draw(st.sampled_from(["group", "group", "one key head", "one query head"]))
    heads_q = heads_kv * group
    heads = {
        "none": (heads_q, heads_q, heads_q),
        "group": (heads_q, heads_kv, heads_kv),
        "one key head": (heads_q, 1, 1),
        "one query head": (1, heads_q, draw(st.sampled_from([1, heads_q]))),
    }[sharing]
    seqlen_q = draw(lengths(70))
    small = math.prod(batch) * heads_q * seqlen_q < 500
    seqlen_k = draw(st.one_of(lengths(530 if small else 140), st.just(seqlen_q)))
    head_dim, head_dim_v = draw(head_dims()), draw(lengths(130))
    shapes = [
        (*leading, *([n] if has_heads else []), rows, columns)
        for leading, n, rows, columns in (
            (of_query, heads[0], seqlen_q, head_dim),
            (of_key, heads[1], seqlen_k, head_dim),
            (of_value, heads[2], seqlen_k, head_dim_v),
        )
    ]
    whole = draw(st.integers(0, 1))  # query or key has all axes, and so have the scores
    for i, shape in enumerate(shapes):  # in the others a leading axis of 1 need not be there
        missing = next((n for n, size in enumerate(shape[:-3]) if size != 1), len(shape[:-3]))
        shapes[i] = shape[0 if i == whole else draw(st.integers(0, missing)) :]
    enable_gqa = sharing == "group" or (has_heads and heads[0] != 1 and draw(st.booleans()))
    return Axes(batch, has_heads, heads_q, seqlen_q, seqlen_k, *shapes, enable_gqa)


@st.composite
def ranges(draw, a):
    """Causal, window, offset, starts, lengths: one for all entries, or arrays of any shape."""
    options = {"is_causal": draw(st.booleans())}
    side = st.integers(-1, a.seqlen_k + 1)
    offset = st.integers(-a.seqlen_q - 1, a.seqlen_k + 1)
    if draw(st.booleans()):
        options["window_size"] = (draw(side), draw(side))
    length, keys = st.integers(0, a.seqlen_q), st.integers(0, a.seqlen_k)
    for name, numbers, kinds in (
        ("query_offset", offset, ["none", "one", "array"]),
        ("kv_lengths", keys, ["none", "one", "array"]),
        ("kv_starts", keys, ["none", "none", "one", "array"]),
        ("query_lengths", length, ["none", "none", "one", "array"]),
    ):
        kind = draw(st.sampled_from(kinds))
        if kind == "one":
            options[name] = draw(numbers)
        if kind == "array":
            shape = draw(shape_within(a.batch))
            given = [draw(numbers) for _ in range(math.prod(shape))]
            options[name] = np.array(given, np.int64).reshape(shape)
    return options


@st.composite
def masks(draw, a, dtype, rng):
    """Of bools, of query's dtype or of float32; from few keys seen to nearly all."""
    shape = draw(shape_within(a.scores))
    seen = rng.random(shape) < draw(st.sampled_from([0.02, 0.5, 0.97]))
    if draw(st.booleans()):
        return draw(laid_out(np.asarray(seen)))
    kind = draw(st.sampled_from([dtype, np.float32]))
    size = draw(st.sampled_from([0, 1, 1, 10]))
    x = np.where(seen, size * rng.standard_normal(shape), -np.inf).astype(kind)
    return draw(laid_out(x))


@st.composite
def segments(draw, a, rng):
    """One array where it serves for both, or a pair; in order, or not; batched, or shared."""
    kind = draw(st.sampled_from([np.int8, np.int32, np.int64, np.uint16, np.uint64, np.bool_]))
    most = 2 if kind == np.bool_ else draw(st.integers(1, 5))
    ids = []
    for length in (a.seqlen_q, a.seqlen_k):
        x = rng.integers(0, most, draw(shape_within((*a.batch, length), 1))).astype(kind)
        x = np.sort(x) if draw(st.booleans()) else x
        ids.append(draw(laid_out(x)))
    if a.seqlen_q == a.seqlen_k and draw(st.booleans()):
        return ids[0]
    return tuple(ids) if draw(st.booleans()) else ids


@st.composite
def problems(draw, dtypes=DTYPES):
    dtype = draw(st.sampled_from(dtypes))
    a = draw(axes())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays = [
        # Where all products of a sum are alike, each step of it rounds the same way, and the
        # bound is no bound: so much for query and key. test_strides.py compares their bits.
        draw(laid_out(rng.standard_normal(shape).astype(dtype), columns_differ=i == 1))
        for i, shape in enumerate((a.query, a.key, a.value))
    ]
    options = {"enable_gqa": a.enable_gqa} | draw(ranges(a))
    if draw(st.booleans()):
        options["attn_mask"] = draw(masks(a, dtype, rng))
    if draw(st.integers(0, 2)) == 0:
        bias = draw(masks(a, dtype, rng))
        if bias.dtype != bool:
            options["attn_bias"] = bias
    if draw(st.integers(0, 2)) == 0:
        options["segment_ids"] = draw(segments(a, rng))
    if draw(st.integers(0, 2)) == 0:
        kind = draw(st.sampled_from([dtype, np.float32]))
        size = draw(st.sampled_from([0.01, 0.5]))
        slopes = size * rng.standard_normal(draw(shape_within((*a.batch, a.heads_q), 1)))
        options["alibi_slopes"] = draw(laid_out(np.asarray(slopes, kind)))
    if draw(st.integers(0, 2)) == 0:
        kind = draw(st.sampled_from([dtype, np.float32]))
        sinks = draw(st.sampled_from([1, 5])) * rng.standard_normal(a.heads_q)
        options["sinks"] = draw(laid_out(sinks.astype(kind)))
    if draw(st.integers(0, 2)) == 0:
        options["softcap"] = draw(st.sampled_from([0.0, 0.5, 2.0, 30]))
    if draw(st.booleans()):
        options["scale"] = draw(st.floats(-2, 2))
    return arrays, options


@st.composite
def dropouts(draw):
    """None, some, nearly all or all dropped, by any seed."""
    if draw(st.booleans()):
        return {}
    p = draw(st.sampled_from([0.0, 1e-9, 0.1, 0.1, 0.5, 0.9, 1.0]))
    return {"dropout_p": p, "dropout_seed": draw(st.integers(-(2**63), 2**64 - 1))}


@st.composite
def backward_problems(draw, dtypes=DTYPES):
    """grad_out, (query, key, value), options."""
    arrays, options = draw(problems(dtypes))
    # As with the keys: its products with values of alike columns would all be alike.
    grad_out = draw(laid_out(grad_of(*arrays), columns_differ=True))
    return grad_out, arrays, options | draw(dropouts())
