"""Build of the one extension, selfattn._core.

csrc/instance.c is compiled once for each instruction set (csrc/isas.def) and dtype
(csrc/dtypes.def), with that set's flags, and no other source gets any of them. Everything else
about the package stands in pyproject.toml. Switches, read from the environment: SELFATTN_DEBUG=1
(assertions, symbols, no optimisation), SELFATTN_WERROR=1 (warnings are errors),
SELFATTN_SANITIZE=address,undefined, and SELFATTN_EMULATE_AVX512=1, which lets a machine without
AVX-512 run those kernels, slowly, for tests (it needs SIMDe's headers).
"""

import copy
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, product
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError

sys.path.insert(0, str(Path(__file__).parent))  # where pip's builds do not look
from exact_flags import exact_flags, exact_link_flags

EMULATE_AVX512 = os.environ.get("SELFATTN_EMULATE_AVX512")
OPTIMIZED = not (os.environ.get("SELFATTN_DEBUG") or os.environ.get("SELFATTN_SANITIZE"))


def rows_of(file, macro):
    """The arguments of each line `macro(...)` of a .def file, as strings."""
    lines = re.findall(rf"^{macro}\((.*)\)$", Path(file).read_text(), re.MULTILINE)
    return [[word.strip().strip('"') for word in line.split(",")] for line in lines]


def check_compiler(command=None):
    """Raise one line where nothing can be built; what comes of it otherwise is forty."""
    if sys.platform == "win32":
        raise PlatformError("selfattn: there is no build for Windows yet, only for POSIX systems")
    if command is None:  # the one that setuptools takes
        command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    try:
        subprocess.run([*command, "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = error.strerror if isinstance(error, OSError) else "it fails"
        raise PlatformError(
            f"selfattn: needs a C compiler, and {command[0]!r} cannot be run ({why}). Install one "
            "(Debian: apt-get install gcc), or name yours by CC=…"
        ) from None


def ask(compiler):
    """What a compiler, a command, builds for, a name of isas.def; and whether it is clang."""
    command = [*compiler, "-dM", "-E", "-x", "c", os.devnull]
    macros = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return "x86" if " __x86_64__ " in macros else "other", " __clang__ " in macros


def isa_flags(machine, is_clang):
    """Flags of each instruction set that is built for a machine."""
    flags = {
        name: words.split()
        for name, family, _, words in rows_of("csrc/isas.def", "SA_ISA")
        if family in ("any", machine)
    }
    if machine == "x86" and OPTIMIZED:
        # A fallback there, which need not be large: these make each compiler's smallest.
        flags["portable"].append("-Os" if is_clang else "-O2")
    if OPTIMIZED:  # kernels raise nothing and call nothing that does
        for words in flags.values():
            words.append("-fno-asynchronous-unwind-tables")
    if is_clang:  # it widens even the loops over what vectors leave over: an eighth of all code
        for name in flags.keys() - {"portable"}:
            flags[name] += ["-fno-vectorize", "-fno-slp-vectorize"]
    if EMULATE_AVX512:
        flags["avx512"] = ["-Itests/emulated", *flags["avx2"]]
    return flags


# No -march=native, and no -ffast-math: see exact_flags.py, whose flags come last.
CFLAGS = ["-std=c11", "-O3", "-fvisibility=hidden", "-g0", "-Wall", "-Wextra"]
LDFLAGS = []
MACROS = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), ("_GNU_SOURCE", None)]
if EMULATE_AVX512:
    MACROS.append(("SA_EMULATED_AVX512", None))
if os.environ.get("SELFATTN_DEBUG"):
    CFLAGS += ["-O0", "-g3", "-UNDEBUG"]
if os.environ.get("SELFATTN_WERROR"):
    CFLAGS += ["-Werror"]
if sanitizers := os.environ.get("SELFATTN_SANITIZE"):
    # At -O1: gcc takes a quarter of an hour over the checks of the kernels at -O3.
    CFLAGS += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g1", "-O1"]
    LDFLAGS += [f"-fsanitize={sanitizers}"]
elif sys.platform == "linux" and not os.environ.get("SELFATTN_DEBUG"):
    LDFLAGS += ["-s"]  # no names of what is static
if sys.platform == "linux":
    LDFLAGS += ["-pthread", "-lm"]


class CheckedBuild(build):
    """build that asks for a compiler before it says all that it copies."""

    def run(self):
        check_compiler()
        super().run()


class BuildPerIsa(build_ext):
    """build_ext that compiles csrc/instance.c for each instruction set and dtype."""

    def build_extension(self, ext):
        check_compiler(self.compiler.compiler_so)
        exact = exact_flags(self.compiler.compiler_so)
        machine, is_clang = ask(self.compiler.compiler_so)
        macros = [*MACROS, *([("SA_HAVE_X86", None)] if machine == "x86" else [])]
        ext.define_macros = macros
        ext.extra_compile_args = CFLAGS + exact
        ext.extra_link_args = LDFLAGS + exact_link_flags(self.compiler.linker_so)

        # Kernels know nothing of Python: a compiler that keeps results finds them for the next one.
        of_kernels = copy.copy(self.compiler)
        of_kernels.include_dirs = []

        def compiled(instance):
            (isa, flags), (dtype, element, real) = instance
            return of_kernels.compile(
                ["csrc/instance.c"],
                output_dir=f"{self.build_temp}/{isa}_{dtype}",
                macros=[
                    *macros,
                    ("SA_ISA", isa),
                    ("SA_DTYPE_NAME", dtype),
                    ("SA_ELEM", element),
                    ("SA_REAL_DTYPE", real),
                    ("SA_REAL_BITS", real.removeprefix("f")),
                    ("SA_ELEM_IS_REAL", str(int(dtype == real))),
                    ("SA_SIMD_HEADER", f'"simd/{isa}.h"'),
                ],
                extra_postargs=CFLAGS + flags + exact,
                depends=ext.depends,
            )

        # Several at once, since they take most of a build's time.
        dtypes = rows_of("csrc/dtypes.def", "SA_DTYPE")
        instances = product(isa_flags(machine, is_clang).items(), dtypes)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ext.extra_objects += chain.from_iterable(pool.map(compiled, instances))
        super().build_extension(ext)


SOURCES = {str(path) for path in Path("csrc").glob("*.c")} - {"csrc/instance.c"}

core = Extension(
    "selfattn._core",
    sources=["selfattn/_core.pyx", *sorted(SOURCES)],
    include_dirs=["csrc", numpy.get_include()],
    # What is not listed here is neither rebuilt when it changes nor part of the sdist.
    depends=sorted(
        str(path)
        for pattern in ("*.h", "*.def", "simd/*.h", "kernels/*.h", "instance.c")
        for path in Path("csrc").glob(pattern)
    )
    + sorted(str(path) for path in Path("selfattn").glob("*.px[di]")),
)

setup(
    ext_modules=cythonize([core], compiler_directives={"language_level": 3}),
    cmdclass={"build": CheckedBuild, "build_ext": BuildPerIsa},
)
