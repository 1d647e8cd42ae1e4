"""Memory of calls in half types: nothing that grows with the problem but gradients' own sums.

Keys and values are converted a block at a time, or a head at a time where it fits 1 MiB as float32.
Gradients of keys and values are summed in float32: those of the heads in flight are held so.
"""

import numpy as np
import pytest

from support import subprocesses
from support.halves import each_half
from support.memory import BACKWARD, GIVEN_BACK, MEMORY, linux

pytestmark = linux

SETUP = """
import numpy as np
from support.arrays import HALF_DTYPES
half = {{np.dtype(x).name: x for x in HALF_DTYPES}}[{name!r}]
"""


def run(half, *code):
    subprocesses.run(GIVEN_BACK + MEMORY, SETUP.format(name=np.dtype(half).name), *code)


@each_half
@pytest.mark.parametrize("threads", [1, 2])
def test_attention(half, threads):
    """As test_memory.py has it of float32, and at most one staged head for each thread."""
    code = f"""
    def call(batch, heads, rows, keys, **options):
        "The arrays are one row each, seen again and again; the result is one number a row."
        unit = np.ones((1, 1, 1, 64), half)
        query = np.broadcast_to(unit, (batch, heads, rows, 64))
        key = np.broadcast_to(unit, (batch, heads, keys, 64))
        value = np.broadcast_to(unit[..., :1], (batch, heads, keys, 1))
        out = np.ones((batch, heads, rows, 1), half)
        return lambda: attend(query, key, value, out=out, num_threads={threads}, **options)

    ones = np.ones(2, half)
    for shape, options in [
        ((1, 1, 300, 2000), {{}}),
        ((1, 1, 300, 4000), {{}}),
        ((1, 1, 300, 40_000), {{}}),
        ((1, 1, 200_000, 300), {{}}),
        ((500, 20, 10, 30), {{}}),
        ((1, 2, 1, 400_000), {{}}),
        ((1, 1, 100_000, 100_000), dict(window_size=(8, 0))),
        ((1, 4, 300, 4000), dict(attn_mask=np.zeros((300, 4000), half))),
        ((2, 2, 300, 3000), dict(softcap=5.0, alibi_slopes=ones, sinks=ones)),
    ]:
        f = call(*shape, **options)
        f()
        grown = peak_of(f)
        assert grown < 1_000_000 + {threads} * 2**20, (shape, grown)
    """
    run(half, code)


@each_half
def test_steps_and_projections(half):
    """softmax, sums, merges, rotations and products hold no copy of their inputs."""
    code = """
    from selfattn import nn
    def far(*shape):
        return np.broadcast_to(np.ones((), half), shape)
    long, tall = far(40, 200_000), far(200_000, 40)
    out, of_tall, square = np.ones(long.shape, half), np.ones(tall.shape, half), far(40, 40)
    for i, f in enumerate((
        lambda: selfattn.softmax(long, out=out),
        lambda: selfattn.weighted_sum(long, tall[:, :1], out=out[:, :1]),
        lambda: selfattn.weighted_sum(tall, square, out=of_tall),
        lambda: selfattn.scaled_dot_product(square, tall, out=out),
        lambda: selfattn.attention_weights(square, tall, out=out),
        lambda: selfattn.project(tall, square, out=of_tall),
        lambda: selfattn.project(long[:30], out[:20], out=of_tall[:30, :20]),
        lambda: selfattn.project(long[:2], out[:20], out=of_tall[:2, :20]),
    )):
        f()
        grown = peak_of(f)
        assert grown < 1_000_000, (i, grown)
    """
    run(half, code)


@each_half
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients(half, threads):
    """Beside the results: two staged heads at most, and float32 sums of the heads in flight."""
    code = f"""
    def grown(batch, heads, rows, keys):
        unit = np.ones((1, 1, 1, 64), half)
        query = np.broadcast_to(unit, (batch, heads, rows, 64)).copy()
        key = np.broadcast_to(unit, (batch, heads, keys, 64)).copy()
        lse = np.full((batch, heads, rows), np.log(keys), "f4")
        f = lambda: dense(query, query, key, key, query, lse, num_threads={threads})
        f()
        results = query.nbytes + 2 * key.nbytes
        return peak_of(f) - results, 2 * 4 * 64 * keys  # the sums of a head

    for shape in [(1, 1, 100, 1000), (1, 8, 100, 1000), (4, 64, 40, 100), (1, 1, 30_000, 50)]:
        more, sums = grown(*shape)
        assert more < {threads} * (sums + 2 * 2**20 + 1_000_000), (shape, more)
    more, sums = grown(1, 8, 20, 20_000)
    assert more < {threads} * (sums + 1_500_000), more  # nothing is staged, and not for each head
    """
    run(half, BACKWARD, code)


@each_half
def test_nothing_leaks(half):
    """Of calls, conversions of options, gradients that are rounded, and capsules."""
    code = """
    from support.array_likes import Bfloat16Capsules
    x, mask, two = np.ones((2, 3, 8), half), np.zeros((3, 1), half), np.ones(2, half)
    wrong = np.ones((2, 3, 8), "f4")
    lenders = [] if half is np.float16 else [Bfloat16Capsules(x)]

    def calls():
        out, lse = attend(x, x, x, mask, return_lse=True, sinks=two, alibi_slopes=two)
        dense(x, x[:1], x, x, out, lse, mask, sinks=two, mask_grad=True, sinks_grad=True)
        selfattn.softmax(x)
        selfattn.project_backward(x[..., :3], x, x[0], x[0, 0, :3])
        selfattn.merge_states(out, lse, out, lse)
        for lender in lenders:
            attend(lender, x, lender)
        try:
            attend(x, x, wrong)
        except TypeError:
            return
        raise AssertionError("no error")

    def rounds(n):
        for _ in range(n):
            calls()

    rounds(300)  # caches fill
    before, held = status("VmRSS"), [sys.getrefcount(y) for y in (x, mask, two, np.dtype(half))]
    rounds(3000)
    assert held == [sys.getrefcount(y) for y in (x, mask, two, np.dtype(half))]
    assert status("VmRSS") - before < 500_000, status("VmRSS") - before
    """
    run(half, BACKWARD, code)
