"""What importing and calling leave as it was: floating-point modes, signals, NumPy's error state.

Faults 17, 22, 32 and 33. And what the caller has set changes no bit of a result: rounding,
flushing of denormals, traps.
"""

import pickle

import numpy as np
import pytest

import selfattn
from support import subprocesses
from support.arrays import normal
from support.process import MXCSR, x86_linux

DATA = """
import numpy as np, selfattn
rng = np.random.default_rng(0)
x = rng.standard_normal((2, 200, 64)).astype("f4")
tiny = x * np.float32(1e-39)
special = x.copy()
special[0, 3, 5], special[1, 7, 1], special[1, 9, 2] = np.nan, np.inf, 3e38
inputs = [x, tiny, special, x * 50]
inputs += [a.astype("f8") for a in inputs]

def calls(n):
    results = []
    for a in inputs:
        results += selfattn.scaled_dot_product_attention(a, a, a, return_lse=True, num_threads=n)
        b = a[..., :10]  # whose 1 / sqrt(10), and .7 times log2(e), are rounded
        results.append(selfattn.scaled_dot_product_attention(b, b, b, num_threads=n))
        results.append(selfattn.scaled_dot_product_attention(b, b, b, scale=0.7, num_threads=n))
        results.append(selfattn.scaled_dot_product(a, a, num_threads=n))
        results.append(selfattn.attention_weights(a, a, num_threads=n))
        results.append(selfattn.weighted_sum(a[:, :64], a[:, :64], num_threads=n))
        results.append(selfattn.softmax(a, num_threads=n))
        for rows in (a, a[0, :2]):
            results.append(selfattn.project(rows, a[1, :40], a[0, :40, 0], num_threads=n))
            results += selfattn.project_backward(
                rows[..., :40], rows, a[1, :40], a[0, :40, 0], num_threads=n
            )
    return [r.tobytes() for r in results]
"""


@x86_linux
def test_import_and_calls_leave_mxcsr():
    """Fault 22: nothing linked in or called flushes denormals for the process."""
    code = """
    before = get_mxcsr() & CONTROL
    import numpy
    assert get_mxcsr() & CONTROL == before
    import selfattn
    assert get_mxcsr() & CONTROL == before
    """
    after = """
    for n in (1, 3):
        calls(n)
        assert get_mxcsr() & CONTROL == before
    assert (np.float32(1e-40) * np.float32(0.5)).view("u4") != 0
    """
    subprocesses.run(MXCSR, code, DATA, after)


def test_denormals_after_the_import():
    """Fault 22 as NumPy sees it, wherever denormals are not flushed anyway."""
    code = """
    import numpy as np
    tiny, half = np.float32(1e-40), np.float32(0.5)
    before = (tiny * half).tobytes()
    import selfattn
    assert (tiny * half).tobytes() == before
    """
    subprocesses.run(code)


@x86_linux
@pytest.mark.parametrize(
    ("mode", "value"),
    [
        ("flush to zero, denormals are zero", 0x9FC0),
        ("round toward zero", 0x7F80),
        ("round up", 0x5F80),
        ("round down", 0x3F80),
        ("traps, but for inexact and denormal", 0x1100),
    ],
)
def test_the_callers_modes_change_nothing(mode, value):
    """Whatever the mode, the same bits, in the caller's thread and in the pool's; and it stays set.

    The pool's threads are started under the mode, which a thread inherits.
    """
    code = """
    set_mxcsr(VALUE)
    results = [calls(n) for n in (1, 3)]
    mode = get_mxcsr()
    set_mxcsr(0x1f80)
    assert results == [calls(1)] * 2
    assert mode & CONTROL == VALUE & CONTROL, hex(mode)
    """
    subprocesses.run(MXCSR, DATA, code.replace("VALUE", hex(value)))


def test_numpy_error_state(isa):
    """Nothing is raised or warned about, under any np.errstate, and the state stays."""
    x, grad_out = normal(40, 8), normal(40, 40, seed=1)
    x[3, 2], x[5, 1], x[7, 3] = np.nan, np.inf, 3e38
    grad_out[3, 2], grad_out[4, 0], grad_out[5, 1] = np.nan, np.inf, 3e38
    with np.errstate(all="raise"):
        state = np.geterr()
        for dtype in (np.float32, np.float64):
            y, grad = x.astype(dtype), grad_out.astype(dtype)
            selfattn.scaled_dot_product_attention(y, y, y, return_lse=True)
            selfattn.scaled_dot_product(y, y)
            selfattn.weighted_sum(selfattn.attention_weights(y, y), y)
            selfattn.softmax(y)
            for rows in (slice(None), slice(3, 6)):
                selfattn.project(y[rows], y[:, ::-1], y[:, 0])
                selfattn.project_backward(grad[rows], y[rows], y, y[:, 0])
            selfattn.scaled_dot_product_attention(y, y, y, is_causal=True, query_offset=-9)
        assert np.geterr() == state


def test_signal_handlers():
    """Those of Python, and of the process as the system sees them.

    Except the C library's own: it catches one when the first thread starts, which on a single core
    is one of the pool's.
    """
    code = """
    import pathlib, signal
    import numpy
    valid = sum(1 << s - 1 for s in signal.valid_signals())
    def state():
        status = pathlib.Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        sets = [line.split() for line in lines if line.startswith("Sig") and "SigQ" not in line]
        return (
            {s: signal.getsignal(s) for s in signal.valid_signals()},
            [(name, int(bits, 16) & valid) for name, bits in sets],
            signal.pthread_sigmask(signal.SIG_BLOCK, []),
        )
    before = state()
    import selfattn
    assert state() == before
    """
    subprocesses.run(code, DATA, "calls(1)\ncalls(3)\nassert state() == before")


def test_threads_of_others_stay():
    """threadpoolctl, torch and the environment see no change of theirs."""
    code = """
    import os
    try:
        import torch
        counts = lambda: (torch.get_num_threads(), torch.get_num_interop_threads())
    except ImportError:
        counts = lambda: None
    before = counts(), dict(os.environ)
    import numpy as np, selfattn
    x = np.ones((4, 300, 64), "f4")
    selfattn.set_num_threads(3)
    selfattn.scaled_dot_product_attention(x, x, x)
    with selfattn.threads(2):
        selfattn.scaled_dot_product_attention(x, x, x)
    assert (counts(), dict(os.environ)) == before
    """
    subprocesses.run(code)


@pytest.mark.parametrize("order", ["torch, selfattn", "selfattn, torch"])
def test_beside_another_runtime_of_threads(order):
    """Fault 33: imported before or after one, and called in turns with it."""
    pytest.importorskip("torch")
    code = f"""
    import numpy as np
    import {order}
    x = np.random.default_rng(0).standard_normal((2, 4, 300, 64)).astype("f4")
    want = selfattn.scaled_dot_product_attention(x, x, x, num_threads=1)
    tensor = torch.from_numpy(x)
    for _ in range(5):
        theirs = torch.nn.functional.scaled_dot_product_attention(tensor, tensor, tensor)
        assert np.array_equal(selfattn.scaled_dot_product_attention(x, x, x, num_threads=3), want)
    assert np.abs(theirs.numpy() - want).max() < 1e-5
    """
    subprocesses.run(code)


def test_pickling():
    """Fault 32: functions go to another process by name, results as arrays."""
    f = pickle.loads(pickle.dumps(selfattn.scaled_dot_product_attention))
    assert f is selfattn.scaled_dot_product_attention
    out = f(*[normal(3, 4)] * 3)
    assert np.array_equal(pickle.loads(pickle.dumps(out)), out)
