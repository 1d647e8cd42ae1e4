"""Tiny models of transformers with random weights, each in a real configuration of its family.

A model is made with eager attention; `answers` sets another implementation, runs it, and sets
eager again, so that the weights are the same.
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
    "intermediate_size": 48,
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
    has_flash: bool = True  # whether packed sequences can hold its attention

    def make(self, **more):
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**(self.settings | more))
        model = getattr(transformers, self.model)(config)
        model.set_attn_implementation("eager")
        with torch.no_grad():  # initial weights are small, and attention is then nearly uniform
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
                elif "sinks" in name or "bias" in name:
                    parameter.normal_()
        return model.eval()


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
        SMALL
        | GROUPED
        | SLIDING
        | {"attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
        generates=True,
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        "GptOssConfig",
        SMALL | GROUPED | SLIDING | {"num_local_experts": 2, "num_experts_per_tok": 1},
        generates=True,
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
        },
        generates=True,
        inputs="pairs",
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
            "intermediate_size": 48,
            "image_size": 24,
            "patch_size": 6,
        },
        inputs="images",
    ),
}
