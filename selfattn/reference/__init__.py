"""The NumPy truth: what every kernel of selfattn must compute, written to be read.

    attention(q, k, v) = (dropout * softmax(bias + cap(scale * q @ k.T), masked)) @ v

Everything is computed in float64 and returned in the dtype of the inputs, one plain step after
another, the whole L x S matrix in memory. Slow on purpose: the tests compare the kernels with it,
and nothing in the package's fast path calls it. Arguments are taken as valid; shapes, names and
meanings are those of the public functions in `attention.py`, `varlen.py`, `steps.py` and `nn/`.

    steps.py           project, scores, softmax, weighted sum, each on its own
    attention.py       all of them at once
    merging.py         attention over disjoint sets of keys, merged; the gradients of that
    backward.py        the gradients
    varlen.py          packed sequences, forward and backward
    layer.py           the learnable layer, forward and backward
    rotary.py          rotary positions
      scores.py        the scores and the masks, rule by rule
      distribution.py  softmax, with sinks, and sums that leave out what is masked
      dropout.py       which weights dropout keeps
      axes.py          axes that broadcast, and dtypes
"""

from .attention import scaled_dot_product_attention
from .backward import scaled_dot_product_attention_backward
from .dropout import dropout_kept
from .layer import multihead_attention, multihead_attention_backward
from .merging import merge_states, merge_states_backward, merge_states_many
from .rotary import rope, rope_backward
from .steps import (
    attention_weights,
    project,
    project_backward,
    scaled_dot_product,
    softmax,
    weighted_sum,
)
from .varlen import varlen_attention, varlen_attention_backward

__all__ = [
    "attention_weights",
    "dropout_kept",
    "merge_states",
    "merge_states_backward",
    "merge_states_many",
    "multihead_attention",
    "multihead_attention_backward",
    "project",
    "project_backward",
    "rope",
    "rope_backward",
    "scaled_dot_product",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_backward",
    "softmax",
    "varlen_attention",
    "varlen_attention_backward",
    "weighted_sum",
]
