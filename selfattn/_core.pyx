# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The bridge: fill one C struct, release the GIL, call, map the status to an exception.

No policy and no checks: `_args.py` has made sure of everything that is taken for granted here.
"""

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t
from libc.string cimport memset

cnp.import_array()


cdef extern from "selfattn.h" nogil:
    enum: SA_MAX_BATCH_AXES
    ctypedef enum sa_status:
        SA_OK, SA_NO_MEMORY, SA_INTERRUPTED
    ctypedef enum sa_dtype:
        SA_f32, SA_f64
    ctypedef struct sa_array:
        char *data
        Py_ssize_t *batch
        Py_ssize_t head, row, col
    ctypedef struct sa_interrupt:
        int (*interrupted)(void *) noexcept nogil
        void *arg
    ctypedef struct sa_problem:
        sa_dtype dtype
        int batch_axes
        int64_t *batch_shape
        int64_t num_heads_q, num_heads_kv, seqlen_q, seqlen_k, head_dim, head_dim_v
        sa_array query, key, value, out, lse
        double scale
        int64_t window_left, window_right, query_offset
        const int64_t *query_offset_of_batch
        const int64_t *kv_lengths
        int num_threads
        sa_interrupt interrupt
    ctypedef struct sa_softmax_problem:
        sa_dtype dtype
        int axes
        int64_t *shape
        int64_t n
        const char *x
        char *out
        Py_ssize_t *x_stride
        Py_ssize_t *out_stride
        Py_ssize_t x_col, out_col
        int num_threads
        sa_interrupt interrupt
    ctypedef enum sa_function:
        SA_EXP2, SA_EXP2_OF_NEGATIVE, SA_EXP, SA_LOG

    sa_status sa_attention(const sa_problem *) noexcept
    sa_status sa_scores(const sa_problem *) noexcept
    sa_status sa_weights(const sa_problem *) noexcept
    sa_status sa_sum(const sa_problem *) noexcept
    sa_status sa_softmax(const sa_softmax_problem *) noexcept
    const char *sa_isa_built(int) noexcept
    const char *sa_isa_supported(int) noexcept
    int sa_isa_force(const char *) noexcept
    const char *sa_isa_in_use() noexcept
    const char *sa_compiler() noexcept
    void sa_apply(sa_function, sa_dtype, const void *, void *, int64_t) noexcept


# ------------------------------------------------------------------ calls


cdef int interrupted(void *arg) noexcept with gil:
    """Let Python run its signal handlers; keep what they raise for `check`."""
    try:
        PyErr_CheckSignals()
        return 0
    except BaseException as error:
        (<list>arg).append(error)
        return 1


cdef int check(sa_status status, list raised) except -1:
    if status == SA_NO_MEMORY:
        raise MemoryError("selfattn: no memory for the workspace")
    if status == SA_INTERRUPTED and raised:
        raise raised.pop()
    if status == SA_INTERRUPTED:
        raise RuntimeError("selfattn: a signal handler forked; its child cannot finish the call")
    return 0


cdef sa_dtype dtype_of(cnp.ndarray x) noexcept:
    return SA_f32 if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32 else SA_f64


cdef void fill(sa_array *a, cnp.ndarray x, int trailing, int batch_axes) noexcept:
    """Point `a` at `x`, of which the last `trailing` axes are row and column, or row alone.

    The axis before them is the heads, those before it the batch; what is absent or of length 1
    does not move.
    """
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(x)
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(x)
    cdef int head = cnp.PyArray_NDIM(x) - trailing - 1
    cdef int i, axis
    a.data = <char *>cnp.PyArray_DATA(x)
    a.row = strides[head + 1] if shape[head + 1] != 1 else 0
    a.col = strides[head + 2] if trailing == 2 else 0
    a.head = strides[head] if head >= 0 and shape[head] != 1 else 0
    for i in range(batch_axes):
        axis = head - batch_axes + i
        a.batch[i] = strides[axis] if axis >= 0 and shape[axis] != 1 else 0


cdef void fill_batch(sa_problem *p, tuple batch_shape, heads_q, heads_kv) noexcept:
    cdef int i
    p.batch_axes = <int>len(batch_shape)
    for i in range(p.batch_axes):
        p.batch_shape[i] = batch_shape[i]
    p.num_heads_q = heads_q
    p.num_heads_kv = heads_kv


cdef tuple rows_shape(const sa_problem *p, tuple batch_shape, bint has_heads):
    """The axes of a result before its columns: no heads where no operand has an axis of them."""
    if has_heads:
        return (*batch_shape, p.num_heads_q, p.seqlen_q)
    return (p.seqlen_q,)


ctypedef sa_status (*solver)(const sa_problem *) noexcept nogil


cdef int solve(sa_problem *p, solver compute, cnp.ndarray out, int num_threads) except -1:
    """Solve the problem into `out`, without the GIL."""
    cdef list raised = []
    cdef sa_status status
    fill(&p.out, out, 2, p.batch_axes)
    p.num_threads = num_threads
    p.interrupt.interrupted = interrupted
    p.interrupt.arg = <void *>raised
    with nogil:
        status = compute(p)
    return check(status, raised)


cdef class AttentionProblem:
    """A query, keys and perhaps values, and which keys each query sees: valid, not yet solved."""

    cdef sa_problem problem
    cdef readonly cnp.ndarray query
    cdef readonly tuple arrays
    cdef tuple batch_shape
    cdef bint has_heads
    cdef object keep

    def __cinit__(
        self,
        cnp.ndarray query,
        cnp.ndarray key,
        cnp.ndarray value,
        tuple batch_shape,
        heads_q,
        heads_kv,
        double scale,
        query_offset,
        cnp.ndarray kv_lengths,
        int64_t left,
        int64_t right,
    ):
        cdef sa_problem *p = &self.problem
        memset(p, 0, sizeof(sa_problem))
        p.dtype = dtype_of(query)
        fill_batch(p, batch_shape, heads_q, heads_kv)
        fill(&p.query, query, 2, p.batch_axes)
        fill(&p.key, key, 2, p.batch_axes)
        p.seqlen_q = query.shape[query.ndim - 2]
        p.seqlen_k = key.shape[key.ndim - 2]
        p.head_dim = key.shape[key.ndim - 1]
        p.scale = scale
        p.window_left = left
        p.window_right = right
        if isinstance(query_offset, cnp.ndarray):
            p.query_offset_of_batch = <const int64_t *>cnp.PyArray_DATA(query_offset)
        else:
            p.query_offset = query_offset
        if kv_lengths is not None:
            p.kv_lengths = <const int64_t *>cnp.PyArray_DATA(kv_lengths)
        self.query = query
        self.keep = (query_offset, kv_lengths)

        self.batch_shape = batch_shape
        self.has_heads = query.ndim > 2 or key.ndim > 2
        if value is None:
            self.arrays = (query, key)
        else:
            self.arrays = (query, key, value)
            fill(&p.value, value, 2, p.batch_axes)
            p.head_dim_v = value.shape[value.ndim - 1]
            self.has_heads = self.has_heads or value.ndim > 2

    @property
    def lse_shape(self):
        return rows_shape(&self.problem, self.batch_shape, self.has_heads)

    @property
    def out_shape(self):
        return (*self.lse_shape, self.problem.head_dim_v)

    @property
    def scores_shape(self):
        return (*self.lse_shape, self.problem.seqlen_k)

    def attend(self, cnp.ndarray out, cnp.ndarray lse, int num_threads):
        """softmax(scores) @ value into `out`; the log of the sums into `lse` unless it is None."""
        if lse is not None:
            fill(&self.problem.lse, lse, 1, self.problem.batch_axes)
        solve(&self.problem, sa_attention, out, num_threads)

    def score(self, cnp.ndarray out, int num_threads):
        """The scores into `out`."""
        solve(&self.problem, sa_scores, out, num_threads)

    def weigh(self, cnp.ndarray out, int num_threads):
        """softmax(scores) into `out`."""
        solve(&self.problem, sa_weights, out, num_threads)


cdef class SumProblem:
    """Weights and values: valid, not yet summed."""

    cdef sa_problem problem
    cdef readonly tuple arrays, out_shape

    def __cinit__(
        self, cnp.ndarray weights, cnp.ndarray value, tuple batch_shape, heads_q, heads_kv
    ):
        cdef sa_problem *p = &self.problem
        memset(p, 0, sizeof(sa_problem))
        p.dtype = dtype_of(weights)
        fill_batch(p, batch_shape, heads_q, heads_kv)
        fill(&p.query, weights, 2, p.batch_axes)
        fill(&p.value, value, 2, p.batch_axes)
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


def softmax(cnp.ndarray x, cnp.ndarray out, int axis, int num_threads):
    """softmax of `x` along `axis` into `out`, of the same shape and dtype."""
    cdef sa_softmax_problem p
    cdef list raised = []
    cdef sa_status status
    cdef int i
    p.dtype = dtype_of(x)
    p.axes = 0
    for i in range(cnp.PyArray_NDIM(x)):
        if i != axis:
            p.shape[p.axes] = cnp.PyArray_DIMS(x)[i]
            p.x_stride[p.axes] = cnp.PyArray_STRIDES(x)[i]
            p.out_stride[p.axes] = cnp.PyArray_STRIDES(out)[i]
            p.axes += 1
    p.n = cnp.PyArray_DIMS(x)[axis]
    p.x = <const char *>cnp.PyArray_DATA(x)
    p.out = <char *>cnp.PyArray_DATA(out)
    p.x_col = cnp.PyArray_STRIDES(x)[axis]
    p.out_col = cnp.PyArray_STRIDES(out)[axis]
    p.num_threads = num_threads
    p.interrupt.interrupted = interrupted
    p.interrupt.arg = <void *>raised
    with nogil:
        status = sa_softmax(&p)
    check(status, raised)


# ------------------------------------------------------------------ kernel sets


ctypedef const char *(*nth_name)(int) noexcept nogil


cdef list names(nth_name name):
    cdef list found = []
    cdef int i = 0
    while name(i) != NULL:
        found.append(name(i).decode())
        i += 1
    return found


def isas_built():
    """The kernel sets of this build, best first."""
    return names(sa_isa_built)


def isas():
    """Those of them that this machine runs."""
    return names(sa_isa_supported)


def isa():
    """The one in use."""
    return sa_isa_in_use().decode()


def force_isa(str name):
    """Use the named set from now on; False if this build lacks it or this machine cannot run it."""
    return bool(sa_isa_force(name.encode()))


def compiler():
    """What compiled the kernels."""
    return sa_compiler().decode()


def apply(str function, cnp.ndarray x not None):
    """The kernels' own exp2, exp2_of_negative, exp or log of a contiguous array: for tests."""
    cdef sa_function f = {
        "exp2": SA_EXP2, "exp2_of_negative": SA_EXP2_OF_NEGATIVE, "exp": SA_EXP, "log": SA_LOG
    }[function]
    cdef cnp.ndarray y = x.copy()
    sa_apply(f, dtype_of(x), cnp.PyArray_DATA(x), cnp.PyArray_DATA(y), cnp.PyArray_SIZE(x))
    return y
