"""Drawn at random (drawn.py): shapes, strides, dtypes and combinations of options."""

import numpy as np
from arrays import same_bits
from compare import check_each
from drawn import problems
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from option_arrays import without_sinks

import selfattn


def slowly(examples):
    """No deadline, since the machine may be busy; every run draws the same."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def calls(query, key, value, options, num_threads=1):
    """Every function of a problem."""
    no_sinks = without_sinks(options)
    return (
        *selfattn.scaled_dot_product_attention(
            query, key, value, return_lse=True, num_threads=num_threads, **options
        ),
        selfattn.scaled_dot_product(query, key, num_threads=num_threads, **no_sinks),
        selfattn.attention_weights(query, key, num_threads=num_threads, **options),
    )


@given(problem=problems())
@slowly(180)
def test_any_problem(each_isa, problem):
    """Every set must have the bits of the first, so comparing that one answers for all."""
    arrays, options = problem
    check_each(each_isa, *arrays, **options)


@given(problem=problems(), threads=st.integers(2, 9))
@slowly(60)
def test_any_problem_on_threads(isa, problem, threads):
    arrays, options = problem
    one, many = (calls(*arrays, options, num_threads=n) for n in (1, threads))
    assert same_bits(many, one)


@given(problem=problems())
@slowly(40)
def test_inputs_are_never_written(problem):
    """Neither the inputs nor what the options hold."""
    arrays, options = problem
    given = [*arrays, *(options.get(name) for name in ("attn_mask", "alibi_slopes", "sinks"))]
    ids = options.get("segment_ids")
    given += list(ids) if isinstance(ids, (tuple, list)) else [ids]
    before = [np.array(x) for x in given if x is not None]
    calls(*arrays, options)
    after = [np.array(x) for x in given if x is not None]
    assert all(map(np.array_equal, after, before))
