"""project: values beside the reference, empty axes, out=, NaN and infinity, errors."""

import numpy as np
import pytest

import selfattn
from support.arrays import normal, same_bits
from support.projections import LAYOUTS, N_IN, N_OUT, ROWS, arrays, check, check_each

POISON = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("rows", ROWS)
def test_at_every_edge(each_isa, dtype, rows):
    for n_in in N_IN[:-1]:
        for n_out in N_OUT[:-2]:
            check_each(each_isa, *arrays(rows, n_in, n_out, dtype))
    check_each(each_isa, *arrays(rows, 4097, 24, dtype))
    # Together they make a weight larger than caches, which few rows have a kernel of their own for.
    n_in = 4097 if rows < 10 or rows == ROWS[-1] else 300
    check_each(each_isa, *arrays(rows, n_in, 769, dtype))


def test_at_every_tail(each_isa, dtype):
    for n in [*range(1, 70), 95, 97, 191, 193]:
        for rows in (1, 3, 30):
            check_each(each_isa, *arrays(rows, n, 9, dtype))
            check_each(each_isa, *arrays(rows, 9, n, dtype))
        check_each(each_isa, *arrays(n, 10, 11, dtype))


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_larger_than_caches(dtype, transposed):
    """More rows are few there: it is read at the speed of memory anyway.

    In the set in use: test_project_bits.py compares the bits of all sets for these arrays.
    """
    n_in, n_out = (1500, 1463) if dtype == np.float32 else (1100, 1063)
    _, weight, bias = arrays(1, n_in, n_out, dtype)
    assert weight.nbytes > 8 << 20
    weight = np.asfortranarray(weight) if transposed else weight
    for rows in (*range(1, 10), 17):
        check(normal(rows, n_in, dtype=dtype), weight, bias, num_threads=2)


# ------------------------------------------------------------------ empty axes


def test_empty_axes(isa, dtype):
    """Without columns the sums are 0, and the bias alone is left."""
    for rows in (0, 1, 3, 60):
        for n_in in (0, 1, 65):
            for n_out in (0, 1, 50):
                x, weight, bias = arrays(rows, n_in, n_out, dtype)
                for leading in ((rows,), (rows, 1), (1, rows)):
                    got = check(x.reshape(*leading, n_in), weight, bias, num_threads=3)
                    assert got.shape == (*leading, n_out)
                    if n_in == 0:
                        assert same_bits(got, np.broadcast_to(bias, got.shape).copy())
                        zeros = selfattn.project(x.reshape(*leading, 0), weight)
                        assert same_bits(zeros, np.zeros_like(got))
    assert selfattn.project(np.ones(0, dtype), np.ones((4, 0), dtype)).shape == (4,)


def test_axes_of_length_one(isa, dtype):
    assert selfattn.project(np.array([3], dtype), np.array([[2]], dtype)).tolist() == [6]
    with_bias = selfattn.project(*(np.full(shape, 2, dtype) for shape in ((1, 1), (1, 1), (1,))))
    assert with_bias.tolist() == [[6]]


# ------------------------------------------------------------------ out


@pytest.mark.parametrize("rows", [1, 3, 60])
def test_out_of_any_layout(isa, dtype, rows):
    given = arrays((2, rows), 70, 41, dtype)
    want = selfattn.project(*given)
    for name, layout in LAYOUTS.items():
        out = layout(np.zeros_like(want))
        out[...] = np.nan
        assert selfattn.project(*given, out=out, num_threads=2) is out, name
        assert same_bits(out.copy(), want), name


def test_beside_out_nothing_is_written(isa, dtype):
    for rows, n_out in ((1, 5), (3, 41), (60, 7), (150, 49)):
        given = arrays(rows, 70, n_out, dtype)
        memory = np.full((rows + 2, n_out + 9), 7, dtype)
        selfattn.project(*given, out=memory[1:-1, 4:-5])
        assert same_bits(memory[1:-1, 4:-5].copy(), selfattn.project(*given))
        memory[1:-1, 4:-5] = 7
        assert (memory == 7).all()


@pytest.mark.parametrize("rows", [3, 60])
def test_out_overlaps_an_input(isa, dtype, rows):
    """All of x, shifted or reversed; the weight; the bias."""
    x, weight, bias = arrays(rows, rows, rows, dtype)
    want = selfattn.project(x, weight, bias)
    for shift in (0, 1, rows, rows * rows // 2):
        for i, array in enumerate((x, weight)):
            buffer = np.zeros(rows * rows + shift, dtype)
            moved = buffer[: rows * rows].reshape(rows, rows)
            moved[...] = array
            out = buffer[shift:].reshape(rows, rows)
            selfattn.project(
                *(moved if j == i else a for j, a in enumerate((x, weight))), bias, out=out
            )
            assert same_bits(out, want), (shift, i)
    given = x.copy()
    assert same_bits(selfattn.project(given, weight, bias, out=given[::-1]).copy(), want)
    offset = want.copy()
    offset[-1] = bias
    assert same_bits(selfattn.project(x, weight, offset[-1], out=offset), want)


def test_out_is_untouched_by_an_error(dtype):
    x, weight, bias = arrays(3, 4, 5, dtype)
    out = np.full((3, 5), 7, dtype)
    for wrong in ((x, weight[:, 1:]), (x, weight, bias[1:])):
        with pytest.raises(ValueError, match=r"^(weight|bias): expected"):
            selfattn.project(*wrong, out=out)
    with pytest.raises(ValueError, match="num_threads"):
        selfattn.project(x, weight, bias, out=out, num_threads=0)
    assert (out == 7).all()


# ------------------------------------------------------------------ NaN and infinity


@pytest.mark.parametrize("rows", [1, 4, 5, 60, 150])
@pytest.mark.parametrize("transposed", [False, True])
def test_poison_stays_in_its_row(isa, dtype, rows, transposed):
    x, weight, bias = arrays(rows, 131, 30, dtype)
    weight = np.asfortranarray(weight) if transposed else weight
    want = selfattn.project(x, weight, bias)
    for at, poison in zip((0, 64, 130), POISON, strict=True):
        for row in {0, rows // 2, rows - 1}:
            poisoned = x.copy()
            poisoned[row, at] = poison
            got = selfattn.project(poisoned, weight, bias)
            others = np.arange(rows) != row
            assert same_bits(got[others], want[others]), (row, poison)
            with np.errstate(invalid="ignore"):
                assert same_bits(got[row], (poison * weight[:, at]).astype(dtype)), (row, poison)


@pytest.mark.parametrize("rows", [1, 4, 60])
def test_poison_of_the_weight_stays_in_its_column(isa, dtype, rows):
    x, weight, bias = arrays(rows, 131, 30, dtype)
    want = selfattn.project(x, weight, bias)
    for row in (0, 17, 29):
        poisoned, offset = weight.copy(), bias.copy()
        poisoned[row, 70] = np.nan
        offset[row] = np.nan
        others = np.arange(30) != row
        for got in (selfattn.project(x, poisoned, bias), selfattn.project(x, weight, offset)):
            assert np.isnan(got[:, row]).all()
            assert same_bits(got[:, others], want[:, others]), row


def test_plain_arithmetic(isa, dtype):
    """0 times NaN is NaN, inf - inf too; a sum that is too large is inf."""
    for rows in (1, 60):
        x = np.zeros((rows, 3), dtype)
        assert np.isnan(selfattn.project(x, np.full((2, 3), np.nan, dtype))).all()
        x[...] = [np.inf, -np.inf, 0]
        assert np.isnan(selfattn.project(x, np.ones((2, 3), dtype))).all()
        x[...] = np.finfo(dtype).max
        assert (selfattn.project(x, np.ones((2, 3), dtype)) == np.inf).all()


def test_denormals(isa, dtype):
    """They are numbers like others."""
    tiny = np.finfo(dtype).smallest_subnormal
    for rows in (1, 60):
        x = np.full((rows, 5), 3 * tiny, dtype)
        assert (selfattn.project(x, np.ones((9, 5), dtype)) == 15 * tiny).all()


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"weight": normal(5, 3)},
            ValueError,
            r"weight: expected shape \(n_out, 4\), got \(5, 3\)",
        ),
        ({"weight": normal(4)}, ValueError, r"weight: expected shape \(n_out, 4\), got \(4,\)"),
        ({"bias": normal(6)}, ValueError, r"bias: expected shape \(5,\), got \(6,\)"),
        ({"x": normal(3, 4, dtype=np.float64)}, TypeError, "weight: expected .*float64.*float32"),
        ({"bias": normal(5, dtype=np.float64)}, TypeError, "bias: expected .*float32.*float64"),
        ({"x": np.float32(1)}, (TypeError, ValueError), "x: expected"),
        (
            {"out": np.empty((3, 4), "f4")},
            ValueError,
            r"out: expected shape \(3, 5\), got \(3, 4\)",
        ),
        ({"out": np.empty((3, 5))}, TypeError, "out: expected .*float32.*got .*float64"),
        ({"out": [1.0]}, TypeError, "out: expected a NumPy array, got list"),
        ({"num_threads": 0}, ValueError, "num_threads: expected .*got 0"),
        ({"num_threads": 1.5}, TypeError, "num_threads: expected .*got float"),
    ],
)
def test_errors(changed, error, message):
    x, weight, bias = arrays(3, 4, 5)
    given = {"x": x, "weight": weight, "bias": bias} | changed
    with pytest.raises(error, match=f"^{message}"):
        selfattn.project(**given)


def test_out_that_may_not_be_written():
    x, weight, _ = arrays(3, 4, 5)
    out = np.empty((3, 5), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"^out: expected a writeable array"):
        selfattn.project(x, weight, out=out)
