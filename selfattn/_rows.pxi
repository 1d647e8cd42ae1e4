# Problems of rows, the steps on their own: sums, softmax, merges, rotations, projections. A part of
# _core.pyx.


cdef class SumProblem:
    """Weights and values: valid, not yet summed."""

    def __cinit__(
        self, cnp.ndarray weights, cnp.ndarray value, tuple batch_shape, heads_q, heads_kv
    ):
        cdef sa_problem *p = &self.problem
        memset(p, 0, sizeof(sa_problem))
        p.dtype = dtype_of(weights)
        fill_batch(p, batch_shape, heads_q, heads_kv)
        fill(&p.query, weights, HEAD_ROW_COL, p.batch_axes)
        fill(&p.value, value, HEAD_ROW_COL, p.batch_axes)
        p.seqlen_q = weights.shape[weights.ndim - 2]
        p.seqlen_k = value.shape[value.ndim - 2]
        p.head_dim_v = value.shape[value.ndim - 1]
        p.window_left = p.window_right = -1
        self.arrays = (weights, value)
        has_heads = weights.ndim > 2 or value.ndim > 2
        self.out_shape = (*rows_shape(p, batch_shape, has_heads), p.head_dim_v)

    def sum(self, cnp.ndarray out, int num_threads):
        """weights @ value into `out`."""
        solve(&self.problem, sa_sum, out, num_threads)


cdef void fill_rows(sa_rows *a, cnp.ndarray x, int without) noexcept:
    """Point `a` at `x`; its axis `without`, if it is one, is the columns, all others are rows."""
    cdef int i, axis = 0
    a.data = <char *>cnp.PyArray_DATA(x)
    for i in range(cnp.PyArray_NDIM(x)):
        if i == without:
            a.col = cnp.PyArray_STRIDES(x)[i]
        else:
            a.stride[axis] = cnp.PyArray_STRIDES(x)[i]
            axis += 1


cdef int solve_rows(
    sa_row_problem *p, row_solver compute, cnp.ndarray out, int along, int num_threads
) except -1:
    """Solve the problem of rows that lie along an axis of `out`, without the GIL."""
    cdef PyObject *raised
    cdef sa_status status
    cdef int i
    p.dtype = dtype_of(out)
    p.axes = 0
    for i in range(cnp.PyArray_NDIM(out)):
        if i != along:
            p.shape[p.axes] = cnp.PyArray_DIMS(out)[i]
            p.axes += 1
    p.n = cnp.PyArray_DIMS(out)[along]
    p.num_threads = num_threads
    may_interrupt(&p.interrupt, &raised)
    fill_rows(&p.out, out, along)
    with nogil:
        status = compute(p)
    return check(status, raised)


def softmax(cnp.ndarray x, cnp.ndarray out, int axis, int num_threads):
    """softmax of `x` along `axis` into `out`, of the same shape and dtype."""
    cdef sa_row_problem p
    fill_rows(&p.a, x, axis)
    solve_rows(&p, sa_softmax, out, axis, num_threads)


cdef object fill_states(sa_merge_states *states, tuple outs, tuple lses):
    """Point at the states: arrays of one shape and one layout each. Returns what must be kept."""
    cdef Py_ssize_t i, count = len(outs)
    cdef cnp.ndarray out, lse
    pointers = bytearray(2 * max(count, 1) * sizeof(char *))
    states.count = count
    states.out = <char **>PyByteArray_AS_STRING(pointers)
    states.lse = states.out + count
    for i in range(count):
        out, lse = outs[i], lses[i]
        states.out[i] = <char *>cnp.PyArray_DATA(out)
        states.lse[i] = <char *>cnp.PyArray_DATA(lse)
        if i == 0:
            fill_rows(&states.out_rows, out, cnp.PyArray_NDIM(out) - 1)
            fill_rows(&states.lse_rows, lse, -1)
    return pointers


def merge(tuple outs, tuple lses, cnp.ndarray out, cnp.ndarray lse, int num_threads):
    """States of attention, merged into `out` and `lse`.

    All `outs` have out's dtype and shape and one layout; so have all `lses`.
    """
    cdef sa_row_problem p
    memset(&p.states, 0, sizeof(sa_merge_states))
    keep = fill_states(&p.states, outs, lses)
    fill_rows(&p.lse, lse, -1)
    solve_rows(&p, sa_merge, out, cnp.PyArray_NDIM(out) - 1, num_threads)
    del keep


def merge_backward(
    cnp.ndarray grad_out,
    cnp.ndarray grad_lse,
    tuple outs,
    tuple lses,
    tuple grad_outs,
    tuple grad_lses,
    int num_threads,
):
    """The gradients of states into `grad_outs` and `grad_lses`, of one layout each.

    From those of what they merge into, of which grad_lse may be None.
    """
    cdef sa_row_problem p
    memset(&p.states, 0, sizeof(sa_merge_states))
    memset(&p.grads, 0, sizeof(sa_merge_states))
    keep = fill_states(&p.states, outs, lses), fill_states(&p.grads, grad_outs, grad_lses)
    p.lse.data = NULL
    if grad_lse is not None:
        fill_rows(&p.lse, grad_lse, -1)
    solve_rows(&p, sa_merge_backward, grad_out, cnp.PyArray_NDIM(grad_out) - 1, num_threads)
    del keep


def rope(
    cnp.ndarray x,
    cnp.ndarray cos,
    cnp.ndarray sin,
    cnp.ndarray out,
    tuple pairing,
    tuple seconds,
    int num_threads,
):
    """`x`, elements `i * step + first` and `+ second` of each row rotated as a pair, into `out`.

    The pairing is (step, first, second). `cos` and `sin`, of x's real dtype, have a row for each of
    x's, (..., pairs): the numbers of pairs' first elements; those of their second ones lie so many
    bytes behind as `seconds` says, of cosines and of sines.
    """
    cdef sa_row_problem p
    cdef int axis = cnp.PyArray_NDIM(out) - 1
    p.pairs = cnp.PyArray_DIMS(cos)[axis]
    p.step, p.first, p.second = pairing
    p.cos_second, p.sin_second = seconds
    fill_rows(&p.a, x, axis)
    fill_rows(&p.cos, cos, axis)
    fill_rows(&p.sin, sin, axis)
    solve_rows(&p, sa_rope, out, axis, num_threads)


# ------------------------------------------------------------------ projections


cdef void fill_projection(
    sa_projection *p,
    cnp.ndarray x,
    cnp.ndarray weight,
    cnp.ndarray bias,
    cnp.ndarray out,
    int num_threads,
    PyObject **raised,
) noexcept:
    """x (..., n_in) by weight (n_out, n_in) and bias, which may be None, to out (..., n_out)."""
    cdef int i, last = cnp.PyArray_NDIM(x) - 1
    p.dtype = dtype_of(x)
    p.axes = last
    for i in range(last):
        p.shape[i] = cnp.PyArray_DIMS(x)[i]
    p.n_out = cnp.PyArray_DIMS(weight)[0]
    p.n_in = cnp.PyArray_DIMS(weight)[1]
    fill_rows(&p.x, x, last)
    fill_rows(&p.out, out, last)
    fill_matrix(weight, &p.weight, &p.weight_row, &p.weight_col)
    fill_vector(bias, &p.bias, &p.bias_step)
    p.num_threads = num_threads
    may_interrupt(&p.interrupt, raised)


cdef inline void fill_matrix(cnp.ndarray x, char **data, Py_ssize_t *row, Py_ssize_t *col) noexcept:
    data[0] = NULL
    if x is not None:
        data[0] = <char *>cnp.PyArray_DATA(x)
        row[0] = cnp.PyArray_STRIDES(x)[0]
        col[0] = cnp.PyArray_STRIDES(x)[1]


cdef inline void fill_vector(cnp.ndarray x, char **data, Py_ssize_t *step) noexcept:
    data[0] = NULL
    if x is not None:
        data[0] = <char *>cnp.PyArray_DATA(x)
        step[0] = cnp.PyArray_STRIDES(x)[0]


def project(
    cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray out, int num_threads
):
    """x @ weight.T + bias, which may be None, into `out`."""
    cdef sa_projection p
    cdef PyObject *raised
    cdef sa_status status
    fill_projection(&p, x, weight, bias, out, num_threads, &raised)
    with nogil:
        status = sa_project(&p)
    return check(status, raised)


def project_backward(
    cnp.ndarray grad_out,
    cnp.ndarray x,
    cnp.ndarray weight,
    cnp.ndarray grad_x,
    cnp.ndarray grad_weight,
    cnp.ndarray grad_bias,
    int num_threads,
):
    """The gradients of x, weight and bias into those of the arrays that are not None."""
    cdef sa_projection p
    cdef sa_projection_gradients g
    cdef PyObject *raised
    cdef sa_status status
    fill_projection(&p, x, weight, None, grad_out, num_threads, &raised)
    g.x.data = NULL
    if grad_x is not None:
        fill_rows(&g.x, grad_x, cnp.PyArray_NDIM(grad_x) - 1)
    fill_matrix(grad_weight, &g.weight, &g.weight_row, &g.weight_col)
    fill_vector(grad_bias, &g.bias, &g.bias_step)
    with nogil:
        status = sa_project_backward(&p, &g)
    return check(status, raised)
