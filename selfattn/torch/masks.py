"""Masks of floats that say no more than bools do.

PyTorch makes floats of bools on their way to attention: in its layers, and before the kernels that
its dispatcher calls. To selfattn's kernels they are not the same: a float mask has the scores in
natural units, which rounds them otherwise (docs/bits.md). So a padded entry of a batch, which has
a mask, would have other bits than alone, without one; unless the bools are found again.
"""

from __future__ import annotations

import numpy as np

from .._args.shapes import unrepeated


def bools_of(mask: np.ndarray) -> np.ndarray:
    """The bools that a mask of nothing but 0 and -inf stands for; any other mask as it is."""
    if mask.dtype == bool:
        return mask
    once = unrepeated(mask) if 0 in mask.strides else mask
    if once.size and once.flat[0] != 0 and once.flat[0] != -np.inf:
        return mask
    keep = once == 0
    if not (keep | (once == -np.inf)).all():
        return mask
    return np.broadcast_to(keep, mask.shape)
