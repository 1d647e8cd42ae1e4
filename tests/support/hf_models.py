"""Tiny models of transformers with random weights, each in a real configuration of its family.

`run` sets a model's attention implementation and runs it, so that the weights are the same in all.
"""

from dataclasses import dataclass, field

import torch
import transformers

VOCABULARY, WIDTH, HEADS = 99, 32, 4
PAD = 0

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}


@dataclass
class Family:
    """A family of models: its class, its configuration, and which inputs it takes."""

    model: str
    config: str
    settings: dict = field(default_factory=dict)
    generates: bool = False
    inputs: str = "tokens"  # or "images", "sounds", "pairs" (an encoder's and a decoder's tokens)
    has_flash: bool = True  # False where transformers refuses names with "flash" that it lacks
    gain: float = 4.0  # of the weights: they are small at first, and attention nearly uniform

    def make(self, **more):
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**(self.settings | more))
        model = getattr(transformers, self.model)(config)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.mul_(self.gain)
                elif "sinks" in name or "bias" in name:
                    parameter.normal_()
        return model.eval()

    def given(self, padding, batch=3, length=20):
        """Inputs of a batch, and the bools of its tokens that are no padding (None for images).

        padding: "none", "right" or "left".
        """
        torch.manual_seed(1)
        if self.inputs == "images":
            return {"pixel_values": torch.randn(batch, 3, 24, 24)}, None
        decoder = {"decoder_input_ids": torch.randint(3, VOCABULARY, (batch, 9))}
        if self.inputs == "sounds":
            return {"input_features": torch.randn(batch, 8, 60)} | decoder, None
        kept = torch.ones(batch, length, dtype=torch.bool)
        for entry in range(1, batch) if padding != "none" else ():
            missing = length - max(2, length - 6 * entry)
            kept[entry, -missing:] = False
        if padding == "left":
            kept = kept.flip(-1)
        tokens = torch.randint(3, VOCABULARY, (batch, length)) * kept
        inputs = {"input_ids": tokens, "attention_mask": kept.long()}
        if self.inputs == "pairs":
            return inputs | decoder, None
        return inputs, kept


def run(model, implementation, inputs, kept):
    """The rows of the result that are no padding's, of an implementation."""
    model.set_attn_implementation(implementation)
    out = model(**inputs)
    out = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return out if kept is None else out[kept]


FAMILIES = {
    "bert": Family("BertModel", "BertConfig", SMALL),
    "modernbert": Family(
        "ModernBertModel",
        "ModernBertConfig",
        SMALL
        | {
            "local_attention": 6,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": WIDTH,
            "n_layer": 2,
            "n_head": HEADS,
            "n_positions": 128,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        generates=True,
    ),
    "llama": Family("LlamaForCausalLM", "LlamaConfig", SMALL | GROUPED, generates=True),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        SMALL | GROUPED | SLIDING | {"attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
        generates=True,
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        "GptOssConfig",
        SMALL
        | GROUPED
        | SLIDING
        | {
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        generates=True,
        has_flash=False,
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": HEADS,
            "decoder_start_token_id": PAD,
            "pad_token_id": PAD,
            "eos_token_id": 2,
            "dropout_rate": 0.0,
            "tie_word_embeddings": False,
        },
        generates=True,
        inputs="pairs",
        gain=1.0,
    ),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": HEADS,
            "decoder_attention_heads": HEADS,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "num_mel_bins": 8,
            "max_source_positions": 30,
            "max_target_positions": 64,
            "decoder_start_token_id": 1,
            "pad_token_id": PAD,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dropout": 0.0,
            "suppress_tokens": [],
            "begin_suppress_tokens": [],
        },
        generates=True,
        inputs="sounds",
    ),
    "vit": Family(
        "ViTModel",
        "ViTConfig",
        {
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "intermediate_size": 64,
            "image_size": 24,
            "patch_size": 6,
        },
        inputs="images",
    ),
}
