"""The tables of rows, by name in SUITES: what `selfattn bench` and the repository's bench/ time.

A contestant that cannot do a row says so itself (peers.py).
"""

from __future__ import annotations

from dataclasses import replace

from .rows import HALF, CacheRow, LinearRow, Row, SoftmaxRow, backward_of

# Shapes of models that people run, decoding with a cache, and the smallest call.
FORWARD = (
    Row("minilm", 32, 12, 12, 128, 128, 32),
    Row("vit", 8, 12, 12, 197, 197, 64),
    Row("bert", 8, 12, 12, 512, 512, 64),
    Row("gpt", 4, 12, 12, 1024, 1024, 64, is_causal=True),
    Row("llama", 1, 32, 8, 2048, 2048, 128, is_causal=True),
    Row("long", 1, 8, 8, 4096, 4096, 64),
    Row("decode", 1, 32, 8, 1, 4096, 128),
    Row("decode8", 8, 32, 8, 1, 2048, 128),
    Row("tiny", 1, 1, 1, 4, 4, 4),
)

# Shapes of other uses: nothing may be tuned to FORWARD alone.
FORWARD_MORE = (
    Row("cross", 8, 12, 12, 77, 1500, 64),
    Row("dim1", 8, 12, 12, 512, 512, 1),
    Row("dim33", 4, 12, 12, 512, 512, 33),
    Row("dim80", 4, 12, 12, 512, 512, 80),
    Row("dim96", 4, 12, 12, 512, 512, 96),
    Row("dim256", 1, 8, 8, 1024, 1024, 256),
    Row("length2", 8, 12, 12, 2, 1024, 64),
    Row("length17", 64, 12, 12, 17, 17, 64),
    Row("length65", 32, 12, 12, 65, 65, 64),
    Row("length333", 8, 12, 12, 333, 333, 64),
    Row("onehead", 1, 1, 1, 4096, 4096, 64),
    Row("manyheads", 256, 16, 16, 32, 32, 64),
    Row("strided", 8, 12, 12, 197, 197, 64, layout="BSHD"),
    Row("cached", 1, 16, 16, 256, 2048, 64, is_causal=True, query_offset=1792),
)

# Calls of a few milliseconds, to which it matters when the second core comes.
PAUSES = (
    FORWARD[0],
    FORWARD[1],
    Row("cross", 2, 16, 16, 77, 1500, 64),
    Row("small", 8, 12, 12, 64, 64, 64),
)

BACKWARD = backward_of(
    Row("square512", 4, 12, 12, 512, 512, 64),
    Row("causal1024", 2, 12, 12, 1024, 1024, 64, is_causal=True),
    Row("long4096", 1, 8, 8, 4096, 4096, 64),
    Row("causal2048", 1, 8, 8, 2048, 2048, 128, is_causal=True),
)

# Shapes of other uses: nothing may be tuned to BACKWARD alone.
BACKWARD_MORE = backward_of(
    Row("minilm", 32, 12, 12, 128, 128, 32),
    Row("onehead", 1, 1, 1, 4096, 4096, 64),
    Row("grouped", 1, 32, 8, 1024, 1024, 128),
    Row("cross", 4, 12, 12, 77, 1500, 64),
    Row("dim80", 2, 12, 12, 512, 512, 80),
    Row("twotiles", 1, 2, 2, 96, 20000, 64),  # a tile for each of two threads
)

SOFTMAX = (
    SoftmaxRow("scores4096", 4096, 4096),
    SoftmaxRow("scores64", 98304, 64),
    SoftmaxRow("scores512", 1536, 512),
)

# Projections of models: MiniLM's, BERT's, its feed-forward's; a few rows; what decoding does.
LINEAR = (
    LinearRow("minilm", 1024, 384, 384),
    LinearRow("bert", 4096, 768, 768),
    LinearRow("widen", 2048, 768, 3072),
    LinearRow("narrow", 2048, 3072, 768),
    LinearRow("rows128", 128, 768, 768),
    LinearRow("rows16", 16, 768, 768),
    LinearRow("rows8", 8, 4096, 4096),
    LinearRow("row", 1, 4096, 4096),
    LinearRow("turned", 2048, 768, 768, is_transposed=True),
    LinearRow("double", 2048, 768, 768, dtype="float64"),
)

# Half types, beside float32 on the same numbers: forward, decoding, backward, in both types.
_HALF = (
    *(row for row in FORWARD if row.name not in ("gpt", "tiny")),
    Row("dim96", 3, 5, 5, 777, 777, 96),
    *(row for row in BACKWARD if not row.with_forward),
)
HALF_TYPES = tuple(
    replace(row, name=f"{row.name}-{dtype}", dtype=dtype) for row in _HALF for dtype in HALF
)

# Decoding with a cache: its length, its heads, the query heads that share one, what it stores.
CACHES = tuple(
    CacheRow(
        f"{n}k-{heads}x{group}-{dtype}", 1, heads * group, heads, 1, n * 1024, 128, dtype=dtype
    )
    for dtype in ("float32", "bfloat16", "int8")
    for heads in (8, 1)
    for group in (1, 8)
    for n in (1, 4, 16, 64, 128)
)

SUITES = {
    "forward": FORWARD,
    "forward_more": FORWARD_MORE,
    "backward": BACKWARD,
    "backward_more": BACKWARD_MORE,
    "softmax": SOFTMAX,
    "linear": LINEAR,
    "half": HALF_TYPES,
    "caches": CACHES,
    "pauses": PAUSES,
}


def pick(suite, names=None, dtype="float32"):
    """The rows of a suite in its order, or those named, in the given dtype."""
    known = {row.name: row for row in SUITES[suite]}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"no row {', '.join(unknown)} in the {suite} table: {', '.join(known)}")
    picked = (known[name] for name in (names or known))
    return tuple(replace(row, dtype=dtype) if dtype != "float32" else row for row in picked)
