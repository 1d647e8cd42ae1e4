"""Random projections, and their gradients: shapes, layouts, dtypes, threads."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from support.projections import (
    LAYOUTS,
    N_IN,
    N_OUT,
    ROWS,
    arrays,
    check_each,
    check_each_gradient,
    grad_of,
)
from support.strategies import repeatable


@st.composite
def projections(draw):
    """Arrays of any layout; the bias may be missing. The largest lengths only one at a time."""

    def near(edges, most):
        edges = [n for n in edges if n <= most]
        return draw(st.one_of(st.integers(1, 40), st.integers(1, 200), st.sampled_from(edges)))

    dtype = draw(st.sampled_from([np.float32, np.float64]))
    long = draw(st.sampled_from(["none", "n_in", "n_out"]))
    rows = near(ROWS, 9999)
    n_in = near(N_IN, 9999 if long == "n_in" else 300)
    n_out = near(N_OUT, 9999 if long == "n_out" else 100)
    leading = draw(st.sampled_from([(), (1,), (2,), (2, 2)]))
    shape = () if rows == 1 and draw(st.booleans()) else (*leading, rows)
    layout = st.sampled_from([np.asarray, np.asarray, *LAYOUTS.values()])
    moved = [draw(layout)(x) for x in arrays(shape, n_in, n_out, dtype, draw(st.integers(0, 99)))]
    return moved[: draw(st.sampled_from([2, 3]))], draw(layout)


@given(problem=projections(), threads=st.integers(1, 5))
@repeatable(100)
def test_any_projection(each_isa, problem, threads):
    arrays, _ = problem
    before = [a.copy() for a in arrays]
    got = check_each(each_isa, *arrays, num_threads=threads)
    assert got.shape == (*arrays[0].shape[:-1], len(arrays[1]))
    assert all(map(np.array_equal, arrays, before))


@given(problem=projections(), threads=st.integers(1, 5))
@repeatable(100)
def test_any_gradients(each_isa, problem, threads):
    arrays, layout = problem
    grad_out = layout(grad_of(*arrays[:2]))
    before = [a.copy() for a in (grad_out, *arrays)]
    got = check_each_gradient(each_isa, grad_out, *arrays, num_threads=threads)
    assert [x.shape for x in got if x is not None] == [x.shape for x in arrays]
    assert all(map(np.array_equal, (grad_out, *arrays), before))
