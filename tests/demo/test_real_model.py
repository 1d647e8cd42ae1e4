"""The real MiniLM encoder by selfattn, against float64 written out and PyTorch.

The float64 computation below shares nothing with the package but the weights and the token ids:
one sentence at a time, one head at a time, no padding. CI installs what this needs in one leg.
"""

import importlib.util
import io
import math
from pathlib import Path

import numpy as np
import pytest

import selfattn
from selfattn import cli, demo
from selfattn.demo import bits, heads, minilm, words
from selfattn.demo.minilm import MiniLM

pytest.importorskip("tokenizers")
if not minilm.is_installed():
    pytest.skip("needs the weights of MiniLM", allow_module_level=True)
safetensors = pytest.importorskip("safetensors.numpy")

TOLERANCE = 2e-6
RIVER = "The bank by the river was muddy, but the bank that holds my money was closed."


@pytest.fixture(scope="module")
def model():
    return MiniLM()


@pytest.fixture(scope="module")
def weights(model):
    return safetensors.load_file(model.folder / "model.safetensors")


@pytest.fixture(scope="module")
def bench():
    """bench/real_model.py, whose sentences and PyTorch model these tests share."""
    path = Path(__file__).parents[2] / "bench" / "real_model.py"
    spec = importlib.util.spec_from_file_location("real_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exact(weights, ids):
    """The embedding of one sentence and its maps (6, 12, T, T), in float64 throughout."""

    def linear(x, name):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return x @ weight.astype(float).T + bias

    def norm(x, name):
        x = x - x.mean(1, keepdims=True)
        x = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    gelu = np.vectorize(lambda v: v * 0.5 * math.erfc(-v / math.sqrt(2)))
    x = weights["embeddings.word_embeddings.weight"][ids].astype(float)
    x += weights["embeddings.position_embeddings.weight"][: len(ids)]
    x += weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    maps = np.empty((6, 12, len(ids), len(ids)))
    for i in range(6):
        name = f"encoder.layer.{i}"
        query, key, value = (
            linear(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value")
        )
        attended = np.empty_like(x)
        for h in range(12):
            head = slice(32 * h, 32 * h + 32)
            scores = query[:, head] @ key[:, head].T / math.sqrt(32)
            shares = np.exp(scores - scores.max(1, keepdims=True))
            maps[i, h] = shares / shares.sum(1, keepdims=True)
            attended[:, head] = maps[i, h] @ value[:, head]
        attended = linear(attended, f"{name}.attention.output.dense")
        x = norm(x + attended, f"{name}.attention.output.LayerNorm")
        fed = linear(gelu(linear(x, f"{name}.intermediate.dense")), f"{name}.output.dense")
        x = norm(x + fed, f"{name}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean), maps


@pytest.fixture(scope="module")
def sentences(bench):
    """A dozen of the bench's, of every kind."""
    return bench.SENTENCES[:9] + bench.SENTENCES[-3:]


@pytest.fixture(scope="module")
def truth(model, weights, sentences):
    """The exact embeddings of those."""
    encodings = model.tokenizer.encode_batch(sentences)
    return np.array([exact(weights, encoding.ids)[0] for encoding in encodings])


# ------------------------------------------------------------------ embeddings


def test_sentences_are_of_every_kind(model, bench):
    lengths = [len(encoding.ids) for encoding in model.tokenizer.encode_batch(bench.SENTENCES)]
    assert len(lengths) == len(set(bench.SENTENCES)) == 35
    assert min(lengths) == 3  # one word
    assert max(lengths) == 256
    assert any("\uac00" <= sentence[0] <= "\ud7a3" for sentence in bench.SENTENCES)
    padded = [
        ids.shape[1] - n for _, ids, lengths in model.batches(bench.SENTENCES, 4) for n in lengths
    ]
    assert max(padded) > 100


@pytest.mark.parametrize("batch_size", [1, 4, 12])
def test_embeddings_equal_float64(model, sentences, truth, batch_size):
    got = model.encode(sentences, batch_size=batch_size)
    assert got.dtype == np.float32
    assert np.abs(got - truth).max() <= TOLERANCE


@pytest.mark.parametrize("batch_size", [1, 4, 35])
def test_embeddings_equal_pytorch(model, bench, batch_size):
    pytest.importorskip("torch")
    other = bench.TorchMiniLM(model)
    assert bench.largest_difference(model, other, batch_size) <= TOLERANCE


def test_pytorch_attention_in_selfattns_place(model, bench, sentences, truth):
    pytest.importorskip("torch")
    got = model.encode(sentences, batch_size=4, attention=bench.torch_attention)
    assert np.abs(got - truth).max() <= TOLERANCE


def test_wrong_attention_is_noticed(model, sentences, truth):
    """The equality above would not hold if padding were attended, or nothing at all."""

    def padding_too(query, key, value, kv_lengths=None):
        return selfattn.scaled_dot_product_attention(query, key, value)

    got = model.encode(sentences, batch_size=4, attention=padding_too)
    assert np.abs(got - truth).max() > 100 * TOLERANCE


def test_embeddings_mean_something(model):
    x = model.encode(["A cat sits on the mat.", "A kitten is on the rug.", "Stocks fell sharply."])
    np.testing.assert_allclose((x * x).sum(1), 1, atol=1e-6)
    assert x[0] @ x[1] > 0.5 > 0.2 > abs(x[0] @ x[2])


def test_nothing_to_encode(model):
    assert model.encode([]).shape == (0, 384)
    assert model.encode([""]).shape == (1, 384)


def test_attention_gets_views(model):
    """Heads are strided views of one array, lengths come only where there is padding."""
    seen = []

    def attention(query, key, value, kv_lengths=None):
        seen.append(None if kv_lengths is None else kv_lengths.tolist())
        assert query.shape == (2, 12, query.shape[2], 32)
        assert query.base is not None
        assert query.base is key.base is value.base
        out = selfattn.scaled_dot_product_attention(query, key, value, kv_lengths=kv_lengths)
        assert out.swapaxes(1, 2).flags.c_contiguous  # heads merge without a copy
        return out

    model.encode(["I am", "a student of attention"], attention=attention)
    assert seen == [[4, 6]] * 6
    seen.clear()
    model.encode(["I am", "a student"], attention=attention)
    assert seen == [None] * 6


# ------------------------------------------------------------------ bits, alone and in a batch


def test_embeddings_keep_their_bits(model, bench):
    """Of every sentence, the one of 256 tokens too, in each batch, padded or not."""
    found = next(bench.bits_by_way(model, None))
    assert found.name == "selfattn"
    assert [(part.size, part.is_padded) for part in found.batched] == [
        (size, is_padded) for is_padded in (True, False) for size in (2, 7, 32)
    ]
    assert [part.same for part in found.batched] == [35] * 6
    assert found.keeps_all
    for part in found.batched:
        assert part.difference == 0
        assert part.alone.tobytes() == part.together.tobytes()


@pytest.mark.parametrize("batch_size", [2, 7, 32])
def test_encode_keeps_its_bits(model, bench, batch_size):
    """By the door that users take, which sorts its batches by length."""
    alone = np.concatenate([model.encode([sentence]) for sentence in bench.SENTENCES])
    assert model.encode(bench.SENTENCES, batch_size=batch_size).tobytes() == alone.tobytes()


def test_embeddings_keep_their_bits_in_each_kernel_set(model, each_isa):
    tokens = model.tokens(bits.SENTENCES[:4])
    first = None
    for isa in each_isa():
        found = bits.measure(isa, bits.through(model), tokens)
        assert found.keeps_all
        assert first in (None, found.batched[0].alone.tobytes())
        first = found.batched[0].alone.tobytes()


def test_pooling_sees_no_padding(rng):
    """Whatever padding holds, and however much of it there is."""
    x = rng.standard_normal((3, 40, 384), np.float32)
    lengths = np.array([3, 17, 40])
    alone = [
        minilm.pool(row[None, :n], lengths[i : i + 1])[0]
        for i, (row, n) in enumerate(zip(x, lengths, strict=True))
    ]
    for row, n in zip(x, lengths, strict=True):
        row[n:] = np.nan
    assert minilm.pool(x, lengths).tobytes() == np.array(alone).tobytes()


# ------------------------------------------------------------------ the demo on it


@pytest.mark.parametrize("wanted", ["river", "bank", "money", None])
def test_sharpest_head_is_the_sharpest(model, weights, wanted):
    found = heads.sharpest(model, RIVER, wanted)
    encoding = model.tokenizer.encode(RIVER)
    _, maps = exact(weights, encoding.ids)  # every word of this sentence is one token
    assert list(found.labels) == ["[CLS]", *(w.text for w in words.split(RIVER)), "[SEP]"]
    for head in found.heads:
        np.testing.assert_allclose(head.map, maps[head.layer, head.head], rtol=0, atol=1e-5)
    shares = [head.map[found.focus, head.target] for head in found.heads]
    assert shares == sorted(shares, reverse=True)
    assert len({head.target for head in found.heads}) == len(shares) == 3

    best = 0.0
    for focus in range(1, 19):
        if words.is_mark(found.labels[focus]) or wanted not in (None, found.labels[focus]):
            continue
        for target in range(1, 19):
            other = found.labels[target]
            if words.is_mark(other) or other.lower() == found.labels[focus].lower():
                continue
            given = [
                maps[layer, head, focus, target]
                for layer in range(6)
                for head in range(12)
                if (layer, head) not in found.by_position
            ]
            best = max(best, *given)
    assert found.heads[0].map[found.focus, found.heads[0].target] == pytest.approx(best, abs=1e-5)
    assert found.candidates == {"river": 1, "bank": 2, "money": 1, None: 16}[wanted]
    assert found.difference < 2e-6
    assert found.shape == (1, 12, len(found.labels), 32)


ANIMAL = "The animal didn't cross the street because it was too tired"


def test_heads_that_point_elsewhere(model):
    """One head alone would look like the model's answer."""
    found = heads.sharpest(model, ANIMAL, "it")
    seen = {found.labels[head.target]: head for head in found.heads}
    assert list(seen)[:2] == ["tired", "animal"]
    assert seen["animal"].name == "6.12"
    only = heads.sharpest(model, ANIMAL, "it", "4.2")
    assert only.is_chosen
    assert [(head.name, only.labels[head.target]) for head in only.heads] == [("4.2", "animal")]
    by_position = heads.sharpest(model, ANIMAL, None, "1.3")  # chosen, it counts
    assert by_position.heads[0].name == "1.3"


@pytest.mark.parametrize("name", ["0.1", "7.1", "1.13", "1", "1.", "a.b", "-1.2", "1.2.3", "²·1"])
def test_a_head_that_is_not_there(model, name):
    with pytest.raises(words.DemoError, match=r"--head: expected LAYER.HEAD, layers 1 to 6 and"):
        heads.sharpest(model, ANIMAL, "it", name)


def test_heads_side_by_side(model, capsys, tmp_path):
    """The table of three heads, its numbers those of the maps; and the picture of it."""
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    path = tmp_path / "it.png"
    assert cli.main(["demo", ANIMAL, "--word", "it", "--png", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "Sharpest is not coreference" in shown
    table = shown[shown.index("What “it” attends to") :].splitlines()[1:]
    found = heads.sharpest(model, ANIMAL, "it")
    assert table[0].split() == [head.name for head in found.heads]
    rows = [line.split() for line in table[1 : 1 + len(found.labels)]]
    assert [row[0] for row in rows] == list(found.labels)
    got = [[float(share) for share in row[1:]] for row in rows]
    want = np.stack([head.map[found.focus] for head in found.heads], 1)
    np.testing.assert_allclose(got, want, atol=0.00501)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["demo", ANIMAL, "--head", "6.12", "--png", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "attends in layer 6, head 12" in shown
    assert "Map of head 6.12" in shown


def test_heads_by_position(model, weights):
    """Those two look at a neighbour in any sentence, as the exact maps show."""
    marked = np.argwhere(heads.by_position(model)).tolist()
    assert marked == [[0, 2], [1, 8]]
    _, maps = exact(weights, model.tokenizer.encode(RIVER).ids)
    assert np.diagonal(maps[0, 2], -1).mean() > 0.9
    assert np.diagonal(maps[1, 8], 1).mean() > 0.5


def test_words_of_several_pieces(model):
    sentence = "나는 antidisestablishmentarianism 공부합니다!"
    found = heads.sharpest(model, sentence, "나는")
    assert found.labels == (
        "[CLS]",
        "나는",
        "antidisestablishmentarianism",
        "공부합니다",
        "!",
        "[SEP]",
    )
    assert found.focus == 1
    np.testing.assert_allclose(found.heads[0].map.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "sentence",
    [
        "hello",
        "!",
        "[CLS] [SEP] [PAD]",
        "a\u200bb \u200b c",
        "ha ha",
        "😀 👩‍🎓",
        "x" * 300,
        "a\x1cb",
    ],
)
def test_odd_sentences(model, sentence):
    found = heads.sharpest(model, sentence)
    np.testing.assert_allclose(found.heads[0].map.sum(1), 1, atol=1e-5)
    assert 0 < found.focus < len(found.labels) - 1
    assert found.heads[0].target != found.focus


def test_more_words_than_fit(model):
    sentence = "word " * 300 + "end"
    found = heads.sharpest(model, sentence, "word")
    assert (len(found.labels), found.left_out) == (256, 47)
    with pytest.raises(words.DemoError, match="past the 256 tokens"):
        heads.sharpest(model, sentence, "end")
    with pytest.raises(words.DemoError, match="'nowhere' is not a word"):
        heads.sharpest(model, sentence, "nowhere")


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("sentence", ["I am a student", RIVER, "word " * 300])
def test_page_of_a_head(model, sentence, width):
    console_ = pytest.importorskip("rich.console")
    console = console_.Console(file=io.StringIO(), width=width, highlight=False)
    demo.run(sentence, console=console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    found = heads.sharpest(model, sentence)
    flat = " ".join(text.split())
    assert f"layer {found.heads[0].layer + 1}, head {found.heads[0].head + 1}" in flat
    share = found.heads[0].map[found.focus, found.heads[0].target]
    assert f"{share:.2f} of its weight goes to “{found.labels[found.heads[0].target]}”" in flat
    focus = next(line for line in text.splitlines() if line.startswith("> "))
    shares = [float(field) for field in focus.split() if field[0] == "." or field == "1.0"]
    assert sum(shares) == pytest.approx(1, abs=0.005 * len(shares) + 1e-9)
    if len(found.labels) == len(shares):
        np.testing.assert_allclose(shares, found.heads[0].map[found.focus], rtol=0, atol=0.00501)


def test_command(capsys):
    pytest.importorskip("rich")
    assert cli.main(["demo", "The cat sat on the mat", "--word", "cat"]) == 0
    assert "“cat” attends most sharply in layer" in capsys.readouterr().out
    assert cli.main(["demo", "The cat sat", "--word", "dog"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "selfattn: --word 'dog' is not a word of the sentence, which has: The, cat, sat\n"


# ------------------------------------------------------------------ the bench


@pytest.mark.parametrize("is_broken", [False, True])
def test_bench_fails_where_bits_differ(model, bench, monkeypatch, capsys, is_broken):
    pytest.importorskip("rich")
    ways = {"selfattn": bits.through(model, project=rounded_by_rows if is_broken else None)}
    tokens = model.tokens(bits.SENTENCES[:4])
    found = [bits.measure(*way, tokens) for way in ways.items()]
    monkeypatch.setattr(bench, "bits_by_way", lambda model, truth: found)
    monkeypatch.setattr(bench, "torch", None)
    monkeypatch.setattr(bench, "report", lambda *arguments: [])
    monkeypatch.setattr("sys.argv", ["real_model.py"])
    assert bench.main() == is_broken
    shown = capsys.readouterr().out
    assert ("NOT THE SAME BITS" in shown) == is_broken
    assert (shown.count("4 of 4") == 6) != is_broken


def rounded_by_rows(x, weight, bias):
    """A projection that rounds in another order where there are more than 32 rows."""
    half = x.shape[1] // 2
    if len(x) <= 32:
        return selfattn.project(x, weight, bias)
    return selfattn.project(x[:, :half], weight[:, :half]) + selfattn.project(
        x[:, half:], weight[:, half:], bias
    )


def test_bench_reports(model, bench, monkeypatch):
    ids = np.array([[101, 2003, 102, 0], [101, 2003, 2009, 102]])
    batches = {"two": [(ids, np.array([3, 4]))]}
    monkeypatch.setattr(bench, "workloads", lambda model: batches)
    truth = bench.TorchMiniLM(model) if bench.torch else None
    lines = list(bench.report(bench.contestants(model, truth), model, seconds=0.0))
    assert lines[0] == "two  (median of 5 rounds)"
    assert "selfattn" in lines[1]
    assert "attention" in lines[1]
    assert len(lines) == (5 if bench.torch else 2)


def test_bench_workloads(model, bench):
    for batches in bench.workloads(model).values():
        for ids, lengths in batches:
            assert ids.shape == (len(lengths), lengths.max())
            assert ((ids != 0) == (np.arange(ids.shape[1]) < lengths[:, None])).all()
