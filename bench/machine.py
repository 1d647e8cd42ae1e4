"""What this machine could do at most: its FMA peak and its memory-read bandwidth, measured.

    fma_loop(num_threads, dtype)    multiply-adds on registers alone
    read_loop(num_threads)          one pass over a buffer far larger than the caches

Every fraction that the benchmarks print is a fraction of one of these, run between the contestants'
turns by harness.py, which calls a round disturbed where the loop did not have all its cores.
The loops are C (`bench/loops/`), built on demand by the C compiler ($CC, or cc) into
`bench/_build/`. Called by the other files of bench/; `python bench/machine.py` prints both.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

import harness
import numpy as np

HERE = Path(__file__).parent
# -ffp-contract=fast makes a * x + y one FMA; the loops want it, unlike selfattn's own kernels.
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-ffp-contract=fast", "-pthread")
SHARED = ("-fPIC", "-shared")
PEAK_SECONDS = 0.03
MIB = 1 << 20


class _TeamTime(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_double), ("cpu_seconds", ctypes.c_double))


class Loop:
    """One of the two loops, cut to a length. `amount` is what a run does: operations or bytes."""

    def __init__(self, name, num_threads, amount, run):
        self.name = name
        self.num_threads = num_threads
        self.amount = amount
        self._run = run

    def run(self):
        """(seconds, CPU seconds of all threads together) of one run, timed on the inside."""
        time = _TeamTime()
        if self._run(ctypes.byref(time)) != 0:
            raise RuntimeError(f"cannot start {self.num_threads} threads for the {self.name} loop")
        return time.seconds, time.cpu_seconds

    def rate(self, seconds):
        """1e9 operations, or bytes, a second, where a run takes so many seconds."""
        return self.amount / seconds / 1e9


def available_threads():
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def fma_loop(num_threads, dtype="float32"):
    """The FMA loop, its length set so that a run takes some 30 ms."""
    library = _library()
    dtype = "float64" if dtype == "float64" else "float32"  # half types are computed in float32
    is_f64 = int(dtype == "float64")
    flops = library.bench_fma_flops(is_f64) * num_threads
    name = f"FMA peak ({fma_isa()}, {dtype})"

    def cut(steps):
        return Loop(
            name,
            num_threads,
            flops * steps,
            lambda time: library.bench_fma_time(is_f64, num_threads, steps, time),
        )

    steps = 100_000
    trial = cut(steps)
    # The fastest of a few: a run that was disturbed would make the loop too short.
    seconds = min(trial.run()[0] for _ in range(5))
    return cut(int(steps * PEAK_SECONDS / seconds))


@functools.cache
def read_loop(num_threads):
    """The read loop, over a buffer of four times the last-level cache and 256 MiB at least."""
    library = _library()
    buffer = _aligned_ones(max(256 * MIB, 4 * last_level_cache()))
    return Loop(
        "memory read",
        num_threads,
        library.bench_read_bytes(buffer.nbytes, num_threads),
        lambda time: library.bench_read_time(buffer.ctypes.data, buffer.nbytes, num_threads, time),
    )


def fma_isa():
    """The vectors that the FMA loop uses here: "avx512", "avx2" or "generic"."""
    return _library().bench_fma_isa().decode()


def last_level_cache():
    """Bytes of the largest cache that Linux names; 32 MiB where it names none."""
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text.rstrip("KM")) * units.get(text[-1], 1))
    return max(sizes, default=32 * MIB)


def cpu_name():
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _aligned_ones(nbytes):
    """Bytes at the start of a cache line, written once: untouched pages are no memory traffic."""
    raw = np.ones(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


@functools.cache
def _library():
    """The compiled loops, built first if their sources, the compiler or the flags are new."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    sources = sorted((HERE / "loops").iterdir())
    digest = hashlib.sha256(" ".join((*compiler, *FLAGS, platform.machine())).encode())
    for source in sources:
        digest.update(source.read_bytes())
    built = HERE / "_build" / f"loops-{digest.hexdigest()[:16]}.so"
    if not built.exists():
        built.parent.mkdir(exist_ok=True)
        # Built aside and moved into place: another process may be loading the same file.
        with tempfile.TemporaryDirectory(dir=built.parent) as aside:
            fresh = Path(aside) / built.name
            code = [str(s) for s in sources if s.suffix == ".c"]
            subprocess.run([*compiler, *FLAGS, *SHARED, *code, "-o", str(fresh)], check=True)
            fresh.replace(built)
    library = ctypes.CDLL(str(built))
    library.bench_fma_isa.restype = ctypes.c_char_p
    library.bench_fma_flops.argtypes = [ctypes.c_int]
    library.bench_fma_flops.restype = ctypes.c_long
    time = ctypes.POINTER(_TeamTime)
    library.bench_fma_time.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, time]
    library.bench_read_bytes.argtypes = [ctypes.c_size_t, ctypes.c_int]
    library.bench_read_bytes.restype = ctypes.c_size_t
    library.bench_read_time.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, time]
    return library


def main():
    threads = available_threads()
    print(f"{cpu_name()}, {threads} threads")
    loops = {f"FMA peak ({fma_isa()}), {x}": fma_loop(threads, x) for x in ("float32", "float64")}
    for name, loop in {**loops, "memory read": read_loop(threads)}.items():
        limit, _ = harness.race({}, repeats=5, loop=loop)
        unit = "GB/s" if name == "memory read" else "GF"
        rate = f"{loop.rate(limit.seconds):.1f} {unit}" if limit.kept else "the machine was busy"
        print(f"{name}: {rate}")


if __name__ == "__main__":
    main()
