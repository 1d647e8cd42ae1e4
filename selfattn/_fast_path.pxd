"""What the fast path accepts: arrays of the usual kind, options that are left at their defaults.

Inlined into `_core.pyx`. Whatever is refused here takes the way of the validator, `_args/`, which
accepts more and says what is wrong with the rest.
"""

cimport numpy as cnp
from cpython.object cimport PyObject


cdef extern from "Python.h":
    PyObject *PyTuple_GET_ITEM(tuple, Py_ssize_t)  # a borrowed reference


cdef inline bint is_default(x, default):
    """Whether an option says what its default does; some that do are not recognised."""
    if x is default:
        return True
    if type(x) is not type(default):
        return False
    if type(x) is float:
        return <double>x == <double>default
    return type(x) is tuple and is_same_pair(<tuple>x, <tuple>default)


cdef inline bint are_defaults(tuple values, tuple defaults):
    """Whether all options are left at their defaults; most values are the very same object."""
    cdef Py_ssize_t i
    if len(values) != len(defaults):
        return False
    for i in range(len(values)):
        if PyTuple_GET_ITEM(values, i) != PyTuple_GET_ITEM(defaults, i):
            if not is_default(
                <object>PyTuple_GET_ITEM(values, i), <object>PyTuple_GET_ITEM(defaults, i)
            ):
                return False
    return True


cdef inline bint is_same_pair(tuple a, tuple b) noexcept:
    """Whether they are of the same two objects: small ints are, and a window's sides by default."""
    return len(a) == 2 and len(b) == 2 and a[0] is b[0] and a[1] is b[1]


cdef inline bint is_fast_array(x, int bfloat16_type) noexcept:
    """Whether it is a NumPy array, no subclass of it, of one of our dtypes."""
    if type(x) is not cnp.ndarray:
        return False
    cdef int kind = cnp.PyArray_TYPE(<cnp.ndarray>x)
    return (
        (
            kind == cnp.NPY_FLOAT32
            or kind == cnp.NPY_FLOAT64
            or kind == cnp.NPY_FLOAT16
            or kind == bfloat16_type
        )
        and cnp.PyArray_ISNOTSWAPPED(<cnp.ndarray>x)
    )


cdef inline bint are_fast_operands(query, key, value, bint is_grouped, int bfloat16_type):
    """Whether they are arrays of one dtype, with the same leading axes, one at least.

    With `is_grouped`, several heads of the query may share one of key and value.
    """
    if not is_fast_array(query, bfloat16_type):
        return False
    if not (is_fast_array(key, bfloat16_type) and is_fast_array(value, bfloat16_type)):
        return False
    cdef cnp.ndarray q = <cnp.ndarray>query, k = <cnp.ndarray>key, v = <cnp.ndarray>value
    cdef int i, axes = cnp.PyArray_NDIM(q)
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(q)
    cdef cnp.npy_intp *shape_k = cnp.PyArray_DIMS(k)
    cdef cnp.npy_intp *shape_v = cnp.PyArray_DIMS(v)
    if axes < 3 or cnp.PyArray_NDIM(k) != axes or cnp.PyArray_NDIM(v) != axes:
        return False
    if cnp.PyArray_TYPE(k) != cnp.PyArray_TYPE(q) or cnp.PyArray_TYPE(v) != cnp.PyArray_TYPE(q):
        return False
    if shape_k[axes - 1] != shape[axes - 1] or shape_v[axes - 2] != shape_k[axes - 2]:
        return False
    for i in range(axes - 2):
        if shape_v[i] != shape_k[i]:
            return False
        if shape_k[i] != shape[i]:
            if not is_grouped or i < axes - 3 or shape_k[i] == 0 or shape[i] % shape_k[i] != 0:
                return False
    return True


cdef inline bint is_fast_out(out, query, key, value, int axes, cnp.npy_intp *shape):
    """Whether the result, of that shape and query's dtype, may go into `out` as it is."""
    if type(out) is not cnp.ndarray:
        return False
    cdef cnp.ndarray x = out
    cdef int i
    if not cnp.PyArray_CHKFLAGS(x, cnp.NPY_ARRAY_CARRAY) or not cnp.PyArray_ISNOTSWAPPED(x):
        return False
    if cnp.PyArray_TYPE(x) != cnp.PyArray_TYPE(<cnp.ndarray>query) or cnp.PyArray_NDIM(x) != axes:
        return False
    for i in range(axes):
        if cnp.PyArray_DIMS(x)[i] != shape[i]:
            return False
    return not (overlap(x, query) or overlap(x, key) or overlap(x, value))


cdef inline bint overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether the bounds of the two arrays overlap."""
    cdef char *low_a
    cdef char *high_a
    cdef char *low_b
    cdef char *high_b
    bounds(a, &low_a, &high_a)
    bounds(b, &low_b, &high_b)
    return low_a < high_b and low_b < high_a


cdef inline void bounds(cnp.ndarray x, char **low, char **high) noexcept:
    """The bytes [low, high) between which all elements lie; none of an empty array."""
    cdef int i
    cdef Py_ssize_t reach
    low[0] = high[0] = <char *>cnp.PyArray_DATA(x)
    if cnp.PyArray_SIZE(x) == 0:
        return
    for i in range(cnp.PyArray_NDIM(x)):
        reach = (cnp.PyArray_DIMS(x)[i] - 1) * cnp.PyArray_STRIDES(x)[i]
        if reach < 0:
            low[0] += reach
        else:
            high[0] += reach
    high[0] += cnp.PyArray_ITEMSIZE(x)
