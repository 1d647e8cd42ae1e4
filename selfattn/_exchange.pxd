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
