"""What the backward functions return: the gradients, by the names of the inputs.

Built by `backward.py`, `linear.py` and `merging.py`, and by `reference/`. Annotations are evaluated
here: those that are text take a NamedTuple longer to make, at each import of the package.
"""

from typing import Any, NamedTuple

import numpy as np


class _Five(NamedTuple):
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    attn_mask: np.ndarray | None = None
    sinks: np.ndarray | None = None


class AttentionGradients(_Five):
    """The gradients of `sum(grad_out * out)`, each of the shape and dtype of its input.

    Where an axis of the input broadcast, its gradient is summed over that axis. As a tuple it is
    (query, key, value, attn_mask, sinks), and it unpacks into these five; `attn_bias`, which came
    later, is there by its name alone, as the later fields of `os.stat_result` are.

    Attributes
    ----------
    query : array, shape (..., Hq, L, E)
    key : array, shape (..., Hkv, S, E)
    value : array, shape (..., Hkv, S, Ev)
    attn_mask : array, or None
        Only with `mask_grad`; 0 where a query does not see the key.
    sinks : array, shape (Hq,), or None
        Only with `sinks_grad`.
    attn_bias : array, or None
        Only with `bias_grad`; 0 where a query does not see the key.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 5, 4))
    >>> out, lse = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True)
    >>> gradients = selfattn.scaled_dot_product_attention_backward(
    ...     np.ones_like(out), query, key, value, out, lse
    ... )
    >>> gradients.key.shape, gradients.attn_mask is None
    ((5, 4), True)
    >>> of_query, of_key, of_value, of_mask, of_sinks = gradients
    """

    attn_bias: np.ndarray | None = None

    def __new__(
        cls,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        attn_mask: np.ndarray | None = None,
        sinks: np.ndarray | None = None,
        attn_bias: np.ndarray | None = None,
    ) -> "AttentionGradients":
        new = super().__new__(cls, query, key, value, attn_mask, sinks)
        new.attn_bias = attn_bias
        return new

    def _asdict(self) -> dict[str, Any]:
        """All six by name."""
        return {**super()._asdict(), "attn_bias": self.attn_bias}

    def _replace(self, **fields: Any) -> "AttentionGradients":
        """A copy with other values of some of the six."""
        return AttentionGradients(**{**self._asdict(), **fields})

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={x!r}" for name, x in self._asdict().items())
        return f"AttentionGradients({fields})"


class ProjectionGradients(NamedTuple):
    """The gradients of `sum(grad_out * out)` for a projection, each of the shape of its input.

    Attributes
    ----------
    x : array, shape (..., n_in)
    weight : array, shape (n_out, n_in)
    bias : array, shape (n_out,), or None
        None where there is no bias.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> x, weight = np.ones((3, 4)), np.ones((2, 4))
    >>> selfattn.project_backward(np.ones((3, 2)), x, weight, np.ones(2)).bias
    array([3., 3.])
    """

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None = None


class MergeGradients(NamedTuple):
    """The gradients of a merge of states by these, each of the shape of its input.

    Attributes
    ----------
    outs, lses : array, or tuple of arrays
        As the states were given: stacked, or one by one.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> outs, lses = np.array([[[1.0], [2.0]], [[5.0], [7.0]]]), np.zeros((2, 2))
    >>> selfattn.merge_states_backward(np.ones((2, 1)), None, outs, lses).lses
    array([[-1.  , -1.25],
           [ 1.  ,  1.25]])
    """

    outs: np.ndarray | tuple[np.ndarray, ...]
    lses: np.ndarray | tuple[np.ndarray, ...]
