"""The demo that learns: its sentences, its gradients, its training, what it shows."""

import io
import itertools
import re

import numpy as np
import pytest

from selfattn import cli, nn
from selfattn import demo as cli_demo
from selfattn.demo import learn
from selfattn.demo.learn import sentences as text
from selfattn.demo.learn.adam import Adam
from selfattn.demo.learn.model import Batch, Model
from selfattn.demo.learn.training import Trainer, accuracy, held_out
from support import subprocesses


def sentences(count, nouns=text.REAL, seed=0):
    return list(itertools.islice(text.sentences(np.random.default_rng(seed), nouns), count))


# ------------------------------------------------------------------ the sentences


def test_pairs_differ_in_the_adjective_and_in_what_it_means():
    some = sentences(400)
    for first, second in zip(some[::2], some[1::2], strict=True):
        assert first.words[:-1] == second.words[:-1]
        assert first.words[-1] != second.words[-1]
        assert (first.antecedent, first.other) == (second.other, second.antecedent)


def test_sentences_say_what_the_frames_say():
    """x and y of a frame are meant where its adjectives say so, in every wording."""
    seen = set()
    for sentence in sentences(3000):
        assert sentence.words[sentence.it] == "it"
        assert sentence.words.count("it") == 1
        line = " ".join(sentence.words)
        meant, other = (sentence.words[i] for i in (sentence.antecedent, sentence.other))
        assert sentence.words.count(meant) == 1
        found = []
        for number, frame in enumerate(text.FRAMES):
            for wording in frame.wordings:
                for x, y, adjectives in ((meant, other, frame.of_x), (other, meant, frame.of_y)):
                    verb = re.escape(wording).replace(r"\{x\}", f".*{x}.*")
                    pattern = verb.replace(r"\{y\}", f".*{y}.*").replace("\\ ", " ?")
                    is_told = sentence.words[-1] in adjectives and x in text.REAL[frame.x]
                    if is_told and y in text.REAL[frame.y] and re.search(f"^.*{pattern}", line):
                        found.append((number, wording, x == meant and y == other))
        assert found, line
        seen.update(found)
    assert {(n, w) for n, w, _ in seen} == {
        (n, w) for n, frame in enumerate(text.FRAMES) for w in frame.wordings
    }
    assert {is_x for _, _, is_x in seen} == {True, False}


def test_no_word_of_the_test_is_trained_on():
    real = {noun for nouns in text.REAL.values() for noun in nouns}
    made_up = set(text.MADE_UP["animal"])
    assert len(made_up) == 4000
    assert not real & made_up
    trained = {word for sentence in sentences(4000, text.MADE_UP) for word in sentence.words}
    assert not trained & real
    tested = {word for sentence in held_out(0, 2000) for word in sentence.words}
    assert not tested & made_up
    assert len(tested & real) > 100
    assert tested - real <= trained  # every other word it has seen


def test_sentences_fit():
    some = sentences(3000) + sentences(3000, text.MADE_UP)
    assert max(len(sentence.words) for sentence in some) <= text.LONGEST
    assert {word for sentence in some for word in sentence.words} <= set(text.VOCABULARY)
    assert len(set(text.VOCABULARY)) == len(text.VOCABULARY)


def test_the_example():
    tired, wide = (text.example(adjective) for adjective in ("tired", "wide"))
    assert str(tired) == "The animal didn't cross the street because it was too tired."
    assert tired.words[tired.antecedent] == wide.words[wide.other] == "animal"
    assert wide.words[wide.antecedent] == tired.words[tired.other] == "street"


# ------------------------------------------------------------------ the model


def test_gradients_of_the_model():
    """Finite differences along random directions, of every parameter."""
    model = Model(0, np.float64)
    batch = Batch.of(sentences(6))
    _, grads = model.loss(batch)
    grads = {name: x.copy() for name, x in grads.items()}
    assert set(grads) == set(model.params)
    rng = np.random.default_rng(1)
    for name, x in model.params.items():
        direction, before, step = rng.standard_normal(x.shape), x.copy(), 1e-5
        losses = []
        for sign in (1, -1):
            x[...] = before + sign * step * direction
            losses.append(model.loss(batch)[0])
        x[...] = before
        want = (losses[0] - losses[1]) / (2 * step)
        assert (grads[name] * direction).sum() == pytest.approx(want, rel=1e-5, abs=1e-7), name


def test_a_sentence_alone_and_in_a_batch():
    """Padding changes nothing: lengths mask it."""
    model = Model(0, np.float64)
    some = sentences(9)
    together = model.logits(Batch.of(some)), model.maps(Batch.of(some))
    for n, sentence in enumerate(some):
        alone = Batch.of([sentence])
        length = len(sentence.words)
        np.testing.assert_allclose(model.logits(alone)[0], together[0][n], rtol=0, atol=1e-12)
        maps = together[1][n]
        np.testing.assert_allclose(model.maps(alone)[0], maps[:length, :length], atol=1e-12)
        assert not maps[:length, length:].any()
        assert model.answers(alone)[0] < length


def test_adam_by_hand():
    """Two steps of algorithm 1, written out."""
    x, rate = np.array([1.0, -2.0]), 0.1
    adam = Adam({"x": x})
    grads = np.array([[0.5, -3.0], [-0.1, 2.0]])
    want, m, v = x.copy(), 0, 0
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        want -= rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        adam.step({"x": g}, rate)
        np.testing.assert_allclose(x, want, rtol=1e-13)


def test_adam_beside_torch(rng):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((3, 4))
    theirs = torch.nn.Parameter(torch.from_numpy(x.copy()))
    optimiser, adam = torch.optim.Adam([theirs], lr=0.01), Adam({"x": x})
    for _ in range(20):
        gradient = rng.standard_normal(x.shape)
        theirs.grad = torch.from_numpy(gradient)
        optimiser.step()
        adam.step({"x": gradient}, 0.01)
    np.testing.assert_allclose(x, theirs.detach().numpy(), rtol=0, atol=1e-12)


# ------------------------------------------------------------------ the training


def test_float32_and_float64_train_alike():
    """From one seed, a few hundred steps: the two curves of the loss agree to 1e-3."""
    curves = []
    for dtype in (np.float32, np.float64):
        trainer = Trainer(0, dtype=dtype)
        curves.append([trainer.step() for _ in range(300)])
    np.testing.assert_allclose(*curves, rtol=0, atol=1e-3)
    assert np.mean(curves[0][-20:]) < 0.8 < 2.5 < curves[0][0]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, suffix, dtype):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    whole = Trainer(3, 40, dtype)
    losses = [whole.step() for _ in range(12)]
    nn.save(whole.state_dict(), tmp_path / f"state{suffix}")
    losses += [whole.step() for _ in range(15)]

    resumed = Trainer(3, 40, dtype)
    resumed.load_state_dict(nn.load(tmp_path / f"state{suffix}"))
    assert [resumed.step() for _ in range(15)] == losses[12:]
    want, got = whole.state_dict(), resumed.state_dict()
    assert list(got) == list(want)
    for name, x in want.items():
        assert x.tobytes() == got[name].tobytes(), name


def test_no_step_beyond_the_last():
    """Its rate would be below 0."""
    trainer = Trainer(0, 2)
    for _ in range(2):
        trainer.step()
    before = trainer.state_dict()
    with pytest.raises(ValueError, match="expected a trainer of more steps than 2"):
        trainer.step()
    for name, x in before.items():
        np.testing.assert_array_equal(trainer.state_dict()[name], x)


def test_it_learns():
    """Half of the demo's training, on made-up nouns, tells what "it" means among real ones."""
    test = held_out(0, 1000)
    trainer = Trainer(0, 500)
    assert accuracy(trainer.model, test) < 0.3
    for _ in range(trainer.steps):
        trainer.step()
    assert accuracy(trainer.model, test) > 0.85


# ------------------------------------------------------------------ what is shown


@pytest.fixture
def shown(tmp_path):
    """A function that trains a few steps and returns the page and the picture's path."""
    rich = pytest.importorskip("rich.console")
    pytest.importorskip("matplotlib")

    def run(width=80, **options):
        console = rich.Console(file=io.StringIO(), width=width, highlight=False)
        learn.run(console, steps=3, png=str(tmp_path / "a.png"), **options)
        return console.file.getvalue(), tmp_path / "a.png"

    return run


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_page(shown, width):
    page, _ = shown(width)
    assert max(len(line) for line in page.splitlines()) <= width
    trainer = Trainer(0, 3)
    test = held_out(0, 2000)
    looked_at = [text.example(adjective) for adjective in ("tired", "wide")]
    looks, right = [learn.look(trainer.model, looked_at)], [accuracy(trainer.model, test)]
    for _ in range(3):
        trainer.step()
    looks.append(learn.look(trainer.model, looked_at))
    right.append(accuracy(trainer.model, test))

    flat = " ".join(page.split())
    assert f"never trained on: before {right[0]:.1%}, after {right[1]:.1%}." in flat
    assert "3/3" in page
    for n, sentence in enumerate(looked_at):
        rows = page[page.index(f"\n{sentence}\n") :].splitlines()[3 : 3 + len(sentence.words) + 1]
        *rows, answers = (row.split() for row in rows)
        assert [row[0] for row in rows] == list(sentence.words)
        numbers = np.array([[float(number) for number in row[1:]] for row in rows])
        want = np.stack([look[n][0] for look in looks], -1)
        np.testing.assert_allclose(numbers, want, atol=0.00501)
        assert answers == ["answers", *(sentence.words[look[n][1]] for look in looks)]


def test_the_picture(shown):
    _, path = shown()
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    image = pytest.importorskip("matplotlib.image").imread(path)
    assert image.shape[0] > 400
    assert image.shape[1] > 1000
    dark = (image[..., :3].sum(-1) < 2.2).mean()
    assert 0.003 < dark < 0.3  # words and lines, on white


def test_seeds_differ(shown):
    pages = [shown(seed=seed)[0] for seed in (0, 0, 1)]
    cut = [page[page.index("What “it”") : page.index("Trained ")] for page in pages]
    assert cut[0] == cut[1] != cut[2]


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a sentence", "--train"], "--train takes no sentence"),
        (["--train", "--word", "it"], "--train takes no --word"),
        (["", "--train"], "--train takes no sentence"),
        (["--train", "--steps"], "--train takes no --steps"),
        (["--seed", "0"], "--seed goes with --train"),
        (["--bits", "--png", "a.png"], "--bits takes no sentence and no other option"),
        (["--head", "6.12"], "--head goes with a sentence, and without --steps"),
        (["I am", "--head", "6.12", "--steps"], "--head goes with a sentence, and without --steps"),
        (["--steps"], "--steps goes with a sentence"),
        (["--train", "--seed", "x"], "argument --seed: invalid"),
        (["--train", "--seed", "-1"], "argument --seed: expected 0 or more, got -1"),
    ],
)
def test_arguments_that_make_no_sense(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["demo", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_told_before_the_training(capsys, tmp_path):
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    path = tmp_path / "nowhere" / "a.png"
    assert cli.main(["demo", "--train", "--png", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"selfattn: --png: No such file or directory: {path}\n"


def test_another_file_that_is_missing_is_not_the_pictures(monkeypatch):
    pytest.importorskip("rich")
    error = FileNotFoundError(2, "No such file or directory", "model.safetensors")

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(cli_demo, "run", fail)
    monkeypatch.setattr(learn, "run", fail)
    for arguments in (["demo"], ["demo", "--train"]):
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
            cli.main(arguments)


def test_looking_whether_a_picture_can_be_written_changes_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    from selfattn.demo.learn import picture

    link = tmp_path / "link.png"
    link.symlink_to("nothing.png")
    picture.check(link)
    picture.check(tmp_path / "new.png")
    assert [path.name for path in tmp_path.iterdir()] == ["link.png"]
    assert link.is_symlink()
    (tmp_path / "old.png").write_bytes(b"old")
    picture.check(tmp_path / "old.png")
    assert (tmp_path / "old.png").read_bytes() == b"old"


def test_matplotlib_is_missing():
    pytest.importorskip("rich")
    code = """
    import sys
    sys.modules["matplotlib"] = None
    from selfattn.cli import main
    sys.exit(main(["demo", "--train"]))
    """
    done = subprocesses.attempt(code)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("selfattn: the demo needs matplotlib, which is missing")
