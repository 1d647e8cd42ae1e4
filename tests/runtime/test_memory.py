"""Memory: nothing leaks, the workspace does not grow with the problem, sizes are of 64 bits.

Faults 13, 15, 26 and 28. Sizes of the process are read from /proc, in processes of their own.
"""

import sys

import numpy as np
import pytest

import selfattn
from support import subprocesses
from support.memory import GIVEN_BACK, LIMITED, MEMORY, RESERVED, linux

LOOPS = """
good = np.ones((2, 3, 8), "f4")
bad = good.astype("i4")
out = np.empty((2, 3, 8), "f4")
mask, ids, two, three = np.ones((3, 3), bool), np.arange(3), good[:, 0, 0], good[0, :, 0]
options = [{}, {"is_causal": True, "query_offset": np.array(1)}, {"num_threads": 4}]

def failing():
    for f in (
        lambda: attend(bad, good, good),
        lambda: attend(good, good, bad),
        lambda: attend(good, good[:, :, :5], good),
        lambda: attend(good, good, good[:, :2]),
        lambda: attend(good, good, good, out=bad),
        lambda: attend(good, good, good, scale="x"),
        lambda: attend(good, good, good, kv_lengths=np.array([9])),
        lambda: attend(good, good, good, sinks=good),
        lambda: attend(good, good, good, bad),
        lambda: attend(good, good, good, mask[:, :2]),
        lambda: attend(good, good, good, segment_ids=(ids, ids[:2])),
        lambda: attend(good, good, good, mask, alibi_slopes=ids),
        lambda: selfattn.varlen_attention(good, good, good, ids, ids[1:]),
        lambda: selfattn.merge_states(good, good[..., 0], good, bad[..., 0]),
        lambda: selfattn.merge_states_many([good, good], [good[..., 0], bad[..., 0]]),
        lambda: selfattn.merge_states_backward(bad, None, good, good[..., 0]),
        lambda: attend([1], good, good),
        lambda: attend(good, object(), good),
        lambda: selfattn.softmax(good, 7),
        lambda: selfattn.softmax(good, out=good[0]),
        lambda: selfattn.weighted_sum(good, bad),
        lambda: selfattn.project(good, good),
        lambda: selfattn.project(good, good[0], out=bad),
        lambda: selfattn.project(good, good[0], three, num_threads=0),
        lambda: selfattn.project_backward(good, good, good[0]),
        lambda: selfattn.project_backward(good[..., :3], good, good[0], bad[0, :, 0]),
    ):
        try:
            f()
        except (TypeError, ValueError, NotImplementedError):
            continue
        raise AssertionError("no error")

def succeeding():
    attend(good, good, good, return_lse=True)
    attend(good, good, good, out=good.copy(), is_causal=True)
    attend(good.swapaxes(0, 1), good.swapaxes(0, 1), good.swapaxes(0, 1), out=out.swapaxes(0, 1))
    attend(good, good, good, mask, segment_ids=ids, softcap=1.0, alibi_slopes=two, sinks=two)
    attend(good, good, good, mask.astype("f4"), out=out)
    selfattn.varlen_attention(good, good, good, np.array([0, 2]), np.array([0, 2]), sinks=three)
    selfattn.merge_states(good, good[..., 0], good, good[..., 0])
    selfattn.merge_states_many(good, good[..., 0], 1)
    selfattn.merge_states_backward(good[0], good[0, :, 0], list(good), list(good[..., 0]))
    selfattn.scaled_dot_product(good, good, window_size=(1, 1))
    selfattn.attention_weights(good, good)
    selfattn.softmax(good, 0, out=out)
    selfattn.weighted_sum(good[:, :, :3], good)
    selfattn.project(good, good[0])
    selfattn.project(good, good[0, :, ::-1], three, out=out[..., :3])
    selfattn.project_backward(good[..., :3], good, good[0], three)
    selfattn.project_backward(good[..., :3], good, good[0])

def references():
    return [sys.getrefcount(x) for x in (good, bad, out, np.dtype("f4"), None)][:3]
"""


def flat(calls):
    return f"""
    def rounds(n):
        for _ in range(n):
            failing()
            succeeding()
    rounds(300)  # caches fill
    before, held = status("VmRSS"), references()
    rounds({calls} // 28)
    assert references() == held
    assert status("VmRSS") - before < 1_000_000, status("VmRSS") - before
    """


@linux
def test_nothing_leaks():
    """Fault 28: calls that fail and calls that do not. A leak of 16 bytes a call would show."""
    subprocesses.run(MEMORY, LOOPS, flat(100_000))


@linux
@pytest.mark.long
def test_nothing_leaks_in_a_million_calls():
    """Fault 28."""
    subprocesses.run(MEMORY, LOOPS, flat(1_000_000))


@linux
@pytest.mark.parametrize("threads", [1, 2])
def test_workspace_does_not_grow(threads):
    """With batch, heads, queries or keys: the inputs are views of little, the outputs are narrow.

    What remains is a fixed number of tiles for each thread: under 1 MB, whatever the shape.
    """
    code = f"""
    def call(batch, heads, rows, keys, **options):
        "The arrays are one row each, seen again and again; the result is one float a row."
        unit = np.ones((1, 1, 1, 64), "f4")
        query = np.broadcast_to(unit, (batch, heads, rows, 64))
        key = np.broadcast_to(unit, (batch, heads, keys, 64))
        value = np.broadcast_to(unit[..., :1], (batch, heads, keys, 1))
        out = np.zeros((batch, heads, rows, 1), "f4")
        out.fill(1)  # its pages are there before
        attend(query, key, value, out=out, num_threads={threads}, **options)
        return lambda: attend(query, key, value, out=out, num_threads={threads}, **options)

    near, ones = dict(window_size=(8, 0)), np.ones(2, "f4")
    for shape, options in [
        ((1, 1, 100, 200), {{}}),
        ((500, 20, 10, 30), {{}}),
        ((2, 1000, 40, 30), {{}}),
        ((1, 1, 100_000, 100_000), near),
        ((4, 2, 3000, 500), {{}}),
        ((1, 4, 64, 50_000), {{}}),
        ((1, 4, 300, 4000), dict(attn_mask=np.random.default_rng(0).random((300, 4000)) < 0.5)),
        ((1, 4, 300, 4000), dict(attn_mask=np.zeros((300, 1), "f4"))),
        ((500, 2, 30, 40), dict(attn_mask=np.ones((1, 1, 40), bool))),
        ((2, 2, 3000, 3000), dict(segment_ids=np.arange(3000) // 100)),
        ((2, 2, 300, 3000), dict(segment_ids=(np.arange(300) % 7, np.arange(3000) % 7))),
        ((2, 2, 300, 3000), dict(softcap=5.0, alibi_slopes=ones, sinks=ones)),
    ]:
        f = call(*shape, **options)
        f()
        grown = peak_of(f)
        assert grown < 1_000_000, (shape, grown)
    """
    subprocesses.run(MEMORY, code)


@linux
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("kind", "most"), [("f4", 1_000_000), ("f8", 1_100_000)])
def test_workspace_of_projections_does_not_grow(threads, kind, most):
    """With rows, columns of x or of the result: under 1 MB for each thread, 1.1 in float64."""
    code = f"""
    from selfattn import _core
    def calls(rows, n_in, n_out):
        "The inputs are one number, seen again and again."
        one = np.ones((), "{kind}")
        x = np.broadcast_to(one, (rows, n_in))
        weight = np.broadcast_to(one, (n_out, n_in))
        grad_out = np.broadcast_to(one, (rows, n_out))
        out, of_x, of_weight = (np.empty(a.shape, one.dtype) for a in (grad_out, x, weight))
        for a in (out, of_x, of_weight):
            a.fill(1)  # its pages are there before
        n = {threads}
        yield lambda: selfattn.project(x, weight, out=out, num_threads=n)
        yield lambda: _core.project_backward(grad_out, x, weight, of_x, None, None, n)
        yield lambda: _core.project_backward(grad_out, x, weight, None, of_weight, None, n)

    for shape in (
        (300_000, 20, 10), (30_000, 300, 10), (20, 300_000, 10), (2, 300_000, 10),
        (20, 10, 300_000), (2, 10, 300_000), (1500, 1500, 1500), (3, 3000, 1000),
    ):
        for i, call in enumerate(calls(*shape)):
            call()
            grown = peak_of(call)
            assert grown < {threads} * {most}, (shape, i, grown)
    """
    subprocesses.run(GIVEN_BACK + MEMORY, code)


@linux
def test_workspace_of_shared_splits_is_that_of_one_row():
    """The named exception: partial results of key splits, S / 512 of them."""
    code = """
    unit = np.ones((1, 1), "f4")
    keys = 2_000_000
    query, key = unit, np.broadcast_to(unit, (keys, 1))
    attend(query, key, key, num_threads=2)
    grown = peak_of(lambda: attend(query, key, key, num_threads=2))
    assert grown < keys / 512 * 1024 + 1_000_000, grown
    grown = peak_of(lambda: attend(query, key, key, num_threads=1))
    assert grown < 1_000_000, grown
    """
    subprocesses.run(MEMORY, code)


@pytest.mark.skipif(sys.maxsize < 2**33, reason="a machine of 32 bits")
@pytest.mark.parametrize("rows", [1, 40])
def test_more_than_two_to_the_31_keys(isa, dtype, rows):
    """Fault 15: the last keys of many, by stride 0; positions are past 2^31, elements past 2^33."""
    keys = 2**31 + 1000
    unit = np.linspace(-1, 1, 8).astype(dtype)
    key = np.broadcast_to(unit, (keys, 8))
    query = np.linspace(-2, 2, rows * 8).reshape(rows, 8).astype(dtype)
    for offset in (keys - rows, 2**31 - 20, 2**30):
        options = {"window_size": (30, 0), "query_offset": offset, "num_threads": 1}
        out, lse = selfattn.scaled_dot_product_attention(
            query, key, key, return_lse=True, **options
        )
        np.testing.assert_allclose(out, np.broadcast_to(unit, out.shape), rtol=1e-5)
        scores = query.astype(np.float64) @ unit / np.sqrt(8)
        np.testing.assert_allclose(lse, scores + np.log(31), rtol=1e-5)


@linux
@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize(("keys", "gap"), [(5, 3 * 2**30 + 4), (5, 2**32), (200, 2**25 + 4)])
def test_offsets_past_32_bits(isa, rows, keys, gap):
    """Fault 15: row times stride does not fit 32 bits, in any input or in the output; nor does the
    offset of the second block of keys."""
    code = f"""
    from selfattn import _core
    assert _core.force_isa({isa!r})
    rng = np.random.default_rng(0)
    shapes = ({rows}, 8), ({keys}, 8), ({keys}, 8)
    plain = [rng.standard_normal(shape).astype("f4") for shape in shapes]
    moved = [far(x.shape, {gap}) for x in plain]
    for x, y in zip(moved, plain):
        x[...] = y
    out = far(({rows}, 8), {gap})
    for options in ({{}}, {{"is_causal": True, "query_offset": {keys} - {rows}}}):
        want = selfattn.scaled_dot_product_attention(*plain, **options)
        selfattn.scaled_dot_product_attention(*moved, out=out, **options)
        assert np.array_equal(out, want)
    scores = far(({rows}, {keys}), {gap})
    selfattn.scaled_dot_product(*moved[:2], out=scores)
    assert np.array_equal(scores, selfattn.scaled_dot_product(*plain[:2]))
    selfattn.softmax(moved[0], 0, out=out)
    assert np.array_equal(out, selfattn.softmax(plain[0], 0))
    selfattn.weighted_sum(scores, moved[2], out=out)
    assert np.array_equal(out, selfattn.weighted_sum(scores.copy(), plain[2]))
    selfattn.project(moved[0], moved[1], out=scores)
    assert np.array_equal(scores, selfattn.project(*plain[:2]))
    for got, want in zip(
        selfattn.project_backward(scores, *moved[:2], moved[1][:, 0]),
        selfattn.project_backward(scores.copy(), *plain[:2], plain[1][:, 0]),
    ):
        assert np.array_equal(got, want)
    """
    subprocesses.run(RESERVED, code)


def test_results_too_large_for_any_memory():
    """Fault 15: products that overflow are a clear error."""
    x = np.broadcast_to(np.float32(1), (2**40, 1))
    with pytest.raises((ValueError, MemoryError)):
        selfattn.scaled_dot_product(x, x)
    with pytest.raises((ValueError, MemoryError)):
        selfattn.attention_weights(x, x)
    wide = np.broadcast_to(np.float32(1), (1, 2**60))
    with pytest.raises((ValueError, MemoryError)):
        selfattn.scaled_dot_product_attention(x, x[:1], np.broadcast_to(np.float32(1), (1, 2**40)))
    with pytest.raises((ValueError, MemoryError)):
        selfattn.scaled_dot_product_attention(wide, wide, np.ones((1, 1), np.float32))


@linux
@pytest.mark.parametrize("threads", [1, 2])
def test_no_memory_for_the_workspace(threads):
    """Fault 28: a failed allocation is MemoryError, out is untouched, the next call is right."""
    code = f"""
    limit(2**28)
    wide = np.broadcast_to(np.float32(1), (64, 2**26))  # packed, 16 GB
    value = np.ones((64, 1), "f4")
    out = np.full((64, 1), 7, "f4")
    held = status("VmRSS")
    for call in (
        lambda: attend(wide, wide, value, out=out, num_threads={threads}),
        lambda: attend(wide[:1], wide, value, out=out[:1], num_threads={threads}),
        lambda: selfattn.scaled_dot_product(wide, wide, num_threads={threads}),
        lambda: selfattn.attention_weights(wide, wide, num_threads={threads}),
    ) * 20:
        try:
            call()
        except MemoryError as error:
            assert "selfattn" in str(error), error
        else:
            raise AssertionError("there was memory")
    assert (out == 7).all()
    assert status("VmRSS") - held < 500_000
    assert np.array_equal(attend(small, small, small, num_threads=1), want)
    """
    subprocesses.run(MEMORY, LIMITED, code)


@linux
def test_no_memory_for_a_projections_workspace():
    """It is of one size for each thread: not to be had for a thousand of them."""
    code = """
    from selfattn import _core
    x, weight = np.ones((72_000, 64), "f4"), np.ones((768, 64), "f4")
    out = np.empty((72_000, 768), "f4")  # its pages are not there before
    out[:3] = 7
    limit(2**26)
    held = status("VmRSS")
    for call in (
        lambda: selfattn.project(x, weight, out=out, num_threads=1024),
        lambda: _core.project_backward(out, x, weight, x, None, None, 1024),
        lambda: _core.project_backward(weight.T, x.T, out.T, None, out.T, None, 1024),
    ) * 20:
        try:
            call()
        except MemoryError as error:
            assert "selfattn" in str(error), error
        else:
            raise AssertionError("there was memory")
    assert (out[:3] == 7).all()
    assert (x == 1).all()
    assert status("VmRSS") - held < 500_000
    assert (selfattn.project(x[:99], weight[:9], num_threads=1) == 64).all()
    """
    subprocesses.run(MEMORY, LIMITED, code)


@linux
def test_no_memory_for_threads():
    """A thread that cannot be started is done without: each wants a stack of its own."""
    code = """
    first = small[:4]
    limit(8_000_000)
    assert np.array_equal(attend(first, first, first, num_threads=64), want[:4])
    started = len(list(pathlib.Path("/proc/self/task").iterdir()))
    assert started < 40, "the limit was none"
    """
    subprocesses.run(MEMORY, LIMITED, code)
