"""Memory of the backward pass: nothing leaks, the workspace does not grow, no allocation must work.

Faults 13, 15 and 28. Sizes of the process are read from /proc, in processes of their own, as in
test_memory.py.
"""

import os
import shutil
import subprocess

import pytest

from support import subprocesses
from support.memory import BACKWARD, LIMITED, MEMORY, RESERVED, linux

LOOPS = """
good = np.ones((2, 3, 8), "f4")
bad = good.astype("i4")
lse = good[:, :, 0]
mask, ids, three = np.zeros((3, 3), "f4"), np.arange(3), good[0, :, 0]
starts = np.array([0, 2])
arrays = [good] * 5 + [lse]
rows = [good] * 5 + [good[:, :, 0].T, starts, starts]

def failing():
    for f in (
        lambda: dense(bad, *arrays[1:]),
        lambda: dense(*arrays[:5], bad),
        lambda: dense(*arrays[:4], good[:1], lse),
        lambda: dense(*arrays[:5], lse.T),
        lambda: dense(good[:, :2], *arrays[1:]),
        lambda: dense(good, good[:, :, :5], *arrays[2:]),
        lambda: dense([1], *arrays[1:]),
        lambda: dense(object(), *arrays[1:]),
        lambda: dense(*arrays, mask_grad=True),
        lambda: dense(*arrays, mask.astype(bool), mask_grad=True),
        lambda: dense(*arrays, sinks_grad=True),
        lambda: dense(*arrays, mask, mask_grad=2),
        lambda: dense(*arrays, mask[:, :2], mask_grad=True),
        lambda: dense(*arrays, dropout_p=2.0),
        lambda: dense(*arrays, dropout_seed=2**64),
        lambda: dense(*arrays, num_threads=0),
        lambda: packed(*rows[:6], starts, ids),
        lambda: packed(*rows[:5], lse, starts, starts),
        lambda: packed(*rows, sinks_grad=True),
        lambda: attend(good, good, good, dropout_p="x"),
    ):
        try:
            f()
        except (TypeError, ValueError):
            continue
        raise AssertionError("no error")

def succeeding():
    dense(*arrays)
    dense(*arrays, mask, 0.5, True, mask_grad=True)
    dense(*arrays, sinks=three[:2], sinks_grad=True, alibi_slopes=three[:2], num_threads=4)
    dense(*(x.swapaxes(0, 1) for x in arrays), segment_ids=ids[:2], softcap=1.0)
    packed(*rows)
    packed(*rows, np.zeros((1, 2), "f4"), 0.1, mask_grad=True, sinks=three, sinks_grad=True)
    attend(good, good, good, dropout_p=0.5, return_lse=True)

def references():
    return [sys.getrefcount(x) for x in (good, bad, lse, mask, starts, three)]

def rounds(n):
    for _ in range(n):
        failing()
        succeeding()
"""


def flat(calls):
    return f"""
    rounds(300)  # caches fill
    before, held = status("VmRSS"), references()
    rounds({calls} // 27)
    assert references() == held
    assert status("VmRSS") - before < 1_000_000, status("VmRSS") - before
    """


@linux
def test_nothing_leaks():
    """Fault 28: calls that fail and calls that do not. A leak of 16 bytes a call would show."""
    subprocesses.run(MEMORY, BACKWARD, LOOPS, flat(100_000))


@linux
@pytest.mark.long
def test_nothing_leaks_in_a_million_calls():
    """Fault 28."""
    subprocesses.run(MEMORY, BACKWARD, LOOPS, flat(1_000_000))


@linux
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_workspace_does_not_grow(threads, dtype):
    """With batch, heads, queries or keys: the inputs are views of little, the gradients narrow.

    What remains is a fixed number of tiles for each thread: under 1 MB, whatever the shape. A mask
    of 300 x 4000 has a gradient of its own, and nothing else of its size is held.
    """
    code = f"""
    def call(batch, heads, rows, keys, heads_kv=None, grads={{}}, **options):
        "The arrays are one row each, seen again and again."
        unit = np.ones((1, 1, 1, 8), "{dtype}")
        heads_kv = heads_kv or heads
        query = np.broadcast_to(unit, (batch, heads, rows, 8))
        key = np.broadcast_to(unit, (batch, heads_kv, keys, 8))
        value = np.broadcast_to(unit[..., :1], (batch, heads_kv, keys, 1))
        out = np.broadcast_to(unit[..., :1], (batch, heads, rows, 1))
        seen = options.pop("seen", keys)
        lse = np.broadcast_to(np.asarray(8**0.5 + np.log(seen), "{dtype}"), out.shape[:-1])
        options = dict(num_threads={threads}, enable_gqa=heads_kv != heads, **grads, **options)
        return lambda: dense(out, query, key, value, out, lse, **options)

    near, ones = dict(window_size=(8, 0), seen=9), np.ones(2, "{dtype}")
    random = np.random.default_rng(0).random((300, 4000))
    of_mask, of_sinks = dict(mask_grad=True), dict(sinks_grad=True)
    for shape, options in [
        ((1, 1, 100, 200), {{}}),
        ((500, 20, 10, 30), {{}}),
        ((2, 1000, 40, 30), {{}}),
        ((1, 1, 100_000, 100_000), near),
        ((1, 1, 20_000, 300), {{}}),
        ((1, 1, 30, 200_000), {{}}),
        ((4, 2, 3000, 500), dict(is_causal=True, query_offset=-2500)),
        ((1, 8, 64, 20_000), dict(heads_kv=1)),
        ((1, 64, 400, 300), dict(heads_kv=2, dropout_p=0.5)),
        ((1, 2, 300, 4000), dict(attn_mask=random < 0.5)),
        ((1, 2, 300, 4000), dict(attn_mask=random.astype("f4") * 900)),
        ((1, 2, 300, 4000), dict(attn_mask=random.astype("{dtype}"), grads=of_mask)),
        ((40, 4, 300, 400), dict(attn_mask=np.zeros((300, 1), "{dtype}"), grads=of_mask)),
        ((500, 2, 30, 40), dict(attn_mask=np.zeros((1, 1, 40), "{dtype}"), grads=of_mask)),
        ((2, 2, 3000, 3000), dict(segment_ids=np.arange(3000) // 100)),
        ((2, 2, 300, 3000), dict(segment_ids=(np.arange(300) % 7, np.arange(3000) % 7))),
        ((500, 2, 300, 30), dict(softcap=5.0, alibi_slopes=ones, sinks=ones, grads=of_sinks)),
    ]:
        f = call(*shape, **options)
        results = sum(x.nbytes + 4096 for x in f() if x is not None)
        grown = peak_of(f) - results
        assert grown < 1_000_000, (shape, options, grown)
    """
    subprocesses.run(MEMORY, BACKWARD, code)


@linux
@pytest.mark.parametrize("threads", [1, 2])
def test_workspace_of_inputs_that_broadcast(threads):
    """Gradients that are sums over a batch, or over heads, are summed in place."""
    code = f"""
    def call(query, key, value, rows, keys):
        query, key, value = (
            np.broadcast_to(np.ones(1, "f4"), (*shape, n, 8))
            for shape, n in ((query, rows), (key, keys), (value, keys))
        )
        leading = np.broadcast_shapes(*(x.shape[:-2] for x in (query, key, value)))
        out = np.broadcast_to(np.ones(1, "f4"), (*leading, rows, 8))
        lse = np.broadcast_to(np.float32(8**0.5 + np.log(keys)), (*leading, rows))
        return lambda: dense(out, query, key, value, out, lse, num_threads={threads})

    for query, key, value in (
        ((300, 4), (1, 4), (1, 4)),
        ((300, 4), (4,), (300, 4)),
        ((1, 4), (300, 4), (1, 1)),
        ((40, 1), (1, 40), (40, 40)),
        ((300, 8), (1, 1), (300, 1)),
    ):
        f = call(query, key, value, 20, 150)
        results = sum(x.nbytes + 4096 for x in f() if x is not None)
        grown = peak_of(f) - results
        assert grown < 1_000_000, (query, key, value, grown)
    """
    subprocesses.run(MEMORY, BACKWARD, code)


@linux
@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize(("keys", "gap"), [(5, 3 * 2**30 + 4), (5, 2**32), (200, 2**25 + 4)])
def test_offsets_past_32_bits(isa, rows, keys, gap):
    """Fault 15: row times stride does not fit 32 bits, in any input."""
    code = f"""
    from selfattn import _core
    assert _core.force_isa({isa!r})
    rng = np.random.default_rng(0)
    shapes = ({rows}, 8), ({rows}, 8), ({keys}, 8), ({keys}, 8)
    plain = [rng.standard_normal(shape).astype("f4") for shape in shapes]
    grad_out, *inputs = plain
    mask = rng.standard_normal(({rows}, {keys})).astype("f4")
    out, lse = selfattn.scaled_dot_product_attention(*inputs, mask, return_lse=True)
    plain += [out, lse[:, None], mask]
    moved = [far(x.shape, {gap}) for x in plain]
    for x, y in zip(moved, plain):
        x[...] = y

    def backward(*arrays, lse, mask):
        return selfattn.scaled_dot_product_attention_backward(
            *arrays, lse[:, 0], mask, mask_grad=True
        )[:4]

    want = backward(*plain[:5], lse=plain[5], mask=plain[6])
    got = backward(*moved[:5], lse=moved[5], mask=moved[6])
    assert all(map(np.array_equal, got, want))
    """
    subprocesses.run(RESERVED, code)


# ------------------------------------------------------------------ no memory


@linux
@pytest.mark.parametrize("threads", [1, 2])
def test_no_memory_for_the_workspace(threads):
    """Fault 28: whatever little there is, MemoryError or the right gradients; then they are right.

    The limit rises by steps smaller than the arrays, so that each of them is the first to fail.
    """
    code = f"""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 4, 2**18)).astype("f4") for _ in range(3)]
    want = backward(*arrays, scale=1e-3, grads={{}})
    out, lse = attend(*arrays, scale=1e-3, return_lse=True)
    call = lambda: dense(out, *arrays, out, lse, scale=1e-3, num_threads={threads})
    call()
    held, failed, done = status("VmRSS"), [], 0
    for extra in range(0, 200 * 2**20, 2**20):
        limit(extra)
        try:
            got = call()
        except MemoryError as error:
            failed.append("selfattn" in str(error))
        else:
            done += 1
            assert all(map(np.array_equal, got[:3], want[:3]))
        got = None
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if done == 10:
            break
    assert any(failed) and not all(failed), failed  # the workspace, and a gradient
    assert done, "there never was enough"
    assert status("VmRSS") - held < 5_000_000, status("VmRSS") - held
    assert all(map(np.array_equal, call()[:3], want[:3]))
    """
    subprocesses.run(MEMORY, LIMITED, BACKWARD, code, MALLOC_MMAP_THRESHOLD_="65536")


FAILING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

long sa_fail_after = -1; /* allocations until one fails; -1: none does */
long sa_allocations;

void *aligned_alloc(size_t alignment, size_t size) {
    static void *(*real)(size_t, size_t);
    if (!real) real = (void *(*)(size_t, size_t))dlsym(RTLD_NEXT, "aligned_alloc");
    __atomic_add_fetch(&sa_allocations, 1, __ATOMIC_SEQ_CST);
    if (sa_fail_after >= 0 && __atomic_fetch_sub(&sa_fail_after, 1, __ATOMIC_SEQ_CST) == 0)
        return NULL;
    return real(alignment, size);
}
"""


@linux
def test_each_allocation_may_fail(tmp_path):
    """Fault 28: the Nth allocation of a call fails, for every N that it has.

    MemoryError, forward and backward, with threads that share a head and without; and the next call
    is right. A small forward, on one thread, has its scratch on the stack and allocates nothing.
    """
    compiler = shutil.which("cc")
    if not compiler or os.environ.get("LD_PRELOAD"):
        pytest.skip("no C compiler, or another library is to come first")
    (tmp_path / "failing.c").write_text(FAILING)
    library = str(tmp_path / "failing.so")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, str(tmp_path / "failing.c"), "-ldl"],
        check=True,
    )
    code = """
    import ctypes
    here = ctypes.CDLL(None)
    fail_after = ctypes.c_long.in_dll(here, "sa_fail_after")
    allocations = ctypes.c_long.in_dll(here, "sa_allocations")
    rng = np.random.default_rng(0)
    one, many = (rng.standard_normal(s).astype("f4") for s in ((1, 700, 16), (6, 130, 16)))
    wide = rng.standard_normal((1, 700, 256)).astype("f4")  # too much for the stack in every set
    mask, sinks = rng.standard_normal((130, 130)).astype("f4"), np.ones(6, "f4")
    grads = dict(mask_grad=True, sinks_grad=True)
    cases = [
        lambda n: backward(one, one, one, num_threads=n)[:3],
        lambda n: backward(many, many, many, num_threads=n, is_causal=True)[:3],
        lambda n: backward(
            many, many, many, num_threads=n, attn_mask=mask, sinks=sinks, grads=grads, dropout_p=0.1
        ),
        lambda n: backward(many, many[:1], many[:1], num_threads=n)[:3],
        lambda n: attend(wide[:, :40], wide, wide, num_threads=n, return_lse=True, dropout_p=0.1),
    ]
    for case in cases:
        want = case(1)
        for n in (1, 4):
            before = allocations.value
            case(n)
            count = allocations.value - before
            assert count > 0
            for i in range(count):
                fail_after.value = i
                try:
                    case(n)
                except MemoryError as error:
                    assert "selfattn" in str(error), error
                else:
                    raise AssertionError("it was not missed")
                fail_after.value = -1
                assert all(map(np.array_equal, case(n), want))
    before = allocations.value
    attend(one[:, :2], one, one, num_threads=1)
    assert allocations.value == before
    """
    subprocesses.run(MEMORY, BACKWARD, code, LD_PRELOAD=library)
