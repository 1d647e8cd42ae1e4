"""What transformers' functions of positions say.

A model's mask is given to a mask function as a function of (batch entry, head, query's place, key's
place). transformers builds it from the few functions below, whose code and enclosed variables say
which one it is and of what. Any other function is not recognised, and its mask is made densely.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

_made_by: Any = masking_utils


@dataclass
class Pattern:
    """Which keys a query sees, by the places of both. See `Rule` for the fields of its names.

    chunk_size, left_padding    a query sees keys of its own chunk; chunks are counted from the
                                first place after the padding, a tensor of shape (B,)
    positions, sequences        of packed sequences: the place of each token in its own sequence,
                                which chunks are counted by, and the number of its sequence
    """

    is_causal: bool = False
    window: tuple[int, int] = (-1, -1)
    chunk_size: int | None = None
    left_padding: Tensor | None = None
    positions: Tensor | None = None
    sequences: Tensor | None = None

    def narrow(self, left: int, right: int) -> None:
        """Intersect the window with another one."""
        self.window = _narrower(self.window[0], left), _narrower(self.window[1], right)


def _narrower(one: int, other: int) -> int:
    """The narrower of two sides of windows, -1 where neither is bounded."""
    return max(one, other) if min(one, other) < 0 else min(one, other)


def recognised(mask_function: Callable[..., Any]) -> Pattern | None:
    """The pattern of a function of positions; None if it is none of those known here."""
    pattern = Pattern()
    if not _read(mask_function, pattern):
        return None
    if pattern.positions is not None and pattern.sequences is None:
        return None  # places that start anew, in a sequence that does not
    return pattern


def _read(function: Any, pattern: Pattern) -> bool:
    """Add what the function says to the pattern. False if it is not known."""
    code: Any = getattr(function, "__code__", None)
    reader = _READERS.get(code)
    if reader is None:
        return False
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    return reader(dict(zip(code.co_freevars, cells, strict=True)), pattern)


def _causal(_: Any, pattern: Pattern) -> bool:
    pattern.is_causal = True
    return True


def _everything(_: Any, pattern: Pattern) -> bool:
    return True


def _all_of(enclosed: Any, pattern: Pattern) -> bool:
    return all(_read(function, pattern) for function in enclosed["mask_functions"])


def _window(enclosed: Any, pattern: Pattern) -> bool:
    pattern.narrow(int(enclosed["sliding_window"]) - 1, -1)
    return int(enclosed["sliding_window"]) >= 1


def _window_of_both_sides(enclosed: Any, pattern: Pattern) -> bool:
    width = int(enclosed["sliding_window"])
    pattern.narrow(width, width)
    return width >= 0


def _chunks(enclosed: Any, pattern: Pattern) -> bool:
    if pattern.chunk_size is not None:
        return False
    pattern.chunk_size = int(enclosed["chunk_size"])
    pattern.left_padding = enclosed["left_padding"]
    return True


def _positions_of_packed(enclosed: Any, pattern: Pattern) -> bool:
    if pattern.positions is not None:
        return False
    pattern.positions = enclosed["position_ids"]
    return _read(enclosed["mask_function"], pattern)


def _packed(enclosed: Any, pattern: Pattern) -> bool:
    if pattern.sequences is not None:
        return False
    pattern.sequences = enclosed["packed_sequence_mask"]
    return True


def _of_no_use(*_: Any) -> Any:
    """What the makers below enclose, so that the code of what they return can be had."""


def _code(name: str, *arguments: Any) -> Any:
    """The code of a function of positions, by its name or, with arguments, by its maker's."""
    function = getattr(_made_by, name)
    return (function(*arguments) if arguments else function).__code__


_READERS: dict[Any, Callable[[Any, Pattern], bool]] = {
    _code("causal_mask_function"): _causal,
    _code("bidirectional_mask_function"): _everything,
    _code("and_masks", _of_no_use): _all_of,
    _code("sliding_window_overlay", 1): _window,
    _code("sliding_window_bidirectional_overlay", 1): _window_of_both_sides,
    _code("chunked_overlay", 1, torch.zeros(1)): _chunks,
    _code("remap_positions_for_packed_sequence", _of_no_use, None): _positions_of_packed,
    _code("packed_sequence_mask_function", None): _packed,
}
