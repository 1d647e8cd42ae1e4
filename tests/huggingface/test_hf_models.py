"""Whole models: outputs, gradients and generated tokens are those of eager attention."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from support.hf_models import FAMILIES, run

OURS = ("selfattn", "selfattn_flash")
CASES = [
    (name, implementation)
    for name, family in FAMILIES.items()
    for implementation in (OURS if family.has_flash else OURS[:1])
]
PADDED = [
    (name, implementation, padding)
    for name, implementation in CASES
    for padding in ("none", "right", "left")
    if padding == "none" or FAMILIES[name].inputs in ("tokens", "pairs")
]
# Of the largest number: two ways to sum in float32, through all layers.
FORWARD, BACKWARD = 2e-6, 1e-5


def close(found, expected, bound, scale=None):
    scale = expected.abs().max() if scale is None else scale
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= bound * scale


@pytest.mark.parametrize(("name", "implementation", "padding"), PADDED)
@torch.inference_mode()
def test_outputs(name, implementation, padding):
    family = FAMILIES[name]
    model = family.make()
    inputs, kept = family.given(padding)
    expected = run(model, "eager", inputs, kept)
    close(run(model, implementation, inputs, kept), expected, FORWARD)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "implementation", "padding"), PADDED)
@torch.inference_mode()
def test_half_types(name, implementation, padding, dtype):
    """As near as eager attention, in the same type, to the same weights computed in float32."""
    pytest.importorskip("ml_dtypes")
    family = FAMILIES[name]
    model = family.make().to(dtype)
    inputs, kept = family.given(padding)
    narrow = {k: x.to(dtype) if x.is_floating_point() else x for k, x in inputs.items()}
    ours, eager = (run(model, which, narrow, kept) for which in (implementation, "eager"))
    wide = {k: x.float() if x.is_floating_point() else x for k, x in narrow.items()}
    expected = run(model.float(), "eager", wide, kept)
    assert ours.dtype == dtype
    ours, eager = ((x.float() - expected).square().mean() for x in (ours, eager))
    assert ours <= 1.2**2 * eager


@pytest.mark.parametrize(("name", "implementation", "padding"), PADDED)
def test_gradients(name, implementation, padding):
    """Of every parameter, beside the largest of all: a key's bias has none but rounding."""
    family = FAMILIES[name]
    model = family.make()
    inputs, kept = family.given(padding)

    def gradients(which):
        model.zero_grad()
        out = run(model, which, inputs, kept)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out).sin()).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected, found = gradients("eager"), gradients(implementation)
    assert found.keys() == expected.keys()
    largest = max(x.abs().max() for x in expected.values())
    for parameter, x in expected.items():
        close(found[parameter], x, BACKWARD, largest)


@pytest.mark.parametrize(
    ("name", "implementation"), [case for case in CASES if FAMILIES[case[0]].generates]
)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
def test_greedy_tokens(name, implementation, options):
    """With padding on the left, as decoders are given it, and tokens past every sliding window."""
    family = FAMILIES[name]
    model = family.make()
    inputs, _ = family.given("left")
    inputs.pop("decoder_input_ids", None)
    expected = generated(model, "eager", inputs, **options)
    found = generated(model, implementation, inputs, **options)
    assert torch.equal(found.sequences, expected.sequences)
    for ours, eagers in zip(found.logits, expected.logits, strict=True):  # of each step
        close(ours, eagers, FORWARD)


def generated(model, implementation, inputs, **options):
    model.set_attn_implementation(implementation)
    model.generation_config.eos_token_id = None  # no sequence ends early
    model.generation_config.max_length = None
    asked = {"output_logits": True, "return_dict_in_generate": True}
    return model.generate(**inputs, max_new_tokens=12, do_sample=False, **asked, **options)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_greedy_tokens_of_a_static_cache(name):
    family = FAMILIES[name]
    model = family.make()
    inputs, _ = family.given("left")
    expected = generated(model, "eager", inputs)
    found = generated(model, "selfattn", inputs, cache_implementation="static")
    assert torch.equal(found.sequences, expected.sequences)


def test_models_that_refuse_torchs_function_run():
    for name in ("gemma2", "gpt_oss"):
        with pytest.raises(ValueError, match="does not support"):
            FAMILIES[name].make().set_attn_implementation("sdpa")


@pytest.mark.parametrize("implementation", OURS)
@pytest.mark.parametrize("name", ["bert", "gemma2", "t5"])
@torch.inference_mode()
def test_attentions(name, implementation):
    """`output_attentions` gives the weights of real queries, in both names."""
    family = FAMILIES[name]
    model = family.make()
    inputs, kept = family.given("right")
    found = {}
    for which in ("eager", implementation):
        model.set_attn_implementation(which)
        out = model(**inputs, output_attentions=True)
        found[which] = out.attentions if "attentions" in out else out.encoder_attentions
    assert len(found["eager"]) == 2
    for ours, eagers in zip(found[implementation], found["eager"], strict=True):
        if kept is not None:
            ours, eagers = (x.transpose(1, 2)[kept] for x in (ours, eagers))
        close(ours, eagers, FORWARD)


def test_dropout_in_training():
    """Reproducible by PyTorch's generator, and none where the model is not trained."""
    model = FAMILIES["llama"].make(attention_dropout=0.5)
    inputs, kept = FAMILIES["llama"].given("right")
    for implementation in OURS:
        without = run(model.eval(), implementation, inputs, kept)
        model.train()
        torch.manual_seed(0)
        one = run(model, implementation, inputs, kept)
        two = run(model, implementation, inputs, kept)
        torch.manual_seed(0)
        again = run(model, implementation, inputs, kept)
        assert torch.equal(one, again)
        assert not torch.equal(one, two)
        assert not torch.allclose(one, without)


@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_compiled(padding):
    """In one graph, where a mask's values cannot be looked at."""
    model = FAMILIES["llama"].make()
    inputs, kept = FAMILIES["llama"].given(padding)
    with torch.no_grad():
        expected = run(model, "eager", inputs, kept)
        model.set_attn_implementation("selfattn")
        torch._dynamo.reset()
        out = torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs).logits[kept]
        torch._dynamo.reset()
    close(out, expected, FORWARD)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant):
    """Masks are kept for the second forward pass, and said again there."""
    model = FAMILIES["llama"].make()
    inputs, kept = FAMILIES["llama"].given("left")
    weight = model.model.layers[0].self_attn.q_proj.weight
    model.train()
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        run(model, "selfattn", inputs | {"use_cache": False}, kept).square().sum().backward()
        gradients.append(weight.grad.clone())
    assert torch.equal(*gradients)
