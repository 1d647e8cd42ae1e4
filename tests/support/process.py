"""What tests of the process share: its floating-point state, interrupts, the GIL's release."""

import platform
import sys
import threading
import time

import pytest

from selfattn import _core
from support import subprocesses

# The 32 bytes that glibc's fegetenv fills on x86-64 end with MXCSR.
MXCSR = """
import ctypes
libm = ctypes.CDLL("libm.so.6")
def get_mxcsr():
    env = (ctypes.c_uint32 * 8)()
    libm.fegetenv(env)
    return env[7]
def set_mxcsr(value):
    env = (ctypes.c_uint32 * 8)()
    libm.fegetenv(env)
    env[7] = value
    libm.fesetenv(env)
CONTROL = 0xffc0  # flush to zero, rounding, masks of traps, denormals are zero; not the status
"""

x86_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() != "x86_64",
    reason="reads MXCSR as glibc lays it out on x86-64",
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT by kill()")

_INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np, selfattn
from selfattn import _core

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if this runs in background
n = {threads}
unit = np.random.default_rng(0).standard_normal((1, 8192, 64)).astype("f4")
x = np.broadcast_to(unit, (40, 8192, 64))  # forty times the work, once the memory
long = np.broadcast_to(unit[:, :1], (40, 2**25, 64))
row = np.broadcast_to(unit[0, 0, :1], 2**27)
wide = np.ones((768, 64), "f4")
of_wide = np.broadcast_to(wide[:1, :1], (40, 8192, 768))
tall = np.broadcast_to(wide[:1, :1], (2**17, 2**17))
if {square}:
    x = unit
    square = np.zeros((1, 8192, 8192), "f4")
    rows = np.broadcast_to(unit[:, :, :1], square.shape)

ready = threading.Event()
def interrupt():
    ready.wait()
    time.sleep(0.03)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
interrupted = finished = False
try:
    ready.set()
    {call}
    finished = True
    time.sleep(10)
except KeyboardInterrupt:
    interrupted = True
assert interrupted

small = unit[0, :200]
want = selfattn.scaled_dot_product_attention(small, small, small, num_threads=1)
again = selfattn.scaled_dot_product_attention(small, small, small, num_threads=4)
assert np.array_equal(again, want)
assert np.isfinite(want).all()
print(finished)
"""


def check_interrupted(call, num_threads, square=False):
    """KeyboardInterrupt comes before the call is done, and the next call is right.

    `call` names its number of threads n, and may use the arrays above, those of `square` too if so.
    """
    code = _INTERRUPTED.format(threads=num_threads, call=call, square=square)
    if subprocesses.run(code).strip() == "True":
        pytest.skip("this machine is done before it can be interrupted")


def check_questions(call, work, most):
    """The call asks whether to go on after `most` units of its `work` at most.

    On one thread. No clock is read, so that a busy machine changes nothing.
    """
    asked = _core.questions_of(call)
    assert asked * most >= work, f"{work / max(asked, 1):.3g} between two questions, of {most:.3g}"


def beats_during(call):
    """Another thread's heart beats on while a call computes, more often than between two calls."""
    beats = 0
    running = True

    def beat():
        nonlocal beats
        while running:
            beats += 1
            time.sleep(0.001)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        for calls in range(1, 200):
            call()
            if beats > 20 + 3 * calls:
                return
        raise AssertionError(f"{beats} beats in {calls} calls")
    finally:
        running = False
        heart.join()
