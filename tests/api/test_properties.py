"""Random problems (strategies.py): shapes, strides, dtypes and combinations of options."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import selfattn
from support.arrays import same_bits
from support.compare import check_each
from support.option_arrays import without_sinks
from support.strategies import problems, repeatable


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
@repeatable(180)
def test_any_problem(each_isa, problem):
    """Every set must have the bits of the first, so comparing that one answers for all."""
    arrays, options = problem
    check_each(each_isa, *arrays, **options)


@given(problem=problems(), threads=st.integers(2, 9))
@repeatable(60)
def test_any_problem_on_threads(isa, problem, threads):
    arrays, options = problem
    one, many = (calls(*arrays, options, num_threads=n) for n in (1, threads))
    assert same_bits(many, one)


@given(problem=problems())
@repeatable(40)
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
