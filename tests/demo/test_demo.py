"""The command line and the demo: what is shown is what was computed, and it fits the terminal."""

import io
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import selfattn
from selfattn import cli, demo
from selfattn.demo import bits, example, heads, minilm, words
from selfattn.demo.gelu import gelu
from selfattn.demo.walk import walk
from support import subprocesses

LONG = "Four score and seven years ago our fathers brought forth, on this continent, a new nation"


@pytest.fixture
def page(monkeypatch):
    """A function that runs the demo on its arguments and returns the text, `width` cells wide."""
    rich = pytest.importorskip("rich.console")

    def run(*arguments, width=80, **options):
        console = rich.Console(file=io.StringIO(), width=width, highlight=False, **options)
        demo.run(*arguments, console=console)
        return console.file.getvalue()

    return run


@pytest.fixture
def no_minilm(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "a_package_that_nobody_has")


def rows_of(text, heading, columns):
    """The numbers in the table under a heading: {label: [numbers]}, the last `columns` of a row."""
    lines = text[text.index(heading) :].splitlines()[1:]
    table = lines[: lines.index("")] if "" in lines else lines
    rows = {}
    for line in table:
        fields = line.split()
        if len(fields) > columns and re.fullmatch(r"-?\d*\.\d+", fields[-1]):
            rows[fields[-columns - 1]] = [float(field) for field in fields[-columns:]]
    return rows


# ------------------------------------------------------------------ the walk


def by_hand(start):
    """Self-attention in float64, written out here: every step by name."""
    x = start.x.astype(float)
    query, key, value = (
        x @ weight.astype(float).T + bias
        for weight, bias in (start.weights.query, start.weights.key, start.weights.value)
    )
    scores = query @ key.T / math.sqrt(query.shape[1])
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return {
        "query": query,
        "key": key,
        "value": value,
        "scores": scores,
        "weights": weights,
        "out": weights @ value,
    }


@pytest.mark.parametrize("start", [example.embedded(), example.hashed("", LONG.split())])
def test_every_step_is_computed(start):
    result, truth = walk(start), by_hand(start)
    for name, expected in {**truth, "fused": truth["out"]}.items():
        got = getattr(result, name)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6, err_msg=name)
        difference = np.abs(got - expected).max()
        assert result.differences[name] == pytest.approx(difference, rel=1e-3), name
    assert result.differences["fused"] < 2e-6
    assert result.seconds > 0
    assert result.calls >= 7


def test_embedded_example_reads():
    start = example.embedded()
    assert start.sentence == "I am a student"
    weights = dict(zip(start.words, walk(start).weights, strict=True))
    looks_at = {word: start.words[row.argmax()] for word, row in weights.items()}
    assert looks_at == {"I": "am", "am": "student", "a": "student", "student": "I"}


def test_hashed_vectors():
    start = example.hashed("", ["student", "Student", "am", "학생"])
    same = example.hashed("", ["am", "student"])
    np.testing.assert_array_equal(start.x[0], start.x[1])
    np.testing.assert_array_equal(start.x[[2, 0]], same.x)
    assert len(np.unique(start.x, axis=0)) == 3
    assert np.abs(start.x).max() <= 1


def test_page_shows_the_numbers(page):
    text, result = page(), walk(example.embedded())
    shown = {
        "Words": (8, result.example.x),
        "Score": (4, result.scores),
        "Softmax": (4, result.weights),
        "Weighted sum": (3, result.out),
        "Project": (11, np.hstack([result.query, result.key, result.value])),
    }
    for heading, (columns, expected) in shown.items():
        rows = rows_of(text, heading, columns)
        assert list(rows) == ["I", "am", "a", "student"], heading
        got = np.array(list(rows.values()))
        np.testing.assert_allclose(got, expected, rtol=0, atol=0.00501, err_msg=heading)


def test_page_says_how_it_ran(page):
    text, config = page(width=100), selfattn.show_config("dicts")
    assert f"kernels     {config['isa']}: {config['reason']}" in " ".join(text.split("\n"))
    assert re.search(rf"threads +up to {selfattn.get_num_threads()}\b", text)
    assert re.search(
        r"fused call +\d+\.\d+ (µs|ms) for one head of 4 words, median of \d+ calls", text
    )
    fused = walk(example.embedded()).differences["fused"]
    assert f"difference  {fused:.1e} at most from the NumPy reference" in text
    assert "by step" in text


def test_heat_map_is_brighter_where_the_weight_is_larger(page):
    text = page(force_terminal=True, color_system="truecolor")
    cells = re.findall(r"48;2;(\d+);(\d+);(\d+)m *(1\.0|\.\d\d) ", text)
    assert len(cells) == 16
    light = {float(cell[3]): sum(map(int, cell[:3])) for cell in cells}
    ordered = [light[weight] for weight in sorted(light)]
    assert ordered == sorted(ordered)
    assert ordered[-1] > 2 * ordered[0]


def test_page_shows_the_weights(page):
    """Wq and bq, Wk and bk, Wv and bv, under the names of what their columns stand for."""
    text = page(width=100)
    lines = text[text.index("Learnable weights") :].splitlines()
    for letter in "qkv":
        weight, bias = getattr(example.WEIGHTS, {"q": "query", "k": "key", "v": "value"}[letter])
        start = next(i for i, line in enumerate(lines) if f"W{letter}: " in line)
        assert lines[start + 1].split() == [*example.COLUMNS, f"b{letter}"]
        rows = [line.split() for line in lines[start + 2 : start + 2 + len(weight)]]
        channels = example.VALUES if letter == "v" else example.CHANNELS
        assert [row[0] for row in rows] == list(channels)
        got = np.array([[float(x) for x in row[1:]] for row in rows])
        np.testing.assert_allclose(got, np.hstack([weight, bias[:, None]]), atol=0.00501)
    assert "chosen by hand" in text


def test_one_row_is_worked_out(page):
    """What is written out makes what the tables say."""
    result, flat = walk(example.embedded()), " ".join(page(width=100).split())
    terms, scale, said = re.search(r"“am” on “student”: \((.*?)\) / √(\d) = (\S+)", flat).groups()
    pairs = [[float(x) for x in term.split("·")] for term in terms.split(" + ")]
    np.testing.assert_allclose(pairs, np.stack([result.query[1], result.key[3]], 1), atol=0.00501)
    score = sum(q * k for q, k in pairs) / float(scale) ** 0.5
    assert float(said) == pytest.approx(score, abs=0.03)
    powers = re.search(r"e\^0 / \((.*?)\) = 1 / (\S+) = (\.\d\d)", flat)
    total = sum(math.exp(float(term.removeprefix("e^"))) for term in powers[1].split(" + "))
    assert float(powers[2]) == pytest.approx(total, abs=0.02)
    assert float(powers[3]) == pytest.approx(result.weights[1, 3], abs=0.00501)
    shares = re.search(r"am = ((?:\.\d\d·v\(\w+\)(?: \+ )?)+)", flat)[1]
    assert re.findall(r"v\((\w+)\)", shares) == list(result.example.words)
    got = [float(share) for share in re.findall(r"(\.\d\d)·", shares)]
    np.testing.assert_allclose(got, result.weights[1], atol=0.00501)


ANIMAL = "The animal didn't cross the street because it was too tired"


@pytest.mark.parametrize("heading", ["Words", "Project", "Score", "Softmax", "Weighted sum"])
def test_no_word_is_lost(page, heading):
    """At 80 columns; the steps are shown whether or not the model is there."""
    rich = pytest.importorskip("rich.console")
    console = rich.Console(file=io.StringIO(), width=80, highlight=False)
    demo.run(ANIMAL, "it", console, steps=True)
    text = console.file.getvalue()
    lines = text[text.index(heading) :].splitlines()[1:]
    lines = lines[: lines.index("")]
    for word in ANIMAL.split():
        assert any(word in line.split() for line in lines), word
    assert "no room" not in text


def test_words_that_are_left_out_are_named(page):
    rich = pytest.importorskip("rich.console")
    console = rich.Console(file=io.StringIO(), width=80, highlight=False)
    sentence = " ".join(f"w{i}" for i in range(20))
    demo.run(sentence, None, console, steps=True)
    text = console.file.getvalue()
    softmax = text[text.index("Softmax") : text.index("Weighted sum")]
    shown = set(re.findall(r"^>? +\d+ (w\d+) ", softmax, re.M))
    said = " ".join(text[: text.index("x  Words")].split())
    left = re.search(r"no room for (\d+) of the 20, .*: (.*?)\.$", said)
    assert int(left[1]) == 20 - len(shown) > 0
    assert set(left[2].removesuffix(", …").split(", ")) <= {f"w{i}" for i in range(20)} - shown


def test_word_without_a_sentence(page):
    text = page(None, "AM")
    row = walk(example.embedded()).weights[1]
    assert "“am” attends to" in text
    assert re.search(rf"student \.{round(row[3] * 100):02d} █", text)
    assert "> am " in text


@pytest.mark.usefixtures("no_minilm")
def test_own_words_without_the_model(page):
    text = page("Birds of a feather", "feather")
    assert "nothing here is learned" in " ".join(text.split())
    assert minilm.INSTALL in text
    rows = rows_of(text, "Softmax", 4)
    expected = walk(example.hashed("", ["Birds", "of", "a", "feather"])).weights
    np.testing.assert_allclose(list(rows.values()), expected, rtol=0, atol=0.00501)


@pytest.mark.usefixtures("no_minilm")
@pytest.mark.parametrize("width", [50, 80, 81, 100, 160])
@pytest.mark.parametrize("count", [1, 2, 5, 9, 16, 60])
def test_page_fits(page, width, count):
    sentence = " ".join((LONG.split() * 4)[:count]).replace("continent", "대륙대륙")
    cells = pytest.importorskip("rich.cells")
    last = words.split(sentence)[-1].text
    text = page(sentence, last, width=width)
    assert max(cells.cell_len(line) for line in text.splitlines()) <= width
    lines = text[text.index("Softmax") :].splitlines()[1:]
    lines = lines[: lines.index("")]
    shares = [[float(x) for x in re.findall(r"(?<= )(?:\.\d\d|1\.0)(?= )", x + " ")] for x in lines]
    shares = [row for row in shares if row]
    assert shares
    assert any(line.startswith("> ") for line in lines)
    for row in shares:
        assert sum(row) == pytest.approx(1, abs=0.005 * len(row) + 1e-9)


def test_nothing_is_left_when_rounding_sums_past_one():
    rich = pytest.importorskip("rich.console")
    from selfattn.demo import tables

    weights = np.zeros((40, 40))
    weights[:, 0] = 1 + 1e-7
    console = rich.Console(file=io.StringIO(), width=80)
    plan = tables.plan(console, ["word"] * 40, (4,), weights.sum(0), 0)
    tables.heat_map(console, plan, weights)
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert rows[0][-1] == "rest"
    assert rows[1][:4] == [">", "1", "word", "1.0"]
    assert {row[-1] for row in rows[1:]} == {".00"}


# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("I am a student", ["I", "am", "a", "student"]),
        ('He said: "don\'t!"', ["He", "said", ":", '"', "don't", "!", '"']),
        ("나는 학생입니다.", ["나는", "학생입니다", "."]),
        ("我是学生", ["我", "是", "学", "生"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("3.14 C++ U.S.", ["3.14", "C", "+", "+", "U.S", "."]),
        ("a\u200b \u200b b", ["a\u200b", "b"]),
        ("  \t\n", []),
        ("...", [".", ".", "."]),
    ],
)
def test_split(sentence, expected):
    sentence = words.clean(sentence)
    found = words.split(sentence)
    assert [word.text for word in found] == expected
    assert all(sentence[word.start : word.end] == word.text for word in found)


def test_clean_composes():
    assert words.clean("cafe\u0301  \n x") == "caf\u00e9 x"
    assert [w.text for w in words.split(words.clean("\u1112\u1161\u11a8 \u1109\u1162\u11bc"))] == [
        "학",
        "생",
    ]


def test_positions():
    assert words.positions(["The", "bank", "the", "Bank"], "BANK") == [1, 3]
    with pytest.raises(words.DemoError, match=r"'river' is not a word of the sentence.*: a, b$"):
        words.positions(["a", "b"], "river")
    with pytest.raises(words.DemoError, match=r", \.\.\.$"):
        words.positions([str(i) for i in range(100)], "river")


# ------------------------------------------------------------------ heads


def test_merge_means_rows_and_sums_columns():
    pieces = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    merged = heads.merge(pieces[None], [[0], [1, 2], [3]])
    np.testing.assert_allclose(merged[0], [[0.1, 0.5, 0.4], [0.2, 0.75, 0.05], [0, 0, 1]])


def test_find_counts_other_words_only():
    labels = ("[CLS]", "ha", "ho", ",", "Ha", "[SEP]")
    maps = np.zeros((2, 3, 6, 6))
    none = np.zeros((2, 3), bool)
    maps[0, 0, 1] = [0.9, 0.0, 0.1, 0, 0, 0]  # rests on [CLS]
    maps[0, 1, 1] = [0.0, 0.8, 0.2, 0, 0, 0]  # itself
    maps[0, 2, 1] = [0.0, 0.0, 0.25, 0, 0.75, 0]  # itself elsewhere
    maps[1, 0, 1] = [0.0, 0.0, 0.3, 0.7, 0, 0]  # punctuation
    maps[1, 1, 1] = [0.0, 0.0, 0.35, 0.0, 0, 0.65]  # [SEP]
    maps[1, 2, 1] = [0.0, 0.0, 0.99, 0.01, 0, 0]
    assert heads.find(maps, labels, [1], none) == (1, [(1, 2, 2)], False)
    by_position = none.copy()
    by_position[1, 2] = True
    assert heads.find(maps, labels, [1], by_position) == (1, [(1, 1, 2)], False)
    maps[0, 0, 4, 2] = 0.4  # of several places the sharpest
    assert heads.find(maps, labels, [1, 4], by_position) == (4, [(0, 0, 2)], False)
    assert heads.find(maps / 100, labels, [1, 4], by_position) == (4, [(0, 0, 2)], False)
    # a sentence of one word: anything else counts
    one = maps[..., [0, 1, 5], :][..., [0, 1, 5]]
    found = heads.find(one, ("[CLS]", "ha", "[SEP]"), [1], none)
    assert found == (1, [(0, 0, 0), (1, 1, 2)], True)


def test_find_takes_each_head_and_each_target_once():
    labels = ("[CLS]", "it", "a", "b", "c", "d", "[SEP]")
    maps = np.zeros((1, 3, 7, 7))
    maps[0, 0, 1, [2, 3]] = [0.6, 0.4]
    maps[0, 1, 1, [2, 4]] = [0.5, 0.3]
    maps[0, 2, 1, [3, 5]] = [0.2, 0.1]
    places = heads.find(maps, labels, [1], np.zeros((1, 3), bool))[1]
    assert places == [(0, 0, 2), (0, 1, 4), (0, 2, 3)]


# ------------------------------------------------------------------ bits


@pytest.fixture
def small(monkeypatch, no_minilm):
    """An encoder of one layer and random weights, eight sentences, and no PyTorch."""
    monkeypatch.setattr(bits.MiniLM, "num_layers", 1)
    monkeypatch.setattr(bits, "SENTENCES", bits.SENTENCES[:8])
    monkeypatch.setattr(bits.importlib.util, "find_spec", lambda name: None)


def blas_of_two(x, weight, bias):
    """A product as BLAS may compute it: few rows in one order of the sum, many in another."""
    half = x.shape[1] // 2 if len(x) > 24 else x.shape[1]
    return x[:, :half] @ weight[:, :half].T + x[:, half:] @ weight[:, half:].T + bias


@pytest.mark.usefixtures("small")
def test_bits_are_counted():
    model, is_real = bits.load()
    assert not is_real
    tokens = model.tokens(bits.SENTENCES)
    assert len({len(ids) for ids in tokens}) > 3
    mine = bits.measure("selfattn", bits.through(model), tokens)
    assert [(part.same, part.total, part.difference) for part in mine.batched] == [(8, 8, 0)] * 6
    other = bits.measure("other", bits.through(model, project=blas_of_two), tokens)
    assert not other.keeps_all
    for part in other.batched:
        equal = [a.tobytes() == b.tobytes() for a, b in zip(part.alone, part.together, strict=True)]
        assert part.same == sum(equal)
        assert part.difference == np.abs(part.alone.astype(float) - part.together).max()
    largest = bits.largest(other)
    assert largest.same < 8
    assert (largest.size, largest.is_padded) == (32, True)
    sentence, number = bits.example([mine, other])
    assert largest.alone[sentence, number] != largest.together[sentence, number]


def test_minus_zero_is_another_number():
    """And NaN, of the same bits, is the same."""
    zero = np.zeros((2, 3), np.float32)
    part = bits.Batched(2, True, zero, -zero)
    assert (part.same, part.difference) == (0, 0)
    nan = zero / 1
    nan[:] = np.nan
    assert bits.Batched(2, True, nan, nan.copy()).same == 2


@pytest.mark.parametrize(
    ("number", "digits"), [(1.0, "3f800000"), (-2.0, "c0000000"), (1e-40, "000116c2")]
)
def test_hexadecimal(number, digits):
    assert bits.hexadecimal(np.float32(number)) == digits


def test_numpys_encoder_computes_the_same():
    model = bits._Random()
    tokens = model.tokens(bits.SENTENCES[:5])
    mine, other = (
        bits.measure("", bits.through(model, *arguments), tokens)
        for arguments in ((), (bits.numpy_attention, bits.numpy_project))
    )
    for a, b in zip(mine.batched, other.batched, strict=True):
        np.testing.assert_allclose(a.together, b.together, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("width", [60, 80, 120])
def test_page_of_bits(width):
    rich = pytest.importorskip("rich.console")
    console = rich.Console(file=io.StringIO(), width=width, highlight=False)
    demo.count_bits(console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert minilm.INSTALL in " ".join(text.split())
    assert re.findall(r"^(\w+) +2, padded +\d of 8 ", text, re.M) == ["selfattn", "NumPy"]
    for size in bits.SIZES:
        for kind in ("padded", "not padded"):
            assert len(re.findall(rf" {size}, {kind} +\d of 8 ", text)) == 2
    assert text.count("8 of 8 ") >= 6
    alone, together = re.search(r"^selfattn +([0-9a-f]{8}) +([0-9a-f]{8}) ", text, re.M).groups()
    assert alone == together


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("is_broken", [False, True])
def test_bits_command(capsys, monkeypatch, is_broken):
    """Its status says whether all of selfattn's bits are the same."""
    pytest.importorskip("rich")
    if is_broken:
        monkeypatch.setattr(selfattn, "project", blas_of_two)
    assert cli.main(["demo", "--bits"]) == is_broken
    out, err = capsys.readouterr()
    message = "selfattn: not every embedding has the same bits alone and in a batch\n"
    assert err == (message if is_broken else "")
    assert "Same bits as alone" in out


# ------------------------------------------------------------------ GELU


def exact_gelu(x):
    return np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)])


def test_gelu_is_exact_to_float32():
    x = np.linspace(-12, 12, 300_001).astype(np.float32)
    error = np.abs(gelu(x.copy()) - exact_gelu(x))
    assert error[np.abs(x) <= 4].max() <= 2e-7
    assert (error <= 4 * np.spacing(np.abs(x))).all()


def test_gelu_of_tiny_and_huge_numbers():
    x = np.array([0, -0.0, 1e-45, -1e-45, 1e-30, -1e-30, 1e18, -1e18, 50, -50], np.float32)
    np.testing.assert_allclose(gelu(x.copy()), exact_gelu(x), rtol=1e-6, atol=1e-45)


@pytest.mark.parametrize("shape", [(0, 3), (1,), (3, 32768), (7, 4681)])
def test_gelu_works_in_place_in_blocks(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    pieces = [gelu(piece.copy()) for piece in np.array_split(x.reshape(-1), 97)]
    y = x.copy()
    assert gelu(y) is y
    np.testing.assert_allclose(y.reshape(-1), np.concatenate(pieces), rtol=0, atol=2e-7)


# ------------------------------------------------------------------ the command line


# -P: not from the working directory, where the source folder would hide the installed package
PYTHON = [sys.executable, "-P", "-c"]


def command(code, *arguments, **environment):
    """Run `main(arguments)` in a process of its own, after `code`."""
    program = f"import sys\n{code}\nfrom selfattn.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [*PYTHON, program, *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=subprocesses.LIMIT,
        check=False,
    )


def test_info(capsys):
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    for value in ("isa", "num_threads", "numpy"):
        assert str(selfattn.show_config("dicts")[value]) in shown


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"selfattn {selfattn.__version__}\n"


def test_demo_command(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["demo"]) == 0
    assert list(rows_of(capsys.readouterr().out, "Softmax", 4)) == ["I", "am", "a", "student"]


@pytest.mark.usefixtures("no_minilm")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["I am", "--word", "student"], "--word 'student' is not a word of the sentence"),
        (["--word", "teacher"], "--word 'teacher' is not a word of the sentence"),
        ([""], "the sentence has no words"),
        ([" \n"], "the sentence has no words"),
        (["w " * 1001], "the demo takes up to 1000 words, got 1001"),
        (["\udcff"], "the sentence is not valid text"),
    ],
)
def test_a_user_error_is_one_line(capsys, arguments, message):
    pytest.importorskip("rich")
    assert cli.main(["demo", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"selfattn: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "I", "am"]])
def test_arguments_that_make_no_sense(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("selfattn")
    assert ": error: " in line


@pytest.mark.usefixtures("no_minilm")
def test_pictures(tmp_path, capsys):
    """The map, or where one word looks; a character that no font has is no failure."""
    pytest.importorskip("rich")
    image = pytest.importorskip("matplotlib.image")
    sizes = []
    for arguments in ([], ["--word", "am"], ["나는 학생이다 \U0001f9d1 \ue000", "--word", "나는"]):
        path = tmp_path / "a.png"
        assert cli.main(["demo", *arguments, "--png", str(path)]) == 0
        assert f"The picture: {path}" in capsys.readouterr().out.replace("\n", "")
        sizes.append(image.imread(path).shape[:2])
    assert sizes[0] != sizes[1]
    path = tmp_path / "nowhere" / "a.png"
    assert cli.main(["demo", "--png", str(path)]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"selfattn: --png: No such file or directory: {path}\n")


@pytest.mark.usefixtures("no_minilm")
def test_a_head_needs_the_model(capsys):
    pytest.importorskip("rich")
    assert cli.main(["demo", "I am", "--head", "6.12"]) == 1
    assert capsys.readouterr().err == (
        f"selfattn: --head needs the weights of MiniLM: {minilm.INSTALL}\n"
    )


def test_rich_is_missing():
    done = command("sys.modules['rich'] = None", "demo")
    assert done.returncode == 1
    assert done.stderr == (
        'selfattn: the demo needs rich, which is missing: pip install "selfattn[demo]"\n'
    )


def test_info_needs_numpy_alone():
    code = "for name in ('rich', 'safetensors', 'tokenizers'): sys.modules[name] = None"
    done = command(code, "info")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_utf8():
    pytest.importorskip("rich")
    done = command("", "demo", "--word", "I", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"am \.\d\d #+", done.stdout)


def test_a_reader_that_goes_away():
    pytest.importorskip("rich")
    program = "import sys; from selfattn.cli import main; sys.exit(main(['demo']))"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*PYTHON, program], stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b""
