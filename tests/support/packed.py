"""Packed sequences for the tests of varlen_attention: their lengths, options, each alone."""

import numpy as np

import selfattn
from selfattn import reference
from support.arrays import normal, same_bits
from support.compare import assert_close, largest, moves, score_size, unit_roundoff, wide

# (queries, keys) of each sequence.
LENGTHS = {
    "alike": [(5, 5), (5, 5), (5, 5)],
    "one": [(7, 9)],
    "ones": [(1, 1)] * 9,
    "empty among others": [(0, 0), (3, 4), (0, 0), (0, 0), (2, 2), (0, 0)],
    "nothing but empty": [(0, 0)] * 4,
    "no sequence": [],
    "queries without keys": [(3, 0), (2, 5), (20, 0)],
    "keys without queries": [(0, 3), (2, 5), (0, 140)],
    "decoding": [(1, 30), (1, 1), (1, 200), (1, 129)],
    "ends of blocks": [(16, 127), (17, 128), (33, 129), (1, 512), (2, 513)],
    "one long among short": [(2, 3), (90, 700), (1, 1), (0, 0), (4, 2)],
    "many short": [(n % 5, (n * 7) % 11) for n in range(150)],
}
OPTIONS = {
    "plain": lambda p: {},
    "scale": lambda p: {"scale": -0.7},
    "causal": lambda p: {"is_causal": True},
    "an offset": lambda p: {"is_causal": True, "query_offset": 2},
    "offsets": lambda p: {"is_causal": True, "query_offset": p.lengths_k - p.lengths_q},
    "window": lambda p: {"window_size": (3, 1), "query_offset": p.lengths_k - p.lengths_q},
    "lengths": lambda p: {"kv_lengths": p.lengths_k - (p.lengths_k + 1) // 3},
    "softcap": lambda p: {"softcap": 0.8},
    "slopes": lambda p: {"alibi_slopes": normal(p.heads, dtype=p.dtype)},
    "slopes of sequences": lambda p: {"alibi_slopes": normal(p.batch, p.heads, dtype=p.dtype)},
    "sinks": lambda p: {"sinks": normal(p.heads, dtype=p.dtype)},
    "bool mask": lambda p: {"attn_mask": p.mask(p.heads, p.total_q, p.longest)},
    "bool mask of keys": lambda p: {"attn_mask": p.mask(p.longest)},
    "bool mask of rows": lambda p: {"attn_mask": p.mask(p.total_q, 1)},
    "float mask": lambda p: {"attn_mask": p.bias(p.total_q, p.longest)},
    "float mask of heads": lambda p: {"attn_mask": p.bias(p.heads, 1, p.longest)},
    "float32 mask": lambda p: {"attn_mask": p.bias(1, p.longest).astype(np.float32)},
    "bias": lambda p: {"attn_bias": p.bias(p.heads, 1, p.longest)},
    "bias and bool mask": lambda p: {
        "attn_mask": p.mask(p.longest),
        "attn_bias": p.bias(p.total_q, p.longest),
    },
    "used": lambda p: {
        "query_lengths": p.lengths_q - p.lengths_q // 3,
        "kv_starts": p.lengths_k // 4,
        "kv_lengths": p.lengths_k - p.lengths_k // 5,
        "sinks": normal(p.heads, dtype=p.dtype),
    },
    "segments": lambda p: {"segment_ids": (p.ids(p.total_q), p.ids(p.total_k))},
    "all": lambda p: {
        "attn_mask": p.bias(p.heads, p.total_q, p.longest),
        "is_causal": True,
        "query_offset": p.lengths_k - p.lengths_q,
        "kv_lengths": p.lengths_k - p.lengths_k // 5,
        "window_size": (40, -1),
        "softcap": 2.0,
        "alibi_slopes": normal(p.batch, p.heads, dtype=p.dtype, seed=3) / 8,
        "sinks": normal(p.heads, dtype=p.dtype, seed=4),
        "segment_ids": (p.ids(p.total_q), p.ids(p.total_k)),
    },
}


class Packed:
    """Sequences packed row after row, and what options need to know of them."""

    def __init__(self, lengths, dtype=np.float32, heads=4, heads_kv=2, head_dim=8, head_dim_v=5):
        self.dtype, self.heads, self.batch = dtype, heads, len(lengths)
        self.lengths_q, self.lengths_k = np.array(lengths, np.int64).reshape(-1, 2).T
        self.cu_q, self.cu_k = (
            np.concatenate(([0], np.cumsum(n))) for n in (self.lengths_q, self.lengths_k)
        )
        self.total_q, self.total_k = int(self.cu_q[-1]), int(self.cu_k[-1])
        self.longest = int(self.lengths_k.max(initial=0))
        self.query = normal(self.total_q, heads, head_dim, dtype=dtype)
        self.key = normal(self.total_k, heads_kv, head_dim, dtype=dtype, seed=1)
        self.value = normal(self.total_k, heads_kv, head_dim_v, dtype=dtype, seed=2)

    @property
    def arrays(self):
        return self.query, self.key, self.value

    def mask(self, *shape):
        keep = normal(*shape) > -0.5
        if shape[0] == self.total_q > 1:
            keep[1] = False  # a row that sees nothing
        return keep

    def bias(self, *shape):
        masked = self.dtype(-np.inf)
        return np.where(self.mask(*shape), normal(*shape, dtype=self.dtype, seed=5), masked)

    def ids(self, total):
        """Two segments in no order, and a third that is rare."""
        return np.where(np.arange(total) % 13 == 4, 2, np.arange(total) % 2)

    def attend(self, **options):
        """All of them in one call: (total_q, Hq, Ev) and (Hq, total_q)."""
        return selfattn.varlen_attention(
            *self.arrays, self.cu_q, self.cu_k, enable_gqa=True, return_lse=True, **options
        )


def of_sequence(packed, b, options):
    """Sequence b alone: its rows in the packed output, its arrays (H, rows, E), its options."""
    q, k = (slice(*cu[b : b + 2]) for cu in (packed.cu_q, packed.cu_k))
    alone = dict(options)
    for name in ("query_offset", "query_lengths", "kv_starts", "kv_lengths"):
        if np.ndim(options.get(name)) == 1:
            alone[name] = int(options[name][b])
    if np.ndim(options.get("alibi_slopes")) == 2:
        alone["alibi_slopes"] = options["alibi_slopes"][b]
    for name in ("attn_mask", "attn_bias"):
        if name in options:
            shape = packed.heads, packed.total_q, packed.longest
            mask = np.broadcast_to(options[name], shape)
            alone[name] = mask[:, q, : packed.lengths_k[b]]
    if "segment_ids" in options:
        ids = options["segment_ids"]
        ids_q, ids_k = ids if isinstance(ids, (tuple, list)) else (ids, ids)
        alone["segment_ids"] = ids_q[q], ids_k[k]
    rows = packed.query[q], packed.key[k], packed.value[k]
    return q, [x.swapaxes(0, 1) for x in rows], alone


def calls(packed, **options):
    """What attend returns, by a call of scaled_dot_product_attention for each sequence."""
    out = np.empty((packed.total_q, packed.heads, packed.value.shape[2]), packed.dtype)
    lse = np.empty((packed.heads, packed.total_q), packed.dtype)
    for b in range(packed.batch):
        q, rows, alone = of_sequence(packed, b, options)
        one, lse[:, q] = selfattn.scaled_dot_product_attention(
            *rows, enable_gqa=True, return_lse=True, **alone
        )
        out[q] = one.swapaxes(0, 1)
    return out, lse


def check(packed, context="", **options):
    """Against the reference, and bit for bit against a call for each sequence."""
    out, lse = packed.attend(**options)
    assert out.shape == (packed.total_q, packed.heads, packed.value.shape[2]), context
    assert lse.shape == (packed.heads, packed.total_q), context
    assert out.dtype == lse.dtype == packed.dtype, context
    assert same_bits((out, lse), calls(packed, **options)), context

    want, want_lse = wide(
        lambda *arrays: reference.varlen_attention(
            *arrays, packed.cu_q, packed.cu_k, enable_gqa=True, return_lse=True, **options
        ),
        *packed.arrays,
    )
    u = unit_roundoff(packed.dtype)
    for b in range(packed.batch):
        if packed.lengths_q[b] == 0:
            continue
        q, rows, alone = of_sequence(packed, b, options)
        size = score_size(*rows[:2], options.get("scale"))
        moved = moves(*rows[:2], enable_gqa=True, **alone)[2]
        plain_sum = packed.lengths_k[b] / 4 if packed.dtype == np.float64 else 0
        bound = u * (8 + 3 * size + plain_sum + 2 * moved) * largest(rows[2])
        at = f"{context}, sequence {b}"
        assert_close(out[q].swapaxes(0, 1), want[q].swapaxes(0, 1), bound, at)
        with np.errstate(invalid="ignore"):
            bound = u * (6 * (1 + size) + 3 * np.abs(want_lse[:, q]) + moved[..., 0])
        assert_close(lse[:, q], want_lse[:, q], np.nan_to_num(bound, nan=0.0), at)
