"""The portable kernels on AArch64, cross-compiled and run by qemu-user: x86's bits.

There fma is an instruction in plain C too, registers are NEON's, char is unsigned, and the result
of an invalid operation is another NaN than x86's.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from support import c_core, subprocesses
from support.c_core import CSRC

HERE = Path(__file__).parent
CC = shutil.which("cc")
CROSS = shutil.which("aarch64-linux-gnu-gcc")
QEMU = shutil.which("qemu-aarch64")
LIBRARIES = Path("/usr/aarch64-linux-gnu")  # where Debian has the emulated system's
pytestmark = pytest.mark.skipif(
    not (CC and CROSS and QEMU and LIBRARIES.exists() and CSRC.exists()),
    reason="no cross-compiler for AArch64, no qemu-aarch64, or no source folder beside the tests",
)

EMULATE = [QEMU, "-L", LIBRARIES]


def output(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=subprocesses.LIMIT)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def test_attention_has_this_machines_bits(tmp_path):
    """Of float32, for few rows and for many, in one thread and in three (without_numpy.c)."""
    here, there = tmp_path / "here" / "program", tmp_path / "there" / "program"
    for compiler, program in (CC, here), (CROSS, there):
        program.parent.mkdir()
        c_core.program(compiler, HERE / "without_numpy.c", program, ["portable"])
    want = output(here).split()
    assert want[0] == "portable"
    assert len(want) == 5
    assert output(*EMULATE, there).split() == want


@pytest.mark.parametrize("dtype", ["f64", "f16", "bf16"])
def test_other_dtypes_compile(dtype, tmp_path):
    assert c_core.instance(CROSS, "portable", dtype, tmp_path).exists()


@pytest.mark.parametrize("bits", [32, 64])
def test_every_operation(bits, tmp_path):
    """Against scalar code, as test_simd.py has it on this machine (simd.c)."""
    program = tmp_path / "simd"
    macros = ['-DHEADER="simd/portable.h"', "-DIS_SUPPORTED=1", f"-DSA_REAL_BITS={bits}"]
    c_core.compiled(CROSS, "-O2", *macros, HERE / "simd.c", "-o", program, "-lm")
    assert "v_transpose" in output(*EMULATE, program)
