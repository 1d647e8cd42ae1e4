"""Ctrl-C during a long call: KeyboardInterrupt within 100 ms, and the next call is right.

Faults 29 and 35. Each case is a process of its own, to which a thread of it sends SIGINT. What is
measured is the work that the call goes on with, in CPU time of each of its threads: a machine that
is busy with something else takes longer, and does no more.
"""

import sys

import pytest

from selfattn import _core
from support import subprocesses
from support.process import check_latency

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT by kill()")

# Long enough for every kernel set: seconds each, were they not interrupted.
CALLS = {
    "attention": "selfattn.scaled_dot_product_attention(x, x, x, num_threads=n)",
    "causal": "selfattn.scaled_dot_product_attention(x, x, x, is_causal=True, num_threads=n)",
    "decode": "selfattn.scaled_dot_product_attention(x[:, :1], long, long, num_threads=n)",
    "scores": "selfattn.scaled_dot_product(x, x, out=square, num_threads=n)",
    "weights": "selfattn.attention_weights(x, x, out=square, num_threads=n)",
    "sum": "selfattn.weighted_sum(square, x, num_threads=n)",
    "softmax": "selfattn.softmax(rows, out=square, num_threads=n)",
    "softmax of columns": "selfattn.softmax(rows, 1, out=square, num_threads=n)",
    "softmax of one row": "selfattn.softmax(row, num_threads=n)",
    "projection": "selfattn.project(x, wide, num_threads=n)",
    "projection of few rows": "selfattn.project(tall[:2], tall, num_threads=n)",
    "projection's gradients": "selfattn.project_backward(of_wide, x, wide, num_threads=n)",
    "gradient of a weight": (
        "_core.project_backward(of_wide, x, wide, None, np.empty_like(wide), None, n)"
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_latency(isa, name):
    """How much a call does between two questions depends on the set."""
    check_latency(CALLS[name], isa, 1, "square" in CALLS[name])


@pytest.mark.parametrize("name", CALLS)
def test_latency_on_two_threads(name):
    """One of them asks, both stop: in any set."""
    check_latency(CALLS[name], _core.isa(), 2, "square" in CALLS[name])


def test_any_signal_handler_runs_and_may_raise():
    """What a handler raises is raised by the call; one that returns is not felt."""
    code = """
    import signal
    import numpy as np, selfattn

    x = np.broadcast_to(np.ones((1, 1024, 64), "f4"), (40, 1024, 64))
    want = selfattn.scaled_dot_product_attention(x[:2], x[:2], x[:2])
    count = 0
    def tick(*_):
        global count
        count += 1
        # A call from inside a handler that interrupts a call.
        inner = selfattn.scaled_dot_product_attention(x[0, :9], x[0], x[0])
        assert np.array_equal(inner, want[0, :9])
        if count == limit:
            raise LookupError("from the handler")
        signal.setitimer(signal.ITIMER_REAL, 0.005)  # again, once this one is over
    signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    limit = None
    for n in (1, 2):
        assert np.array_equal(
            selfattn.scaled_dot_product_attention(x, x, x, num_threads=n)[:2], want
        )
    assert count > 0
    limit = count + 5
    try:
        while True:
            selfattn.scaled_dot_product_attention(x, x, x, num_threads=2)
    except LookupError as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert str(error) == "from the handler"
    """
    subprocesses.run(code)


def test_how_often_a_call_asks():
    """Every 50 ms: whoever asks may have to wait for the GIL while another thread has it."""
    code = """
    import signal, time
    import numpy as np, selfattn

    x = np.broadcast_to(np.ones((1, 1024, 64), "f4"), (80, 1024, 64))
    count = 0
    def tick(*_):
        global count
        count += 1
    signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    for n in (1, 2):
        longest, asked = 0, 0
        for _ in range(5):
            count, start = 0, time.perf_counter()
            selfattn.scaled_dot_product_attention(x, x, x, num_threads=n)
            seen, elapsed = count, time.perf_counter() - start
            # Two more, by Python itself before and after the call.
            assert seen <= elapsed / 0.05 + 3, (seen, elapsed)
            longest, asked = max(longest, elapsed), max(asked, seen)
        assert longest < 0.3 or asked > 2
    signal.setitimer(signal.ITIMER_REAL, 0)
    """
    subprocesses.run(code)


def test_a_call_outside_the_main_thread_never_waits_for_the_gil():
    """While other C code holds the GIL for seconds, the call computes: by its CPU time."""
    code = """
    import ctypes, os, threading, time
    import numpy as np, selfattn

    unit = np.ones((1, 64, 64), "f4")
    long = np.broadcast_to(unit[:, :1], (1, 2**24, 64))
    clocks = []
    def work():
        clocks.append(time.pthread_getcpuclockid(threading.get_ident()))
        while True:
            selfattn.scaled_dot_product_attention(unit, long, long, num_threads=1)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while not clocks or time.clock_gettime(clocks[0]) < 0.05:
        time.sleep(0.001)
    libc = ctypes.PyDLL(None)  # which keeps the GIL
    longest = 0
    for _ in range(10):  # between two calls it waits, and on a busy machine it goes slowly
        before = time.clock_gettime(clocks[0])
        libc.usleep(999_999)
        longest = max(longest, time.clock_gettime(clocks[0]) - before)
        if longest > 0.15:
            break
        time.sleep(0.01)
    print(longest)
    os._exit(0)
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("reads the CPU time of a thread")
    assert float(subprocesses.run(code)) > 0.15  # three times what it asks in, if it does


def test_a_call_outside_the_main_thread_is_not_interrupted():
    """Python's signals belong to the main thread: the other one's result is whole."""
    code = """
    import os, signal, threading
    import numpy as np, selfattn

    x = np.random.default_rng(0).standard_normal((8, 2048, 64)).astype("f4")
    want = selfattn.scaled_dot_product_attention(x, x, x)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(selfattn.scaled_dot_product_attention(x, x, x))
    )
    thread.start()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        thread.join()
    except KeyboardInterrupt:
        thread.join()
    assert np.array_equal(results[0], want)
    """
    subprocesses.run(code)
