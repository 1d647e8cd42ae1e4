"""The mask function: what it says is what transformers' own says, in a few numbers."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import masking_utils as theirs

from selfattn.transformers import masks
from selfattn.transformers.attention import attention
from selfattn.transformers.masktensor import MaskTensor, dense
from support.hf_models import FAMILIES, run

B, L = 3, 12
RIGHT = torch.arange(L) < torch.tensor([[12], [7], [1]])
LEFT = RIGHT.flip(-1)
HOLES = torch.arange(L) % torch.tensor([[5], [2], [3]]) != 1
EMPTY = RIGHT & torch.tensor([[True], [True], [False]])
ALL = torch.ones(B, L, dtype=torch.bool)
PADDINGS = {
    "unknown": None,
    "none": ALL,
    "right": RIGHT,
    "left": LEFT,
    "holes": HOLES,
    "all of one": EMPTY,
}
POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 0]]).expand(B, -1)
SEQUENCES = theirs.find_packed_sequence_indices(POSITIONS)


def packed(function):
    return theirs.and_masks(
        theirs.remap_positions_for_packed_sequence(function, POSITIONS),
        theirs.packed_sequence_mask_function(SEQUENCES),
    )


NONE, PADDED = torch.zeros(B, dtype=torch.int64), (~LEFT).sum(-1)
FUNCTIONS = {
    "causal": theirs.causal_mask_function,
    "bidirectional": theirs.bidirectional_mask_function,
    "window": theirs.sliding_window_causal_mask_function(4),
    "wide window": theirs.sliding_window_causal_mask_function(99),
    "both sides": theirs.sliding_window_bidirectional_mask_function(3),
    "chunks": theirs.chunked_causal_mask_function(5, NONE),
    "chunks after padding": theirs.chunked_causal_mask_function(5, PADDED),
    "packed": packed(theirs.causal_mask_function),
    "packed window": packed(theirs.sliding_window_causal_mask_function(3)),
    "packed chunks": packed(theirs.chunked_causal_mask_function(3, NONE)),
}
PLACES = {  # queries, keys, places of the first of each
    "square": (L, L, 0, 0),
    "step": (1, L, L - 1, 0),
    "piece": (3, L, 6, 0),
    "empty cache": (5, L, 0, 0),
    "sliding cache": (2, 6, 10, 6),
}


def asked(function, place, padding=None, **more):
    num_queries, num_keys, q_offset, kv_offset = PLACES[place]
    return {
        "batch_size": B,
        "q_length": num_queries,
        "kv_length": num_keys,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": FUNCTIONS.get(function, function),
        "attention_mask": padding,
        "allow_is_causal_skip": False,
        **more,
    }


# Packed sequences without a cache alone, as in transformers.
CASES = [(f, p) for f in FUNCTIONS for p in PLACES if "packed" not in f or p == "square"]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("function", "place"), CASES)
def test_it_says_what_theirs_says(function, place, padding):
    given = asked(function, place, PADDINGS[padding])
    mask = masks.attention_mask(**given)
    assert isinstance(mask, MaskTensor)
    expected = theirs.sdpa_mask(**given)
    assert mask.shape == expected.shape
    assert torch.equal(dense(mask), expected)
    numbers = sum(x.numel() for x in vars(mask.rule).values() if isinstance(x, torch.Tensor))
    assert numbers <= B * (given["q_length"] + given["kv_length"] + 1)


def test_a_short_mask_of_a_static_cache():
    given = asked("causal", "empty cache", RIGHT[:, :5])
    assert torch.equal(dense(masks.attention_mask(**given)), theirs.sdpa_mask(**given))


def test_an_offset_in_a_tensor():
    given = asked("window", "piece", LEFT, q_offset=torch.tensor(6))
    assert torch.equal(dense(masks.attention_mask(**given)), theirs.sdpa_mask(**given))


@pytest.mark.parametrize("function", ["causal", "bidirectional", "window", "both sides"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("padding", ["unknown", "none", "right"])
def test_none_only_where_theirs_may_be_none(function, place, padding):
    """And where it is, what is_causal of a module with more than one query says is all."""
    is_causal = function in ("causal", "window")
    skip = {"allow_is_causal_skip": is_causal, "allow_is_bidirectional_skip": not is_causal}
    given = asked(function, place, PADDINGS[padding], **skip)
    if masks.attention_mask(**given) is None:
        num_queries, num_keys, *_ = PLACES[place]
        seen = torch.ones(B, 1, num_queries, num_keys, dtype=torch.bool)
        said = seen.tril() if is_causal and num_queries > 1 else seen
        full = theirs.sdpa_mask(**given | dict.fromkeys(skip, False))
        assert torch.equal(said, full)
    usual = place == "square" and padding != "right" and function in ("causal", "bidirectional")
    assert not usual or masks.attention_mask(**given) is None


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("function", "place"), CASES)
def test_the_kernels_take_it_so(function, place, padding):
    """Attention under a rule is attention under the bools that it stands for."""
    num_queries, num_keys, *_ = PLACES[place]
    query = torch.randn(B, 2, num_queries, 8)
    key, value = torch.randn(2, B, 1, num_keys, 8)
    mask = masks.attention_mask(**asked(function, place, PADDINGS[padding]))
    out, _ = attention(None, query, key, value, mask)
    expected, _ = attention(None, query, key, value, dense(mask))
    assert torch.allclose(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda b, h, q, k: k <= q + 1,
        theirs.or_masks(FUNCTIONS["causal"], theirs.blockwise_overlay(SEQUENCES)),
        theirs.remap_positions_for_packed_sequence(FUNCTIONS["causal"], POSITIONS),
    ],
    ids=["a lambda", "blocks", "positions alone"],
)
def test_others_are_made_densely(function):
    given = asked(function, "square", LEFT)
    mask = masks.attention_mask(**given)
    assert type(mask) is torch.Tensor
    assert torch.equal(mask, theirs.sdpa_mask(**given))


def test_what_models_do_with_a_mask():
    mask = masks.attention_mask(**asked("window", "square", LEFT))
    bools = dense(mask)
    for same in (mask.to("cpu"), mask.to(torch.bool), mask.detach(), mask.clone(), mask[:, :, :]):
        assert isinstance(same, MaskTensor)
        assert torch.equal(dense(same), bools)
    cut = mask[:, :, :, :7]
    assert isinstance(cut, MaskTensor)
    assert torch.equal(dense(cut), bools[..., :7])
    assert mask.dtype == torch.bool
    assert mask.dim() == mask.ndim == 4
    assert torch.equal(~mask, ~bools)
    assert torch.equal(mask[:, :, -3:], bools[:, :, -3:])
    assert torch.equal(mask[1:], bools[1:])
    assert torch.equal(mask[..., 2:], bools[..., 2:])
    assert torch.equal(mask[..., ::2], bools[..., ::2])
    assert torch.equal(mask.to(torch.float32), bools.float())
    assert torch.equal(mask.expand(B, 4, L, L), bools.expand(B, 4, L, L))
    assert torch.equal(torch.where(mask, 1.0, 2.0), torch.where(bools, 1.0, 2.0))
    assert torch.equal(torch.cat([mask, mask], -1), torch.cat([bools, bools], -1))
    assert mask.any()
    assert "MaskTensor(shape=(3, 1, 12, 12), rule=Rule(" in repr(mask)


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "llama", "gemma2", "gpt_oss", "t5"])
@torch.inference_mode()
def test_no_matrix_of_pairs_in_a_model(name, padding, monkeypatch):
    """Every mask that a model asks for is None or a rule, and no rule is ever made dense."""
    from transformers import AttentionMaskInterface

    made = []

    def spy(*arguments, **keywords):
        made.append(masks.attention_mask(*arguments, **keywords))
        return made[-1]

    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "selfattn", spy)
    monkeypatch.setattr("selfattn.transformers.rules.Rule.dense", None)
    family = FAMILIES[name]
    run(family.make(), "selfattn", *family.given(padding))
    assert made
    assert all(mask is None or isinstance(mask, MaskTensor) for mask in made)
    assert padding == "none" or any(isinstance(mask, MaskTensor) for mask in made)
