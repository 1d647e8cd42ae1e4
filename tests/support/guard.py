"""Arrays that stand directly against memory which no one may touch, and calls upon them.

Run as a program, by test_guard_pages.py, since a stray access kills the process:

    python guard.py ISA DTYPE [N]     every function on shapes with all kinds of tails; or every Nth
    python guard.py overrun WHERE     one deliberate stray read: the harness itself must catch it

Before each call its case goes to stderr, so that the last line says which one crashed.
"""

import ctypes
import itertools
import math
import mmap
import sys

import numpy as np

import selfattn
from selfattn import _args, _core, nn
from support.arrays import DTYPES, HALF_DTYPES

PAGE = mmap.PAGESIZE
PROT_NONE = 0
CANARY = 0xA5
CANARIES = 0xA5A5A5A5A5A5A5A5
libc = ctypes.CDLL(None, use_errno=True)


class Memory:
    """`teeth` pieces of `size` bytes that may be used, a forbidden page before and after each."""

    def __init__(self, teeth, size):
        self.size = (size + PAGE - 1) // PAGE * PAGE
        self.period = self.size + PAGE
        self.teeth = teeth
        self.bytes = np.frombuffer(mmap.mmap(-1, teeth * self.period + PAGE), np.uint8)
        for i in range(teeth + 1):
            self._forbid(i * self.period)

    def _forbid(self, at):
        address = ctypes.c_void_p(self.bytes.ctypes.data + at)
        if libc.mprotect(address, ctypes.c_size_t(PAGE), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")

    def pieces(self, count):
        """The usable bytes of the first pieces, one row each, as words of 8."""
        shape, strides = (count, self.size // 8), (self.period, 8)
        return np.ndarray(shape, np.uint64, self.bytes, PAGE, strides)

    def array(self, shape, dtype, end, rows):
        """An array, or each of its rows, against a forbidden page at the end, else at the start."""
        itemsize = np.dtype(dtype).itemsize
        length = itemsize * (shape[-1] if rows else math.prod(shape))
        count = math.prod(shape[:-1]) if rows else 1
        assert length <= self.size, "the harness is too small"
        assert count <= self.teeth, "the harness is too small"
        if not rows:
            at = PAGE + (self.size - length if end else 0)
            return np.ndarray(shape, dtype, self.bytes, at)
        strides, step = [itemsize], self.period
        for n in reversed(shape[1:-1]):
            strides.insert(0, step)
            step *= n
        strides = [step, *strides] if len(shape) > 1 else strides
        at = PAGE + (self.size - length if end else 0)
        return np.ndarray(shape, dtype, self.bytes, at, strides)


class Bench:
    """Memory for each argument of a call, as whole arrays and as rows; canaries between calls."""

    def __init__(self):
        self.memory = {}

    def memory_of(self, name, rows):
        key = (name, rows)
        if key not in self.memory:
            self.memory[key] = memory = Memory(1100, 2 * PAGE) if rows else Memory(1, 2**20)
            memory.pieces(memory.teeth)[...] = CANARIES
        return self.memory[key]

    def put(self, name, x, end, rows):
        y = self.memory_of(name, rows).array(x.shape, x.dtype, end, rows)
        y[...] = x
        y.flags.writeable = False
        return y

    def call(self, f, inputs, want, end, rows):
        """f(*inputs, *outs) on guarded arrays; `want` are the outs of the same on plain ones."""
        placed = [self.put(f"in{i}", x, end, rows) for i, x in enumerate(inputs)]
        outs, used = [], []
        for i, x in enumerate(want):
            memory = self.memory_of(f"out{i}", rows)
            used.append(memory.pieces(math.prod(x.shape[:-1]) if rows else 1))
            outs.append(memory.array(x.shape, x.dtype, end, rows))
        f(*placed, *outs)
        for got, x, pieces in zip(outs, want, used, strict=True):
            assert np.array_equal(got, x, equal_nan=True), "result"
            got.view(np.uint8)[...] = CANARY
            assert (pieces == CANARIES).all(), "written outside of out"


def fused(options, names=()):
    """The fused call as a function of arrays alone: inputs, options by name, then out and lse."""

    def call(query, key, value, *others):
        *given, out, lse = others
        more = options_of(names, given)
        _args.attention_problem(query, key, value, **options, **more).attend(out, lse, 1)

    return call


def options_of(names, given):
    """Options that are arrays, by name; a pair of segment ids is two of them."""
    options = dict(zip(names, given, strict=True))
    if "ids_q" in options:
        options["segment_ids"] = options.pop("ids_q"), options.pop("ids_k")
    return options


def shapes():
    """(heads, L, S, E, Ev): each axis through its tails, in both shapes of tile."""
    tails = [*range(1, 19), 23, 24, 25, 31, 32, 33, 47, 48, 49, 63, 64, 65, 66, 127, 128, 129, 130]
    for n in tails:
        for length in (1, 3, 20):
            yield 1, length, 9, n, 6
            yield 1, length, 9, 6, n
            yield 1, length, n, 5, 7
    for n in [n for n in tails if n < 70]:
        yield 1, n, 9, 5, 7
        yield 3, n, 17, 7, 5
    for length in (1, 3, 20):
        yield 2, length, 513, 3, 3
        yield 1, length, 650, 9, 17


def calls_on(query, key, value):
    """Every function with its inputs and the results that it must give."""
    for options in (
        {},
        {"is_causal": True, "query_offset": 2},
        {"window_size": (5, 3), "query_offset": 4},
    ):
        want = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
        yield fused(options), (query, key, value), want
        for step in (selfattn.scaled_dot_product, selfattn.attention_weights):
            yield to_out(step, **options), (query, key), [step(query, key, **options)]
    weights = selfattn.attention_weights(query, key)
    want = [selfattn.weighted_sum(weights, value)]
    yield to_out(selfattn.weighted_sum), (weights, value), want
    for axis in range(3):
        want = [selfattn.softmax(query, axis)]
        yield to_out(selfattn.softmax, axis=axis), (query,), want
    pairs = query.shape[-1] // 2
    angles = np.random.default_rng(1).standard_normal((2, *query.shape[1:-1], 2 * pairs))
    for f, layout, columns in (
        (nn.rope, "half", pairs),
        (nn.rope_backward, "interleaved", 2 * pairs),
    ):
        cos, sin = angles[..., :columns].astype(_args.real_dtype(query.dtype))
        rotate = rotation(f, layout, 2 * pairs)
        yield rotate, (query, cos, sin), [rotate(query, cos, sin, np.empty_like(query))]
    lses = query[..., 0].astype(_args.real_dtype(query.dtype))
    grad_out, grad_lse = query[0] + query[-1], lses[0]
    yield merged, (query, lses), list(selfattn.merge_states_many(query, lses))
    want = list(selfattn.merge_states_backward(grad_out, grad_lse, query, lses))
    yield merge_differentiated, (grad_out, grad_lse, query, lses), want


def projection_shapes():
    """(rows, n_in, n_out): each axis through its tails, for few rows and for more."""
    tails = [*range(1, 19), 24, 25, 31, 32, 33, 63, 64, 65, 127, 128, 129, 131]
    for n in tails:
        for rows in (1, 3, 20):
            yield rows, n, 9
            yield rows, 9, n
        yield n, 5, 7
    yield from ((1, 300, 26), (4, 1000, 17), (30, 1000, 50), (145, 30, 49), (300, 17, 150))


def calls_of_projections(rows, n_in, n_out, dtype):
    """A projection and its gradients; the weight too as it lies when its columns are its rows."""
    rng = np.random.default_rng(0)
    shapes = (rows, n_out), (rows, n_in), (n_out, n_in), (n_out,)
    grad_out, x, weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    want = [selfattn.project(x, weight, bias)]
    yield to_out(selfattn.project), (x, weight, bias), want
    want = [selfattn.project(x, weight)]
    yield projected_from_columns, (x.T, weight.T), want
    gradients = selfattn.project_backward(grad_out, x, weight, bias)
    yield differentiated, (grad_out, x, weight), list(gradients)
    columns = [a.T for a in gradients[:2]]
    yield differentiated_by_columns, (grad_out.T, x.T, weight.T), columns


def projected_from_columns(x, weight, out):
    selfattn.project(x.T, weight.T, out=out)


def differentiated(grad_out, x, weight, *gradients):
    """The kernels of a projection's gradients as a function of arrays alone."""
    _core.project_backward(grad_out, x, weight, *gradients, 1)


def differentiated_by_columns(grad_out, x, weight, of_x, of_weight):
    """The same of arrays whose axes are exchanged."""
    _core.project_backward(grad_out.T, x.T, weight.T, of_x.T, of_weight.T, None, 1)


def option_shapes():
    """(heads, L, S, E, Ev): what the arrays of options have axes of, through its tails."""
    tails = [*range(1, 19), 24, 25, 31, 32, 33, 63, 64, 65, 127, 128, 129, 131]
    for n in tails:
        for length in (2, 20):
            yield 2, length, n, 3, 3
        yield 1, n, 9, 3, 3
    for length in (1, 3, 20):
        yield 2, length, 517, 3, 3


def calls_with_options(query, key, value):
    """The calls that read arrays of options: masks of odd lengths, ids, what each head has."""
    dtype, (heads, length, _), keys = query.dtype, query.shape, key.shape[1]
    rng = np.random.default_rng(0)
    bools = rng.random((heads, length, keys)) < 0.7
    ids_q, ids_k = rng.integers(0, 3, length), rng.integers(0, 3, keys)
    per_head = rng.standard_normal((2, heads))
    cases = [
        {"attn_mask": bools},
        {"attn_mask": bools[0, :, :1], "ids_q": ids_q, "ids_k": ids_k},
        {"attn_mask": bools[0, 0], "ids_q": ids_q.astype(np.int8), "ids_k": ids_k.astype(np.int8)},
        {"ids_q": np.sort(ids_q), "ids_k": np.sort(ids_k)},
        {"attn_mask": np.where(bools, 0.5, -np.inf).astype(dtype)},
        {"attn_mask": np.where(bools, 0.5, -np.inf).astype(np.float32)},
        {"attn_mask": bools[:, :, :1], "attn_bias": np.where(bools, 0.5, -np.inf).astype(dtype)},
        {"attn_mask": bools, "attn_bias": per_head[0][:, None, None].astype(np.float32)},
        {"alibi_slopes": per_head[0].astype(dtype), "sinks": per_head[1].astype(np.float32)},
    ]
    for i, case in enumerate(cases):
        names, given = tuple(case), tuple(case.values())
        numbers = {"softcap": 2.0} if i % 2 else {"is_causal": True, "query_offset": 2}
        options = options_of(names, given) | numbers
        want = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
        yield fused(numbers, names), (query, key, value, *given), want
        if i in (0, 4):
            for step in (selfattn.scaled_dot_product, selfattn.attention_weights):
                yield to_out(step), (query, key, *given), [step(query, key, *given)]


def dtype_named(name):
    """One that selfattn computes in."""
    return {x.name: x for x in map(np.dtype, (*DTYPES, *HALF_DTYPES))}[name]


def to_out(f, **options):
    """f as a function of arrays alone, the last of them out."""
    return lambda *arrays: f(*arrays[:-1], out=arrays[-1], **options)


def rotation(f, layout, rotary_dim):
    """Rotary positions by tables as a function of arrays alone."""
    options = {"layout": layout, "rotary_dim": rotary_dim}
    return lambda x, cos, sin, out: f(x, cos=cos, sin=sin, out=out, **options)


def merged(outs, lses, out, lse):
    """The kernel of merges as a function of arrays alone, whose first axis is the states."""
    _core.merge(tuple(outs), tuple(lses), out, lse, 1)


def merge_differentiated(grad_out, grad_lse, outs, lses, of_outs, of_lses):
    """The same of its gradients."""
    _core.merge_backward(grad_out, grad_lse, *map(tuple, (outs, lses, of_outs, of_lses)), 1)


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
    for shape in [*projection_shapes()][::step]:
        for i, (f, inputs, want) in enumerate(calls_of_projections(*shape, dtype)):
            for end, rows in itertools.product((True, False), repeat=2):
                print("calls_of_projections", shape, i, end, rows, file=sys.stderr)
                bench.call(f, inputs, want, end, rows)


def overrun(where):
    """Read one float too far: after the end, before the start, or after a row."""
    rows = where == "row"
    x = Memory(8, 1).array((4, 5), np.float32, where != "start", rows)
    x[...] = 1
    at = {"end": 20, "start": -1, "row": 5}[where]
    print("in bounds", float(x.sum()), file=sys.stderr)
    print(ctypes.c_float.from_address(x.ctypes.data + 4 * at).value)


if __name__ == "__main__":
    if sys.argv[1] == "overrun":
        overrun(sys.argv[2])
    else:
        assert _core.force_isa(sys.argv[1])
        run_all(dtype_named(sys.argv[2]), *map(int, sys.argv[3:]))
