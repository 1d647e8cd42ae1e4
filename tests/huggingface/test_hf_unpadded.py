"""The second name: padding is not computed, but where packed sequences cannot do without."""

from itertools import pairwise
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from selfattn import torch as ours
from selfattn.transformers import unpadded
from selfattn.transformers.attention import attention
from support.hf_models import FAMILIES, run

FLASH = "selfattn_flash"


@pytest.fixture
def rows(monkeypatch):
    """How many rows of queries each call of varlen_attention has had."""
    seen = []

    def spy(query, *arguments, **keywords):
        seen.append(query.shape[0])
        return original(query, *arguments, **keywords)

    original = ours.varlen_attention
    monkeypatch.setattr(ours, "varlen_attention", spy)
    return seen


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "llama", "gemma2"])
@torch.inference_mode()
def test_only_tokens_are_attended(name, padding, rows):
    family = FAMILIES[name]
    inputs, kept = family.given(padding)
    run(family.make(), FLASH, inputs, kept)
    assert rows == [int(kept.sum())] * 2  # of two layers
    assert rows[0] < kept.numel()


@torch.inference_mode()
def test_packed_sequences_of_a_model(rows):
    """Given by their places, as one row: each has what it has alone, bit for bit.

    (What lies between products is PyTorch's, whose SiLU has other bits in the last elements of a
    tensor that does not fill its vectors. The widths here do.)
    """
    model = FAMILIES["llama"].make()
    lengths = (5, 1, 7)
    tokens = torch.randint(3, 99, (1, sum(lengths)))
    places = torch.cat([torch.arange(n) for n in lengths])[None]
    model.set_attn_implementation(FLASH)
    with ours.enabled(linear=True):
        together = model(tokens, position_ids=places).logits
        apart = [model(x).logits for x in tokens.split(lengths, -1)]
    assert rows == [sum(lengths)] * 2
    assert torch.equal(together, torch.cat(apart, 1))
    model.set_attn_implementation("selfattn")  # which takes the places for ids of segments
    out = model(tokens, position_ids=places, use_cache=False).logits
    assert torch.allclose(out, together, rtol=1e-5, atol=1e-5)


def flash_formula(q, k, v, causal, window, softcap, sinks):
    """Of one sequence, (L, H, E): the last query is at the last key."""
    at = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0]
    keys = torch.arange(k.shape[0])
    left, right = window
    seen = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool)
    if causal:
        seen &= keys <= at
    if left >= 0:
        seen &= keys >= at - left
    if right >= 0:
        seen &= keys <= at + right
    q, k, v = (x.transpose(0, 1).double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double().view(-1, 1, 1).expand(*scores.shape[:2], 1)], -1)
    weights = scores.softmax(-1)[..., : k.shape[1]].nan_to_num()  # of a row that sees nothing
    return (weights @ v).transpose(0, 1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (2, 2), (2, 0)])
@pytest.mark.parametrize("more", [(0.0, False), (2.0, True)], ids=["", "softcap, sinks"])
def test_flash_attns_functions(causal, window, more):
    torch.manual_seed(0)
    softcap, has_sinks = more
    sinks = torch.randn(4) if has_sinks else None
    given = {"causal": causal, "window_size": window, "softcap": softcap, "s_aux": sinks}
    lengths_q, lengths_k = (3, 1, 6), (5, 4, 6)
    q = torch.randn(sum(lengths_q), 4, 8)
    k, v = torch.randn(2, sum(lengths_k), 2, 8)
    starts = [torch.tensor([0, *n]).cumsum(0).int() for n in (lengths_q, lengths_k)]
    found = unpadded.flash_attn_varlen_func(q, k, v, *starts, **given)
    pieces = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
    for ours_, (a, b, c) in zip(found.split(lengths_q), pieces, strict=True):
        expected = flash_formula(a, b, c, causal, window, softcap, sinks)
        assert torch.allclose(ours_.double(), expected, rtol=1e-5, atol=1e-6)
        alone = unpadded.flash_attn_func(a[None], b[None], c[None], **given)[0]
        assert torch.equal(alone, ours_)


@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("window", [None, 3])
def test_a_bias_of_positions_is_done_with_the_padding(side, is_causal, window, rows):
    torch.manual_seed(0)
    kept = torch.arange(7) < torch.tensor([[7], [4]])
    kept = {"right": kept, "left": kept.flip(-1), "none": None}[side]
    query, key, value = torch.randn(3, 2, 4, 7, 8)
    bias = torch.randn(1, 4, 7, 7)
    module = SimpleNamespace(is_causal=is_causal)
    found, weights = unpadded.unpadded_attention(
        module, query, key, value, kept, position_bias=bias, sliding_window=window,
        output_attentions=True,
    )  # fmt: skip
    assert not rows
    distance = torch.arange(7)[:, None] - torch.arange(7)
    seen = torch.ones(2, 1, 7, 7, dtype=torch.bool) if kept is None else kept[:, None, None]
    seen = seen & ((distance >= 0) | (not is_causal))
    seen = seen & (distance.abs() < window if window else True)
    expected, _ = attention(module, query, key, value, seen, position_bias=bias)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert weights.shape == (2, 4, 7, 7)


@pytest.mark.parametrize("said_by", ["starts", "places"])
def test_a_bias_of_positions_of_packed_sequences(said_by):
    """No sequence sees another one."""
    lengths = (3, 1, 4)
    query, key, value = torch.randn(3, 1, 2, 8, 4)
    bias = torch.randn(1, 2, 8, 8)
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    places = torch.cat([torch.arange(n) for n in lengths])[None]
    given = {
        "starts": {f"cu_seq_lens_{x}": starts for x in "qk"},
        "places": {"position_ids": places},
    }[said_by]
    module = SimpleNamespace(is_causal=False)
    found, _ = unpadded.unpadded_attention(
        module, query, key, value, None, position_bias=bias, **given
    )
    for a, b in pairwise(starts):
        piece = slice(a, b)
        alone, _ = attention(
            module,
            *(x[:, :, piece] for x in (query, key, value)),
            None,
            position_bias=bias[:, :, piece, piece],
        )
        assert torch.allclose(found[:, piece], alone, rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_a_mask_of_pairs_is_done_with_the_padding(rows):
    model = FAMILIES["llama"].make()
    tokens = torch.randint(3, 99, (2, 7))
    seen = torch.rand(2, 1, 7, 7) < 0.5
    seen |= torch.eye(7, dtype=torch.bool)
    results = []
    for implementation in ("selfattn", FLASH):
        model.set_attn_implementation(implementation)
        results.append(model(tokens, attention_mask=seen).logits)
    assert torch.equal(*results)
    assert not rows


def test_other_names_are_left_to_transformers():
    from transformers.modeling_flash_attention_utils import lazy_import_flash_attention

    (dense, packed, *_), _ = lazy_import_flash_attention(FLASH)
    assert dense is unpadded.flash_attn_func
    assert packed is unpadded.flash_attn_varlen_func
    with pytest.raises(ImportError):
        lazy_import_flash_attention("flash_attention_3")
    lazy_import_flash_attention(FLASH)


def test_models_that_list_their_kernels_take_the_other_name():
    """transformers puts a name of their own list in the place of this one."""
    model = FAMILIES["gpt_oss"].make()
    with pytest.raises(ImportError, match="kernels"):
        model.set_attn_implementation(FLASH)
