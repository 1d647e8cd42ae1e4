# Calls of the kernels on tensors of another library: of the usual ones, in less time than arrays of
# them and the validator take. Each returns None, or False, of any others. A part of _core.pyx.


cdef class TensorCalls(TensorMemory):
    """What `TensorMemory` knows of tensors, and calls on them.

    `empty_like(x)` makes a tensor of x's shape, whose axes lie in memory in the order of x's.
    """
    cdef object empty_like

    def __init__(self, tensor_type, is_lazy, empty_like):
        TensorMemory.__init__(self, tensor_type, is_lazy)
        self.empty_like = empty_like

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

    def attention(
        self, query, key, value, bint is_grouped, bint is_causal, bint with_lse, int num_threads
    ):
        """(out, lse) as new tensors, lse None unless asked for; out lies in memory as the query.

        None where that is in no usual order, or the three are not the usual ones.
        """
        cdef DLView q, k, v, result
        cdef sa_problem p
        cdef PyObject *raised
        cdef sa_status status
        cdef int64_t shape[SA_MAX_BATCH_AXES + 3]
        cdef Order order
        cdef int i
        if not self.look_at_operands(query, key, value, is_grouped, &q, &k, &v):
            return None
        order = order_of(&q)
        if order == ANOTHER or order == ROWS_FIRST and v.shape[v.ndim - 1] != q.shape[q.ndim - 1]:
            return None
        fill_problem_of_tensors(&p, &q, &k, &v, is_causal)
        for i in range(q.ndim):
            shape[i] = q.shape[i]
        shape[q.ndim - 1] = p.head_dim_v
        result = q
        result.shape = shape
        out = self.made_in_order(query, &result, order)
        fill_tensor(&p.out, &result, HEAD_ROW_COL, p.batch_axes)
        is_empty, lse = size_of(&result) == 0, None
        if with_lse:
            result.shape, result.ndim = shape, q.ndim - 1
            result.code, result.bits = DL_FLOAT, real_bits(&q)
            lse = self.made_in_c_order(&result)
            fill_tensor(&p.lse, &result, HEAD_ROW, p.batch_axes)
        if is_empty and lse is None:
            return out, lse
        start(&p, num_threads, &raised)
        with nogil:
            status = sa_attention(&p)
        check(status, raised)
        return out, lse

    def attention_gradients(
        self,
        query,
        key,
        value,
        bint is_grouped,
        bint is_causal,
        tuple results,
        int num_threads,
    ):
        """Those of query, key and value as new tensors, which lie in memory as these do.

        None where that is in no usual order, or they are not the usual ones: with no columns, say,
        a gradient of key has no memory, which would say that none is asked for. The results are
        grad_out, out, lse and grad_lse, which may be None.
        """
        cdef DLView q, k, v, x
        cdef sa_problem p
        cdef sa_gradients g
        cdef PyObject *raised
        cdef sa_status status
        cdef Order orders[3]
        if not self.look_at_operands(query, key, value, is_grouped, &q, &k, &v):
            return None
        orders[0], orders[1], orders[2] = order_of(&q), order_of(&k), order_of(&v)
        if orders[0] == ANOTHER or orders[1] == ANOTHER or orders[2] == ANOTHER:
            return None
        fill_problem_of_tensors(&p, &q, &k, &v, is_causal)
        if p.head_dim == 0 or p.head_dim_v == 0 or p.seqlen_k == 0:
            return None
        memset(&g, 0, sizeof(sa_gradients))
        grad_out, out, lse, grad_lse = results
        if not self.look_at_result(grad_out, &q, p.head_dim_v, &x):
            return None
        fill_tensor(&g.out, &x, HEAD_ROW_COL, p.batch_axes)
        if not self.look_at_result(out, &q, p.head_dim_v, &x):
            return None
        fill_tensor(&p.out, &x, HEAD_ROW_COL, p.batch_axes)
        if not self.look_at_result(lse, &q, -1, &x) or size_of(&x) == 0:
            return None
        fill_tensor(&p.lse, &x, HEAD_ROW, p.batch_axes)
        if grad_lse is not None:
            if not self.look_at_result(grad_lse, &q, -1, &x):
                return None
            fill_tensor(&g.lse, &x, HEAD_ROW, p.batch_axes)
        of_query = self.made_in_order(query, &q, orders[0])
        of_key = self.made_in_order(key, &k, orders[1])
        of_value = self.made_in_order(value, &v, orders[2])
        fill_tensor(&g.query, &q, HEAD_ROW_COL, p.batch_axes)
        fill_tensor(&g.key, &k, HEAD_ROW_COL, p.batch_axes)
        fill_tensor(&g.value, &v, HEAD_ROW_COL, p.batch_axes)
        start(&p, num_threads, &raised)
        with nogil:
            status = sa_attention_backward(&p, &g)
        check(status, raised)
        return of_query, of_key, of_value

    cdef bint look_at_operands(
        self, query, key, value, bint is_grouped, DLView *q, DLView *k, DLView *v
    ):
        """Whether they are what `are_fast_operands` accepts of arrays."""
        return (
            self.look_at_numbers(query, q)
            and self.look_at_numbers(key, k)
            and self.look_at_numbers(value, v)
            and are_usual_operands(q, k, v, is_grouped)
        )

    cdef bint look_at_result(self, x, const DLView *query, int64_t columns, DLView *view):
        """Whether x has a row of so many columns for each of the query's; or, if -1, a real."""
        cdef int i, axes = query.ndim - (columns < 0)
        if not self.look_at_numbers(x, view) or view.ndim != axes:
            return False
        for i in range(query.ndim - 1):
            if view.shape[i] != query.shape[i]:
                return False
        if columns < 0:
            return view.code == DL_FLOAT and view.bits == real_bits(query)
        return are_of_one_dtype(view, query) and view.shape[axes - 1] == columns

    cdef object made_in_order(self, like, DLView *view, Order order):
        """The same in the order of `like`, which has its shape unless that is C's."""
        if order == C_ORDER:
            return self.made_in_c_order(view)
        new = self.empty_like(like)
        self.look(new, view)
        return new

    cdef object made_in_c_order(self, DLView *view):
        """A new tensor of view's dtype and shape, at which it looks then."""
        view.strides = NULL
        new = self.made(view)
        self.look(new, view)
        return new

    def project(self, x, weight, bias, get_num_threads):
        """x @ weight.T + bias, which may be None, as a new tensor; None where they do not fit."""
        cdef DLView rows, matrix, offset, result
        cdef sa_projection p
        cdef PyObject *raised
        cdef sa_status status
        cdef int64_t shape[SA_MAX_BATCH_AXES + 3]
        cdef int i
        if not self.look_at_factors(x, weight, &rows, &matrix):
            return None
        if bias is not None:
            if not self.look_at_numbers(bias, &offset) or not are_of_one_dtype(&rows, &offset):
                return None
            if offset.ndim != 1 or offset.shape[0] != matrix.shape[0]:
                return None
        for i in range(rows.ndim - 1):
            shape[i] = rows.shape[i]
        shape[rows.ndim - 1] = matrix.shape[0]
        result = rows
        result.shape = shape
        new = self.made_in_c_order(&result)
        fill_projection_of_tensors(&p, &rows, &matrix, &result)
        if bias is not None:
            p.bias, p.bias_step = memory_of(&offset), step_of(&offset, 0)
        p.num_threads = get_num_threads()
        may_interrupt(&p.interrupt, &raised)
        with nogil:
            status = sa_project(&p)
        check(status, raised)
        return new

    def project_gradients(self, grad_out, x, weight, tuple wanted, int num_threads):
        """The gradients of x, weight and bias as new tensors, or None for each that is not wanted.

        None where the three do not fit together.
        """
        cdef DLView rows, matrix, grad, offset
        cdef sa_projection p
        cdef sa_projection_gradients g
        cdef PyObject *raised
        cdef sa_status status
        if not self.look_at_factors(x, weight, &rows, &matrix):
            return None
        if not self.look_at_result(grad_out, &rows, matrix.shape[0], &grad):
            return None
        fill_projection_of_tensors(&p, &rows, &matrix, &grad)
        p.num_threads = num_threads
        may_interrupt(&p.interrupt, &raised)
        of_x = of_weight = of_bias = None
        g.x.data = g.weight = g.bias = NULL
        x_grad, weight_grad, bias_grad = wanted
        if bias_grad:
            offset = matrix
            offset.ndim = 1
            of_bias = self.made_in_c_order(&offset)
            g.bias, g.bias_step = memory_of(&offset), step_of(&offset, 0)
        if x_grad:
            of_x = self.made_in_c_order(&rows)
            fill_rows_of_tensor(&g.x, &rows)
        if weight_grad:
            of_weight = self.made_in_c_order(&matrix)
            g.weight = memory_of(&matrix)
            g.weight_row, g.weight_col = step_of(&matrix, 0), step_of(&matrix, 1)
        with nogil:
            status = sa_project_backward(&p, &g)
        check(status, raised)
        return of_x, of_weight, of_bias

    cdef bint look_at_factors(self, x, weight, DLView *rows, DLView *matrix):
        """Whether they are (..., n_in) and (n_out, n_in), of one dtype."""
        return (
            self.look_at_numbers(x, rows)
            and self.look_at_numbers(weight, matrix)
            and rows.ndim > 0
            and matrix.ndim == 2
            and are_of_one_dtype(rows, matrix)
            and matrix.shape[1] == rows.shape[rows.ndim - 1]
        )

    cdef bint look_at_numbers(self, x, DLView *view):
        """Whether x is a tensor whose memory holds numbers that the kernels take, and NumPy."""
        return (
            self.look(x, view)
            and is_number(view)
            and (view.code != DL_BFLOAT or bfloat16_type != cnp.NPY_NOTYPE)
            and view.ndim <= SA_MAX_BATCH_AXES + 3
            and (view.data != NULL or size_of(view) == 0)
            and not self.is_lazy(x)
        )
