"""nn.rope by given tables: of all pairs or all elements, by position, of each batch entry."""

import re

import numpy as np
import pytest

from selfattn import nn, reference
from support.arrays import HALF_DTYPES, normal, same_bits
from support.halves import assert_rounded, widened
from support.layers import make

X_SHAPE = (2, 3, 7, 12)
PLACES = [
    {},
    {"offset": 3},
    {"offset": np.array([4, 0])},
    {"positions": np.array([0, 1, 2, 0, 1, 0, 10])},
    {"positions": np.array([[6, 5, 4, 3, 2, 1, 0], [8, 8, 8, 9, 10, 10, 0]], np.uint8)},
]


def tables(*leading, columns, dtype=np.float32):
    """Any numbers: no pair of them need be a cosine and a sine."""
    return {
        name: normal(*leading, 11, columns, dtype=dtype, seed=n)
        for n, name in enumerate(("cos", "sin"))
    }


def check(f, x, **options):
    """Two products and a sum: 2 units of what they add up to."""
    got = getattr(nn, f)(x, **options)
    wide = {name: y.astype("f8") if name in ("cos", "sin") else y for name, y in options.items()}
    want = getattr(reference, f)(x.astype(np.float64), **wide)
    assert got.dtype == x.dtype
    sizes = {name: np.abs(wide[name]) for name in ("cos", "sin")}
    plus = {**wide, **sizes, "sin": -sizes["sin"]}  # so that the first of a pair is a sum
    size = getattr(reference, f)(np.abs(x).astype("f8"), **plus)
    size = np.maximum(size, getattr(reference, f)(np.abs(x).astype("f8"), **wide | sizes))
    assert (np.abs(got - want) <= 2 * np.finfo(x.dtype).eps * size).all()
    count = options.get("rotary_dim", x.shape[-1])
    np.testing.assert_array_equal(got[..., count:], x[..., count:])


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("f", ["rope", "rope_backward"])
def test_against_the_reference(isa, dtype, f, layout):
    x = normal(*X_SHAPE, dtype=dtype)
    for rotary_dim, leading in ((12, ()), (6, (2,)), (12, (1,)), (2, (2,)), (0, ())):
        for columns in {rotary_dim, rotary_dim // 2}:
            for places in PLACES:
                given = tables(*leading, columns=columns, dtype=dtype)
                check(f, x, **given, **places, layout=layout, rotary_dim=rotary_dim)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("columns", [6, 12])
def test_backward_is_the_transpose(rng, layout, columns):
    """Whatever the tables hold; it is the inverse only where cos^2 + sin^2 is 1."""
    x, y = rng.standard_normal((2, *X_SHAPE))
    given = tables(2, columns=columns, dtype=np.float64) | {"layout": layout, "offset": 2}
    rotated, back = nn.rope(x, **given), nn.rope_backward(y, **given)
    assert (rotated * y).sum() == pytest.approx((x * back).sum(), abs=1e-11)
    assert not np.allclose(nn.rope_backward(rotated, **given), x)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_tables_of_frequencies_have_their_bits(isa, dtype, layout):
    """Rounded as nn.rope rounds its own, and as float64, which it rounds itself."""
    x, offset = normal(*X_SHAPE, dtype=dtype), np.array([4, 0])
    angles = np.arange(11)[:, None] * 10000.0 ** (-np.arange(6) / 6)
    both = (
        (lambda t: np.concatenate([t, t], -1))
        if layout == "half"
        else lambda t: np.repeat(t, 2, -1)
    )
    for f in (nn.rope, nn.rope_backward):
        want = f(x, offset, layout=layout)
        for of_elements in (lambda t: t, both):
            for table_dtype in (dtype, np.float64):
                cos, sin = (of_elements(g(angles)).astype(table_dtype) for g in (np.cos, np.sin))
                assert same_bits(f(x, offset, cos=cos, sin=sin, layout=layout), want)
                at = offset[:, None] + np.arange(7)
                got = f(x, cos=cos[at], sin=sin[at], layout=layout)  # of each batch entry
                assert same_bits(got, want)
                got = f(x[0], offset=4, cos=cos, sin=sin, layout=layout)
                assert same_bits(got, want[0])


def test_as_hugging_face_writes_it(rng):
    """x * cos + rotate_half(x) * sin, even where the halves of the tables are not the same."""
    x = rng.standard_normal(X_SHAPE)
    cos, sin = rng.standard_normal((2, 2, 7, 12))
    rotated_half = np.concatenate([-x[..., 6:], x[..., :6]], -1)
    want = x * cos[:, None] + rotated_half * sin[:, None]
    np.testing.assert_allclose(nn.rope(x, cos=cos, sin=sin), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("columns", [6, 12])
def test_any_layout_of_memory(rng, dtype, columns):
    """Tables are read in place: two halves of one array, strided, reversed, broadcast."""
    x = rng.standard_normal(X_SHAPE).astype(dtype)
    cos, sin = tables(2, columns=columns, dtype=dtype).values()
    given = {"rotary_dim": 12, "layout": "interleaved"}
    beside = np.concatenate([cos, sin], -1)
    views = [
        (beside[..., :columns], beside[..., columns:]),
        (np.asfortranarray(cos), np.repeat(sin, 3, -2)[..., ::3, :]),
        (cos[..., ::-1].copy()[..., ::-1], np.repeat(sin, 2, -1)[..., ::2]),
        (cos[:1], np.broadcast_to(sin[:1, :, :1], cos.shape)),
        (np.broadcast_to(cos[..., :1], cos.shape), sin),
    ]
    for view in views:
        copies = [np.ascontiguousarray(np.broadcast_to(t, cos.shape)) for t in view]
        pair = dict(zip(("cos", "sin"), (np.broadcast_to(t, cos.shape) for t in view), strict=True))
        plain = dict(zip(("cos", "sin"), copies, strict=True))
        for f in (nn.rope, nn.rope_backward):
            for places in PLACES:
                want = f(x, **plain, **places, **given)
                assert same_bits(f(x, **pair, **places, **given), want)
                heads_last = np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)
                assert same_bits(f(heads_last, **pair, **places, **given), want)
    for table in (cos, sin):
        table.flags.writeable = False
    nn.rope(x, cos=memoryview(cos), sin=sin, **given)


def test_out_may_be_a_table(rng, dtype):
    """Or x, or overlap either: what is written first must not be read afterwards."""
    x = rng.standard_normal((4, 6)).astype(dtype)
    cos, sin = tables(columns=6, dtype=dtype).values()
    want = nn.rope(x, cos=cos, sin=sin)
    own = cos.copy()
    assert nn.rope(x, cos=own, sin=sin, out=own[:4]) is not None
    assert same_bits(own[:4], want)
    own = x.copy()
    nn.rope(own, cos=cos, sin=sin, out=own)
    assert same_bits(own, want)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_bits_of_every_set_at_any_number_of_threads(each_isa, dtype, layout):
    x = normal(2, 5, 300, 66, dtype=dtype)
    for columns in (66, 33):
        given = {name: np.tile(t, (30, 1)) for name, t in tables(columns=columns).items()}
        given |= {"layout": layout, "offset": np.array([30, 0])}
        want = None
        for isa in each_isa():
            for threads in (1, 2, 3):
                got = tuple(f(x, **given, num_threads=threads) for f in (nn.rope, nn.rope_backward))
                want = want or got
                assert same_bits(got, want), (isa, threads, columns)
            alone = nn.rope(x[0, 2:3, 40:41], **given | {"offset": 70})
            assert same_bits(alone, want[0][0, 2:3, 40:41]), (isa, columns)


@pytest.mark.parametrize("half", HALF_DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_halves(each_isa, half):
    """Tables of the half type are what they are; float32's are not rounded to halves."""
    x = normal(*X_SHAPE, dtype=half)
    for table_dtype in (half, np.float32, np.float64):
        given = tables(2, columns=12, dtype=table_dtype) | {"offset": np.array([2, 0])}
        for f in (nn.rope, nn.rope_backward):
            want = f(x.astype("f4"), **widened(given))
            for isa in each_isa():
                assert_rounded(f(x, **given), want, isa)


def test_in_a_layer(rng, dtype):
    """Keys take the rows from the first on, queries those from query_offset."""
    layer = make(rng, 12, 2, dtype)
    x, context = (rng.standard_normal((2, n, 12)).astype(dtype) for n in (5, 9))
    grad_out = rng.standard_normal((2, 5, 12)).astype(dtype)
    given = {"query_offset": 4, "is_causal": True}
    angles = np.arange(11)[:, None] * np.array([1, 0.2, 0.01])
    rope = {"cos": np.cos(angles).astype(dtype), "sin": np.sin(angles).astype(dtype)}
    results = []
    for options in ({"frequencies": np.array([1, 0.2, 0.01])}, rope):
        out = layer.forward(x, context, rope=options, **given)
        results.append((out, *layer.backward(grad_out)))
    assert same_bits(*results)
    with pytest.raises(ValueError, match="offset: expected positions from 0 to 10"):
        layer.forward(x, context, rope=rope, query_offset=7)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 4), (0, 2, 3, 4)])
def test_empty_axes(shape, dtype):
    batch = shape[:-3]
    cos = np.ones((*batch, 3, shape[-1]), dtype)
    for f in (nn.rope, nn.rope_backward):
        assert f(np.empty(shape, dtype), cos=cos, sin=cos).shape == shape


X = np.ones((2, 3, 5, 8))
ONE = np.ones((6, 8))
WRONG = [
    ({"cos": ONE}, ValueError, "sin: expected cos and sin, or neither, got one of them"),
    ({"sin": ONE}, ValueError, "cos: expected cos and sin, or neither, got one of them"),
    ({"cos": ONE, "sin": ONE[:, :4]}, ValueError, r"sin: expected shape \(6, 8\), that of cos"),
    ({"cos": ONE, "sin": ONE.tolist()}, TypeError, "sin: expected an array, got list"),
    ({"cos": ONE.astype(int), "sin": ONE}, TypeError, "cos: expected float64 or float32 in native"),
    ({"cos": ONE.astype("f2"), "sin": ONE}, TypeError, "cos: expected float64 or .*float16"),
    (
        {"cos": ONE[:, :6], "sin": ONE[:, :6]},
        ValueError,
        r"cos: .* 4\), one number .* got \(6, 6\)",
    ),
    ({"cos": ONE[0], "sin": ONE[0]}, ValueError, r"cos: expected shape .* got \(8,\)"),
    ({"cos": ONE, "sin": ONE, "rotary_dim": 6}, ValueError, r"cos: expected .* 3\), .* 6\), one"),
    ({"cos": ONE, "sin": ONE, "theta": 5e5}, ValueError, "theta: expected none beside cos and sin"),
    ({"cos": ONE, "sin": ONE, "frequencies": ONE[0, :4]}, ValueError, "frequencies: expected none"),
    ({"cos": ONE, "sin": ONE, "offset": 2}, ValueError, "offset: .* from 0 to 5, .* got 6"),
    ({"cos": ONE, "sin": ONE, "offset": -1}, ValueError, "offset: expected positions .* got -1"),
    ({"cos": ONE[:4], "sin": ONE[:4]}, ValueError, "offset: expected positions from 0 to 3, .* 4"),
    ({"cos": ONE, "sin": ONE, "positions": np.full(5, 6)}, ValueError, "positions: .* got 6"),
    ({"cos": ONE, "sin": ONE, "positions": np.full(4, 1)}, ValueError, "positions: .* broadcasts"),
    ({"cos": np.ones((3, 6, 8)), "sin": np.ones((3, 6, 8))}, ValueError, "cos: .* broadcasts"),
    (
        {"cos": np.ones((2, 3, 6, 8)), "sin": np.ones((2, 3, 6, 8))},
        ValueError,
        "cos: .* broadcasts",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_errors(options, error, message):
    out = np.zeros(X.shape)
    for f in (nn.rope, nn.rope_backward):
        with pytest.raises(error, match=re.compile(f"^{message}")):
            f(X, **options, out=out)
    assert not out.any()
