"""Ctrl-C during a long call: KeyboardInterrupt soon, and the next call is right.

Faults 29 and 35. How soon is counted, not timed: calls ask whether to go on after so much work at
most (`check_questions`); bench/latency.py prints milliseconds. That they end is seen in processes
of their own, to which a thread of each sends SIGINT.
"""

import sys

import numpy as np
import pytest

import selfattn
from support import subprocesses
from support.process import check_interrupted, check_questions, posix

pytestmark = posix

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
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupt(name, threads):
    """One thread asks, all stop."""
    check_interrupted(CALLS[name], threads, "square" in CALLS[name])


# Multiply-adds, or elements where memory takes longer, that any machine does in a few milliseconds.
MOST, MOST_ELEMENTS = 2**24, 2**17
ROWS, WIDE = 1024, 768

rng = np.random.default_rng(0)
x = rng.standard_normal((2, ROWS, 64)).astype("f4")
long = np.broadcast_to(x[:1, :1], (1, 2**18, 64))
wide = np.ones((WIDE, 64), "f4")
of_wide = np.ones((ROWS, WIDE), "f4")
tall = np.broadcast_to(wide[:1, :1], (8192, 4096))
square = np.zeros((ROWS, ROWS), "f4")
half = [y.astype("f2") for y in (x[:1, :64], long)]
backward = selfattn.scaled_dot_product_attention_backward

QUESTIONS = {
    "attention": (
        lambda: selfattn.scaled_dot_product_attention(x, x, x, num_threads=1),
        2 * ROWS * ROWS * 128,
        MOST,
    ),
    "decode": (
        lambda: selfattn.scaled_dot_product_attention(x[:1, :1], long, long, num_threads=1),
        2**18 * 128,
        MOST,
    ),
    "scores": (
        lambda: selfattn.scaled_dot_product(x, x, num_threads=1),
        2 * ROWS * ROWS * 64,
        MOST,
    ),
    "weights": (
        lambda: selfattn.attention_weights(x, x, num_threads=1),
        2 * ROWS * ROWS * 128,
        MOST,
    ),
    "sum": (
        lambda: selfattn.weighted_sum(square, x[0], num_threads=1),
        ROWS * ROWS * 64,
        MOST,
    ),
    "softmax": (lambda: selfattn.softmax(square, num_threads=1), ROWS * ROWS, MOST_ELEMENTS),
    "softmax of columns": (
        lambda: selfattn.softmax(square, 0, num_threads=1),
        ROWS * ROWS,
        MOST_ELEMENTS,
    ),
    "softmax of one row": (
        lambda: selfattn.softmax(np.broadcast_to(x[0, 0, 0], 2**21), num_threads=1),
        2**21,
        MOST_ELEMENTS,
    ),
    "projection": (
        lambda: selfattn.project(x, wide, num_threads=1),
        2 * ROWS * 64 * WIDE,
        MOST,
    ),
    "projection of few rows": (
        lambda: selfattn.project(tall[:2], tall, num_threads=1),
        2 * 8192 * 4096,
        MOST,
    ),
    "projection's gradients": (
        lambda: selfattn.project_backward(of_wide, x[0], wide, num_threads=1),
        2 * ROWS * 64 * WIDE,
        MOST,
    ),
    "gradients": (
        lambda: backward(x, x, x, x, x, x[..., 0], num_threads=1),
        2 * ROWS * ROWS * 64 * 5,
        MOST,
    ),
    "gradients of many keys": (
        lambda: backward(x[:1, :8], x[:1, :8], long, long, x[:1, :8], x[:1, :8, 0], num_threads=1),
        8 * 2**18 * 64 * 5,
        MOST,
    ),
    "gradients of many queries": (
        lambda: backward(long, long, x[:1, :8], x[:1, :8], long, long[..., 0], num_threads=1),
        8 * 2**18 * 64 * 5,
        MOST,
    ),
    # Nothing is computed, but the gradients are set to 0: new memory is slow to write.
    "gradients of unseen keys": (
        lambda: backward(
            x[:1, :64],
            x[:1, :64],
            long,
            long,
            x[:1, :64],
            x[:1, :64, 0],
            kv_lengths=0,
            num_threads=1,
        ),
        2 * 2**18 * 64,
        MOST_ELEMENTS,
    ),
    "gradients of unseen keys, as halves": (
        lambda: backward(
            half[0],
            half[0],
            half[1],
            half[1],
            half[0],
            x[:1, :64, 0],
            kv_lengths=0,
            num_threads=1,
        ),
        4 * 2**18 * 64,  # set to 0, and converted
        MOST_ELEMENTS,
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_how_much_is_done_between_two_questions(isa, name):
    """It depends on the set: its tiles."""
    check_questions(*QUESTIONS[name])


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
