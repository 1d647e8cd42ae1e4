"""Compilers' flags that take back -ffast-math, -Ofast and their kin: docs/bits.md says why.

A packager's environment may hold such flags, in CFLAGS or LDFLAGS, and the compiler then computes
something else than the code says, without a word. setup.py gives these after them; what is left,
csrc/strict_math.h refuses. Each is named, since it depends on the compiler which of the others
-fno-fast-math takes back: on a link, none. Where no such flag is given they change nothing.
"""

import os
import subprocess
from itertools import pairwise

OF_BOTH = [
    "-ffp-contract=off",  # before the next, at which clang warns where it was not off
    "-fno-fast-math",
    "-fno-associative-math",
    "-fno-reciprocal-math",
    "-fno-finite-math-only",
    "-fsigned-zeros",
    "-mrecip=none",  # x86, as the next
    "-mfpmath=sse",
]
OF_CLANG = [
    "-fno-approx-func",
    "-fdenormal-fp-math=ieee",
    "-ffp-eval-method=source",
]
OF_GCC = [
    "-fno-unsafe-math-optimizations",  # clang 14 takes it to ask for traps, and is slow
    "-fno-single-precision-constant",
    "-fexcess-precision=standard",
]
# On a link, fast math adds a start-up file that flushes denormals to zero in the whole process.
OF_LINKS = [
    "-O3",  # and not -Ofast
    "-fno-fast-math",
    "-fno-unsafe-math-optimizations",
    "-mno-daz-ftz",
]


# What the environment may say about arithmetic and warnings. Compilers are asked without it, since
# they answer otherwise where flags contradict each other.
NOT_ASKED = ("-f", "-O", "-W", "-mrecip", "-mfpmath", "-mdaz")


def exact_flags(compiler):
    """What this compiler, a command with arguments, is told last of all."""
    is_clang = " __clang__ " in _ask(compiler, "-dM", "-E").stdout
    return _known(compiler, OF_BOTH + (OF_CLANG if is_clang else OF_GCC))


def exact_link_flags(linker):
    """The same of the command that links, which is a compiler's too."""
    return _known(linker, OF_LINKS)


def _known(command, flags):
    """Those of the flags that a compiler knows, in its version and for its machine."""

    def is_known(flag):
        done = _ask(command, flag, "-fsyntax-only")
        warned = done.stderr.splitlines()
        ignored = any(flag in line and "is not supported" in line for line in warned)  # clang's
        return done.returncode == 0 and not ignored

    return [flag for flag in flags if is_known(flag)]


def _ask(command, *flags):
    def is_asked(before, word):
        argument = before.startswith("-X") or word == "-framework"  # which have one, or are one
        return argument or not word.startswith(NOT_ASKED)

    pairs = pairwise(["", *command])
    words = [word for before, word in pairs if is_asked(before, word)]
    return subprocess.run(
        [*words, *flags, "-x", "c", os.devnull], capture_output=True, text=True, errors="replace"
    )
