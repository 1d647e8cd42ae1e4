"""The backward pass in many threads, in forked children, on small stacks, interrupted, in any mode.

Faults 13, 17, 22, 24, 27, 29 and 31, as test_threads.py, test_interrupt.py and
test_process_state.py have them of the other functions. What could hang or crash runs in a process
of its own, with a time limit.
"""

import sys
import threading

import numpy as np
import pytest

import selfattn
from support import subprocesses
from support.arrays import normal, qkv
from support.gradients import assert_same, backward, grad_of
from support.option_arrays import option
from support.process import MXCSR, beats_during, check_interrupted, posix, x86_linux

COMMON = """
import os, sys, threading, time
import numpy as np, selfattn
rng = np.random.default_rng(0)

def backward(x, y, num_threads, **options):
    out, lse = selfattn.scaled_dot_product_attention(
        x, y, y, return_lse=True, num_threads=num_threads, **options
    )
    gradients = selfattn.scaled_dot_product_attention_backward(
        out, x, y, y, out, lse, num_threads=num_threads, **options
    )
    return gradients[:3]

def same(got, want):
    return all(map(np.array_equal, got, want))

x = rng.standard_normal((3, 128, 64)).astype("f4")
want = backward(x, x, 1)
"""


def test_many_threads_call_at_once(isa, dtype):
    """Fault 31: the same arrays, different options, each thread's result its own."""
    arrays = qkv((2, 2, 40, 16), seqlen_k=300, dtype=dtype)
    grad_out = grad_of(*arrays)
    options = [
        option(kind, 2, 2, 40, 300, dtype) | {"num_threads": 1 + i % 4}
        for i, kind in enumerate(["bool", "float", "alibi", "sinks", "all", "softcap"])
    ]
    want = [backward(grad_out, *arrays, **option) for option in options]
    wrong = []
    ready = threading.Barrier(len(options))

    def work(i):
        ready.wait()
        try:
            for _ in range(10):
                assert_same(backward(grad_out, *arrays, **options[i]), want[i])
        except BaseException as error:
            wrong.append((i, error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(options))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
        assert not t.is_alive()
    assert not wrong


def test_fork_after_a_parallel_call():
    """Fault 24: a child of fork() computes, in parallel too."""
    code = """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
    for i in range(60):
        assert same(backward(x, x, 4), want)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if all(same(backward(x, x, n), want) for n in (4, 1, 3)) else 1)
        assert os.waitpid(pid, 0)[1] == 0, i
    """
    subprocesses.run(COMMON, code)


def test_small_stacks():
    """Fault 27: a thread with a stack of 64 KiB, in every kernel set and dtype."""
    code = """
    from selfattn import _core
    failed = []
    def work():
        try:
            for isa in selfattn.isas():
                _core.force_isa(isa)
                for dtype in ("f4", "f8"):
                    for rows in (2, 64):
                        q = rng.standard_normal((rows, 64)).astype(dtype)
                        k = rng.standard_normal((600, 64)).astype(dtype)
                        for n in (1, 3):
                            backward(q, k, n, is_causal=True, query_offset=300)
                            backward(q, k, n, dropout_p=0.1, softcap=2.0)
                            backward(q, k, n, attn_mask=k[:, 0] * 1000)
        except BaseException as error:
            failed.append(error)
    work()  # on a large stack: NumPy's own first calls are over then
    threading.stack_size(64 * 1024)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed, failed
    """
    subprocesses.run(COMMON, code)


def test_the_gil_is_released():
    """Fault 29: another thread's heart beats on while a long call computes."""
    big = normal(1, 2, 2000, 64)
    out, lse = selfattn.scaled_dot_product_attention(big, big, big, return_lse=True)
    beats_during(
        lambda: selfattn.scaled_dot_product_attention_backward(
            out, big, big, big, out, lse, num_threads=1
        )
    )


def test_a_result_waits_for_every_helper(isa):
    """What is returned is whole, and what the last call left in memory has no part in it."""
    arrays = qkv((1, 1, 200, 32), seqlen_k=400)
    grad_out = grad_of(*arrays)
    want = backward(grad_out, *arrays, num_threads=1)
    for _ in range(30):
        got = backward(grad_out, *arrays, num_threads=4)
        assert_same(got, want)
        for x in got.values():
            x.fill(np.nan)  # its memory is given to the next call


def test_a_tiny_call_wakes_no_thread():
    """Not even when it is asked to; and one that is large enough does."""
    code = """
    count = lambda: len(os.listdir("/proc/self/task"))
    y = np.ones((4, 16), "f4")
    before = count()
    backward(y, y, 8)
    assert count() == before
    backward(np.ones((1, 1000, 64), "f4"), np.ones((1, 1000, 64), "f4"), 3)
    print(count() - before)
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("counts the threads in /proc")
    common = COMMON.replace("want = backward(x, x, 1)", "")
    assert int(subprocesses.run(common, code)) == 2


# ------------------------------------------------------------------ interrupts

CALLS = {
    "many heads": "x, x, x, x, x, x[..., 0]",
    "few heads": "y, y, y, y, y, y[..., 0]",
    "many keys": "x[:1, :64], x[:1, :64], long, long, x[:1, :64], x[:1, :64, 0]",
    "many queries": "long, long, x[:1, :64], x[:1, :64], long, long[..., 0]",
}


def call_of(name):
    long = "long = np.broadcast_to(unit[:, :1], (1, 500_000, 64))"
    backward = f"selfattn.scaled_dot_product_attention_backward({CALLS[name]}, num_threads=n)"
    return f"y = unit; {long}; {backward}"


@posix
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupt(name, threads):
    """Fault 29: Ctrl-C raises before the call is done, and the next call is right."""
    check_interrupted(call_of(name), threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_after_an_interrupt(threads):
    """What was left half done has no part in the next call."""
    code = f"""
    import signal
    class Stop(Exception):
        pass
    def stop(*_):
        raise Stop
    signal.signal(signal.SIGALRM, stop)
    y = rng.standard_normal((1, 2000, 64)).astype("f4")
    many = np.broadcast_to(y, (100, 2000, 64))
    lse = np.zeros(many.shape[:-1], "f4")
    gradients = selfattn.scaled_dot_product_attention_backward
    expected = backward(y, y, 1)
    for delay in (0.01, 0.06, 0.11):
        signal.setitimer(signal.ITIMER_REAL, delay)
        try:
            while True:
                gradients(many, many, many, many, many, lse, num_threads={threads})
        except Stop:
            pass
        assert same(backward(y, y, {threads}), expected), delay
        assert same(backward(x, x, {threads}), want), delay
    """
    subprocesses.run(COMMON, code)


# ------------------------------------------------------------------ floating-point modes


@x86_linux
@pytest.mark.parametrize(
    ("mode", "value"),
    [
        ("flush to zero, denormals are zero", 0x9FC0),
        ("round toward zero", 0x7F80),
        ("round up", 0x5F80),
        ("traps, but for inexact and denormal", 0x1100),
    ],
)
def test_the_callers_modes_change_nothing(mode, value):
    """Faults 17 and 22: the same bits, in the caller's thread and in the pool's; and it stays."""
    code = """
    special = x.copy()
    special[0, 3, 5], special[1, 7, 1], special[1, 9, 2] = np.nan, np.inf, 3e38
    inputs = [x, x * np.float32(1e-20), x * np.float32(1e-39), special, x * 50]
    inputs += [a.astype("f8") for a in inputs]
    def calls(n):
        results = []
        for a in inputs:
            for options in ({}, dict(softcap=3.0, dropout_p=0.3), dict(scale=0.7, is_causal=True)):
                results += [r.tobytes() for r in backward(a, a, n, **options)]
        return results
    set_mxcsr(VALUE)
    results = [calls(n) for n in (1, 3)]
    mode = get_mxcsr()
    set_mxcsr(0x1f80)
    assert results == [calls(1)] * 2
    assert mode & CONTROL == VALUE & CONTROL, hex(mode)
    """
    # In another mode than the default, nothing but the calls may compute.
    common = COMMON.replace("want = backward(x, x, 1)", "")
    subprocesses.run(MXCSR, common, code.replace("VALUE", hex(value)))
