"""Arrays for the options of attention: masks, segment ids, slopes and sinks; and parts of them.

What a drawn or listed problem has before its last two axes is (..., Hq): `leading` below.
"""

import itertools

import numpy as np

from support.arrays import normal


def broadcasts(shape):
    """Every shape that broadcasts to `shape`: each axis kept or 1, or dropped from the left."""
    for first in range(len(shape) + 1):
        kept = shape[first:]
        for ones in itertools.product((False, True), repeat=len(kept)):
            yield tuple(1 if one else n for one, n in zip(ones, kept, strict=True))


def bool_mask(*shape, share=0.5, seed=0):
    """True, where the query attends, for `share` of the elements."""
    return np.random.default_rng((seed, *shape)).random(shape) < share


def float_mask(*shape, dtype=np.float32, masked=0.3, seed=0):
    """N(0, 1), and -inf for a share of the elements."""
    return np.where(
        bool_mask(*shape, share=masked, seed=seed + 1),
        np.asarray(-np.inf, dtype),
        normal(*shape, dtype=dtype, seed=seed),
    )


def range_mask(seqlen_q, seqlen_k, is_causal=False, query_offset=0, window_size=(-1, -1)):
    """The mask of bools, (L, S), that says what these options say."""
    position, j = np.arange(seqlen_q)[:, None] + query_offset, np.arange(seqlen_k)
    left, right = window_size
    mask = np.ones((seqlen_q, seqlen_k), bool)
    mask &= (j <= position) | (not is_causal)
    mask &= (j >= position - left) | (left == -1)
    mask &= (j <= position + right) | (right == -1)
    return mask


def slopes(*shape, dtype=np.float32):
    """2^-1, 2^-2, ... along the heads, those of ALiBi's paper for 8 heads; one of them negative."""
    x = np.resize(0.5 ** np.arange(1, 9), shape).astype(dtype)
    x[..., -1:] *= -0.01
    return x


def runs(total, *lengths):
    """Ascending ids 0, 1, ... in runs of these lengths, the last one as long as is left."""
    ids = np.repeat(np.arange(len(lengths)), lengths)[:total]
    return np.pad(ids, (0, total - len(ids)), constant_values=len(lengths))


KINDS = [
    *("bool", "float", "biased", "padded", "segments", "unsorted", "alibi", "softcap", "sinks"),
    "all",
]


def option(kind, batch, heads, seqlen_q, seqlen_k, dtype=np.float32, seed=0):
    """The options of one kind, or all that go together, each array with every axis it can have."""
    options = {}
    if kind in ("bool", "all"):
        options["attn_mask"] = bool_mask(batch, heads, seqlen_q, seqlen_k, share=0.6, seed=seed)
    if kind == "float":
        options["attn_mask"] = float_mask(
            batch, heads, seqlen_q, seqlen_k, dtype=dtype, masked=0.2, seed=seed
        )
    if kind == "biased":
        options["attn_mask"] = bool_mask(batch, heads, seqlen_q, seqlen_k, share=0.6, seed=seed)
        options["attn_bias"] = float_mask(
            batch, heads, seqlen_q, seqlen_k, dtype=dtype, masked=0.1, seed=seed
        )
    if kind == "padded":
        options["kv_starts"] = np.resize([seqlen_k // 5, 0, seqlen_k // 2], batch)
        options["query_lengths"] = np.resize([seqlen_q - seqlen_q // 3, seqlen_q], batch)
    if kind in ("segments", "unsorted", "all"):
        rng = np.random.default_rng(seed)
        ids = [rng.integers(0, 3, (batch, n)) for n in (seqlen_q, seqlen_k)]
        options["segment_ids"] = ids if kind == "unsorted" else [np.sort(x) for x in ids]
    if kind in ("alibi", "all"):
        options["alibi_slopes"] = slopes(batch, heads, dtype=dtype)
        options["query_offset"] = seqlen_k // 2
    if kind in ("softcap", "all"):
        options["softcap"] = 1.5
    if kind in ("sinks", "all"):
        options["sinks"] = normal(heads, dtype=dtype, seed=seed) + dtype(1)
    return options


def part_of(options, batch=slice(None), heads=slice(None), rows=slice(None)):
    """What `option` gave, for slices of the batch axis, the query heads and the queries."""
    part = dict(options)
    part["query_offset"] = options.get("query_offset", 0) + (rows.start or 0)
    for name in ("attn_mask", "attn_bias"):
        if name in options:
            part[name] = options[name][batch, heads, rows]
    if "kv_starts" in options:
        part["kv_starts"] = np.asarray(options["kv_starts"][batch])
    if "query_lengths" in options:
        first, last = rows.start or 0, rows.stop
        lengths = np.asarray(options["query_lengths"][batch])
        lengths = lengths if last is None else np.minimum(lengths, last)
        part["query_lengths"] = np.maximum(lengths - first, 0)
    if "segment_ids" in options:
        ids_q, ids_k = options["segment_ids"]
        part["segment_ids"] = ids_q[batch, rows], ids_k[batch]
    if "alibi_slopes" in options:
        part["alibi_slopes"] = options["alibi_slopes"][batch, heads]
    if "sinks" in options:
        part["sinks"] = options["sinks"][heads]
    return part


def without_sinks(options):
    """The options that the scores have too."""
    return {name: x for name, x in options.items() if name != "sinks"}


def described(options):
    """Options as a message shows them: an array by its dtype and shape."""
    return {
        name: [f"{y.dtype}{list(y.shape)}" for y in x]
        if isinstance(x, (tuple, list)) and isinstance(x[0], np.ndarray)
        else f"{x.dtype}{list(x.shape)}"
        if isinstance(x, np.ndarray) and x.size > 12
        else x
        for name, x in options.items()
    }
