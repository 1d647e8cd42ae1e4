"""Why the compiled core is not there, in words for who may be standing in a clone.

Imported by `__init__.py` where the core could not be, and only then.
"""

from __future__ import annotations

import os
import platform
from importlib.machinery import EXTENSION_SUFFIXES

_HERE = os.path.dirname(os.path.abspath(__file__))


def explained(error: ImportError) -> ImportError:
    """The error that says what to do, or the one that came if there is a core but it fails."""
    if any(os.path.exists(os.path.join(_HERE, f"_core{suffix}")) for suffix in EXTENSION_SUFFIXES):
        return error
    what = f"selfattn: {_HERE} has no compiled core for Python {platform.python_version()}"
    tree = os.path.dirname(_HERE)
    if os.path.exists(os.path.join(tree, "setup.py")):
        return ImportError(
            f"{what}, because it is the source tree. Build it there, by `pip install -e {tree}`; "
            "or, where selfattn is installed, run Python from another folder, or with -P"
        )
    return ImportError(f"{what}: install selfattn again, with this Python's pip")
