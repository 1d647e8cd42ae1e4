"""Fault 23: on processors that lack an instruction set, none of its instructions is run.

Each is emulated by qemu-user, which stops at an instruction that the model does not have. The
results must have the bits that the kernels give here. A model on which NumPy itself stops, by an
instruction of its own baseline, is left out: test_without_numpy.py has it.
"""

import platform
import shutil
import subprocess
import sys

import pytest

from support import subprocesses

QEMU = shutil.which("qemu-x86_64")
pytestmark = pytest.mark.skipif(
    QEMU is None or platform.machine() != "x86_64", reason="no qemu-user for x86-64 here"
)

# The models, and what they run: the last says that it has AVX2, but not that the system saves its
# registers, which only XGETBV tells.
MODELS = {
    "core2duo": "portable",
    "Nehalem": "portable",
    "Haswell": "avx2",
    "Haswell,-xsave": "portable",
}
CODE = """
import hashlib
import numpy as np
import selfattn

query, key, value = np.random.default_rng(0).standard_normal((3, 2, 40, 16)).astype(np.float32)
print(selfattn.show_config(mode="dicts")["isa"])
for arrays in ((query, key, value), (query[:, :2], key, value)):
    mask = np.tri(arrays[0].shape[1], 40, dtype=bool)
    for options in ({}, {"attn_mask": mask}, {"softcap": 5.0}):
        out = selfattn.scaled_dot_product_attention(*arrays, **options)
        print(hashlib.sha256(out.tobytes()).hexdigest())
"""


def attempt(code, *emulator):
    return subprocess.run(
        [*emulator, sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=subprocesses.LIMIT,
    )


def run(*emulator):
    done = attempt(CODE, *emulator)
    assert done.returncode == 0, done.stderr
    isa, *hashes = done.stdout.split()
    return isa, hashes


@pytest.mark.parametrize("model", MODELS)
def test_processors_without(model, monkeypatch):
    monkeypatch.delenv("SELFATTN_ISA", raising=False)
    if attempt("import numpy", QEMU, "-cpu", model).returncode:
        pytest.skip("NumPy does not run there")
    isa, hashes = run(QEMU, "-cpu", model)
    assert isa == MODELS[model]
    assert hashes == run()[1]
