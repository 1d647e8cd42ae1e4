"""Pieces of programs that tests run in subprocesses to see how much memory a call takes."""

import sys

import pytest

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

MEMORY = """
import pathlib, resource, sys
import numpy as np, selfattn

def status(name):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024

def peak_of(f):
    "By how much f() raises the process above what it holds before, at most."
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    f()
    return status("VmHWM") - before

attend = selfattn.scaled_dot_product_attention
"""

RESERVED = """
import ctypes, mmap
import numpy as np, selfattn

def far(shape, gap, dtype="f4"):
    "Rows that lie `gap` bytes apart, in memory that is promised and not there until touched."
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = mmap.mmap(-1, gap * shape[0] + 2**20, flags=flags)
    return np.ndarray(shape, dtype, memory, 0, (gap, np.dtype(dtype).itemsize))
"""

LIMITED = """
def limit(extra):
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + extra, resource.RLIM_INFINITY))
small = np.random.default_rng(0).standard_normal((40, 700, 16)).astype("f4")
want = attend(small, small, small, num_threads=1)
"""

# Large blocks go back to the system when they are freed: those kept from one call for the next
# would hide what that one takes. (glibc's M_MMAP_THRESHOLD; other systems' may do so anyway.)
GIVEN_BACK = """
import ctypes
getattr(ctypes.CDLL(None), "mallopt", lambda name, value: None)(-3, 65536)
"""

# Gradients of a call whose forward is made too; and of one whose out and lse are made up.
BACKWARD = """
dense = selfattn.scaled_dot_product_attention_backward
packed = selfattn.varlen_attention_backward

def backward(query, key, value, grad_out=None, num_threads=1, grads={}, **options):
    out, lse = attend(query, key, value, return_lse=True, num_threads=num_threads, **options)
    grad_out = out if grad_out is None else grad_out
    return dense(
        grad_out, query, key, value, out, lse, num_threads=num_threads, **options, **grads
    )
"""
