# What is asked of the machine: its cores, environment, limits and kernel sets. A part of _core.pyx.


def num_cores():
    """Cores that this thread may use now; 0 if the system does not tell."""
    return sa_num_cores()


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define SA_HAS_GIL 0
    #else
    #define SA_HAS_GIL 1
    #endif
    """
    const bint SA_HAS_GIL


def environment(str name):
    """An environment variable as it is now, or None; faster than os.environ, where that is safe.

    C's getenv may not run while another thread sets a variable. The GIL sees to that; without one
    Python's own copy is read.
    """
    if not SA_HAS_GIL:
        return os.environ.get(name)
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
