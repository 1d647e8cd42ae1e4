"""Where the command `selfattn` begins: before the package, which a wrong SELFATTN_ISA keeps from
being imported. `selfattn/cli.py` does the rest, and says what is wrong with it.

A module of its own, because whatever is in the package is imported after the package.
"""

from __future__ import annotations

import os

_ISA = "SELFATTN_ISA"


def main() -> int:
    """Import the package without the variable, then heed it; return the exit status."""
    isa = os.environ.pop(_ISA, None)
    from selfattn import _config, cli

    if isa is None:
        return cli.main()
    os.environ[_ISA] = isa
    try:
        _config.force_isa(isa)
    except ImportError as error:
        return cli.main(wrong_isa=str(error))
    return cli.main()
