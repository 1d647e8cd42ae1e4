"""nn.rope and its backward: against the reference, its algebra, its bits, its errors."""

import re

import numpy as np
import pytest

from selfattn import nn, reference
from support.arrays import same_bits

OPTIONS = [
    {},
    {"offset": 5},
    {"offset": -3, "layout": "interleaved"},
    {"offset": np.array([4, -7])},
    {"offset": np.array([2**31, 0]), "layout": "interleaved"},
    {"positions": np.array([0, 1, 2, 0, 1, 0, 1])},
    {"positions": np.array([[6, 5, 4, 3, 2, 1, 0]] * 2, np.uint8), "layout": "interleaved"},
    {"positions": np.arange(2**31, 2**31 + 7)},
    {"rotary_dim": 4},
    {"rotary_dim": 6, "layout": "interleaved", "theta": 5e5},
    {"rotary_dim": 0},
    {"frequencies": np.array([1, 0.25, 0, -3, 1e-4], np.float32)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("f", ["rope", "rope_backward"])
def test_against_the_reference(rng, dtype, f, options):
    """Two products and a sum, by a cosine and a sine rounded once: 2 units of a pair's length."""
    x = rng.standard_normal((2, 3, 7, 10)).astype(dtype)
    got = getattr(nn, f)(x, **options)
    want = getattr(reference, f)(x.astype(np.float64), **options)
    assert got.dtype == dtype
    count = options.get("rotary_dim", 10)
    half = options.get("layout", "half") == "half"
    pairs = (x[..., : count // 2], x[..., count // 2 : count])
    if not half:
        pairs = (x[..., 0:count:2], x[..., 1:count:2])
    length = np.hypot(*pairs)
    length = np.concatenate([length] * 2, -1) if half else np.repeat(length, 2, -1)
    bound = 2 * np.finfo(dtype).eps * length
    assert (np.abs(got[..., :count] - want[..., :count]) <= bound).all()
    np.testing.assert_array_equal(got[..., count:], x[..., count:])


def test_by_hand():
    """Position 1, frequencies 1 and 1/100: the numbers of the paper's formula."""
    x = np.array([[[1.0, 2.0, 3.0, 4.0]]])
    c, s, c2, s2 = np.cos(1), np.sin(1), np.cos(0.01), np.sin(0.01)
    half = [c - 3 * s, 2 * c2 - 4 * s2, 3 * c + s, 4 * c2 + 2 * s2]
    together = [c - 2 * s, 2 * c + s, 3 * c2 - 4 * s2, 4 * c2 + 3 * s2]
    np.testing.assert_allclose(nn.rope(x, 1)[0, 0], half, rtol=1e-15)
    got = nn.rope(x, 1, layout="interleaved")[0, 0]
    np.testing.assert_allclose(got, together, rtol=1e-15)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_products_depend_on_the_distance(rng, layout):
    query, key = rng.standard_normal((2, 1, 64))

    def product(at, other):
        rotated = nn.rope(query, at, layout=layout), nn.rope(key, other, layout=layout)
        return (rotated[0] @ rotated[1].T).item()

    for distance in (-7, 0, 1, 40):
        near = product(distance, 0)
        assert product(1000 + distance, 1000) == pytest.approx(near, abs=1e-11)
        assert abs(product(distance + 1, 0) - near) > 1e-3


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_backward_is_the_transpose_and_the_inverse(rng, options):
    x, y = rng.standard_normal((2, 2, 3, 7, 10))
    rotated, back = nn.rope(x, **options), nn.rope_backward(y, **options)
    assert (rotated * y).sum() == pytest.approx((x * back).sum(), abs=1e-11)
    np.testing.assert_allclose(nn.rope_backward(rotated, **options), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_beside_torch(rng, layout):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((2, 3, 7, 8))
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    angles = torch.arange(7.0, dtype=torch.float64)[:, None] + 11
    angles = angles * 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    cos, sin = angles.cos(), angles.sin()
    if layout == "half":
        a, b = tensor.chunk(2, -1)
        want = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    else:
        a, b = tensor[..., 0::2], tensor[..., 1::2]
        want = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    grad_out = rng.standard_normal(x.shape)
    want.backward(torch.from_numpy(grad_out))
    np.testing.assert_allclose(nn.rope(x, 11, layout=layout), want.detach(), atol=1e-14)
    got = nn.rope_backward(grad_out, 11, layout=layout)
    np.testing.assert_allclose(got, tensor.grad, atol=1e-14)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_a_rows_bits_are_its_own(rng, dtype, layout):
    x = rng.standard_normal((3, 4, 9, 16)).astype(dtype)
    offset = np.array([0, 100, 7])
    want = nn.rope(x, offset, layout=layout)
    for i in range(9):  # one row at a time, as decoding does
        got = nn.rope(x[:, :, i : i + 1], offset + i, layout=layout)
        assert same_bits(got, want[:, :, i : i + 1])
    assert same_bits(nn.rope(x[1], 100, layout=layout), want[1])
    assert same_bits(nn.rope(x[2, 3], 7, layout=layout), want[2, 3])
    positions = offset[:, None] + np.arange(9)
    assert same_bits(nn.rope(x, positions=positions, layout=layout), want)


def test_far_positions_change_no_bit_of_near_ones(rng, dtype):
    x = rng.standard_normal((2, 33, 26)).astype(dtype)
    positions = rng.integers(-(2**50), 2**50, 33)
    positions[::3] %= 100
    frequencies = 10.0 ** rng.integers(-5, 3, 13)
    want = nn.rope(x, positions=positions, frequencies=frequencies)
    for i in range(33):
        row = slice(i, i + 1)
        got = nn.rope(x[:, row], positions=positions[row], frequencies=frequencies)
        assert same_bits(got, want[:, row])
    for i in range(13):
        pair = x[..., [i, i + 13]]
        got = nn.rope(pair, positions=positions, frequencies=frequencies[i : i + 1])
        assert same_bits(got, want[..., [i, i + 13]])


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_bits_of_every_set_at_any_number_of_threads(each_isa, rng, dtype, layout):
    x = rng.standard_normal((2, 5, 300, 66)).astype(dtype)
    x[0, 0, :4, :4] = np.nan, np.inf, -np.inf, -0.0
    want = {}
    for isa in each_isa():
        for threads in (1, 2, 3):
            for rotary_dim in (66, 34, 2):
                options = {"layout": layout, "rotary_dim": rotary_dim, "num_threads": threads}
                got = nn.rope(x, 9, **options), nn.rope_backward(x.swapaxes(1, 2), 9, **options)
                for a, b in zip(got, want.setdefault(rotary_dim, got), strict=True):
                    assert same_bits(a, b), f"{isa} {threads} {rotary_dim}"


def test_tables_without_pairs_are_not_kept_without_end(monkeypatch):
    from selfattn.nn import rotary

    monkeypatch.setattr(rotary, "_KEPT_PAIRS", 34)
    before = rotary._kept_angles.cache_info()
    nn.rope(np.ones((35, 4)), rotary_dim=0)
    assert rotary._kept_angles.cache_info() == before


def test_tables_that_are_kept_and_those_that_are_not(rng, monkeypatch):
    from selfattn.nn import rotary

    x = rng.standard_normal((2, 3, 7, 10))
    want = [nn.rope(x, n) for n in range(9)]
    kept = [nn.rope(x, n) for n in (8, 7, 0)]
    monkeypatch.setattr(rotary, "_KEPT_PAIRS", 34)
    for n, again in zip((8, 7, 0), kept, strict=True):
        assert same_bits(again, want[n])
        assert same_bits(nn.rope(x, n), want[n])


def test_any_layout_of_memory(rng, dtype):
    x = rng.standard_normal((9, 3, 2, 20)).astype(dtype)
    views = [
        x.swapaxes(0, 2),
        x.transpose(1, 3, 0, 2)[..., :2],
        x.T[..., 1:],
        x[..., ::2],
        x[::-1, :, :, ::-1],
        np.broadcast_to(x[:1], x.shape),
    ]
    for view in views:
        want = nn.rope(np.ascontiguousarray(view), 3)
        view.flags.writeable = False
        got = nn.rope(view, 3)
        assert same_bits(got, want)
        assert got.strides == np.empty_like(view).strides
        for out in (np.empty_like(view), np.zeros((*view.shape, 3), dtype)[:, ::-1, :, ::-1, 1]):
            assert nn.rope(view, 3, out=out) is out
            assert same_bits(out, want)
    assert same_bits(nn.rope(memoryview(x), 3), nn.rope(x, 3))


def test_out_is_x(rng, dtype):
    base = rng.standard_normal((3, 8, 10)).astype(dtype)
    want = nn.rope(base[:, 1:], 2, layout="interleaved")
    x = base.copy()
    same = x[:, 1:]
    assert nn.rope(same, 2, layout="interleaved", out=same) is same
    assert same_bits(same, want)
    assert same_bits(x[:, 0], base[:, 0])


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("f", ["rope", "rope_backward"])
def test_out_overlaps_x(rng, dtype, f, layout):
    """Whichever way it lies: what is written first must not be read afterwards."""
    base = rng.standard_normal((3, 8, 10)).astype(dtype)
    upper, lower, all_of_it = np.s_[:, 1:], np.s_[:, :-1], np.s_[:]
    backwards, turned_over = np.s_[:, ::-1], np.s_[..., ::-1]
    for of_x, of_out in (
        (upper, lower),
        (lower, upper),
        (all_of_it, backwards),
        (all_of_it, turned_over),
        (all_of_it, all_of_it),
    ):
        x = base.copy()
        want = getattr(nn, f)(base[of_x], 2, layout=layout)
        getattr(nn, f)(x[of_x], 2, layout=layout, out=x[of_out])
        assert same_bits(x[of_out], want)


def test_the_farthest_positions(rng):
    """Up to 2**53 float64 has all integers; a row that would stand beyond is refused."""
    x = rng.standard_normal((2, 3, 5, 8))
    for first in (-(2**53), 2**53 - 4):
        want = nn.rope(x, positions=first + np.arange(5))
        assert same_bits(nn.rope(x, first), want)
        assert same_bits(nn.rope(x, np.array([first, first])), want)
        last = nn.rope(x[..., 4:, :], first + 4)
        assert same_bits(last, np.ascontiguousarray(want[..., 4:, :]))
    message = f"offset: expected values from {-(2**53)} to {2**53 - 4}, got {2**53 - 3}"
    for offset in (2**53 - 3, np.array([0, 2**53 - 3])):
        with pytest.raises(ValueError, match=message):
            nn.rope(x, offset)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 4), (0, 2, 3, 4)])
def test_empty_axes(shape, dtype):
    for f in (nn.rope, nn.rope_backward):
        got = f(np.empty(shape, dtype), 3)
        assert (got.shape, got.dtype) == (shape, dtype)


X = np.ones((2, 3, 5, 8))
WRONG = [
    (X[0, 0, 0], {}, ValueError, r"x: expected 2 or more axes, got shape \(8,\)"),
    (X.astype(int), {}, TypeError, "x: expected float16, .*int64"),
    (X.tolist(), {}, TypeError, "x: expected an array, got list"),
    (X[..., :7], {}, ValueError, "x: expected an even head_dim, its last axis, got 7"),
    (X, {"rotary_dim": 3}, ValueError, "rotary_dim: expected an even number from 0 to .* 8, got 3"),
    (X, {"rotary_dim": 10}, ValueError, "rotary_dim: expected an even number from 0 .* got 10"),
    (X, {"rotary_dim": 4.0}, TypeError, "rotary_dim: expected an int, got float"),
    (X, {"rotary_dim": True}, TypeError, "rotary_dim: expected an int, got bool"),
    (X, {"rotary_dim": -2}, ValueError, "rotary_dim: expected an even number from 0 .* got -2"),
    (X, {"layout": "neox"}, ValueError, "layout: expected 'half' or 'interleaved', got 'neox'"),
    (X, {"layout": None}, TypeError, "layout: expected a str, got NoneType"),
    (X, {"theta": 0}, ValueError, "theta: expected a number above 0, got 0"),
    (X, {"theta": True}, TypeError, "theta: expected a number, got bool"),
    (X, {"theta": 10**400}, ValueError, "theta: expected a finite number, got one beyond float64"),
    (np.ones((3, 128)), {"theta": 5e-324}, ValueError, "theta: .* not so close to 0, got 5e-324"),
    (X, {"frequencies": np.full(4, 1e300)}, ValueError, r"frequencies: .* up to 2\*\*900"),
    (X, {"theta": "10"}, TypeError, "theta: expected a number, got str"),
    (X, {"theta": np.inf}, ValueError, "theta: expected a finite number, got inf"),
    (X, {"frequencies": np.ones(3)}, ValueError, r"frequencies: expected shape \(4,\), .* \(3,\)"),
    (X, {"frequencies": np.ones(4, int)}, TypeError, "frequencies: expected float32 or float64"),
    (X, {"frequencies": np.full(4, np.nan)}, ValueError, "frequencies: expected finite numbers"),
    (X, {"frequencies": np.full(4, np.inf)}, ValueError, "frequencies: expected .*, got .inf"),
    (X, {"frequencies": [1.0] * 4}, TypeError, "frequencies: expected an array, got list"),
    (X, {"offset": 1.5}, TypeError, "offset: expected an int, or an array or list of ints, got"),
    (X, {"offset": np.zeros(3, int)}, ValueError, "offset: expected a shape that broadcasts to"),
    (X, {"offset": 2**60}, ValueError, "offset: expected values from"),
    (X, {"offset": True}, TypeError, "offset: expected an int, or an array or list .*, got bool"),
    (X, {"offset": np.array([0, -(2**60)])}, ValueError, f"offset: .*, got {-(2**60)}"),
    (X, {"positions": np.zeros(5)}, TypeError, "positions: expected an array of ints, got"),
    (X, {"positions": np.zeros(4, int)}, ValueError, "positions: expected a shape that broadcasts"),
    (X, {"positions": np.full(5, 2**60)}, ValueError, "positions: expected values from"),
    (X, {"positions": np.full(5, -(2**60))}, ValueError, f"positions: .*, got {-(2**60)}"),
    (X, {"positions": np.array(3)}, ValueError, r"positions: expected a shape .*, got \(\)"),
    (X, {"positions": np.zeros((3, 5), int)}, ValueError, r"positions: .* got \(3, 5\)"),
    (X, {"positions": np.arange(5), "offset": 1}, ValueError, "offset: expected none beside"),
    (
        X,
        {"positions": np.arange(5), "offset": np.array([0, 1])},
        ValueError,
        "offset: expected none beside positions, got",
    ),
    (X, {"num_threads": 0}, ValueError, "num_threads: expected 1 to .*, got 0"),
    (X, {"out": [0.0]}, TypeError, "out: expected a NumPy array, got list"),
    (X, {"out": np.zeros((2, 3, 5, 8), np.float32)}, TypeError, "out: expected dtype"),
    (X, {"out": np.zeros((3, 5, 8))}, ValueError, "out: expected shape"),
]


@pytest.mark.parametrize(("x", "options", "error", "message"), WRONG)
def test_errors(x, options, error, message):
    options = {"out": np.zeros(np.shape(x)), **options}
    with pytest.raises(error, match=f"^{message}"):
        nn.rope(x, **options)
    message = re.sub("^x:", "grad_out:", message)
    with pytest.raises(error, match=f"^{message}"):
        nn.rope_backward(x, **options)
    assert not np.any(options["out"])
