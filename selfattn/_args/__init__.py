"""The only validator: what a user gave -> arrays and numbers that the kernels can take as valid.

    arrays.py      what an array may be, and where a result goes
    foreign.py     arrays of other libraries
    numbers.py     what an int and what a finite number is
    shapes.py      shapes that broadcast
    table.py       attention's options, one a row
    options.py     the check of each option
    hints.py       what errors add where the mistake is a common one
    gradients.py   what the backward pass is given, and arrays for what it returns
    sequences.py   which rows of an array packed sequences are
    problems.py    shapes that fit together: the problem that `_core` solves
    attention.py   a call of attention: the fast path, or a problem and its result
    merging.py     states of attention
    projections.py rows, a matrix and a bias
    rotary.py      rotary positions; rotary_tables.py: those of given cosines and sines;
    layers.py      layers: their sizes, inputs and weights; nn/ alone imports these

Every function here either returns something sound or raises an error that names the argument,
what was expected and what came. Nothing has been written when it raises. Called by `attention.py`,
`varlen.py`, `backward.py`, `merging.py`, `linear.py`, `steps.py` and `nn/`; what it returns goes to
`_core`, which checks nothing but whether a call is a usual one: `fast_path`, which `attention.py`
asks first, and `fast_problem`, which `problems.py` does.
"""

from .arrays import array, as_array, compute_into, is_dtype, real_dtype, same_dtype
from .attention import attend
from .gradients import (
    Wanted,
    backward_inputs,
    check_apart,
    in_dtype_of,
    in_own_dtypes,
    lse_gradient,
    new_gradients,
    option_gradients,
)
from .merging import new_merged, pair_of_states, states
from .numbers import integer, size
from .options import MAX_POSITION, axis, flag, ints, ints_in, num_threads, per_batch
from .problems import (
    NO_VALUE,
    attention_problem,
    sum_problem,
    varlen_problem,
)
from .projections import gradient_of, projection
from .table import nondefault, options_of, set_options

__all__ = [
    "MAX_POSITION",
    "NO_VALUE",
    "Wanted",
    "array",
    "as_array",
    "attend",
    "attention_problem",
    "axis",
    "backward_inputs",
    "check_apart",
    "compute_into",
    "flag",
    "gradient_of",
    "in_dtype_of",
    "in_own_dtypes",
    "integer",
    "ints",
    "ints_in",
    "is_dtype",
    "lse_gradient",
    "new_gradients",
    "new_merged",
    "nondefault",
    "num_threads",
    "option_gradients",
    "options_of",
    "pair_of_states",
    "per_batch",
    "projection",
    "real_dtype",
    "same_dtype",
    "set_options",
    "size",
    "states",
    "sum_problem",
    "varlen_problem",
]
