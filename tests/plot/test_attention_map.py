"""selfattn.plot: what is drawn is what was given, words can be read, errors say what is wrong."""

import doctest
import io
import itertools

import numpy as np
import pytest

import selfattn
from support import subprocesses

matplotlib = pytest.importorskip("matplotlib")
figure_ = pytest.importorskip("matplotlib.figure")
agg = pytest.importorskip("matplotlib.backends.backend_agg")
plot = selfattn.plot
from selfattn.plot import attention, heat, labels  # noqa: E402 (needs matplotlib)

# Of characters that no font on a machine has: they are boxes.
pytestmark = pytest.mark.filterwarnings("ignore:Glyph .* missing")
WORDS = ["I", "am", "a", "student"]


def maps(*shape, seed=0):
    scores = np.random.default_rng(seed).standard_normal(shape)
    return selfattn.softmax(scores)


def draw(*arguments, **options):
    """The axes, on a figure of no display; all of it is rendered."""
    figure = figure_.Figure()
    agg.FigureCanvasAgg(figure)
    axes = plot.attention_map(*arguments, figure=figure, **options)
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    return axes


def shown(axes):
    return [text.get_text() for text in axes.texts]


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


# ------------------------------------------------------------------ one head


def test_one_map():
    weights = maps(4, 4)
    weights[0, 1:] = 0, 0, 0
    weights[0, 0] = 1
    axes = draw(weights, WORDS)
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    assert ticks(axes.xaxis) == ticks(axes.yaxis) == WORDS
    want = ["1.0", *(f"{x:.2f}"[1:] for x in weights[1:].ravel())]  # nothing where it is 0
    assert shown(axes) == want


def test_queries_beside_keys():
    axes = draw(maps(2, 4), ["x", "y"], WORDS)
    assert (ticks(axes.yaxis), ticks(axes.xaxis)) == (["x", "y"], WORDS)


@pytest.mark.parametrize("count", [1, 2, 30, 300])
def test_labels_do_not_overlap(count):
    axes = draw(maps(count, count), [f"w{i}" for i in range(count)])
    for axis, low, high in ((axes.yaxis, "y0", "y1"), (axes.xaxis, "x0", "x1")):
        boxes = [text.get_window_extent() for text in axis.get_ticklabels()]
        ends = sorted((getattr(box, low), getattr(box, high)) for box in boxes)
        assert all(a[1] <= b[0] + 0.5 for a, b in itertools.pairwise(ends))
    assert bool(axes.texts) == (count <= 2)  # numbers, where they have room
    assert len(axes.figure.axes) == 1 + (count > 2)  # else a colour bar


@pytest.mark.parametrize("options", [{}, {"word": 0}])
def test_all_of_it_is_in_the_figure(options):
    words = ["internationalisation", "x" * 40, "b", "학생이다"]
    axes = draw(maps(4, 4), words, titles="A title", **options)
    texts = [*axes.texts, axes.title]
    if not options:
        texts += [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label]
    box = axes.figure.bbox
    for text in texts:
        extent = text.get_window_extent()
        assert extent.x0 >= 0, text
        assert extent.y0 >= 0, text
        assert extent.x1 <= box.x1, text
        assert extent.y1 <= box.y1, text


def test_numbers_are_asked_for_or_not():
    assert not draw(maps(3, 3), list("abc"), values=False).texts
    assert len(draw(maps(20, 20), ["w"] * 20, values=True).texts) == 400


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes(dtype):
    weights = np.eye(3, dtype=dtype)
    assert shown(draw(weights, list("abc"))) == ["1.0"] * 3


def test_nan_is_drawn_and_has_no_number():
    weights = np.array([[np.nan, 1.0], [0.5, 0.5]])
    assert shown(draw(weights, ["a", "b"])) == ["1.0", ".50", ".50"]
    assert "NaN" in shown(draw(weights, ["a", "b"], word="a"))
    draw(np.full((2, 2), np.nan), ["a", "b"])


def test_all_zero():
    assert not draw(np.zeros((2, 2)), ["a", "b"]).texts


# ------------------------------------------------------------------ heads, words


@pytest.mark.parametrize("options", [{}, {"word": "am"}])
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (1, 6), (2, 1, 2)])
def test_a_grid(shape, options):
    weights = maps(*shape, 4, 4)
    axes = draw(weights, WORDS, **options)
    assert axes.shape == shape
    for index in np.ndindex(*shape):
        numbers = ".".join(str(i + 1) for i in index)
        assert axes[index].get_title() == f"head {numbers}"
        if not options:
            np.testing.assert_array_equal(axes[index].images[0].get_array(), weights[index])
            assert axes[index].images[0].norm.vmax == weights.max()  # one scale for all


def test_one_word():
    weights = maps(4, 4)
    axes = draw(weights, WORDS, word="student")
    texts = shown(axes)
    assert [text for text in texts if text in WORDS] == WORDS
    assert [text for text in texts if text not in WORDS] == [f"{x:.2f}"[1:] for x in weights[3]]
    widths = np.array([bar.get_width() for bar in axes.patches if hasattr(bar, "get_width")])
    np.testing.assert_allclose(widths / widths.max(), weights[3] / weights.max(), atol=0.35)
    order = np.argsort(widths)
    np.testing.assert_array_equal(order, np.argsort(weights[3]))
    assert axes.get_title() == "“student” attends to"


def test_which_word():
    weights, words = maps(3, 3), ["the", "The", "the"]
    for word, row in (("the", 0), ("The", 1), ("THE", 0), (2, 2), (-1, 2), (np.int64(1), 1)):
        numbers = [text for text in shown(draw(weights, words, word=word)) if "." in text]
        assert numbers == [f"{x:.2f}"[1:] for x in weights[row]]


def test_a_word_that_is_not_among_the_keys():
    axes = draw(maps(2, 4), ["x", "y"], WORDS, word="y")
    assert shown(axes).count("y") == 1


# ------------------------------------------------------------------ where it is drawn


def test_on_axes_that_are_given():
    figure = figure_.Figure(figsize=(8, 4))
    axes = figure.subplots(1, 2)
    assert plot.attention_map(maps(4, 4), WORDS, ax=axes[0]) is axes[0]
    assert plot.attention_map(maps(4, 4), WORDS, word=1, ax=axes[1]) is axes[1]
    assert len(figure.axes) == 2
    assert tuple(figure.get_size_inches()) == (8, 4)
    pair = plot.attention_map(maps(2, 4, 4), WORDS, ax=figure.subplots(1, 2))
    assert pair.shape == (2,)


def test_a_figure_of_pyplot():
    """As a notebook shows it; Matplotlib's state is not touched without it."""
    code = """
    import sys, numpy as np, selfattn
    from matplotlib.figure import Figure
    selfattn.plot.attention_map(np.eye(2), ["a", "b"], figure=Figure())
    assert "matplotlib.pyplot" not in sys.modules
    axes = selfattn.plot.attention_map(np.eye(2), ["a", "b"])
    from matplotlib import pyplot
    assert pyplot.gcf() is axes.figure
    print("shown")
    """
    assert subprocesses.run(code, MPLBACKEND="agg") == "shown\n"


def test_it_is_loaded_when_it_is_asked_for():
    code = """
    import sys, selfattn
    assert "plot" in dir(selfattn)
    assert not [name for name in sys.modules if name.startswith(("matplotlib", "selfattn.plot"))]
    sys.modules["matplotlib"] = None
    try:
        selfattn.plot
    except ModuleNotFoundError as error:
        print(error)
    """
    said = subprocesses.run(code)
    assert said.startswith("selfattn.plot: expected Matplotlib, which is not installed")


def test_the_docstring(monkeypatch):
    matplotlib.use("agg")
    assert doctest.testmod(attention).failed == 0
    matplotlib.pyplot.close("all")


# ------------------------------------------------------------------ what is read by whom


def luminance(colours):
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def seen(colours, kind):
    """By eyes without one kind of cone: Viénot, Brettel and Mollon (1999), in linear RGB."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    red, green, blue = linear.T
    mixed = {"protan": 0.11238 * red + 0.88762 * green, "deutan": 0.29275 * red + 0.70725 * green}
    yellow = mixed[kind]
    shift = {"protan": 0.00401, "deutan": -0.02234}[kind]
    return np.stack([yellow, yellow, shift * (red - green) + blue], 1) @ [0.2126, 0.7152, 0.0722]


def test_shades_darken_for_every_kind_of_eyes():
    colours = heat.SHADES(np.linspace(0, 1, 64))[:, :3]
    for light in (luminance(colours), seen(colours, "protan"), seen(colours, "deutan")):
        assert (np.diff(light) < 0).all()
        assert light[0] > 0.95
        assert light[-1] < 0.05


def test_words_of_any_script_and_of_none():
    """Characters that no font has are boxes, and no failure; nothing is read as mathematics."""
    words = ["$x_{", "나는", "学生", "\x1b[31m\n"]
    missing = labels.without_font(["\U0010fffd"])
    assert missing == "\U0010fffd"
    assert labels.without_font(["abc ÄÖ"]) == ""
    axes = draw(maps(4, 4), words)
    draw(maps(4, 4), words, word=1)
    assert ticks(axes.yaxis) == ["$x_{", "나는", "学生", "\\x1b[31m\\n"]
    for axis in (axes.xaxis, axes.yaxis):
        assert not any(text.get_parse_math() for text in axis.get_ticklabels())


def test_labels_are_cut():
    assert labels.label("word") == "word"
    assert labels.label("x" * 40) == "x" * 17 + "…"
    assert labels.cells(labels.label("학" * 20)) <= 18


# ------------------------------------------------------------------ errors

SQUARE = np.eye(2)


@pytest.mark.parametrize(
    ("error", "arguments", "options", "message"),
    [
        (TypeError, (SQUARE + 0j, ["a", "b"]), {}, "weights: expected real numbers, got"),
        (TypeError, ([[1, 0], [0, 1]], ["a", "b"]), {}, "weights: expected an array, got list"),
        (ValueError, (np.ones(2), ["a", "b"]), {}, r"weights: expected shape \(\.\.\., L, S\)"),
        (ValueError, (np.ones((0, 2)), []), {}, r"weights: .* got \(0, 2\)"),
        (ValueError, (-SQUARE, ["a", "b"]), {}, "weights: expected 0 or more.*are they scores"),
        (TypeError, (SQUARE, "ab"), {}, "tokens: expected a sequence of str, got str"),
        (TypeError, (SQUARE, 2), {}, "tokens: expected a sequence of str, got int"),
        (TypeError, (SQUARE, [1, 2]), {}, "tokens: expected str throughout, got int"),
        (ValueError, (SQUARE, ["a"]), {}, "tokens: expected 2, one for each row of weights, got 1"),
        (ValueError, (np.ones((2, 3)), ["a", "b"]), {}, "key_tokens: expected 3, .* got None"),
        (ValueError, (SQUARE, ["a", "b"], ["c"]), {}, "key_tokens: expected 2, .* got 1"),
        (ValueError, (SQUARE, ["a", "b"]), {"word": "c"}, "word: expected one of tokens, got 'c'"),
        (ValueError, (SQUARE, ["a", "b"]), {"word": 2}, "word: expected an index of 2 tokens"),
        (TypeError, (SQUARE, ["a", "b"]), {"word": 1.0}, "word: expected str or int, got float"),
        (ValueError, (SQUARE, ["a", "b"]), {"titles": ["a", "b"]}, "titles: expected 1 str"),
        (ValueError, (SQUARE, ["a", "b"]), {"vmax": 0}, "vmax: expected a finite number above 0"),
        (ValueError, (SQUARE, ["a", "b"]), {"cmap": "no"}, "cmap: expected the name of one of"),
        (ValueError, (SQUARE, ["a", "b"]), {"ax": [1]}, "ax: expected 1 Axes, one for each head"),
    ],
)
def test_errors(error, arguments, options, message):
    with pytest.raises(error, match=message):
        plot.attention_map(*arguments, **options)


def test_a_figure_that_is_not_empty():
    figure = figure_.Figure()
    axes = figure.subplots()
    with pytest.raises(ValueError, match="figure: expected an empty one, got one of 1 Axes"):
        plot.attention_map(SQUARE, ["a", "b"], figure=figure)
    with pytest.raises(ValueError, match="figure: expected none beside ax, got both"):
        plot.attention_map(SQUARE, ["a", "b"], figure=figure, ax=axes)
