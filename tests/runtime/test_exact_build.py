"""Flags of the environment that let a compiler compute something else are taken back or refused.

Fault 36. What setup.py adds after them (exact_flags.py) must leave the same instructions as if they
were not there, and nothing at the start of the process that flushes denormals; and where nobody
takes them back, csrc/strict_math.h stops the build. Each compiler of this machine is tried.
"""

import functools
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "csrc" / "strict_math.h"
COMPILERS = [cc for cc in ("gcc", "clang") if shutil.which(cc)]
pytestmark = [
    pytest.mark.skipif(not HEADER.exists(), reason="no source folder beside the tests"),
    pytest.mark.skipif(not COMPILERS, reason="no gcc or clang here"),
]
each_compiler = pytest.mark.parametrize("cc", COMPILERS)

FLAGS = [
    "-ffast-math",
    "-Ofast",
    "-funsafe-math-optimizations",
    "-ffinite-math-only",
    "-fassociative-math -fno-signed-zeros -fno-trapping-math",
    "-freciprocal-math",
    "-fno-signed-zeros",
    "-ffp-contract=fast",
    "-fexcess-precision=fast",
    "-fsingle-precision-constant",
    "-mrecip",
    "-mfpmath=387",
    "-mdaz-ftz",
    "-fapprox-func",
    "-fno-honor-nans",
    "-fno-honor-infinities",
    "-fdenormal-fp-math=positive-zero",
    "-ffp-model=fast",
    "-ffp-eval-method=double",
]
FAST = {"-ffast-math", "-Ofast", "-ffp-model=fast"}  # which are all at once
# Macros of gcc tell these; clang's, those that take all numbers for finite.
SEEN_BY_GCC = {
    "-ffast-math",
    "-Ofast",
    "-funsafe-math-optimizations",
    "-ffinite-math-only",
    "-fassociative-math",
    "-freciprocal-math",
    "-fno-signed-zeros",
}
SEEN_BY_CLANG = {*FAST, "-ffinite-math-only"}

# Each is compiled to something else under some of the flags.
CODE = """
#include <math.h>
float reordered(float x) { return (x + 1e8f) - 1e8f; }
float sum(const float *x, int n) { float s = 0; for (int i = 0; i < n; ++i) s += x[i]; return s; }
float quotient(float x) { return x / 3; }
double inverse(double x) { return exp(log(x)); }
double root(double x) { return 1 / sqrt(x); }
float plus_zero(float x) { return x + 0.0f; }
float times_zero(float x) { return x * 0; }
int is_nan(float x) { return x != x; }
int is_inf(float x) { return isinf(x); }
double contracted(double a, double b, double c) { return a * b + c; }
double single(float x) { return x * 0.1; }
float denormal(float x) { return 1e-40f * 0.5f + x; }
"""


@functools.cache
def exact():
    spec = importlib.util.spec_from_file_location("exact_flags", ROOT / "exact_flags.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def check_only(compiler, *source):
    return run(*compiler, "-fsyntax-only", "-x", "c", *source)


@functools.cache
def known(cc):
    """Those of FLAGS that this compiler knows, each after it, and all that go together."""
    rows, together = [], [cc]
    for flags in FLAGS:
        if check_only([cc, *flags.split()], os.devnull).returncode == 0:
            rows.append([cc, *flags.split()])
        if check_only([*together, *flags.split()], os.devnull).returncode == 0:
            together += flags.split()
    assert len(rows) > len(FLAGS) // 2
    return [*rows, together]


def assembly(compiler, *last):
    fma = ["-mfma"] * (check_only([*compiler, "-mfma"], os.devnull).returncode == 0)
    flags = ["-std=c11", "-O3", *fma, *last, "-S", "-o", "-", "-x", "c", "-"]
    done = run(*compiler, *flags, input=CODE)
    assert done.returncode == 0, done.stderr
    return done.stdout


@each_compiler
def test_the_same_instructions(cc):
    want = assembly([cc], "-ffp-contract=off")
    last = exact().exact_flags([cc])
    assert assembly([cc], *last) == want
    by_name = [flag for flag in last if flag != "-fno-fast-math"]
    for compiler in known(cc):
        assert assembly(compiler, *last) == want, compiler
        if not FAST & set(compiler):
            assert assembly(compiler, *by_name) == want, compiler
    assert exact().exact_flags([*compiler, "-Werror"]) == last, "asked among all of them"
    assert assembly(compiler) != want, "the code has nothing that they change"


@each_compiler
def test_nothing_flushes_denormals_at_the_start(cc, tmp_path):
    library = tmp_path / "library.so"
    last = exact().exact_link_flags([cc, "-shared"])
    for compiler in [[cc], *known(cc)]:
        link = [*compiler, "-shared", "-fPIC", "-o", library, "-x", "c", "-", "-lm", *last]
        done = run(*link, input="int nothing;")
        assert done.returncode == 0, done.stderr
        assert b"set_fast_math" not in library.read_bytes(), compiler
    assert exact().exact_link_flags([*compiler, "-shared", "-Werror"]) == last


@each_compiler
def test_the_header_refuses_what_it_sees(cc):
    is_clang = " __clang__ " in run(cc, "-dM", "-E", "-x", "c", os.devnull).stdout
    seen = SEEN_BY_CLANG if is_clang else SEEN_BY_GCC
    assert check_only([cc], HEADER).returncode == 0
    for compiler in known(cc):
        if seen & set(compiler):
            done = check_only(compiler, HEADER)
            assert "results are exact: compile without -ffast-math" in done.stderr, compiler
            assert done.returncode != 0
    done = check_only([*compiler, "-O3", *exact().exact_flags([cc])], HEADER)  # all of them
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("header", ["selfattn.h", "simd/portable.h"])
def test_the_headers_include_it(header):
    compiler = [COMPILERS[0], "-DSA_REAL_BITS=32"]
    assert check_only(compiler, ROOT / "csrc" / header).returncode == 0
    done = check_only([*compiler, "-ffast-math"], ROOT / "csrc" / header)
    assert "results are exact" in done.stderr
