"""Not a byte is read outside of the inputs' elements, nor written outside of the output's.

Faults 13 and 21. Each array, and in a second round each row of each array, stands directly against
a page that may not be touched, at its end and then at its start; a stray access kills the child
process that makes the calls (guard.py, guard_backward.py, guard_caches.py). Bytes around the
outputs hold a pattern that must stay.
"""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support import subprocesses
from support.halves import each_half

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="mprotect is POSIX")


SUPPORT = Path(__file__).parents[1] / "support"


def run(*arguments, cwd, program="guard.py"):
    command = [sys.executable, str(SUPPORT / program), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=subprocesses.LIMIT,
        cwd=cwd,
        env=subprocesses.environment(),
    )


@pytest.mark.parametrize("where", ["end", "start", "row"])
def test_the_harness_catches_a_stray_read(where, tmp_path):
    done = run("overrun", where, cwd=tmp_path)
    assert done.stderr == "in bounds 20.0\n"
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGBUS)


@pytest.mark.parametrize("program", ["guard.py", "guard_backward.py"])
def test_no_stray_access(isa, dtype, program, tmp_path):
    done = run(isa, np.dtype(dtype).name, cwd=tmp_path, program=program)
    assert done.returncode == 0, done.stderr[-2000:]


@each_half
@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("program", ["guard.py", "guard_backward.py"])
def test_no_stray_access_in_half_types(isa, half, program, step, tmp_path):
    """Every eighth of those shapes; all of them in the long run."""
    done = run(isa, np.dtype(half).name, str(step), cwd=tmp_path, program=program)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["float32", "float16", "int8"])
def test_no_stray_access_in_caches(isa, name, tmp_path):
    done = run(isa, name, cwd=tmp_path, program="guard_caches.py")
    assert done.returncode == 0, done.stderr[-2000:]
