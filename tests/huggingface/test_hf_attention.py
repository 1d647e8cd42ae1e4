"""The attention function, call by call, beside the formula in float64."""

from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import masking_utils

from selfattn.transformers import masks
from selfattn.transformers.attention import attention
from selfattn.transformers.masktensor import dense

B, H, HKV, L, E = 2, 4, 2, 9, 8
DECODER, ENCODER = SimpleNamespace(is_causal=True), SimpleNamespace(is_causal=False)
KEPT = torch.arange(L) < torch.tensor([[9], [4]])


@pytest.fixture
def operands():
    torch.manual_seed(0)
    query = torch.randn(B, L, H, E).transpose(1, 2)
    key, value = torch.randn(2, B, HKV, L, E)
    return [x.clone().requires_grad_() for x in (query, key, value)]


def formula(query, key, value, seen=None, bias=None, scale=E**-0.5, softcap=None, sinks=None):
    """Positions before heads, and the weights, as transformers' eager functions compute them."""
    query, key, value = (x.double() for x in (query, key, value))
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = query @ key.mT * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        column = sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2), weights


def check(operands, expected, found, more=()):
    """Values and gradients of the operands and of `more`."""
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6)
    factor = torch.linspace(-1, 1, found.numel()).view_as(found)
    leaves = [*operands, *more]
    of_found = torch.autograd.grad((found * factor).sum(), leaves)
    of_expected = torch.autograd.grad((expected * factor.double()).sum(), leaves)
    for x, y in zip(of_found, of_expected, strict=True):
        assert torch.allclose(x, y.to(x.dtype), rtol=1e-4, atol=1e-5)


CAUSAL = torch.ones(L, L, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    ("module", "is_causal", "seen"),
    [
        (DECODER, None, CAUSAL),
        (ENCODER, None, None),
        (DECODER, False, None),
        (ENCODER, True, CAUSAL),
        (SimpleNamespace(), None, CAUSAL),
    ],
)
def test_is_causal(operands, module, is_causal, seen):
    found, weights = attention(module, *operands, None, is_causal=is_causal)
    assert weights is None
    check(operands, formula(*operands, seen=seen)[0], found)


def test_one_query_sees_all(operands):
    query, key, value = operands
    found, _ = attention(DECODER, query[:, :, :1], key, value, None)
    check(operands, formula(query[:, :, :1], key, value)[0], found)


def test_a_mask_is_all_that_masks(operands):
    """No is_causal and no window beside it: what is to be seen is in the mask."""
    mask = KEPT[:, None, None]
    found, _ = attention(DECODER, *operands, mask, is_causal=True, sliding_window=2)
    check(operands, formula(*operands, seen=mask)[0], found)


def test_a_float_mask(operands):
    bias = torch.randn(B, 1, L, L)
    found, _ = attention(DECODER, *operands, bias)
    check(operands, formula(*operands, bias=bias)[0], found)


@pytest.mark.parametrize("module", [DECODER, ENCODER])
def test_a_window_without_a_mask(operands, module):
    """Its own place included, and on both sides where it is not causal."""
    distance = torch.arange(L)[:, None] - torch.arange(L)
    seen = (distance.abs() < 3) & (CAUSAL if module.is_causal else True)
    found, _ = attention(module, *operands, None, sliding_window=3)
    check(operands, formula(*operands, seen=seen)[0], found)
    query, key, value = operands
    last, _ = attention(module, query[:, :, -1:], key, value, None, sliding_window=3)
    assert torch.equal(last, found[:, -1:])


def test_softcap_scaling_and_sinks(operands):
    sinks = torch.randn(H, requires_grad=True)
    given = {"softcap": 2.0, "scale": 0.7, "sinks": sinks}
    found, _ = attention(DECODER, *operands, None, softcap=2.0, scaling=0.7, s_aux=sinks)
    check(operands, formula(*operands, seen=CAUSAL, **given)[0], found, [sinks])


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("mask", ["none", "lengths", "ids", "bools", "floats"])
def test_position_bias(operands, mask, batch):
    """With its gradient, beside every kind of mask."""
    bias = torch.randn(batch, H, L, L, requires_grad=True)
    kept = KEPT.flip(-1) if mask == "ids" else KEPT
    rule = masks.attention_mask(
        B, L, L, mask_function=masking_utils.bidirectional_mask_function, attention_mask=kept
    )
    seen = kept[:, None, None]
    floats = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    given = {"none": None, "bools": seen, "floats": floats}.get(mask, rule)
    expected = formula(*operands, bias=bias, seen=None if mask == "none" else seen)[0]
    found, _ = attention(ENCODER, *operands, given, position_bias=bias)
    check(operands, expected, found, [bias])


def test_causal_position_bias(operands):
    bias = torch.randn(1, H, L, L, requires_grad=True)
    found, _ = attention(DECODER, *operands, None, position_bias=bias)
    check(operands, formula(*operands, bias=bias, seen=CAUSAL)[0], found, [bias])


def test_weights_after_dropout(operands):
    """Those that are applied to the values, as the eager functions return them in training."""
    out, weights = attention(ENCODER, *operands, None, dropout=0.4, output_attentions=True)
    assert 0.2 < (weights == 0).double().mean() < 0.6  # of 648, with a chance of 0.4 each
    value = operands[2].repeat_interleave(H // HKV, 1)
    assert torch.allclose(weights @ value, out.transpose(1, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_weights(operands, side):
    sinks = torch.randn(H)
    kept = KEPT if side == "right" else KEPT.flip(-1)
    rule = masks.attention_mask(
        B, L, L, mask_function=masking_utils.bidirectional_mask_function, attention_mask=kept
    )
    out, weights = attention(
        ENCODER, *operands, rule, softcap=3.0, s_aux=sinks, output_attentions=True
    )
    expected = formula(*operands, seen=dense(rule), softcap=3.0, sinks=sinks)
    assert torch.allclose(weights.double(), expected[1], rtol=1e-5, atol=1e-6)
    check(operands, expected[0], out)
    with pytest.raises(NotImplementedError, match="output_attentions"):
        weights.sum().backward()


def test_values_of_another_head_dim(operands):
    query, key, value = operands
    value = torch.randn(B, HKV, L, 3, requires_grad=True)
    found, _ = attention(ENCODER, query, key, value, None)
    check([query, key, value], formula(query, key, value)[0], found)


def test_nothing_is_copied(operands, monkeypatch):
    """The kernels read the tensors as they are, and their result is what is returned."""
    from selfattn import torch as ours

    calls = []

    def spy(*arguments, **keywords):
        calls.append((arguments, original(*arguments, **keywords)))
        return calls[-1][1]

    original = ours.scaled_dot_product_attention
    monkeypatch.setattr(ours, "scaled_dot_product_attention", spy)
    found, _ = attention(DECODER, *operands, None)
    ((given, out),) = calls
    assert all(x is y for x, y in zip(given, operands, strict=True))
    assert found.is_contiguous()
    assert found.data_ptr() == out.data_ptr()


def test_float64_and_errors(operands):
    doubles = [x.detach().double() for x in operands]
    found, _ = attention(DECODER, *doubles, None)
    assert found.dtype == torch.float64
    rule = masks.attention_mask(B, L, L, attention_mask=KEPT)
    query, key, value = operands
    with pytest.raises(ValueError, match=r"attention_mask: expected .* 9 queries and 8 keys, got"):
        attention(DECODER, query, key[:, :, :8], value[:, :, :8], rule)
    with pytest.raises(TypeError, match="query: expected a tensor on the CPU, got one on meta"):
        attention(DECODER, query.to("meta"), key, value, None)
