"""Declarations of the bridge, `_core.pyx`: the C library of `csrc/selfattn.h`, extension types."""

cimport numpy as cnp
from libc.stdint cimport int64_t, uint64_t


cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept


cdef extern from "selfattn.h" nogil:
    enum: SA_MAX_BATCH_AXES
    ctypedef enum sa_status:
        SA_OK, SA_NO_MEMORY, SA_INTERRUPTED
    ctypedef enum sa_dtype:
        SA_f32, SA_f64, SA_f16, SA_bf16
    ctypedef struct sa_array:
        char *data
        Py_ssize_t *batch
        Py_ssize_t head, row, col
    ctypedef enum sa_mask_kind:
        SA_MASK_NONE, SA_MASK_BOOL, SA_MASK_ELEM, SA_MASK_F32
    ctypedef struct sa_pages:
        const int64_t *table
        int64_t per_entry, size
        Py_ssize_t key, value, key_scale, value_scale
    enum: SA_STATE_HEAD
    ctypedef enum sa_state_use:
        SA_STATE_NONE, SA_STATE_UPDATE, SA_STATE_RESULT
    ctypedef struct sa_interrupt:
        int (*interrupted)(void *) noexcept nogil
        void *arg
    ctypedef struct sa_problem:
        sa_dtype dtype
        int batch_axes
        int64_t *batch_shape
        int64_t num_heads_q, num_heads_kv, seqlen_q, seqlen_k, head_dim, head_dim_v
        sa_array query, key, value, out, lse
        sa_pages pages
        sa_array key_scale, value_scale
        double scale, softcap, dropout_p
        uint64_t dropout_seed
        sa_array mask, bias, alibi_slopes, sinks, query_segments, key_segments
        sa_mask_kind mask_kind, bias_kind
        int segment_size
        int64_t window_left, window_right, query_offset
        const int64_t *query_offset_of_batch
        const int64_t *query_lengths
        const int64_t *kv_starts
        const int64_t *kv_lengths
        const int64_t *cu_seqlens_q
        const int64_t *cu_seqlens_k
        const int64_t *seq_starts_q
        const int64_t *seq_starts_k
        sa_array state
        sa_state_use state_use
        int state_is_natural
        int64_t first_query, first_key
        int num_threads
        sa_interrupt interrupt
    ctypedef struct sa_gradients:
        sa_array out, lse, query, key, value, mask, bias, sinks, state
        int query_is_real, query_goes_on, query_is_partial, keys_go_on, sinks_go_on
        int64_t sinks_entry
    ctypedef struct sa_rows:
        char *data
        Py_ssize_t *stride
        Py_ssize_t col
    ctypedef struct sa_merge_states:
        int64_t count
        char **out
        char **lse
        sa_rows out_rows, lse_rows
    ctypedef struct sa_row_problem:
        sa_dtype dtype
        int axes
        int64_t *shape
        int64_t n
        sa_rows a, out, lse, cos, sin
        sa_merge_states states, grads
        int64_t pairs, step, first, second
        Py_ssize_t cos_second, sin_second
        int num_threads
        sa_interrupt interrupt
    ctypedef struct sa_projection:
        sa_dtype dtype
        int axes
        int64_t *shape
        int64_t n_in, n_out
        sa_rows x, out
        char *weight
        char *bias
        Py_ssize_t weight_row, weight_col, bias_step
        int num_threads
        sa_interrupt interrupt
    ctypedef struct sa_projection_gradients:
        sa_rows x
        char *weight
        char *bias
        Py_ssize_t weight_row, weight_col, bias_step
    ctypedef enum sa_function:
        SA_EXP2_SCALED, SA_EXP_OF_NEGATIVE, SA_EXP, SA_LOG, SA_TANH

    sa_status sa_attention(const sa_problem *) noexcept
    sa_status sa_scores(const sa_problem *) noexcept
    sa_status sa_weights(const sa_problem *) noexcept
    sa_status sa_sum(const sa_problem *) noexcept
    sa_status sa_attention_backward(const sa_problem *, const sa_gradients *) noexcept
    sa_status sa_softmax(const sa_row_problem *) noexcept
    sa_status sa_merge(const sa_row_problem *) noexcept
    sa_status sa_merge_backward(const sa_row_problem *) noexcept
    sa_status sa_rope(const sa_row_problem *) noexcept
    sa_status sa_project(const sa_projection *) noexcept
    sa_status sa_project_backward(
        const sa_projection *, const sa_projection_gradients *
    ) noexcept
    int sa_is_serial(const sa_problem *) noexcept
    int sa_in_natural_units(const sa_problem *) noexcept
    int sa_num_cores() noexcept
    int64_t sa_ask_every(int64_t) noexcept
    const char *sa_isa_built(int) noexcept
    const char *sa_isa_supported(int) noexcept
    int sa_isa_force(const char *) noexcept
    const char *sa_isa_in_use() noexcept
    const char *sa_compiler() noexcept
    void sa_apply(sa_function, sa_dtype, double, const void *, void *, int64_t) noexcept


cdef extern from "kernels.h" nogil:
    enum: SA_SPLIT_N


cdef extern from "fp_env.h" nogil:
    ctypedef struct sa_fp_env:
        pass
    sa_fp_env sa_fp_enter() noexcept
    void sa_fp_leave(sa_fp_env) noexcept


cdef extern from "machine.h" nogil:
    ctypedef struct sa_team_time:
        double seconds, cpu_seconds
    int64_t sa_peak_flops(sa_dtype) noexcept
    sa_status sa_time_peak(sa_dtype, int, int64_t, sa_team_time *) noexcept
    int64_t sa_read_bytes(int64_t, int) noexcept
    sa_status sa_time_read(const void *, int64_t, int, sa_team_time *) noexcept


ctypedef sa_status (*solver)(const sa_problem *) noexcept nogil
ctypedef sa_status (*row_solver)(const sa_row_problem *) noexcept nogil
ctypedef const char *(*nth_name)(int) noexcept nogil


cdef enum Axes:
    """What the last axes of an array are; those before them are the batch."""
    HEAD_ROW_COL, HEAD_ROW, HEAD, ROW


cdef class AttentionProblem:
    cdef sa_problem problem  # zeros at first, as all of a new object
    cdef readonly cnp.ndarray query
    cdef readonly tuple arrays  # all that is read while the problem is solved: out may overlap it
    cdef readonly tuple lse_shape
    cdef readonly object queries, keys  # where packed sequences lie (set_sequences), else None
    cdef list keep  # the arrays whose numbers `problem` points at

    cdef void keep_arrays(self, cnp.ndarray query, cnp.ndarray key, cnp.ndarray value)
    cdef const int64_t *own(self, cnp.ndarray x)
    cdef int differentiate_part(self, sa_gradients *g, tuple given, int num_threads) except -1


cdef class SumProblem:
    cdef sa_problem problem
    cdef readonly tuple arrays, out_shape
