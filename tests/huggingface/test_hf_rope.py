"""nn.rope by the tables that Hugging Face's models make, beside what they rotate by them."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import CohereConfig, LlamaConfig, PhiConfig
from transformers.models.cohere import modeling_cohere
from transformers.models.llama import modeling_llama
from transformers.models.phi import modeling_phi

from selfattn import nn

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 32}
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128}
# name: the module, what makes its tables, how its pairs lie, how much of a row is rotated
MODELS = {
    "llama": (
        modeling_llama,
        modeling_llama.LlamaRotaryEmbedding(LlamaConfig(**SIZES)),
        "half",
        16,
    ),
    "yarn": (
        modeling_llama,
        modeling_llama.LlamaRotaryEmbedding(LlamaConfig(**SIZES, rope_parameters=YARN)),
        "half",
        16,
    ),
    "part of a row": (
        modeling_phi,
        modeling_phi.PhiRotaryEmbedding(PhiConfig(**SIZES, partial_rotary_factor=0.5)),
        "half",
        8,
    ),
    "interleaved": (
        modeling_cohere,
        modeling_cohere.CohereRotaryEmbedding(CohereConfig(**SIZES)),
        "interleaved",
        16,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_their_tables(name):
    """Forward and its gradient: cos and sin (B, L, rotary_dim), q (B, H, L, E)."""
    module, embedding, layout, rotary_dim = MODELS[name]
    q = torch.randn(2, 4, 7, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cos, sin = embedding(
        q.detach(), torch.tensor([[0, 1, 2, 3, 4, 5, 6], [9, 8, 7, 3, 40, 100, 0]])
    )
    assert cos.shape == (2, 7, rotary_dim)
    if name == "yarn":
        assert not torch.allclose(cos**2 + sin**2, torch.ones_like(cos))
    turned, _ = module.apply_rotary_pos_emb(*[q[..., :rotary_dim]] * 2, cos, sin)
    want = torch.cat((turned, q[..., rotary_dim:]), -1)
    grad_out = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    want.backward(grad_out)
    options = {"cos": cos, "sin": sin, "layout": layout, "rotary_dim": rotary_dim}
    close = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(nn.rope(q.detach(), **options), want.detach(), **close)
    np.testing.assert_allclose(nn.rope_backward(grad_out, **options), q.grad, **close)
    of_pairs = np.s_[..., : rotary_dim // 2] if layout == "half" else np.s_[..., ::2]
    options |= {"cos": cos[of_pairs], "sin": sin[of_pairs]}
    np.testing.assert_allclose(nn.rope(q.detach(), **options), want.detach(), **close)
