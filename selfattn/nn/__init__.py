"""Layers that learn, in NumPy around the kernels: forward, backward, and their weights in files.

    multihead.py   MultiheadAttention: project -> attend -> project, and the gradients of it
    projection.py  the projections of a layer: their weights under torch's names, forward, backward
    rotary.py      rope: rotary positions, forward and backward
    files.py       save, load: arrays by name in .npz and .safetensors

Loaded when it is first asked for. Projections are those of `linear.py`, and attention is
`attention.py`'s and `backward.py`'s.
"""

from .files import load, save
from .multihead import MultiheadAttention
from .rotary import rope, rope_backward

__all__ = ["MultiheadAttention", "load", "rope", "rope_backward", "save"]
