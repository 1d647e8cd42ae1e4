"""Arrays for the tests, and whether two of them have the same bits."""

import numpy as np

try:
    from ml_dtypes import bfloat16
except ImportError:  # it is optional
    bfloat16 = None

DTYPES = [np.float32, np.float64]
HALF_DTYPES = [np.float16, *([] if bfloat16 is None else [bfloat16])]

BROADCASTS = [
    # query's leading axes, key's, value's
    ((), (), ()),
    ((3,), (3,), (3,)),
    ((3,), (1,), (1,)),
    ((1,), (3,), (3,)),
    ((3,), (), ()),
    ((), (3,), (3,)),
    ((), (), (3,)),
    ((3,), (3,), (1,)),
    ((3,), (1,), (3,)),
    ((2, 3), (2, 3), (2, 3)),
    ((2, 3), (1, 3), (1, 3)),
    ((2, 3), (3,), (3,)),
    ((3,), (2, 3), (2, 3)),
    ((2, 1), (1, 3), (1, 3)),
    ((2, 3), (2, 1), (1, 3)),
    ((2, 1, 3), (1, 4, 3), (4, 3)),
    ((2, 1, 2, 3), (5, 1, 3), (2, 5, 2, 1)),
    ((2, 1, 1, 2, 3), (3, 1, 2, 3), (1, 1, 2, 1, 3)),
]


def normal(*shape, dtype=np.float32, seed=0):
    """N(0, 1) of any shape."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def qkv(q_shape, heads_kv=None, seqlen_k=None, head_dim_v=None, *, dtype=np.float32, seed=0):
    """query of the shape (..., Hq, L, E) with key (..., Hkv, S, E) and value (..., Hkv, S, Ev)."""
    *batch, heads, seqlen_q, head_dim = q_shape
    heads = heads if heads_kv is None else heads_kv
    seqlen_k = seqlen_q if seqlen_k is None else seqlen_k
    head_dim_v = head_dim if head_dim_v is None else head_dim_v
    return (
        normal(*q_shape, dtype=dtype, seed=seed),
        normal(*batch, heads, seqlen_k, head_dim, dtype=dtype, seed=seed + 1),
        normal(*batch, heads, seqlen_k, head_dim_v, dtype=dtype, seed=seed + 2),
    )


def one_head(query_rows, key_rows, head_dim, head_dim_v=None, *, dtype=np.float32, seed=0):
    """One head without an axis for it: (L, E), (S, E), (S, Ev)."""
    head_dim_v = head_dim if head_dim_v is None else head_dim_v
    return (
        normal(query_rows, head_dim, dtype=dtype, seed=seed),
        normal(key_rows, head_dim, dtype=dtype, seed=seed + 1),
        normal(key_rows, head_dim_v, dtype=dtype, seed=seed + 2),
    )


def unaligned(x):
    """A copy that begins one byte past an aligned address."""
    memory = np.zeros(x.nbytes + 1, np.uint8)
    y = np.ndarray(x.shape, x.dtype, memory, 1)
    y[...] = x
    return y


def in_structs(x):
    """A copy in structs that are a byte longer than an element."""
    structs = np.zeros(x.shape, [("x", x.dtype), ("more", "u1")])
    structs["x"] = x
    return structs["x"]


def _bits(x):
    """The bits of x; a NaN is a NaN, whatever its payload."""
    x = np.ascontiguousarray(x)
    bits = x.view(f"u{x.itemsize}")
    with np.errstate(invalid="ignore"):  # ml_dtypes tells of a signalling NaN
        return np.where(np.isnan(x), np.asarray(np.nan, x.dtype).view(bits.dtype), bits)


def same_bits(a, b):
    """Whether two arrays, or tuples of them, are equal bit for bit: -0 is not 0, NaN is NaN."""
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(_bits(a), _bits(b))
