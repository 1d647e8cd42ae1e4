# cython: boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=True
"""The bridge: fill one C struct, release the GIL, call, map the status to an exception.

No policy: `_args` has validated what comes here. Two functions validate for it, in less time than
it takes, arguments of the usual kind, which `_fast_path.pxd` recognises: `fast_problem` makes their
problem, `fast_path` does the whole of a call that sets no option.

    _core.pxd        declarations: the C library, the extension types
    _fast_path.pxd   what the fast path accepts
    _exchange.pxd    DLPack's table of C functions, by which tensors are read without Python
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

from ._exchange cimport DL_FLOAT, ON_CPU, DLOwned, DLTable, DLView, is_number, type_of
from ._fast_path cimport (
    are_defaults,
    are_fast_operands,
    is_default,
    is_fast_array,
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
        cdef PyObject *raised
        cdef sa_status status
        cdef sa_problem *p = &self.problem
        if not any([x is not None and x.size for x in gradients]):
            return
        query, key, value, mask, sinks, bias = gradients
        memset(&g, 0, sizeof(sa_gradients))
        fill(&g.out, grad_out, HEAD_ROW_COL, p.batch_axes)
        if grad_lse is not None:
            fill(&g.lse, grad_lse, HEAD_ROW, p.batch_axes)
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
        fill(&p.out, out, HEAD_ROW_COL, p.batch_axes)
        fill(&p.lse, lse, HEAD_ROW, p.batch_axes)
        start(p, num_threads, &raised)
        with nogil:
            status = sa_attention_backward(p, &g)
        check(status, raised)

    # Gradients of pieces of a larger problem (`distributed/`): sums that go on from piece to piece.

    def differentiate_rows(
        self,
        tuple given,
        cnp.ndarray query,
        bint goes_on,
        bint is_partial,
        int num_threads,
    ):
        """Add these keys' part to the query's gradient, which `goes_on`, unless they are the first.

        It is left unscaled if it `is_partial`, which it is until the last. `given` are grad_out,
        out, lse, and, or None, grad_lse and the rows' state over all keys.
        """
        cdef sa_gradients g
        memset(&g, 0, sizeof(sa_gradients))
        fill(&g.query, query, HEAD_ROW_COL, self.problem.batch_axes)
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

    cdef int differentiate_part(self, sa_gradients *g, tuple given, int num_threads) except -1:
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


cdef extern from "numpy/arrayobject.h":
    object PyArray_New(
        type, int, cnp.npy_intp *, int, cnp.npy_intp *, void *, int, int, PyObject *
    )


cdef struct dl_tensor:
    # DLPack's DLManagedTensor, which begins with a DLTensor.
    void *data
    int32_t device_type, device_id, ndim
    uint8_t code, bits
    uint16_t lanes
    int64_t *shape
    int64_t *strides  # in elements; NULL: contiguous
    uint64_t byte_offset
    void *context
    void (*deleter)(dl_tensor *) noexcept


def dlpack_dtype(capsule):
    """The (code, bits) of the dtype in a DLPack capsule that is not of a newer version."""
    cdef dl_tensor *tensor = <dl_tensor *>PyCapsule_GetPointer(capsule, "dltensor")
    return tensor.code, tensor.bits


cdef class DLPackOwner:
    """Keeps what came in a DLPack capsule, which is used up, as long as an array looks at it."""
    cdef dl_tensor *tensor

    def __dealloc__(self):
        if self.tensor != NULL and self.tensor.deleter != NULL:
            self.tensor.deleter(self.tensor)


def dlpack_uint16(capsule):
    """The elements of 16 bits in a DLPack capsule of the CPU, as an array of uint16, uncopied."""
    cdef DLPackOwner owner = DLPackOwner()
    cdef dl_tensor *tensor = <dl_tensor *>PyCapsule_GetPointer(capsule, "dltensor")
    cdef cnp.npy_intp shape[SA_MAX_BATCH_AXES + 3]
    cdef cnp.npy_intp strides[SA_MAX_BATCH_AXES + 3]
    cdef cnp.npy_intp step = 2
    cdef int i
    if tensor.device_type != 1:  # kDLCPU
        raise ValueError(f"expected memory of the CPU, got that of device {tensor.device_type}")
    if tensor.bits != 16 or tensor.lanes != 1 or tensor.ndim > SA_MAX_BATCH_AXES + 3:
        raise ValueError(f"expected elements of 16 bits, got {tensor.bits} x {tensor.lanes}")
    for i in reversed(range(tensor.ndim)):
        shape[i] = tensor.shape[i]
        strides[i] = step if tensor.strides == NULL else 2 * tensor.strides[i]
        step *= shape[i]
    PyCapsule_SetName(capsule, "used_dltensor")
    owner.tensor = tensor
    cdef cnp.ndarray x = PyArray_New(
        cnp.ndarray, tensor.ndim, shape, cnp.NPY_UINT16, strides,
        <char *>tensor.data + tensor.byte_offset, 2, cnp.NPY_ARRAY_WRITEABLE, NULL,
    )
    cnp.set_array_base(x, owner)
    return x


cdef class TensorMemory:
    """Tensors of another library as arrays, and new ones, in less time than its own methods take.

    By the table that its type of tensors offers (`_exchange.pxd`). `is_lazy(x)` tells of a tensor
    whose memory does not hold its numbers, such as a view of negated ones.
    """
    cdef DLTable *table
    cdef object tensor_type, is_lazy

    def __init__(self, tensor_type, is_lazy):
        self.tensor_type, self.is_lazy = tensor_type, is_lazy
        self.table = <DLTable *>PyCapsule_GetPointer(
            tensor_type.__dlpack_c_exchange_api__, "dlpack_exchange_api"
        )
        if self.table.major != 1 or self.table.view == NULL:
            raise ValueError(f"expected version 1 of DLPack's table, got {self.table.major}")

    cdef bint look(self, x, DLView *view):
        """Whether x is a tensor in the memory of the CPU, which `view` is then filled from."""
        if not PyObject_TypeCheck(x, <PyTypeObject *>self.tensor_type):
            return False
        if self.table.view(<void *>x, view) != 0:
            PyErr_Clear()
            return False
        return view.device_type == ON_CPU

    def array(self, x):
        """The memory of a tensor as an array with its strides; None where there is no such."""
        cdef DLView view
        cdef cnp.npy_intp shape[SA_MAX_BATCH_AXES + 3]
        cdef cnp.npy_intp strides[SA_MAX_BATCH_AXES + 3]
        cdef int i, kind
        cdef cnp.npy_intp size = 1
        if not self.look(x, &view) or view.ndim > SA_MAX_BATCH_AXES + 3 or self.is_lazy(x):
            return None
        kind = type_of(&view, bfloat16_type)
        if kind == cnp.NPY_NOTYPE:
            return None
        for i in range(view.ndim):
            shape[i] = view.shape[i]
            strides[i] = view.strides[i] * (view.bits // 8)
            size *= shape[i]
        if view.data == NULL and size != 0:  # a tensor of zeros that holds none
            return None
        cdef cnp.ndarray y = PyArray_New(
            cnp.ndarray, view.ndim, shape, kind, strides, <char *>view.data + view.byte_offset,
            view.bits // 8, cnp.NPY_ARRAY_WRITEABLE, NULL,
        )
        cnp.set_array_base(y, x)
        return y

    def problem(self, query, key, value, bint is_grouped):
        """`fast_problem` of tensors: None of any but the usual ones."""
        query, key, value = self.array(query), self.array(key), self.array(value)
        return fast_problem(query, key, value, True, is_grouped)

    def attend(self, AttentionProblem problem not None, out, bint with_lse, int num_threads):
        """`problem.attend` into the tensor `out`; returns a new one of lse, or None."""
        cdef cnp.ndarray target = self.array(out), lse = None
        if target is None:
            raise TypeError(f"expected a result in the memory of the CPU, got {type(out)}")
        new = None
        if with_lse:
            new = self.new_real(out, problem.lse_shape)
            lse = self.array(new)
        problem.attend(target, lse, num_threads)
        return new

    def differentiate(
        self,
        AttentionProblem problem not None,
        grad_out,
        out,
        lse,
        grad_lse,
        tuple gradients,
        int num_threads,
    ):
        """`problem.differentiate` of tensors, where none of its inputs is broadcast; else False.

        `gradients` are those of query, key and value, new tensors of their shapes; `grad_lse` may
        be None.
        """
        cdef cnp.ndarray query = problem.query
        cdef cnp.ndarray of_out = self.array(grad_out), result = self.array(out)
        cdef cnp.ndarray rows = self.array(lse), of_lse = None
        cdef int kind = cnp.PyArray_TYPE(query)
        cdef int real = cnp.NPY_FLOAT64 if kind == cnp.NPY_FLOAT64 else cnp.NPY_FLOAT32
        cdef tuple shape = problem.out_shape
        if grad_lse is not None:
            of_lse = self.array(grad_lse)
            if not is_array(of_lse, real, problem.lse_shape):
                return False
        if not (
            is_array(of_out, kind, shape)
            and is_array(result, kind, shape)
            and is_array(rows, real, problem.lse_shape)
            and is_array(query, kind, (*problem.lse_shape, problem.problem.head_dim))
            and cnp.PyArray_SIZE(rows) != 0
        ):
            return False
        of_query, of_key, of_value = [self.array(x) for x in gradients]
        if of_query is None or of_key is None or of_value is None:
            return False
        arrays = (of_query, of_key, of_value, None, None, None)
        problem.differentiate(of_out, result, rows, arrays, num_threads, of_lse)
        return True

    def project(self, x, weight, bias, get_num_threads):
        """x @ weight.T + bias, which may be None, as a new tensor; None where they do not fit."""
        cdef cnp.ndarray rows = self.array(x), matrix = self.array(weight), offset = None
        cdef int i, last, kind
        if rows is None or matrix is None:
            return None
        last, kind = cnp.PyArray_NDIM(rows) - 1, cnp.PyArray_TYPE(rows)
        if not is_fast_array(rows, bfloat16_type) or last < 0 or cnp.PyArray_NDIM(matrix) != 2:
            return None
        if not is_array(matrix, kind, (matrix.shape[0], rows.shape[last])):
            return None
        if bias is not None:
            offset = self.array(bias)
            if not is_array(offset, kind, (matrix.shape[0],)):
                return None
        new = self.new(x, [*[rows.shape[i] for i in range(last)], matrix.shape[0]])
        project(rows, matrix, offset, self.array(new), get_num_threads())
        return new

    def are_alike(self, *tensors):
        """Whether all are in the memory of the CPU, and of one dtype that the kernels take."""
        cdef DLView view
        cdef int code = -1, bits = -1
        for x in tensors:
            if not self.look(x, &view) or not is_number(&view):
                return False
            if code >= 0 and (code != view.code or bits != view.bits):
                return False
            code, bits = view.code, view.bits
        return True

    def new(self, like, shape):
        """A new tensor of that shape in C order, of like's dtype; it holds anything.

        None where `like` is not a tensor in the memory of the CPU.
        """
        cdef DLView view
        return self.allocated(&view, shape) if self.look(like, &view) else None

    cdef object new_real(self, like, shape):
        """The same of the dtype that numbers of like's dtype are computed in."""
        cdef DLView view
        if not self.look(like, &view):
            raise TypeError(f"expected a tensor on the CPU, got {type(like)}")
        view.code, view.bits = DL_FLOAT, 64 if view.bits == 64 else 32
        return self.allocated(&view, shape)

    cdef object allocated(self, DLView *view, shape):
        cdef DLOwned *made = NULL
        cdef void *tensor = NULL
        cdef int64_t lengths[SA_MAX_BATCH_AXES + 3]
        cdef int i
        if len(shape) > SA_MAX_BATCH_AXES + 3:
            raise ValueError(f"expected at most {SA_MAX_BATCH_AXES + 3} axes, got {len(shape)}")
        view.ndim, view.shape, view.strides = <int>len(shape), lengths, NULL
        for i in range(view.ndim):
            lengths[i] = shape[i]
        self.table.allocate(view, &made, NULL, set_error)
        self.table.to_object(made, &tensor)
        x = <object>tensor
        Py_DECREF(x)  # the reference that came with it
        return x


cdef bint is_array(cnp.ndarray x, int kind, tuple shape):
    """Whether it is one of that type of elements and that shape."""
    cdef int i
    if x is None or cnp.PyArray_TYPE(x) != kind or cnp.PyArray_NDIM(x) != len(shape):
        return False
    for i in range(cnp.PyArray_NDIM(x)):
        if cnp.PyArray_DIMS(x)[i] != <int64_t>shape[i]:
            return False
    return True


cdef void set_error(void *context, const char *kind, const char *message) noexcept:
    PyErr_SetString(RuntimeError, message)


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


# ------------------------------------------------------------------ the steps on their own


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


# ------------------------------------------------------------------ the machine


def num_cores():
    """Cores that this thread may use now; 0 if the system does not tell."""
    return sa_num_cores()


def environment(str name):
    """An environment variable as it is now, or None; faster than os.environ."""
    cdef const char *value = getenv(name.encode())
    return None if value == NULL else value.decode(errors="replace")


def in_default_environment(compute, *arguments):
    """compute(*arguments), rounding to nearest and so on, whatever the caller has set.

    For tables that NumPy makes and that are kept: a later call may have set something else.
    """
    cdef sa_fp_env callers = sa_fp_enter()
    try:
        return compute(*arguments)
    finally:
        sa_fp_leave(callers)


# ------------------------------------------------------------------ its limits, for benchmarks


def peak_flops(bint is_float64):
    """Floating-point operations of a step of `time_peak`, of each thread."""
    return sa_peak_flops(SA_f64 if is_float64 else SA_f32)


def time_peak(bint is_float64, int num_threads, int64_t steps):
    """(seconds, CPU seconds of all threads) of so many steps of multiply-adds on each thread."""
    cdef sa_dtype dtype = SA_f64 if is_float64 else SA_f32
    cdef sa_team_time time
    cdef sa_status status
    with nogil:
        status = sa_time_peak(dtype, num_threads, steps, &time)
    check(status, NULL)
    return time.seconds, time.cpu_seconds


def read_bytes(int64_t nbytes, int num_threads):
    """Bytes that `time_read` reads of an array of so many."""
    return sa_read_bytes(nbytes, num_threads)


def time_read(cnp.ndarray x, int num_threads):
    """(seconds, CPU seconds of all threads) of reading a contiguous, aligned array once."""
    cdef const void *data = cnp.PyArray_DATA(x)
    cdef int64_t nbytes = cnp.PyArray_NBYTES(x)
    cdef sa_team_time time
    cdef sa_status status
    with nogil:
        status = sa_time_read(data, nbytes, num_threads, &time)
    check(status, NULL)
    return time.seconds, time.cpu_seconds


# ------------------------------------------------------------------ kernel sets


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


def apply(str function, cnp.ndarray x not None, double unit=1):
    """The kernels' own exp, log or tanh of a contiguous array; or exp_of_negative, or exp2_scaled,
    which is 2^(unit x), of an array without positive numbers."""
    cdef sa_function f = {
        "exp2_scaled": SA_EXP2_SCALED,
        "exp_of_negative": SA_EXP_OF_NEGATIVE,
        "exp": SA_EXP,
        "log": SA_LOG,
        "tanh": SA_TANH,
    }[function]
    cdef cnp.ndarray y = x.copy()
    sa_apply(f, dtype_of(x), unit, cnp.PyArray_DATA(x), cnp.PyArray_DATA(y), cnp.PyArray_SIZE(x))
    return y
