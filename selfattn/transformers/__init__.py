"""selfattn as an attention implementation of Hugging Face's transformers, on the CPU.

    registration.py      register_transformers: makes the two names known
      -> attention.py    the attention function: a module's call as a call of selfattn.torch
      -> masks.py        the mask function: what a model's mask says, as a Rule where it can be
        -> recognition.py    what transformers' functions of positions say
        -> rules.py          Rule: lengths, windows, offsets, ids of segments; as a dense mask too
        -> masktensor.py     a Rule as the tensor that models hand from one to the other
      -> unpadded.py     the second name: batches without their padding, by varlen_attention

Loaded when it is first asked for, and only then are PyTorch and transformers. docs/transformers.md
is its page.
"""

try:
    import transformers as _transformers  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "selfattn.transformers: expected transformers, which is not installed "
        "(pip install 'selfattn[transformers]')",
        name=error.name,
    ) from error

from .registration import register_transformers

__all__ = ["register_transformers"]
