"""The learnable layer: project the input, attend in every head, project what the heads found.

    query, key, value = x Wq' + bq, context Wk' + bk, context Wv' + bv
    out = [head 1, ..., head H] Wo' + bo,   head h = attention(query h, key h, value h)

A head is a view of its columns, so nothing is copied between the products and the kernels. Called
by users; attention is `attention.py`'s and `backward.py`'s, the products `linear.py`'s. The
truth it is tested against is `reference/layer.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _args
from .._args.layers import (
    layer_dtype,
    layer_input,
    layer_inputs,
    layer_leading,
    layer_options,
    layer_rng,
    layer_sizes,
    layer_state,
)
from .._args.rotary import rotary_offset
from ..attention import scaled_dot_product_attention
from ..backward import scaled_dot_product_attention_backward
from ..linear import project
from ..steps import attention_weights
from .projection import Layout, grad_of_input, write_grads
from .rotary import rope, rope_backward

if TYPE_CHECKING:
    from .._typing import Array

    Context = Array | tuple[Array, Array]


_ATTENTION, _WEIGHTS = (
    tuple(option.name for option in _args.options_of(f"MultiheadAttention.{method}"))
    for method in ("forward", "attention_weights")
)
_ROPE = tuple(
    name
    for name in inspect.signature(rope).parameters
    if name not in ("x", "offset", "out", "num_threads")
)


class _Saved(NamedTuple):
    """What `forward` leaves for `backward`."""

    inputs: tuple[np.ndarray, ...]  # of query, of key, of value
    num_inputs: int  # as how many arrays: 1 for x alone, 2 with a context, 3 with a pair
    rows: tuple[np.ndarray, ...]  # query, key, value by heads
    merged: np.ndarray  # what attention returned, heads side by side
    lse: np.ndarray
    rope: list[dict[str, Any]]  # its arguments for query and for key; empty without it
    options: dict[str, Any]


class MultiheadAttention:
    """Multi-head attention with learnable projections, forward and backward; batch first.

    Parameters
    ----------
    embed_dim : int
        Width of x and of the result; a multiple of `num_heads`.
    num_heads : int
        Heads of the query, each of head_dim `embed_dim / num_heads`.
    num_heads_kv : int, optional
        Heads of key and value, which groups of query heads share: a number that divides
        `num_heads`, which it is unless given.
    bias : bool
        Add a bias to each projection.
    kdim, vdim : int, optional
        Widths of what keys and values are projected from; `embed_dim` unless given.
    dtype : dtype
        float32, float64, float16 or bfloat16: of parameters, inputs and results.
    seed : int, optional
        Of the parameters' first values, or whatever `numpy.random.default_rng` takes. They are
        drawn as torch's are (other numbers, the same distributions), biases 0; the same for both
        dtypes, up to rounding.

    Attributes
    ----------
    params : dict of str to array
        The parameters, under torch's names; an optimiser writes into these arrays.
    grads : dict of str to array
        Their gradients, under the same names, after a `backward`; the next one overwrites them.
        Those of an attention mask and of sinks stand beside them where they were asked for.
    embed_dim, num_heads, num_heads_kv, head_dim, kdim, vdim : int
    dtype : numpy.dtype

    Raises
    ------
    TypeError, ValueError
        For a wrong kind or dtype; for a wrong shape or value, in the constructor and every method.

    Notes
    -----
    Vaswani et al., "Attention is all you need" (2017), section 3.2.2; groups after Ainslie et al.,
    "GQA" (2023). Parameters have the names and shapes of `torch.nn.MultiheadAttention`'s, so
    weights move both ways; with groups `in_proj_weight` has `embed_dim + 2 * num_heads_kv *
    head_dim` rows. What differs from torch's layer: masks say what is attended (True = attend), as
    `scaled_dot_product_attention` has it, and lengths of padded sequences go to `kv_lengths`;
    dropout is an option of each call, and `attention_weights` returns the maps.

    A sequence's result and the gradient of its x have the same bits alone and in any batch, and so
    have those of a causal prefix, whatever the number of threads and the instruction set. The
    gradients of the parameters are sums over all rows of a batch, and depend on them.

    Padding that holds NaN changes nothing where it is a context's and `kv_lengths` leaves it out.
    In self-attention padded rows are queries too, and a NaN query that sees keys makes their
    gradients NaN: say by `query_lengths` that they are none, or give padding a segment of its own
    (`segment_ids`).

    Examples
    --------
    >>> import numpy as np
    >>> from selfattn import nn
    >>> layer = nn.MultiheadAttention(8, num_heads=2, seed=0)
    >>> x = np.random.default_rng(0).standard_normal((3, 5, 8), np.float32)
    >>> out = layer.forward(x, is_causal=True)
    >>> grad_x = layer.backward(np.ones_like(out))
    >>> out.shape, grad_x.shape, list(layer.grads)[0]
    ((3, 5, 8), (3, 5, 8), 'in_proj_weight')
    >>> for name, x in layer.params.items():
    ...     x -= 0.1 * layer.grads[name]
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_heads_kv: int | None = None,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        dtype: Any = np.float32,
        seed: Any = None,
    ) -> None:
        self.embed_dim, self.num_heads, self.num_heads_kv, self.kdim, self.vdim = layer_sizes(
            embed_dim, num_heads, num_heads_kv, kdim, vdim
        )
        self.head_dim = self.embed_dim // self.num_heads
        self.dtype = layer_dtype(dtype)
        self._layout = Layout(
            self.embed_dim,
            self.num_heads_kv * self.head_dim,
            self.kdim,
            self.vdim,
            _args.flag("bias", bias),
        )
        self.params = self._layout.initial(layer_rng("seed", seed), self.dtype)
        self.grads: dict[str, np.ndarray] = {}
        self._saved: _Saved | None = None

    def forward(
        self,
        x: Array,
        context: Context | None = None,
        *,
        rope: Mapping[str, Any] | None = None,
        requires_grad: bool = True,
        **attention_options: Any,
    ) -> np.ndarray:
        """Attend from each row of x to the rows of `context`, or of x itself.

        Parameters
        ----------
        x : array, shape (..., L, embed_dim)
        context : array, shape (..., S, kdim), or a pair of it and an array (..., S, vdim), optional
            What keys and values are projected from; a pair has one for each. The leading axes of
            all broadcast.
        rope : mapping, optional
            Rotate queries and keys by their positions, with these options of `nn.rope`; {} for
            its defaults. Keys stand at 0 to S - 1 and queries from `query_offset` (where it is an
            array, one over x's own leading axes), or both at `positions`.
        requires_grad : bool
            Keep what `backward` needs, by reference: x, context, parameters and arrays among the
            options must stay as they are until then. False keeps nothing, and a call then changes
            nothing in the layer: several threads may call it at once.
        **attention_options
            Those of `scaled_dot_product_attention`: attn_mask, dropout_p, is_causal, scale,
            attn_bias, query_offset, query_lengths, kv_starts, kv_lengths, window_size, softcap,
            alibi_slopes, sinks, segment_ids, dropout_seed, num_threads.

        Returns
        -------
        array, shape (..., L, embed_dim)
        """
        keep = _args.flag("requires_grad", requires_grad)
        options = layer_options("attention_options", attention_options, _ATTENTION)
        inputs, num_inputs = self._inputs(x, context)
        rope_arguments = self._rope_arguments(rope, options, inputs[0])
        leading = layer_leading(*inputs)
        num_threads = options.get("num_threads")
        query, key, value = self._rows(inputs, rope_arguments, num_threads)
        merged = np.empty((*leading, *inputs[0].shape[-2:]), self.dtype)
        result = scaled_dot_product_attention(
            query,
            key,
            value,
            enable_gqa=True,
            return_lse=keep,
            out=self._heads(merged),
            **options,
        )
        out = project(merged, *self._layout.of_output(self.params), num_threads=num_threads)
        if keep:
            rows = query, key, value
            self._saved = _Saved(
                inputs, num_inputs, rows, merged, result[1], rope_arguments, options
            )
        return out

    def __call__(self, x: Array, context: Context | None = None, **options: Any) -> np.ndarray:
        """`forward`, whatever a subclass makes of it."""
        return self.forward(x, context, **options)

    def backward(
        self,
        grad_out: Array,
        *,
        mask_grad: bool = False,
        bias_grad: bool = False,
        sinks_grad: bool = False,
    ) -> Any:
        """The gradients of `sum(grad_out * out)`, for `out` of the last `forward` that kept any.

        That is the last one with `requires_grad` that returned; `load_state_dict` forgets it.

        Those of the parameters are written to `grads`; nothing is added to what was there.

        Parameters
        ----------
        grad_out : array, shape (..., L, embed_dim)
        mask_grad, bias_grad, sinks_grad : bool
            Have `grads` hold the gradient of the call's `attn_mask` (of floats), of its
            `attn_bias`, of its `sinks`, too, under their names.

        Returns
        -------
        grad_x : array of x's shape
        grad_context : array of context's shape, or a pair
            Only where `forward` was given a context: then (grad_x, grad_context).

        Raises
        ------
        RuntimeError
            When there was no such `forward`.
        """
        if self._saved is None:
            raise RuntimeError("backward: expected a forward(..., requires_grad=True) before it")
        inputs, num_inputs, rows, merged, lse, rope_arguments, options = self._saved
        grad = layer_input("grad_out", grad_out, self.embed_dim, self.dtype)
        if grad.shape != merged.shape:
            raise ValueError(f"grad_out: expected shape {merged.shape}, got {grad.shape}")
        query, key, value = rows
        num_threads = _args.num_threads(options.get("num_threads"))
        weight, _ = self._layout.of_output(self.params)
        gradients = scaled_dot_product_attention_backward(
            self._heads(grad_of_input(grad, weight, num_threads)),
            query,
            key,
            value,
            self._heads(merged),
            lse,
            enable_gqa=True,
            mask_grad=mask_grad,
            bias_grad=bias_grad,
            sinks_grad=sinks_grad,
            **options,
        )
        grad_rows = [gradients.query, gradients.key, gradients.value]
        for n, arguments in enumerate(rope_arguments):
            grad_rows[n] = rope_backward(grad_rows[n], **arguments)
        grad_rows = [_side_by_side(rows) for rows in grad_rows]
        self._write_grads(inputs, grad_rows, merged, grad, num_threads)
        for name in ("attn_mask", "sinks", "attn_bias"):
            self.grads.pop(name, None)
            if (gradient := getattr(gradients, name)) is not None:
                self.grads[name] = gradient
        of_inputs = self._layout.of_inputs(self.params)
        of_query, of_key, of_value = (
            grad_of_input(grad_of_rows, weight, num_threads)
            for grad_of_rows, (weight, _) in zip(grad_rows, of_inputs, strict=True)
        )
        if num_inputs == 3:
            return of_query, (of_key, of_value)
        of_key += of_value
        if num_inputs == 2:
            return of_query, of_key
        of_query += of_key
        return of_query

    def attention_weights(
        self,
        x: Array,
        context: Array | tuple[Array, Array] | None = None,
        *,
        rope: Mapping[str, Any] | None = None,
        **attention_options: Any,
    ) -> np.ndarray:
        """The attention maps of every head, for looking at.

        Parameters are those of `forward`; options those of `selfattn.attention_weights`.

        Returns
        -------
        array, shape (..., num_heads, L, S)
        """
        options = layer_options("attention_options", attention_options, _WEIGHTS)
        inputs, _ = self._inputs(x, context)
        layer_leading(*inputs)
        rope_arguments = self._rope_arguments(rope, options, inputs[0])
        query, key = self._rows(inputs[:2], rope_arguments, options.get("num_threads"))
        return attention_weights(query, key, enable_gqa=True, **options)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters, under torch's names and in its order.

        Examples
        --------
        >>> from selfattn import nn
        >>> state = nn.MultiheadAttention(8, 2, num_heads_kv=1).state_dict()
        >>> {name: x.shape for name, x in state.items()}["in_proj_weight"]
        (16, 8)
        """
        return {name: self.params[name].copy() for name in self._layout.shapes}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Write the arrays of `state` into the parameters, rounded to the layer's dtype.

        Parameters
        ----------
        state : mapping of str to array
            The names and shapes of `state_dict()`, no more and no less; floats of any width, and
            `torch.nn.MultiheadAttention.state_dict()` as it is, of bfloat16 too, or its parameters,
            which may require grad. Where one is wrong, nothing is written.
        """
        arrays = layer_state(state, self._layout.shapes, self.dtype)
        for name, x in arrays.items():
            self.params[name][...] = x
        self._saved = None

    def __repr__(self) -> str:
        given = [f"{self.embed_dim}, {self.num_heads}"]
        usual = {"num_heads_kv": self.num_heads, "kdim": self.embed_dim, "vdim": self.embed_dim}
        given += [
            f"{name}={getattr(self, name)}"
            for name, value in usual.items()
            if getattr(self, name) != value
        ]
        given += [] if self._layout.bias else ["bias=False"]
        return f"MultiheadAttention({', '.join(given)}, dtype={self.dtype})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_saved": None}  # a pickle or a copy has no call to go back over

    def _inputs(
        self, x: Array, context: Context | None
    ) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], int]:
        """What query, key and value are projected from, and as how many arrays it was given."""
        widths = self.embed_dim, self.kdim, self.vdim
        return layer_inputs(x, context, widths, self.dtype)

    def _rope_arguments(
        self, rope: Mapping[str, Any] | None, attention_options: dict[str, Any], x: np.ndarray
    ) -> list[dict[str, Any]]:
        """Those of `rope` for queries and for keys; none where it is not asked for."""
        if rope is None:
            return []
        of_key = layer_options("rope", rope, _ROPE)
        if self.head_dim % 2 and of_key.get("rotary_dim") is None:
            raise ValueError(
                f"rope: expected a rotary_dim where head_dim is odd, {self.head_dim}, got none"
            )
        of_key["num_threads"] = attention_options.get("num_threads")
        if of_key.get("positions") is not None:
            return [of_key, of_key]
        offset = attention_options.get("query_offset", 0)
        rotary_offset("query_offset", offset, x.shape[:-2])  # by its name here
        return [{**of_key, "offset": offset}, of_key]

    def _rows(
        self,
        inputs: tuple[np.ndarray, ...],
        rope_arguments: list[dict[str, Any]],
        num_threads: int | None,
    ) -> tuple[np.ndarray, ...]:
        """Query, key and, where its input is given, value by heads; the first two rotated."""
        rows = [self._heads(y) for y in self._layout.project(inputs, self.params, num_threads)]
        for n, arguments in enumerate(rope_arguments):
            rows[n] = rope(rows[n], **arguments)
        return tuple(rows)

    def _heads(self, rows: np.ndarray) -> np.ndarray:
        """(..., L, heads * head_dim) as (..., heads, L, head_dim): a view."""
        heads = rows.shape[-1] // self.head_dim
        return rows.reshape(*rows.shape[:-1], heads, self.head_dim).swapaxes(-3, -2)

    def _write_grads(
        self,
        inputs: tuple[np.ndarray, ...],
        grad_rows: list[np.ndarray],
        merged: np.ndarray,
        grad_out: np.ndarray,
        num_threads: int,
    ) -> None:
        for name, x in self.params.items():
            if name not in self.grads:
                self.grads[name] = np.empty_like(x)
        of_inputs = self._layout.of_inputs(self.grads)
        for grad, x, written in zip(grad_rows, inputs, of_inputs, strict=True):
            write_grads(grad, x, *written, num_threads)
        write_grads(grad_out, merged, *self._layout.of_output(self.grads), num_threads)


def _side_by_side(heads: np.ndarray) -> np.ndarray:
    """(..., heads, L, head_dim) as (..., L, heads * head_dim): a view of what lies that way."""
    rows = heads.swapaxes(-3, -2)
    return rows.reshape(*rows.shape[:-2], rows.shape[-2] * rows.shape[-1])
