"""The tables of rows that one command each times, and their contestants where not all take part.

    LAYERS      of layer.py          ACCURACY…   of accuracy.py
    TORCH_…     of torch_provider.py

The tables that several time are in selfattn/bench/shapes.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfattn.bench.rows import LinearRow, Row


@dataclass(frozen=True)
class LayerRow:
    """One shape of nn.MultiheadAttention."""

    name: str
    batch: int
    length: int
    embed_dim: int
    num_heads: int
    is_causal: bool = False

    def __str__(self):
        causal = ", causal" if self.is_causal else ""
        return f"{self.batch}×{self.length}×{self.embed_dim}, {self.num_heads} heads{causal}"


LAYERS = (
    LayerRow("demo", 64, 20, 64, 4),
    LayerRow("small", 16, 128, 256, 4),
    LayerRow("bert", 4, 512, 768, 12),
    LayerRow("gpt", 1, 2048, 768, 12, is_causal=True),
)

# Of PyTorch's own functions and layers under the provider. In the first, what a call costs beside
# its arithmetic is most of it.
TORCH_CALLS = (
    Row("call", 1, 8, 8, 16, 16, 64),
    Row("causal", 1, 8, 8, 16, 16, 64, is_causal=True),
    Row("strided", 1, 8, 8, 16, 16, 64, layout="BSHD"),
    Row("minilm", 32, 12, 12, 128, 128, 32),
)
TORCH_ENCODERS = (LayerRow("minilm", 32, 128, 384, 12),)

# A single batch entry, and few heads where the matrices are large: more would only add work.
ACCURACY = (
    Row("minilm", 1, 12, 12, 128, 128, 32),
    Row("vit", 1, 12, 12, 197, 197, 64),
    Row("bert", 1, 4, 4, 512, 512, 64),
    Row("causal", 1, 2, 2, 1000, 1000, 64, is_causal=True),
    Row("grouped", 1, 8, 2, 64, 1000, 128),
    Row("cross", 1, 4, 4, 77, 333, 80),
    Row("odd", 1, 2, 2, 65, 129, 33),
    Row("decode", 1, 8, 8, 1, 1000, 128),
    Row("keys4096", 1, 2, 2, 64, 4096, 64),
    Row("keys16384", 1, 1, 1, 64, 16384, 64),
)

ACCURACY_LINEAR = (
    LinearRow("short", 64, 64, 64),
    LinearRow("minilm", 64, 384, 384),
    LinearRow("bert", 64, 768, 768),
    LinearRow("narrow", 64, 3072, 768),
    LinearRow("rows8", 8, 4096, 4096),
    LinearRow("row", 1, 4096, 4096),
    LinearRow("row768", 1, 768, 768),
    LinearRow("inputs12288", 64, 12288, 256),
)

PAUSES_PEERS = ("selfattn", "torch", "onnxruntime")
ACCURACY_PEERS = ("selfattn", "numpy", "torch", "onnxruntime", "openvino")
