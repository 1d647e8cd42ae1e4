"""Calls from many threads, in forked children, on small stacks; the GIL is released.

Faults 13, 17, 22, 24, 27, 29 and 31; what threads share is in test_sharing.py. What could hang or
crash runs in a process of its own, with a time limit.
"""

import sys

import numpy as np
import pytest

import selfattn
from support import subprocesses
from support.arrays import normal, one_head, qkv, same_bits
from support.at_once import at_once
from support.process import beats_during

COMMON = """
import os, sys, threading, time
import numpy as np, selfattn
rng = np.random.default_rng(0)
x = rng.standard_normal((4, 128, 64)).astype("f4")
attend = selfattn.scaled_dot_product_attention
want = attend(x, x, x, num_threads=1)
projected = selfattn.project(x, x[0], num_threads=1)
"""


def test_many_threads_call_at_once(isa, dtype):
    """Fault 31: the same arrays, different options, each thread's result its own."""
    arrays = qkv((2, 2, 40, 16), seqlen_k=300, dtype=dtype)
    options = [
        {"is_causal": i % 2 == 1, "query_offset": 20 * i, "num_threads": 1 + i % 4}
        for i in range(8)
    ]
    want = [selfattn.scaled_dot_product_attention(*arrays, **option) for option in options]

    def work(i):
        for _ in range(20):
            got = selfattn.scaled_dot_product_attention(*arrays, **options[i])
            assert same_bits(got, want[i]), i

    at_once(*[lambda i=i: work(i) for i in range(8)])


def test_every_number_of_threads():
    """Fault 13: 1 to 96 and far more than there are tiles, rows or splits."""
    code = """
    y = rng.standard_normal((1, 3, 520, 64)).astype("f4")
    for a in (x, y, y[:, :1], y[0, 0, :5]):
        first = attend(a, a, a, num_threads=1)
        for n in [*range(1, 97), 500, 1024, 2]:
            assert np.array_equal(attend(a, a, a, num_threads=n), first), n
    for rows in (1, 5, 70):
        given = [rng.standard_normal((n, 130)).astype("f4") for n in (rows, 700)]
        first = selfattn.project(*given, num_threads=1)
        gradients = selfattn.project_backward(first, *given, num_threads=1)
        for n in [*range(1, 97), 500, 1024, 2]:
            assert np.array_equal(selfattn.project(*given, num_threads=n), first), n
            again = selfattn.project_backward(first, *given, num_threads=n)
            assert all(map(np.array_equal, again[:2], gradients[:2])), n
    """
    subprocesses.run(COMMON, code)


def test_entries_that_see_other_splits_of_their_keys():
    """Threads share the splits of a few tiles; no entry sees those of another, in any order."""
    code = """
    query = rng.standard_normal((3, 1, 16, 64)).astype("f4")
    key, value = (rng.standard_normal((3, 1, 4000, 64)).astype("f4") for _ in range(2))
    for offsets in ([950, 1900, 3900], [3900, 1900, 950], [1900, 950, 3900], [3900, 950, 1900]):
        options = {"window_size": (900, 0), "query_offset": np.array(offsets)}
        got = attend(query, key, value, num_threads=8, **options)
        for b, offset in enumerate(offsets):
            options["query_offset"] = offset
            alone = attend(query[b], key[b], value[b], num_threads=1, **options)
            assert np.array_equal(got[b], alone), (offsets, b)
    """
    subprocesses.run(COMMON, code)


def test_fork_after_a_parallel_call():
    """Fault 24: a child of fork() computes, in parallel too, and so do its own children."""
    subprocesses.run(FORK.format(times=200))


@pytest.mark.long
def test_fork_a_thousand_times():
    """Fault 24."""
    subprocesses.run(FORK.format(times=1000))


FORK = (
    COMMON
    + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads

def child():
    for n in (4, 1, 3):
        if not np.array_equal(attend(x, x, x, num_threads=n), want):
            return 1
        if not np.array_equal(selfattn.project(x, x[0], num_threads=n), projected):
            return 1
    return 0

for i in range({times}):
    assert np.array_equal(attend(x, x, x, num_threads=4), want)
    pid = os.fork()
    if pid == 0:
        status = child()
        if i % 20 == 0 and status == 0:
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(child())
            status = os.waitpid(grandchild, 0)[1]
        os._exit(status != 0)
    assert os.waitpid(pid, 0)[1] == 0, i
"""
)


def test_fork_while_another_thread_computes():
    """Fault 24: the pool is in use at the very moment of the fork."""
    code = """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
    stop = False
    def busy():
        while not stop:
            attend(x, x, x, num_threads=4)
    thread = threading.Thread(target=busy)
    thread.start()
    for i in range(60):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if np.array_equal(attend(x, x, x, num_threads=4), want) else 1)
        assert os.waitpid(pid, 0)[1] == 0, i
    stop = True
    thread.join()
    """
    subprocesses.run(COMMON, code)


def test_fork_in_a_signal_handler():
    """A handler that runs inside a call forks: the child has no helpers, so that its own call ends
    in an error, and its next one is right. The parent's is whole."""
    code = """
    import signal, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
    long, parent, child = np.broadcast_to(x[:1], (4000, 128, 64)), os.getpid(), None
    whole = attend(long[:1], long[:1], long[:1])

    def fork(*_):
        global child
        child = os.fork()
    signal.signal(signal.SIGALRM, fork)

    for attempt in range(50):
        child, out = None, whole
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        try:
            while child is None:
                out = attend(long, long, long, num_threads=2)
        except RuntimeError as error:
            assert os.getpid() != parent and "forked" in str(error), error
            os._exit(0 if np.array_equal(attend(x, x, x, num_threads=2), want) else 1)
        if os.getpid() != parent:
            os._exit(3)  # between two calls, or before helpers had come
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 3), status
        assert (out == whole).all()
        if status == 0:
            break
    else:
        raise AssertionError("no handler ran inside a call")
    """
    subprocesses.run(COMMON, code)


def test_small_stacks():
    """Fault 27: a thread with a stack of 64 KiB, in every kernel set, dtype and function, and where
    the values' sum overflows and rows are computed again."""
    code = """
    from selfattn import _core
    failed = []
    limits = {dtype: np.finfo(dtype).max for dtype in ("f4", "f8")}
    def work():
        try:
            for isa in selfattn.isas():
                _core.force_isa(isa)
                for dtype in ("f4", "f8"):
                    for rows in (2, 64):
                        q = rng.standard_normal((rows, 64)).astype(dtype)
                        k = v = rng.standard_normal((600, 64)).astype(dtype)
                        for n in (1, 3):
                            attend(q, k, v, num_threads=n, is_causal=True, query_offset=300)
                            w = selfattn.attention_weights(q, k, num_threads=n)
                            selfattn.scaled_dot_product(q, k, num_threads=n)
                            selfattn.weighted_sum(w, v, num_threads=n)
                            selfattn.softmax(k, num_threads=n)
                            y = selfattn.project(q, k, k[:, 0], num_threads=n)
                            selfattn.project_backward(y, q, k, k[:, 0], num_threads=n)
                            selfattn.project(q, k.T.copy().T, num_threads=n)
                            attend(q, k, np.full_like(v, limits[dtype]), num_threads=n)
                            state = selfattn.AttentionState(q, num_threads=n)
                            for value in (v, np.full_like(v, limits[dtype])):
                                state.update(k, value)
                            state.result()
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
    """Fault 29."""
    big = normal(1, 2, 3000, 64)
    beats_during(lambda: selfattn.scaled_dot_product_attention(big, big, big, num_threads=1))
    rows = normal(4000, 4000)
    beats_during(lambda: selfattn.softmax(rows, num_threads=1))
    beats_during(lambda: selfattn.project(rows[:500], rows, num_threads=1))
    beats_during(lambda: selfattn.project_backward(rows[:500], rows[:500], rows, num_threads=1))


def test_a_result_waits_for_every_helper(isa):
    """What is returned is whole: the buffers of a call are given to the next one at once."""
    query, key, value = one_head(200, 700, 32)
    want = selfattn.scaled_dot_product_attention(query, key, value, num_threads=1)
    out = np.empty_like(query)
    for _ in range(50):
        out.fill(np.nan)
        selfattn.scaled_dot_product_attention(query, key, value, num_threads=4, out=out)
        assert same_bits(out, want)


def test_a_tiny_call_wakes_no_thread():
    """Not even when it is asked to: the process has no more threads than before."""
    code = """
    import os, numpy as np, selfattn
    count = lambda: len(os.listdir("/proc/self/task"))
    x = np.ones((4, 16), "f4")
    before = count()
    selfattn.scaled_dot_product_attention(x, x, x, num_threads=8)
    selfattn.softmax(x, num_threads=8)
    selfattn.attention_weights(x, x, num_threads=8)
    selfattn.project_backward(x[:, :4], x, x, num_threads=8)
    assert count() == before
    x = np.ones((4, 1000, 64), "f4")
    selfattn.scaled_dot_product_attention(x, x, x, num_threads=3)
    print(count() - before)
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("counts the threads in /proc")
    assert int(subprocesses.run(code)) == 2
