"""What this installation is and which kernels run: `isas()`, `show_config()`."""

from __future__ import annotations

import itertools
import os
import platform
import sys

import numpy as np

from . import _core, _threads, _version


def _is_the_command() -> bool:
    """Whether this process is `selfattn`, or `python -m selfattn`, not another program."""
    program = (getattr(sys, "argv", None) or [""])[0]
    if program == "-m":  # Python is looking for the module that it was told to run
        _, *words = sys.orig_argv
        return "-mselfattn" in words or ("-m", "selfattn") in itertools.pairwise(words)
    return os.path.basename(program) in ("selfattn", "selfattn.exe")


_forced = os.environ.get("SELFATTN_ISA", "")
wrong_isa = ""
# A name that is no valid text is not one of them.
if _forced and not (_forced in _core.isas() and _core.force_isa(_forced)):
    wrong_isa = (
        f"SELFATTN_ISA: expected one of {', '.join(_core.isas())}, which this machine can run, "
        f"got {_forced!r}"
    )
    _forced = ""
    # The command says so itself, and `selfattn info` which there are.
    if not _is_the_command():
        raise ImportError(wrong_isa)


def isas() -> list[str]:
    """Return the names of the instruction sets that this machine can run, best first.

    Examples
    --------
    >>> import selfattn
    >>> selfattn.isas()[-1]
    'portable'
    """
    return _core.isas()


def show_config(mode: str = "stdout") -> dict[str, object] | None:
    """Print which kernels run and why, or return it as a dict, as `numpy.show_config` does.

    Parameters
    ----------
    mode : {"stdout", "dicts"}

    Raises
    ------
    ValueError
        For another mode.

    Examples
    --------
    >>> import selfattn
    >>> selfattn.show_config("dicts")["version"] == selfattn.__version__
    True
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode: expected 'stdout' or 'dicts', got {mode!r}")
    config: dict[str, object] = {
        "version": _version.__version__,
        "isa": _core.isa(),
        "reason": "forced by SELFATTN_ISA" if _forced else "the best that this CPU and system run",
        "isas": _core.isas(),
        "isas_built": _core.isas_built(),
        "num_threads": _threads.get_num_threads(),
        "compiler": _core.compiler(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    if mode == "dicts":
        return config
    for name, what in config.items():
        print(f"{name + ':':<13}{', '.join(what) if isinstance(what, list) else what}")
    return None
