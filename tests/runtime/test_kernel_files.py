"""Each file of csrc/kernels includes what it names, so it compiles alone, as an editor reads it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
KERNELS = sorted((CSRC / "kernels").glob("*.h"))
CC = shutil.which("cc")
pytestmark = pytest.mark.skipif(
    CC is None or not CSRC.exists() or os.name != "posix",
    reason="no C compiler, or no source folder beside the tests",
)

# A file that is compiled alone leaves functions and constants of others unused.
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Wcast-qual", "-Werror"]
FLAGS += ["-Wno-unused-function", "-Wno-unused-const-variable"]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_compiles_alone(path, bits):
    command = [CC, "-fsyntax-only", *FLAGS, f"-DSA_REAL_BITS={bits}", "-x", "c", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_file_is_reached():
    """None is dead: including the table includes them all."""
    command = [CC, "-MM", "-x", "c", CSRC / "kernels" / "table.inc.h"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    included = {Path(name).name for name in done.stdout.split()}
    assert {path.name for path in KERNELS} <= included
