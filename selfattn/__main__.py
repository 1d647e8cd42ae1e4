"""`python -m selfattn` is the command `selfattn`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
