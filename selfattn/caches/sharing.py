"""Objects that several threads may change at once: what belongs together changes under a lock.

The lock is held while rows are written and pages change hands, never while attention is computed.
Base of both caches.
"""

from __future__ import annotations

import threading
from typing import Any


class Shared:
    """Has a lock, which copies and pickles do not take along."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
