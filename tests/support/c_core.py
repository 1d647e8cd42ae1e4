"""The C core compiled by a test itself: by any compiler, for a program that is not Python's.

The sets and their flags are the rows of csrc/isas.def, as for the build.
"""

import re
import subprocess
from pathlib import Path

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
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def instance(compiler, isa, bits, folder, *flags):
    """The object file of one set's kernels for one dtype; compiled fast, not to be fast."""
    built = folder / f"{isa}_f{bits}.o"
    macros = [f"-DSA_ISA={isa}", f"-DSA_DTYPE_NAME=f{bits}", f"-DSA_REAL_BITS={bits}"]
    macros.append(f'-DSA_SIMD_HEADER="simd/{isa}.h"')
    source = ["-c", CSRC / "instance.c", "-o", built]
    compiled(compiler, "-O0", *macros, *isa_flags()[isa], *flags, *source)
    return built


def program(compiler, main, built, isas, *flags):
    """A program, `main` being its source, with the core and the kernels of float32 of some sets."""
    objects = [instance(compiler, isa, 32, built.parent, *flags) for isa in isas]
    sources = {*CSRC.glob("*.c")} - {CSRC / "instance.c"} | {main}
    last = ["-o", built, "-lm", "-pthread"]
    compiled(compiler, "-O0", *flags, *sorted(sources), *objects, *last)
