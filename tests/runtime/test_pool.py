"""The pool's helpers: where they may run, when they end, and that they are all woken.

Faults 40 and 41.
"""

import os
import sys

import pytest

from support import subprocesses

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

COMMON = """
import os, threading, time
import numpy as np, selfattn
x = np.random.default_rng(0).standard_normal((4, 700, 64)).astype("f4")
attend = lambda n: selfattn.scaled_dot_product_attention(x, x, x, num_threads=n)
want = attend(1)

def tasks():
    return set(map(int, os.listdir("/proc/self/task")))

before = tasks()
"""


def test_affinity_of_helpers():
    """Helpers get the caller's at that moment, less its core; no other thread's is changed."""
    code = """
    ready, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (ready.set(), done.wait()), daemon=True)
    thread.start()
    ready.wait()
    bystanders = tasks()
    everywhere = os.sched_getaffinity(0)
    for mask in (everywhere, {min(everywhere)}, everywhere, {max(everywhere)}, everywhere):
        os.sched_setaffinity(0, mask)
        for n in (2, 4, 1 + len(mask)):
            assert np.array_equal(attend(n), want)
            for task in bystanders:
                own = os.sched_getaffinity(task)
                assert own == (mask if task == os.getpid() else everywhere), (task, own)
        for attempt in range(500):
            allowed = [os.sched_getaffinity(helper) for helper in tasks() - bystanders]
            assert allowed
            # Less the caller's core, and perhaps that of another helper that woke it.
            least, most = max(len(mask) - 2, 1), max(len(mask) - 1, 1)
            if all(cores <= mask and least <= len(cores) <= most for cores in allowed):
                break
            attend(4)  # on a busy machine some helper was not woken before the call was over
        else:
            raise AssertionError((mask, allowed))
        time.sleep(0.002)  # now they sleep
    done.set()
    """
    subprocesses.run(COMMON, code)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_helpers_that_sleep_are_all_woken(n):
    """By calls long enough for every helper to come, however few cores there are."""
    code = f"""
    x = np.broadcast_to(x[:1], (64, 700, 64))
    want = attend(1)

    def switches(task):
        lines = open(f"/proc/self/task/{{task}}/status").read().splitlines()
        return int([x.split()[1] for x in lines if x.startswith("voluntary_ctxt")][0])

    attend({n})
    helpers = tasks() - before
    assert len(helpers) == {n - 1}
    slept = {{task: switches(task) for task in helpers}}
    for attempt in range(30):
        time.sleep(0.01)  # so that they sleep
        assert np.array_equal(attend({n}), want)
        if all(switches(task) > slept[task] for task in helpers):
            break
    else:
        raise AssertionError("some helper was never woken")
    """
    subprocesses.run(COMMON, code)


def test_idle_helpers_end():
    """Those of one call of many threads, while calls of two go on; and then all. Others start."""
    code = """
    def wait_for(count):
        for _ in range(600):
            if len(tasks() - before) == count:
                return
            if count:
                attend(count + 1)
            time.sleep(0.05)
        raise AssertionError(f"{len(tasks() - before)} helpers, not {count}")

    for n in (9, 3):
        attend(n)
        assert len(tasks() - before) == n - 1
        wait_for(1)
        wait_for(0)
        assert np.array_equal(attend(2), want)
        assert len(tasks() - before) == 1
    """
    subprocesses.run(COMMON, code)


def test_without_affinity():
    """Where a mask may be neither read nor set, helpers run where the system puts them."""
    code = """
    import ctypes
    assert np.array_equal(attend(3), want)
    libc = ctypes.CDLL(None, use_errno=True)
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, EPERM = 0x7FFF0000, 0x00050000, 1
    numbers = {"x86_64": (203, 204), "aarch64": (122, 123)}.get(os.uname().machine, ())

    class Instruction(ctypes.Structure):
        _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte),
                    ("k", ctypes.c_uint)]

    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction))]

    filters = [Instruction(0x20, 0, 0, 0)]  # load the number of the system call
    for number in numbers:
        filters += [Instruction(0x15, 0, 1, number),  # if it is this one, refuse
                    Instruction(0x06, 0, 0, SECCOMP_RET_ERRNO | EPERM)]
    filters.append(Instruction(0x06, 0, 0, SECCOMP_RET_ALLOW))
    array = (Instruction * len(filters))(*filters)
    program = Program(len(filters), array)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    if libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0:  # this thread's filter
        if numbers:
            try:
                os.sched_getaffinity(0)
            except PermissionError:
                pass
            else:
                raise AssertionError("the filter lets it through")
        for n in (2, 3, 6):
            assert np.array_equal(attend(n), want)
        assert selfattn.get_num_threads() >= 1
    """
    subprocesses.run(COMMON, code)


def test_one_core(tmp_path):
    """A process that has one core from the beginning."""
    code = "assert np.array_equal(attend(4), want)\nassert selfattn.get_num_threads() == 1"
    pin = f"import os\nos.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    subprocesses.run(pin, COMMON, code, OMP_NUM_THREADS=None)
