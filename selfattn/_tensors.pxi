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
