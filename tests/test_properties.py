"""Drawn at random: shapes, strides, dtypes and combinations of options, against the reference."""

import numpy as np
from arrays import DTYPES
from compare import check_attention, check_scores
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import selfattn

LAYOUTS = [
    lambda x: x,
    lambda x: x.swapaxes(1, 2).copy().swapaxes(1, 2),
    lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    lambda x: np.repeat(x, 2, -1)[..., ::2],
    lambda x: x[..., ::-1, :].copy()[..., ::-1, :],
    lambda x: x[..., ::-1].copy()[..., ::-1],
    lambda x: np.broadcast_to(x[:1], x.shape),
    lambda x: np.broadcast_to(x[:, :, :1], x.shape),
    np.asfortranarray,
]


def lengths(most):
    """Short ones, and those around the edges of lanes, tiles and blocks."""
    edges = [n for n in (8, 16, 17, 24, 32, 33, 48, 64, 65, 127, 128, 129, 300, 513) if n <= most]
    return st.one_of(st.integers(1, 9), st.integers(1, most), st.sampled_from(edges))


@st.composite
def problems(draw):
    dtype = draw(st.sampled_from(DTYPES))
    batch, heads_kv, group = (draw(st.integers(1, n)) for n in (3, 3, 4))
    seqlen_q, seqlen_k = draw(lengths(70)), draw(lengths(530))
    head_dim, head_dim_v = draw(lengths(130)), draw(lengths(130))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    arrays = []
    for shape in (
        (batch, heads_kv * group, seqlen_q, head_dim),
        (batch, heads_kv, seqlen_k, head_dim),
        (batch, heads_kv, seqlen_k, head_dim_v),
    ):
        layout = draw(st.sampled_from(LAYOUTS))
        arrays.append(layout(rng.standard_normal(shape).astype(dtype)))
    options = {"enable_gqa": True, "is_causal": draw(st.booleans())}
    side = st.integers(-1, seqlen_k + 1)
    offset = st.integers(-seqlen_q - 1, seqlen_k + 1)
    if draw(st.booleans()):
        options["window_size"] = (draw(side), draw(side))
    kind = draw(st.sampled_from(["none", "one", "array"]))
    if kind == "one":
        options["query_offset"] = draw(offset)
    if kind == "array":
        options["query_offset"] = np.array([draw(offset) for _ in range(batch)])
    if draw(st.booleans()):
        options["kv_lengths"] = np.array([draw(st.integers(0, seqlen_k)) for _ in range(batch)])
    if draw(st.booleans()):
        options["scale"] = draw(st.floats(-2, 2))
    return arrays, options


def slowly(examples):
    """No deadline, since the machine may be busy; every run draws the same."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@given(problem=problems())
@slowly(150)
def test_any_problem(isa, problem):
    (query, key, value), options = problem
    check_attention(query, key, value, **options)
    check_scores(query, key, **options)


@given(problem=problems(), threads=st.integers(2, 9))
@slowly(60)
def test_any_problem_on_threads(isa, problem, threads):
    arrays, options = problem
    one = selfattn.scaled_dot_product_attention(*arrays, num_threads=1, **options)
    many = selfattn.scaled_dot_product_attention(*arrays, num_threads=threads, **options)
    assert np.array_equal(one, many)
