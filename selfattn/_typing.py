"""The types of what users may give, for the annotations of the public functions.

Imported by type checkers alone: at run time nothing here is loaded.
"""

from collections.abc import Sequence
from typing import Any, Protocol, SupportsFloat, SupportsIndex

import numpy as np


class SupportsArray(Protocol):
    def __array__(self) -> np.ndarray: ...


class SupportsDLPack(Protocol):
    def __dlpack__(self, *, stream: None = ...) -> Any: ...


class SupportsBuffer(Protocol):
    def __buffer__(self, flags: int, /) -> memoryview: ...


Array = np.ndarray | SupportsArray | SupportsDLPack | SupportsBuffer
Ints = SupportsIndex | Array | Sequence[int]
Starts = Array | Sequence[int]
Sequences = Starts | tuple[Starts, Starts]
Window = tuple[int, int] | Sequence[int]
Number = SupportsFloat
