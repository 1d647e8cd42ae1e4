# cython: boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=True
"""The bridge: fill one C struct, release the GIL, call, map the status to an exception.

No policy: `_args` has validated what comes here. Two functions validate for it, in less time than
it takes, arguments of the usual kind, which `_fast_path.pxd` recognises: `fast_problem` makes their
problem, `fast_path` does the whole of a call that sets no option.

    _core.pyx           calls, problems of attention, the fast path
    _tensors.pxi        arrays of other libraries
    _tensor_calls.pxi   calls on their tensors
    _rows.pxi           problems of rows: softmax, merges, rotations, projections
    _machine.pxi        cores, limits, kernel sets
    _core.pxd           declarations: the C library, the extension types
    _fast_path.pxd      what the fast path accepts
    _exchange.pxd       DLPack's table of C functions, by which tensors are read without Python
"""

import _thread
import os
import sys

cimport numpy as cnp
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear, PyErr_SetString
from cpython.object cimport PyObject, PyObject_TypeCheck, PyTypeObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_SetName
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.math cimport NAN
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport getenv
from libc.string cimport memset

from ._exchange cimport (
    ANOTHER,
    C_ORDER,
    DL_BFLOAT,
    DL_FLOAT,
    ON_CPU,
    ROWS_FIRST,
    DLOwned,
    DLTable,
    DLView,
    Order,
    are_of_one_dtype,
    are_usual_operands,
    is_number,
    memory_of,
    order_of,
    real_bits,
    size_of,
    step_of,
    type_of,
)
from ._fast_path cimport (
    are_defaults,
    are_fast_operands,
    is_default,
    is_fast_out,
    overlap,
)

cnp.import_array()


# ------------------------------------------------------------------ calls


# Python runs signal handlers in its main thread alone. Any other one has nothing to ask for, and
# must not: at exit, CPython ends a thread that asks for the GIL where it stands, while helpers
# still work on its stack.
cdef unsigned long find_main_thread():
    """threading.main_thread().ident, without importing that module, which takes long.

    Where it has not been imported it would take the thread that imports it for the main one, until
    Python 3.13, which knows.
    """
    threading = sys.modules.get("threading")
    if threading is not None:
        return threading.main_thread().ident
    known = getattr(_thread, "_get_main_thread_ident", None)
    return PyThread_get_thread_ident() if known is None else known()


cdef unsigned long main_thread = find_main_thread()


def _fork_made_this_the_main_thread():
    global main_thread
    main_thread = PyThread_get_thread_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork_made_this_the_main_thread)


cdef void may_interrupt(sa_interrupt *interrupt, PyObject **raised) noexcept:
    """Have the call ask `interrupted`; what its signal handlers raise is owned by `raised`."""
    raised[0] = NULL
    interrupt.interrupted = NULL
    interrupt.arg = raised
    if PyThread_get_thread_ident() == main_thread:
        interrupt.interrupted = interrupted


cdef int64_t questions = 0  # that calls have asked


cdef int interrupted(void *arg) noexcept with gil:
    """Let Python run its signal handlers; keep what they raise for `check`."""
    global questions
    cdef PyObject **raised = <PyObject **>arg
    questions += 1
    try:
        PyErr_CheckSignals()
        return 0
    except BaseException as error:
        Py_XDECREF(raised[0])
        Py_INCREF(error)
        raised[0] = <PyObject *>error
        return 1


def questions_of(compute):
    """How often compute() could have been interrupted: it asks at every opportunity. For tests."""
    cdef int64_t before = questions, every = sa_ask_every(0)
    try:
        compute()
        return questions - before
    finally:
        sa_ask_every(every)


cdef int check(sa_status status, PyObject *raised) except -1:
    """Raise what a status means, or what a signal handler raised, whose reference ends here."""
    error = None
    if raised != NULL:
        error = <object>raised
        Py_XDECREF(raised)
    if status == SA_NO_MEMORY:
        raise MemoryError("selfattn: no memory for the workspace")
    if status == SA_INTERRUPTED and error is not None:
        raise error
    if status == SA_INTERRUPTED:
        raise RuntimeError("selfattn: a signal handler forked; its child cannot finish the call")
    return 0


cdef int bfloat16_type = cnp.NPY_NOTYPE  # NumPy's number of it; NOTYPE until one has been seen


def know_bfloat16(int number):
    """NumPy numbers the dtypes of other libraries as they register them."""
    global bfloat16_type
    bfloat16_type = number


cdef sa_dtype dtype_of(cnp.ndarray x) noexcept:
    cdef int kind = cnp.PyArray_TYPE(x)
    if kind == cnp.NPY_FLOAT32:
        return SA_f32
    if kind == cnp.NPY_FLOAT64:
        return SA_f64
    return SA_f16 if kind == cnp.NPY_FLOAT16 else SA_bf16


cdef sa_mask_kind kind_of_floats(cnp.ndarray x, cnp.ndarray query) noexcept:
    """What a float mask or a bias beside that query holds: float32, or query's dtype."""
    return SA_MASK_ELEM if cnp.PyArray_TYPE(x) == cnp.PyArray_TYPE(query) else SA_MASK_F32


cdef void fill(sa_array *a, cnp.ndarray x, Axes axes, int batch_axes) noexcept:
    """Point `a` at `x`. An axis that is absent or of length 1 does not move it."""
    cdef int last = cnp.PyArray_NDIM(x) - 1
    a.data = <char *>cnp.PyArray_DATA(x)
    a.head = a.row = a.col = 0
    if axes == HEAD_ROW_COL:
        a.col = step(x, last)
        last -= 1
    if axes != HEAD:
        a.row = step(x, last)
        last -= 1
    if axes != ROW:
        a.head = step(x, last)
        last -= 1
    for i in range(batch_axes):
        a.batch[i] = step(x, last - batch_axes + 1 + i)


cdef inline Py_ssize_t step(cnp.ndarray x, int axis) noexcept:
    if axis < 0 or cnp.PyArray_DIMS(x)[axis] == 1:
        return 0
    return cnp.PyArray_STRIDES(x)[axis]


cdef void fill_batch(sa_problem *p, tuple batch_shape, heads_q, heads_kv) noexcept:
    cdef int i
    p.batch_axes = <int>len(batch_shape)
    for i in range(p.batch_axes):
        p.batch_shape[i] = batch_shape[i]
    p.num_heads_q = heads_q
    p.num_heads_kv = heads_kv


cdef void fill_operands(
    sa_problem *p, cnp.ndarray query, cnp.ndarray key, cnp.ndarray value
) noexcept:
    """What is known of the arrays, once the batch and the heads are; value may be None."""
    p.dtype = dtype_of(query)
    fill(&p.query, query, HEAD_ROW_COL, p.batch_axes)
    fill(&p.key, key, HEAD_ROW_COL, p.batch_axes)
    p.seqlen_q = query.shape[query.ndim - 2]
    p.seqlen_k = key.shape[key.ndim - 2]
    p.head_dim = key.shape[key.ndim - 1]
    p.scale = NAN
    p.window_left = p.window_right = -1
    if value is not None:
        fill(&p.value, value, HEAD_ROW_COL, p.batch_axes)
        p.head_dim_v = value.shape[value.ndim - 1]


cdef tuple rows_shape(const sa_problem *p, tuple batch_shape, bint has_heads):
    """The axes of a result before its columns: no heads where no operand has an axis of them."""
    if has_heads:
        return (*batch_shape, p.num_heads_q, p.seqlen_q)
    return (p.seqlen_q,)


cdef void start(sa_problem *p, int num_threads, PyObject **raised) noexcept:
    """What belongs to a call; `raised` keeps what its signal handlers raise."""
    p.num_threads = num_threads
    may_interrupt(&p.interrupt, raised)


cdef int solve(sa_problem *p, solver compute, cnp.ndarray out, int num_threads) except -1:
    """Solve the problem into `out`, without the GIL.

    What has no elements is not computed, however many rows without any there are.
    """
    cdef PyObject *raised
    cdef sa_status status
    if cnp.PyArray_SIZE(out) == 0 and p.lse.data == NULL:
        return 0
    fill(&p.out, out, HEAD_ROW_COL, p.batch_axes)
    start(p, num_threads, &raised)
    with nogil:
        status = compute(p)
    return check(status, raised)


cdef class AttentionProblem:
    """A query, keys and perhaps values, and which keys each query sees: valid, not yet solved."""

    def __init__(
        self,
        cnp.ndarray query,
        cnp.ndarray key,
        cnp.ndarray value,
        tuple batch_shape,
        heads_q,
        heads_kv,
    ):
        fill_batch(&self.problem, batch_shape, heads_q, heads_kv)
        fill_operands(&self.problem, query, key, value)
        self.keep_arrays(query, key, value)
        cdef bint has_heads = query.ndim > 2 or key.ndim > 2 or value is not None and value.ndim > 2
        self.lse_shape = rows_shape(&self.problem, batch_shape, has_heads)

    cdef void keep_arrays(self, cnp.ndarray query, cnp.ndarray key, cnp.ndarray value):
        self.query = query
        self.arrays = (query, key) if value is None else (query, key, value)

    def set_sequences(self, queries, keys):
        """Each batch entry is a run of rows of arrays (H, total, E), and so is each of results.

        `queries` and `keys` are `Sequences` of `_args/sequences.py`.
        """
        self.lse_shape = (self.problem.num_heads_q, self.problem.seqlen_q)
        self.problem.cu_seqlens_q = self.own(queries.cumulative)
        self.problem.cu_seqlens_k = self.own(keys.cumulative)
        if queries.starts is not None:
            self.problem.seq_starts_q = self.own(queries.starts)
        if keys.starts is not None:
            self.problem.seq_starts_k = self.own(keys.starts)
        self.problem.seqlen_q = queries.longest
        self.problem.seqlen_k = keys.longest
        self.queries, self.keys = queries, keys

    # One setter for each option of `_args/table.py`, in its order.

    def set_mask(self, cnp.ndarray mask):
        """Bools or floats that broadcast to (batch..., Hq, L, S)."""
        cdef bint is_bool = cnp.PyArray_TYPE(mask) == cnp.NPY_BOOL
        fill(&self.problem.mask, mask, HEAD_ROW_COL, self.problem.batch_axes)
        self.problem.mask_kind = SA_MASK_BOOL if is_bool else kind_of_floats(mask, self.query)
        self.arrays = (*self.arrays, mask)

    def set_bias(self, cnp.ndarray bias):
        """Floats that broadcast to (batch..., Hq, L, S)."""
        fill(&self.problem.bias, bias, HEAD_ROW_COL, self.problem.batch_axes)
        self.problem.bias_kind = kind_of_floats(bias, self.query)
        self.arrays = (*self.arrays, bias)

    def set_dropout_p(self, double p):
        self.problem.dropout_p = p

    def set_causal(self, bint is_causal):
        """Causal is a window whose right side is 0, whatever else the window is."""
        if is_causal:
            self.problem.window_right = 0

    def set_scale(self, double scale):
        """NaN for 1 / sqrt(head_dim)."""
        self.problem.scale = scale

    def set_query_offset(self, query_offset):
        """An int, or an array with one for each batch entry."""
        if isinstance(query_offset, cnp.ndarray):
            self.problem.query_offset_of_batch = self.own(query_offset)
        else:
            self.problem.query_offset = query_offset

    def set_query_lengths(self, cnp.ndarray query_lengths):
        """One for each batch entry, or None."""
        if query_lengths is not None:
            self.problem.query_lengths = self.own(query_lengths)

    def set_kv_starts(self, cnp.ndarray kv_starts):
        """One for each batch entry, or None."""
        if kv_starts is not None:
            self.problem.kv_starts = self.own(kv_starts)

    def set_kv_lengths(self, cnp.ndarray kv_lengths):
        """One for each batch entry, or None."""
        if kv_lengths is not None:
            self.problem.kv_lengths = self.own(kv_lengths)

    def set_window(self, tuple sides):
        """(left, right); -1 is unbounded."""
        left, right = sides
        self.problem.window_left = left
        if self.problem.window_right != 0:  # not causal
            self.problem.window_right = right

    def set_softcap(self, double softcap):
        self.problem.softcap = softcap

    def set_alibi_slopes(self, cnp.ndarray slopes):
        """Slopes of query's real dtype that broadcast to (batch..., Hq)."""
        fill(&self.problem.alibi_slopes, slopes, HEAD, self.problem.batch_axes)
        self.arrays = (*self.arrays, slopes)

    def set_sinks(self, cnp.ndarray sinks):
        """Sinks of query's real dtype that broadcast to (batch..., Hq)."""
        fill(&self.problem.sinks, sinks, HEAD, self.problem.batch_axes)
        self.arrays = (*self.arrays, sinks)

    def set_segments(self, tuple ids):
        """(of queries, of keys): integers of one size that broadcast to (batch..., L), (..., S)."""
        cdef cnp.ndarray of_query, of_key
        of_query, of_key = ids
        fill(&self.problem.query_segments, of_query, ROW, self.problem.batch_axes)
        fill(&self.problem.key_segments, of_key, ROW, self.problem.batch_axes)
        self.problem.segment_size = <int>cnp.PyArray_ITEMSIZE(of_query)
        self.arrays = (*self.arrays, of_query, of_key)

    def set_dropout_seed(self, uint64_t seed):
        self.problem.dropout_seed = seed

    cdef const int64_t *own(self, cnp.ndarray x):
        """The numbers of `x`, which lives as long as the problem that points into it."""
        self.keep = [x] if self.keep is None else [*self.keep, x]
        return <const int64_t *>cnp.PyArray_DATA(x)

    @property
    def batch_shape(self):
        return tuple([self.problem.batch_shape[i] for i in range(self.problem.batch_axes)])

    @property
    def num_heads_q(self):
        return self.problem.num_heads_q

    @property
    def out_shape(self):
        return (*self.lse_shape, self.problem.head_dim_v)

    @property
    def scores_shape(self):
        return (*self.lse_shape, self.problem.seqlen_k)

    def attend(self, cnp.ndarray out, cnp.ndarray lse, int num_threads):
        """softmax(scores) @ value into `out`; the log of the sums into `lse` unless it is None."""
        self.problem.lse.data = NULL
        if lse is not None:
            fill(&self.problem.lse, lse, HEAD_ROW, self.problem.batch_axes)
        solve(&self.problem, sa_attention, out, num_threads)

    # Keys and values of a cache (`caches/`), whose arrays are its own.

    def set_pages(self, cnp.ndarray table, int64_t seqlen_k, cnp.ndarray key, cnp.ndarray value):
        """Each batch entry has a row of `table`, numbers of pages of the pools `key` and `value`.

        The problem was made with page 0 of each, (Hkv, page_size, E); `seqlen_k` is of the longest.
        """
        cdef sa_pages *pages = &self.problem.pages
        pages.table = self.own(table)
        pages.per_entry = cnp.PyArray_DIMS(table)[1]
        pages.size = cnp.PyArray_DIMS(key)[2]
        pages.key, pages.value = cnp.PyArray_STRIDES(key)[0], cnp.PyArray_STRIDES(value)[0]
        self.problem.seqlen_k = seqlen_k

    def set_scales(self, cnp.ndarray key, cnp.ndarray value, bint are_pools):
        """Of keys and values of int8: floats (batch..., Hkv, S); or pools, (pages, Hkv, size)."""
        cdef sa_pages *pages = &self.problem.pages
        if are_pools:
            pages.key_scale = cnp.PyArray_STRIDES(key)[0]
            pages.value_scale = cnp.PyArray_STRIDES(value)[0]
            key, value = key[0], value[0]
        fill(&self.problem.key_scale, key, HEAD_ROW, self.problem.batch_axes)
        fill(&self.problem.value_scale, value, HEAD_ROW, self.problem.batch_axes)
        self.arrays = (*self.arrays, key, value)

    # Keys that come in pieces (`state.py`): the state is (..., Hq, L, STATE_HEAD + Ev) of reals.

    def set_place(self, int64_t first_query, int64_t first_key):
        """How many queries and keys of the whole problem come before these: for dropout."""
        self.problem.first_query, self.problem.first_key = first_query, first_key

    def update(self, cnp.ndarray state, bint is_natural, int num_threads):
        """Add these keys to the state; returns whether it is in natural units now."""
        cdef PyObject *raised
        cdef sa_status status
        cdef sa_problem *p = &self.problem
        p.state_use = SA_STATE_UPDATE
        p.state_is_natural = is_natural
        fill(&p.state, state, HEAD_ROW_COL, p.batch_axes)
        p.lse.data = p.out.data = NULL
        is_natural = sa_in_natural_units(p)
        if cnp.PyArray_SIZE(state) == 0:
            return is_natural
        start(p, num_threads, &raised)
        with nogil:
            status = sa_attention(p)
        check(status, raised)
        return is_natural

    def attend_to_state(
        self,
        cnp.ndarray state,
        bint is_natural,
        cnp.ndarray out,
        cnp.ndarray lse,
        int num_threads,
    ):
        """The result of the state's keys and these, as `attend` gives it."""
        self.problem.state_use = SA_STATE_RESULT
        self.problem.state_is_natural = is_natural
        fill(&self.problem.state, state, HEAD_ROW_COL, self.problem.batch_axes)
        self.attend(out, lse, num_threads)

    def differentiate(
        self,
        cnp.ndarray grad_out,
        cnp.ndarray out,
        cnp.ndarray lse,
        tuple gradients,
        int num_threads,
        cnp.ndarray grad_lse=None,
    ):
        """Write the gradients of query, key, value, mask, sinks and bias into those arrays.

        The last three may be None, and are of query's real dtype; those of mask and bias are added
        to zeros. The query's is too if it is broadcast (`selfattn.h`).
        """
        cdef sa_gradients g
        cdef sa_problem *p = &self.problem
        if not any([x is not None and x.size for x in gradients]):
            return
        query, key, value, mask, sinks, bias = gradients
        memset(&g, 0, sizeof(sa_gradients))
        fill(&g.query, query, HEAD_ROW_COL, p.batch_axes)
        g.query_is_real = dtype_of(query) != p.dtype
        fill(&g.key, key, HEAD_ROW_COL, p.batch_axes)
        fill(&g.value, value, HEAD_ROW_COL, p.batch_axes)
        if mask is not None:
            fill(&g.mask, mask, HEAD_ROW_COL, p.batch_axes)
        if bias is not None:
            fill(&g.bias, bias, HEAD_ROW_COL, p.batch_axes)
        if sinks is not None:
            fill(&g.sinks, sinks, HEAD, p.batch_axes)
        self.differentiate_part(&g, (grad_out, out, lse, grad_lse, None), num_threads)

    # Gradients of pieces of a larger problem (`distributed/`): sums that go on from piece to piece.

    def differentiate_rows(
        self,
        tuple given,
        cnp.ndarray query,
        bint goes_on,
        bint is_partial,
        cnp.ndarray mask,
        cnp.ndarray bias,
        int num_threads,
    ):
        """Add these keys' part to the query's gradient, which `goes_on`, unless they are the first.

        It is left unscaled if it `is_partial`, which it is until the last. `given` are grad_out,
        out, lse, and, or None, grad_lse and the rows' state over all keys. The gradients of these
        rows and keys of mask and bias, or None, are added to zeros.
        """
        cdef sa_gradients g
        memset(&g, 0, sizeof(sa_gradients))
        fill(&g.query, query, HEAD_ROW_COL, self.problem.batch_axes)
        if mask is not None:
            fill(&g.mask, mask, HEAD_ROW_COL, self.problem.batch_axes)
        if bias is not None:
            fill(&g.bias, bias, HEAD_ROW_COL, self.problem.batch_axes)
        g.query_goes_on, g.query_is_partial = goes_on, is_partial
        if query.size:
            self.differentiate_part(&g, given, num_threads)

    def differentiate_keys(
        self,
        tuple given,
        cnp.ndarray key,
        cnp.ndarray value,
        int num_threads,
    ):
        """Add these rows' part to the gradients of key and value; zeros before the first."""
        cdef sa_gradients g
        memset(&g, 0, sizeof(sa_gradients))
        fill(&g.key, key, HEAD_ROW_COL, self.problem.batch_axes)
        fill(&g.value, value, HEAD_ROW_COL, self.problem.batch_axes)
        g.keys_go_on = True
        if key.size or value.size:
            self.differentiate_part(&g, given, num_threads)

    def differentiate_sinks(self, tuple given, cnp.ndarray sums, int64_t entry):
        """Add the rows of a batch entry to the sums of the sinks' gradients, doubles of (Hq,).

        Of keys only their positions are looked at, all of them; `given` has the rows' state.
        """
        cdef sa_gradients g
        memset(&g, 0, sizeof(sa_gradients))
        fill(&g.sinks, sums, HEAD, self.problem.batch_axes)
        g.sinks_go_on, g.sinks_entry = True, entry
        if self.problem.seqlen_q:
            self.differentiate_part(&g, given, 1)

    cdef int differentiate_part(self, sa_gradients *g, tuple given, int num_threads) except -1:
        """The gradients of which `g` says where they go; `given` as for `differentiate_rows`."""
        cdef PyObject *raised
        cdef sa_status status
        cdef sa_problem *p = &self.problem
        grad_out, out, lse, grad_lse, state = given
        fill(&g.out, grad_out, HEAD_ROW_COL, p.batch_axes)
        fill(&p.out, out, HEAD_ROW_COL, p.batch_axes)
        fill(&p.lse, lse, HEAD_ROW, p.batch_axes)
        if grad_lse is not None:
            fill(&g.lse, grad_lse, HEAD_ROW, p.batch_axes)
        if state is not None:
            fill(&g.state, state, HEAD_ROW_COL, p.batch_axes)
        start(p, num_threads, &raised)
        with nogil:
            status = sa_attention_backward(p, g)
        return check(status, raised)

    def score(self, cnp.ndarray out, int num_threads):
        """The scores into `out`."""
        solve(&self.problem, sa_scores, out, num_threads)

    def weigh(self, cnp.ndarray out, int num_threads):
        """softmax(scores) into `out`."""
        solve(&self.problem, sa_weights, out, num_threads)


STATE_HEAD = SA_STATE_HEAD
SPLIT = SA_SPLIT_N  # keys: a state that ends at a multiple of it changes no bit (docs/bits.md)


def broadcasts(cnp.ndarray x not None, tuple shape):
    """Whether `x` broadcasts to that shape."""
    cdef int i, more = len(shape) - cnp.PyArray_NDIM(x)
    if more < 0:
        return False
    for i in range(cnp.PyArray_NDIM(x)):
        if cnp.PyArray_DIMS(x)[i] != 1 and cnp.PyArray_DIMS(x)[i] != <int64_t>shape[more + i]:
            return False
    return True


def may_overlap(cnp.ndarray out, arrays):
    """Whether the bounds of `out` overlap those of one of the arrays."""
    for x in arrays:
        if overlap(out, x):
            return True
    return False


# ------------------------------------------------------------------ the usual arguments


cdef void fill_fast(sa_problem *p, cnp.ndarray query, cnp.ndarray key, cnp.ndarray value) noexcept:
    cdef int i, axes = cnp.PyArray_NDIM(query)
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(query)
    p.batch_axes = axes - 3
    for i in range(axes - 3):
        p.batch_shape[i] = shape[i]
    p.num_heads_q = shape[axes - 3]
    p.num_heads_kv = cnp.PyArray_DIMS(key)[axes - 3]
    fill_operands(p, query, key, value)


def fast_problem(query, key, value, bint has_value, bint is_grouped=False):
    """The problem of the usual arrays; None of any others, at which the validator looks closer."""
    if not are_fast_operands(
        query, key, value if has_value else key, is_grouped, bfloat16_type
    ):
        return None
    if not has_value:
        value = None
    cdef AttentionProblem new = AttentionProblem.__new__(AttentionProblem)
    fill_fast(&new.problem, query, key, value)
    new.keep_arrays(query, key, value)
    new.lse_shape = (<tuple>query.shape)[: query.ndim - 1]
    return new


def fast_path(
    query, key, value, out, tuple values, tuple defaults, num_threads, get_num_threads
):
    """Attention of the usual arrays, where no option differs from its default; else None.

    Where num_threads is None, get_num_threads() tells, which takes longer than a small call may: it
    is asked only if there is work for more than one.
    """
    cdef sa_problem problem
    cdef cnp.npy_intp shape[SA_MAX_BATCH_AXES + 3]
    cdef int i, axes
    if not are_defaults(values, defaults):
        return None
    if (
        not are_fast_operands(query, key, value, False, bfloat16_type)
        or not cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>query)
    ):
        return None
    memset(&problem, 0, sizeof(sa_problem))
    fill_fast(&problem, query, key, value)
    axes = problem.batch_axes + 3
    for i in range(axes - 1):
        shape[i] = cnp.PyArray_DIMS(<cnp.ndarray>query)[i]
    shape[axes - 1] = problem.head_dim_v
    if out is None:
        out = cnp.PyArray_EMPTY(axes, shape, cnp.PyArray_TYPE(<cnp.ndarray>query), 0)
    elif not is_fast_out(out, query, key, value, axes, shape):
        return None
    if num_threads is None:
        num_threads = 1 if sa_is_serial(&problem) else get_num_threads()
    solve(&problem, sa_attention, out, num_threads)
    return out


def nondefault(tuple names, tuple defaults, tuple values):
    """{name: value} of the options whose value is not recognised as the default."""
    cdef Py_ssize_t i
    cdef dict found = {}
    if not len(names) == len(defaults) == len(values):
        raise ValueError(f"expected values of {names}, got {len(values)}")
    for i in range(len(values)):
        if not is_default(values[i], defaults[i]):
            found[names[i]] = values[i]
    return found


# ------------------------------------------------------------------ the rest, a file a concept

include "_tensors.pxi"
include "_rows.pxi"
include "_tensor_calls.pxi"
include "_machine.pxi"
