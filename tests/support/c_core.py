"""The C core compiled by a test itself: by any compiler, for a program that is not Python's.

The sets and their flags are the rows of csrc/isas.def, as for the build.
"""

import re
import subprocess
from pathlib import Path

from support import subprocesses

CSRC = Path(__file__).parents[2] / "csrc"
STRICT = ["-D_GNU_SOURCE", "-std=c11", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]


def isa_flags():
    """Flags of each set, by name; none where there is no source folder beside the tests."""
    isas = CSRC / "isas.def"
    rows = re.findall(
        r'^SA_ISA\((\w+), .*"(.*)"\)$', isas.read_text() if isas.exists() else "", re.M
    )
    return {name: flags.split() for name, flags in rows}


def compiled(compiler, *arguments):
    command = [compiler, *STRICT, f"-I{CSRC}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=subprocesses.LIMIT)
    assert done.returncode == 0, done.stderr


def dtypes():
    """(element, real) of each dtype, by name."""
    rows = re.findall(r"^SA_DTYPE\((\w+), (\w+), (\w+)\)$", (CSRC / "dtypes.def").read_text(), re.M)
    return {name: (element, real) for name, element, real in rows}


def instance(compiler, isa, dtype, folder, *flags):
    """The object file of one set's kernels for one dtype; compiled fast, not to be fast."""
    built = folder / f"{isa}_{dtype}.o"
    element, real = dtypes()[dtype]
    macros = [f"-DSA_ISA={isa}", f"-DSA_DTYPE_NAME={dtype}", f"-DSA_ELEM={element}"]
    macros += [f"-DSA_REAL_DTYPE={real}", f"-DSA_REAL_BITS={real.removeprefix('f')}"]
    macros += [f"-DSA_ELEM_IS_REAL={dtype == real:d}", f'-DSA_SIMD_HEADER="simd/{isa}.h"']
    source = ["-c", CSRC / "instance.c", "-o", built]
    compiled(compiler, "-O0", *macros, *isa_flags()[isa], *flags, *source)
    return built


def program(compiler, main, built, isas, *flags):
    """A program, `main` being its source, with the core and the kernels of float32 of some sets."""
    objects = [instance(compiler, isa, "f32", built.parent, *flags) for isa in isas]
    sources = {*CSRC.glob("*.c")} - {CSRC / "instance.c"} | {main}
    last = ["-o", built, "-lm", "-pthread"]
    compiled(compiler, "-O0", *flags, *sorted(sources), *objects, *last)
