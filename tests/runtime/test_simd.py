"""Every operation of every header in csrc/simd, against scalar code, bit for bit (simd.c).

The kernels are tested through attention elsewhere. What goes wrong there in one set alone is found
here, in one operation, as is a mistake in a new set's header.
"""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support import subprocesses
from support.c_core import CSRC, isa_flags

HERE = Path(__file__).parent
COMPILERS = [cc for cc in ("gcc", "clang") if shutil.which(cc)] or ["cc"]
pytestmark = pytest.mark.skipif(
    shutil.which(COMPILERS[0]) is None or not CSRC.exists() or os.name != "posix",
    reason="no C compiler, or no source folder beside the tests",
)

FLAGS = isa_flags()
EMULATED = [*FLAGS["avx2"], f"-I{HERE.parent / 'emulated'}", "-Wno-psabi"] if FLAGS else []
SIMDE = Path("/usr/include/simde/x86/avx512.h")
UNSUPPORTED = 77  # simd.c's status

# Header, whether the processor runs it, the compiler's flags.
SETS = {"portable": ("portable.h", "1", [])}
if platform.machine() == "x86_64":
    SETS |= {
        "avx2": ("avx2.h", "sa_cpu_has_avx2_fma()", FLAGS.get("avx2")),
        "avx512": ("avx512.h", "sa_cpu_has_avx512()", FLAGS.get("avx512")),
    }
    if SIMDE.exists():
        SETS["avx512, emulated"] = ("avx512.h", "sa_cpu_has_avx2_fma()", EMULATED)


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=subprocesses.LIMIT)


def defined(header):
    """The names of the operations that a header of csrc/simd defines."""
    text = (CSRC / "simd" / header).read_text()
    macros = r"SA_(?:INLINE|FMA) \w+ |LANEWISE\(|COMPARE\(|WORDWISE\("
    names = set(re.findall(rf"(?:{macros})((?:[uv]|b?f16)_\w+)", text))
    for half in re.findall(r"^HALF\((\w+)\)", text, re.M):
        names |= {f"{half}_load", f"{half}_store", f"{half}_split"}
    return names


def compared(cc, isa, bits, tmp_path, *arguments):
    """How many lanes of each operation were compared by simd.c."""
    header, is_supported, flags = SETS[isa]
    program = tmp_path / "simd"
    header_and_dtype = [f'-DHEADER="simd/{header}"', f"-DSA_REAL_BITS={bits}"]
    macros = ["-D_GNU_SOURCE", *header_and_dtype, f"-DIS_SUPPORTED={is_supported}"]
    exact = ["-std=c11", "-O2", "-ffp-contract=off"]
    sources = [HERE / "simd.c", CSRC / "cpu.c"]
    built = run(cc, *exact, *macros, f"-I{CSRC}", *flags, *sources, "-o", program, "-lm")
    assert built.returncode == 0, built.stderr
    done = run(program, *arguments)
    if done.returncode == UNSUPPORTED:
        pytest.skip(f"this processor does not run {isa}")
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return {name: int(n) for name, n in map(str.split, done.stdout.splitlines())}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("cc", COMPILERS)
def test_every_operation(cc, isa, bits, tmp_path):
    lanes = compared(cc, isa, bits, tmp_path)
    of_floats = {name for name in defined("portable.h") if "f16" in name or "int8" in name}
    assert len(of_floats) == 8
    # v_zeroupper is what test_registers.py is about; half types and int8 are computed in floats.
    wanted = defined("portable.h") - {"v_zeroupper"} - (of_floats if bits == 64 else set())
    assert set(lanes) == wanted
    assert 0 not in lanes.values()


@pytest.mark.long
@pytest.mark.parametrize("isa", SETS)
def test_every_float_as_half(isa, tmp_path):
    """All 2^32 of them through the stores of both half types."""
    lanes = compared(COMPILERS[0], isa, 32, tmp_path, "all floats")
    assert lanes == {"f16_store": 2**32, "bf16_store": 2**32}


def test_every_header_defines_every_operation():
    """And common.h says of each what it does."""
    want = defined("portable.h")
    assert len(want) > 30
    shared = defined("x86.h")
    for header in "avx2.h", "avx512.h":
        assert defined(header) | shared == want
        assert not defined(header) & shared
    contract = (CSRC / "simd" / "common.h").read_text().split("*/")[0]
    assert set(re.findall(r"\b(?:[uv]|b?f16)_\w+", contract)) == want
