"""MiniLM in PyTorch, to compare with: from the same weights, with PyTorch's attention or by hand.

Imported by `bits.py` where PyTorch is installed, and by `bench/real_model.py`; by nothing else.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from .minilm import MiniLM


class TorchMiniLM:
    """The encoder in PyTorch, on the memory of a model's weights: what selfattn's must equal.

    Attention is F.scaled_dot_product_attention, or where `is_eager` product, softmax, product.
    """

    def __init__(self, model: MiniLM, is_eager: bool = False) -> None:
        self.weights = {name: torch.from_numpy(array) for name, array in model.weights.items()}
        self.num_layers, self.num_heads = model.num_layers, model.num_heads
        self._attend = _eager if is_eager else F.scaled_dot_product_attention

    def embed(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Token ids (B, L), lengths (B,) -> embeddings (B, 384)."""
        with torch.inference_mode():
            return self._embed(torch.from_numpy(ids), torch.from_numpy(lengths)).numpy()

    def _embed(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        is_token = torch.arange(length) < lengths[:, None]
        mask = None if bool(is_token.all()) else is_token[:, None, None, :]
        w = self.weights
        x = (
            w["embeddings.word_embeddings.weight"][ids]
            + w["embeddings.token_type_embeddings.weight"][0]
            + w["embeddings.position_embeddings.weight"][:length]
        )
        x = self._norm(x, "embeddings.LayerNorm")
        for i in range(self.num_layers):
            name = f"encoder.layer.{i}"
            query, key, value = (
                self._linear(x, f"{name}.attention.self.{part}")
                .view(batch, length, self.num_heads, -1)
                .transpose(1, 2)
                for part in ("query", "key", "value")
            )
            heads = self._attend(query, key, value, attn_mask=mask)
            attended = heads.transpose(1, 2).reshape(batch, length, -1)
            attended = self._linear(attended, f"{name}.attention.output.dense")
            x = self._norm(x + attended, f"{name}.attention.output.LayerNorm")
            fed = F.gelu(self._linear(x, f"{name}.intermediate.dense"))
            x = self._norm(
                x + self._linear(fed, f"{name}.output.dense"), f"{name}.output.LayerNorm"
            )
        mean = (x * is_token[..., None]).sum(1) / lengths[:, None]
        return F.normalize(mean, dim=-1)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-12)


def torch_attention(query, key, value, kv_lengths=None) -> np.ndarray:
    """PyTorch's attention on NumPy's memory, for the place of selfattn's."""
    mask = None
    if kv_lengths is not None:
        mask = torch.from_numpy(np.arange(key.shape[-2]) < kv_lengths[:, None, None, None])
    tensors = (torch.from_numpy(array) for array in (query, key, value))
    with torch.inference_mode():
        return F.scaled_dot_product_attention(*tensors, attn_mask=mask).numpy()


def _eager(query, key, value, attn_mask=None) -> torch.Tensor:
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    return torch.softmax(scores, -1) @ value
