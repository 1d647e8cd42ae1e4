# Arrays of other libraries: DLPack's capsules, and tensors by the table that their type offers.
# A part of _core.pyx.

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
    whose memory does not hold its numbers, such as a view of negated ones. `_tensor_calls.pxi` has
    calls of the kernels on such tensors.
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

    cdef object new_like(self, like):
        """The same of a tensor's own shape."""
        cdef DLView view
        if not self.look(like, &view):
            raise TypeError(f"expected a tensor on the CPU, got {type(like)}")
        view.strides = NULL
        return self.made(&view)

    cdef object new_real(self, like, shape):
        """The same of the dtype that numbers of like's dtype are computed in."""
        cdef DLView view
        if not self.look(like, &view):
            raise TypeError(f"expected a tensor on the CPU, got {type(like)}")
        view.code, view.bits = DL_FLOAT, real_bits(&view)
        return self.allocated(&view, shape)

    cdef object allocated(self, DLView *view, shape):
        cdef int64_t lengths[SA_MAX_BATCH_AXES + 3]
        cdef int i
        if len(shape) > SA_MAX_BATCH_AXES + 3:
            raise ValueError(f"expected at most {SA_MAX_BATCH_AXES + 3} axes, got {len(shape)}")
        view.ndim, view.shape, view.strides = <int>len(shape), lengths, NULL
        for i in range(view.ndim):
            lengths[i] = shape[i]
        return self.made(view)

    cdef object made(self, DLView *view):
        cdef DLOwned *made = NULL
        cdef void *tensor = NULL
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


# What the kernels see of a tensor, of which nobody makes an array.

cdef inline sa_dtype dtype_of_tensor(const DLView *x) noexcept:
    """The kernels' dtype of numbers that `is_number` accepts."""
    if x.code == DL_BFLOAT:
        return SA_bf16
    return SA_f32 if x.bits == 32 else SA_f64 if x.bits == 64 else SA_f16


cdef void fill_rows_of_tensor(sa_rows *a, const DLView *x) noexcept:
    """`fill_rows` of a tensor whose last axis is the columns."""
    cdef int i
    a.data = memory_of(x)
    for i in range(x.ndim - 1):
        a.stride[i] = step_of(x, i)
    a.col = step_of(x, x.ndim - 1)


cdef void fill_tensor(sa_array *a, const DLView *x, Axes axes, int batch_axes) noexcept:
    """`fill` of a tensor that has all axes."""
    cdef int i, last = x.ndim - 1
    a.data = memory_of(x)
    a.col = 0
    if axes == HEAD_ROW_COL:
        a.col = step_of(x, last)
        last -= 1
    a.row, a.head = step_of(x, last), step_of(x, last - 1)
    for i in range(batch_axes):
        a.batch[i] = step_of(x, i)


cdef void fill_problem_of_tensors(
    sa_problem *p, const DLView *q, const DLView *k, const DLView *v, bint is_causal
) noexcept:
    """`fill_fast` of tensors."""
    cdef int i, axes = q.ndim
    memset(p, 0, sizeof(sa_problem))
    p.dtype = dtype_of_tensor(q)
    p.batch_axes = axes - 3
    for i in range(axes - 3):
        p.batch_shape[i] = q.shape[i]
    p.num_heads_q, p.num_heads_kv = q.shape[axes - 3], k.shape[axes - 3]
    p.seqlen_q, p.seqlen_k = q.shape[axes - 2], k.shape[axes - 2]
    p.head_dim, p.head_dim_v = k.shape[axes - 1], v.shape[axes - 1]
    p.scale = NAN
    p.window_left, p.window_right = -1, 0 if is_causal else -1
    fill_tensor(&p.query, q, HEAD_ROW_COL, p.batch_axes)
    fill_tensor(&p.key, k, HEAD_ROW_COL, p.batch_axes)
    fill_tensor(&p.value, v, HEAD_ROW_COL, p.batch_axes)


cdef void fill_projection_of_tensors(
    sa_projection *p, const DLView *x, const DLView *weight, const DLView *out
) noexcept:
    """`fill_projection` of tensors, without a bias."""
    cdef int i
    p.dtype = dtype_of_tensor(x)
    p.axes = x.ndim - 1
    for i in range(p.axes):
        p.shape[i] = x.shape[i]
    p.n_out, p.n_in = weight.shape[0], weight.shape[1]
    fill_rows_of_tensor(&p.x, x)
    fill_rows_of_tensor(&p.out, out)
    p.weight = memory_of(weight)
    p.weight_row, p.weight_col = step_of(weight, 0), step_of(weight, 1)
    p.bias = NULL
