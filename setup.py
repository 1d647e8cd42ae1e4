"""Build of the one extension, selfattn._core.

csrc/isa/*.c is compiled once for each instruction set, with that set's flags, and no other source
gets any of them. Everything else about the package stands in pyproject.toml. Switches, read from
the environment: SELFATTN_DEBUG=1 (assertions, symbols, no optimisation), SELFATTN_WERROR=1
(warnings are errors), SELFATTN_SANITIZE=address,undefined, and SELFATTN_EMULATE_AVX512=1, which
lets a machine without AVX-512 run those kernels, slowly, for tests (it needs SIMDe's headers).
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))  # where pip's builds do not look
from exact_flags import exact_flags, exact_link_flags

# A new instruction set is a row here, one in csrc/dispatch.c, a test in csrc/cpu.c, a header in
# csrc/simd and its two files in csrc/isa.
ISA_FLAGS = {"portable": []}
X86_FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"],
}
IS_X86 = platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "win32"
EMULATE_AVX512 = os.environ.get("SELFATTN_EMULATE_AVX512")
if EMULATE_AVX512:
    X86_FLAGS["avx512"] = ["-Itests/emulated", *X86_FLAGS["avx2"]]
if IS_X86:
    ISA_FLAGS |= X86_FLAGS

# No -march=native, and no -ffast-math: see exact_flags.py, whose flags come last.
CFLAGS = ["-std=c11", "-O3", "-fvisibility=hidden", "-g0", "-Wall", "-Wextra"]
LDFLAGS = []
MACROS = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), ("_GNU_SOURCE", None)]
if IS_X86:
    MACROS.append(("SA_HAVE_X86", None))
    if EMULATE_AVX512:
        MACROS.append(("SA_EMULATED_AVX512", None))
if os.environ.get("SELFATTN_DEBUG"):
    CFLAGS += ["-O0", "-g3", "-UNDEBUG"]
if os.environ.get("SELFATTN_WERROR"):
    CFLAGS += ["-Werror"]
if sanitizers := os.environ.get("SELFATTN_SANITIZE"):
    CFLAGS += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g3"]
    LDFLAGS += [f"-fsanitize={sanitizers}"]
if sys.platform == "win32":
    CFLAGS, LDFLAGS = ["/std:c11", "/O2", "/fp:precise"], []
elif sys.platform == "linux":
    LDFLAGS += ["-pthread", "-lm"]


class BuildPerIsa(build_ext):
    """build_ext that compiles csrc/isa/<isa>_<dtype>.c with the flags of its set."""

    def build_extension(self, ext):
        exact = []
        if sys.platform != "win32":
            exact = exact_flags(self.compiler.compiler_so)
            ext.extra_compile_args = CFLAGS + exact
            ext.extra_link_args = LDFLAGS + exact_link_flags(self.compiler.linker_so)

        def compiled(job):
            source, flags = job
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=MACROS,
                extra_postargs=CFLAGS + flags + exact,
                depends=ext.depends,
            )

        # Several at once, since they take most of a build's time.
        jobs = [
            (str(source), flags)
            for isa, flags in ISA_FLAGS.items()
            for source in sorted(Path("csrc/isa").glob(f"{isa}_*.c"))
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ext.extra_objects += chain.from_iterable(pool.map(compiled, jobs))
        super().build_extension(ext)


core = Extension(
    "selfattn._core",
    sources=["selfattn/_core.pyx", *sorted(str(path) for path in Path("csrc").glob("*.c"))],
    include_dirs=["csrc", numpy.get_include()],
    define_macros=MACROS,
    extra_compile_args=CFLAGS,
    extra_link_args=LDFLAGS,
    # What is not listed here is neither rebuilt when it changes nor part of the sdist.
    depends=sorted(
        str(path)
        for pattern in ("*.h", "*.def", "simd/*.h", "kernels/*.h", "isa/*.c")
        for path in Path("csrc").glob(pattern)
    )
    + sorted(str(path) for path in Path("selfattn").glob("*.pxd")),
)

setup(
    ext_modules=cythonize([core], compiler_directives={"language_level": 3}),
    cmdclass={"build_ext": BuildPerIsa},
)
