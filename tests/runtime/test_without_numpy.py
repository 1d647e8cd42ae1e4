"""What can only be seen without NumPy and Python: a C program (without_numpy.c) makes the calls.

Processors older than those that NumPy runs on are emulated by qemu-user, which stops at an
instruction that the model does not have (fault 23; test_older_cpu.py has those that NumPy does run
on). And ThreadSanitizer watches the threads, who all find out the instruction set at once (fault
52).
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from support import c_core, subprocesses

HERE = Path(__file__).parent
CC = shutil.which("cc")
QEMU = shutil.which("qemu-x86_64")
IS_X86 = platform.machine() == "x86_64"
pytestmark = pytest.mark.skipif(
    CC is None or not c_core.CSRC.exists() or os.name != "posix",
    reason="no C compiler, or no source folder beside the tests",
)

# The models, and what they run. The last says that it has AVX2, but not that the system saves its
# registers, which only XGETBV tells.
MODELS = {
    "qemu64": "portable",
    "core2duo": "portable",
    "Opteron_G3": "portable",
    "Nehalem": "portable",
    "IvyBridge": "portable",
    "Haswell": "avx2",
    "Haswell,-fma": "portable",
    "Haswell,-xsave": "portable",
}


def build(program, *flags):
    isas = ("portable", "avx2") if "-DSA_HAVE_X86" in flags else ("portable",)
    c_core.program(CC, HERE / "without_numpy.c", program, isas, *flags)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=subprocesses.LIMIT)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    isa, *hashes = done.stdout.split()
    assert len(hashes) == 4
    assert hashes[::2] == hashes[1::2], "three threads, other bits"
    return isa, hashes


@pytest.mark.skipif(QEMU is None or not IS_X86, reason="no qemu-user for x86-64 here")
def test_older_processors(tmp_path):
    """They run what they have, to the bits that this processor gives."""
    program = tmp_path / "program"
    build(program, "-DSA_HAVE_X86")
    _, want = run(program, "portable")
    for model, isa in MODELS.items():
        assert run(QEMU, "-cpu", model, program) == (isa, want), model


def test_threads_do_not_race(tmp_path):
    """ThreadSanitizer finds nothing to report, on which the program would end in an error."""
    sanitize = "-fsanitize=thread"
    nothing, program = tmp_path / "nothing", tmp_path / "program"
    source = "int main(void) { return 0; }"
    command = [CC, sanitize, "-o", nothing, "-x", "c", "-"]
    built = subprocess.run(command, input=source, capture_output=True, text=True)
    if built.returncode or subprocess.run([nothing], capture_output=True).returncode:
        pytest.skip("no ThreadSanitizer here")
    build(program, sanitize, "-g")
    run(program)
