"""DLPack's exchange of tensors by a table of C functions, which their type offers.

As `__dlpack_c_exchange_api__`. The layout of these structs is DLPack's since its version 1.3, and a
part of its ABI: https://dmlc.github.io/dlpack/latest/c_api.html. Used by `TensorMemory` of
`_core.pyx`.
"""

cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:
    ON_CPU = 1

cdef enum DLCode:
    DL_INT, DL_UINT, DL_FLOAT, DL_BFLOAT = 4, DL_BOOL = 6


cdef struct DLView:
    # DLTensor: what a tensor is, for as long as nobody changes it.
    void *data
    int32_t device_type, device_id, ndim
    uint8_t code, bits
    uint16_t lanes
    int64_t *shape
    int64_t *strides  # in elements
    uint64_t byte_offset


cdef struct DLOwned:
    # DLManagedTensorVersioned, of which nothing is looked at here.
    uint32_t major


ctypedef void (*dl_set_error)(void *, const char *, const char *) noexcept

cdef struct DLTable:
    # DLPackExchangeAPI
    uint32_t major, minor
    DLTable *older
    int (*allocate)(DLView *like, DLOwned **, void *, dl_set_error) except -1
    int (*own)(void *, DLOwned **) noexcept
    int (*to_object)(DLOwned *, void **) except -1
    int (*view)(void *, DLView *) noexcept  # -1 where it raises
    int (*stream)(int32_t, int32_t, void **) noexcept


cdef inline bint is_number(const DLView *x) noexcept:
    """Whether its elements are of a dtype that the kernels take, whether NumPy knows it or not."""
    if x.lanes != 1:
        return False
    if x.code == DL_FLOAT:
        return x.bits == 32 or x.bits == 64 or x.bits == 16
    return x.code == DL_BFLOAT and x.bits == 16


cdef inline int type_of(const DLView *x, int bfloat16_type) noexcept:
    """NumPy's number of the type of its elements; NOTYPE where NumPy has none."""
    cdef int size = x.bits
    if x.lanes != 1:
        return cnp.NPY_NOTYPE
    if x.code == DL_FLOAT:
        return (
            cnp.NPY_FLOAT32 if size == 32
            else cnp.NPY_FLOAT64 if size == 64
            else cnp.NPY_FLOAT16 if size == 16
            else cnp.NPY_NOTYPE
        )
    if x.code == DL_BFLOAT and size == 16:
        return bfloat16_type
    if x.code == DL_BOOL and size == 8:
        return cnp.NPY_BOOL
    if x.code == DL_INT:
        return (
            cnp.NPY_INT64 if size == 64
            else cnp.NPY_INT32 if size == 32
            else cnp.NPY_INT16 if size == 16
            else cnp.NPY_INT8 if size == 8
            else cnp.NPY_NOTYPE
        )
    return cnp.NPY_NOTYPE  # whatever else there is takes the way of NumPy's own conversions


cdef inline bint are_of_one_dtype(const DLView *a, const DLView *b) noexcept:
    return a.code == b.code and a.bits == b.bits


cdef inline uint8_t real_bits(const DLView *x) noexcept:
    """The bits of the numbers that numbers of its dtype are computed in."""
    return 64 if x.bits == 64 else 32


cdef inline int64_t size_of(const DLView *x) noexcept:
    """The number of its elements."""
    cdef int64_t size = 1
    cdef int i
    for i in range(x.ndim):
        size *= x.shape[i]
    return size


cdef inline char *memory_of(const DLView *x) noexcept:
    return <char *>x.data + x.byte_offset


cdef inline Py_ssize_t step_of(const DLView *x, int axis) noexcept:
    """Bytes from one element to the next; 0 along an axis of one."""
    return 0 if x.shape[axis] == 1 else x.strides[axis] * (x.bits // 8)


cdef inline bint is_in_c_order(const DLView *x) noexcept:
    """Whether its elements lie one after the other, in the order of its axes."""
    cdef int64_t step = 1
    cdef int i
    if size_of(x) == 0:
        return True
    for i in range(x.ndim - 1, -1, -1):
        if x.shape[i] != 1 and x.strides[i] != step:
            return False
        step *= x.shape[i]
    return True


cdef enum Order:
    # How the axes of a tensor lie in memory: as they come; or with the last two before the columns
    # exchanged, which puts positions before heads; or in another way.
    C_ORDER, ROWS_FIRST, ANOTHER


cdef inline Order order_of(const DLView *x) noexcept:
    cdef int64_t before = -1
    cdef int i, axis, last = x.ndim - 1
    if is_in_c_order(x):
        return C_ORDER
    if last < 2 or x.strides[last] != 1:
        return ANOTHER
    for i in range(last + 1):
        axis = last - 2 if i == last - 1 else last - 1 if i == last - 2 else i
        if x.strides[axis] <= 0:
            return ANOTHER
        if x.shape[axis] == 1:
            continue
        if before >= 0 and x.strides[axis] >= before:
            return ANOTHER
        before = x.strides[axis]
    return ROWS_FIRST


cdef inline bint are_usual_operands(
    const DLView *q, const DLView *k, const DLView *v, bint is_grouped
) noexcept:
    """`are_fast_operands` of tensors whose dtypes the kernels take."""
    cdef int i, axes = q.ndim
    if axes < 3 or k.ndim != axes or v.ndim != axes:
        return False
    if not (are_of_one_dtype(q, k) and are_of_one_dtype(q, v)):
        return False
    if k.shape[axes - 1] != q.shape[axes - 1] or v.shape[axes - 2] != k.shape[axes - 2]:
        return False
    for i in range(axes - 2):
        if v.shape[i] != k.shape[i]:
            return False
        if k.shape[i] != q.shape[i]:
            if not is_grouped or i < axes - 3 or k.shape[i] == 0 or q.shape[i] % k.shape[i] != 0:
                return False
    return True
