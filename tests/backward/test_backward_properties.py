"""Gradients of random problems (strategies.py): shapes, strides, options, dropout, threads."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import selfattn
from support.compare_gradients import check_each_gradient
from support.gradients import assert_same, backward, wanted_grads
from support.option_arrays import described
from support.strategies import backward_problems, repeatable


@given(problem=backward_problems(), threads=st.integers(1, 5))
@repeatable(150)
def test_any_problem(each_isa, problem, threads):
    """Within the bounds of the reference; every set must have the bits of the first."""
    grad_out, arrays, options = problem
    check_each_gradient(each_isa, grad_out, *arrays, num_threads=threads, **options)


@given(problem=backward_problems(), threads=st.integers(2, 5))
@repeatable(60)
def test_any_problem_on_threads(isa, problem, threads):
    """Fault 30: the bits of one thread."""
    grad_out, arrays, options = problem
    one, many = (backward(grad_out, *arrays, num_threads=n, **options) for n in (1, threads))
    assert_same(many, one, described(options))


@given(problem=backward_problems())
@repeatable(60)
def test_any_problem_as_it_may_lie_in_memory(isa, problem):
    """Fault 10: the bits of a call on contiguous copies of all that lies otherwise."""
    grad_out, arrays, options = problem
    copies = {
        name: np.ascontiguousarray(x).reshape(x.shape) if isinstance(x, np.ndarray) else x
        for name, x in options.items()
    }
    want = backward(*map(np.ascontiguousarray, (grad_out, *arrays)), **copies)
    assert_same(backward(grad_out, *arrays, **options), want, described(options))


@given(problem=backward_problems())
@repeatable(40)
def test_inputs_are_never_written(problem):
    """Neither the inputs nor what the options hold; nor is any of them returned."""
    grad_out, arrays, options = problem
    out, lse = selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)
    inputs = [grad_out, *arrays, out, lse]
    inputs += [x for x in options.values() if isinstance(x, np.ndarray)]
    for ids in options.get("segment_ids", ()):
        inputs += [ids] if np.ndim(ids) else []
    before = [x.copy() for x in inputs]
    gradients = selfattn.scaled_dot_product_attention_backward(
        grad_out, *arrays, out, lse, **wanted_grads(options), **options
    )
    assert all(map(np.array_equal, inputs, before))
    gradients = [x for x in gradients if x is not None]
    for n, x in enumerate(gradients):
        assert x.flags.writeable
        assert not any(np.may_share_memory(x, y) for y in (*inputs, *gradients[:n]))
