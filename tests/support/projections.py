"""Projections for test_project*.py: arrays, how they may lie in memory, and how far a sum is off.

The bound. With u the unit roundoff, a product's error is at most 8 u times the sum of its terms'
sizes, element by element: they are N(0, 1) here, of both signs, and so are the roundings, of 64 of
which a chunk's rarely add up. Measured over 600 random shapes of up to 4,097 terms: at most 5.7
in float32, 2.8 in float64, where half of the bound is the reference's.
"""

import numpy as np

import selfattn
from selfattn import reference
from support.arrays import in_structs, normal, same_bits, unaligned
from support.compare import assert_close, unit_roundoff, wide

# The edges of few rows, vectors, strips, panels and tiles; of chunks, parts and blocks of a sum.
ROWS = (1, 2, 4, 5, 8, 9, 24, 25, 48, 96, 144, 145)
N_IN = (63, 64, 65, 127, 128, 129, 256, 300, 4097)
N_OUT = (1, 7, 8, 23, 24, 768, 769)


def arrays(rows, n_in, n_out, dtype=np.float32, seed=0):
    """x, weight, bias; `rows` may be a shape."""
    rows = rows if isinstance(rows, tuple) else (rows,)
    return (
        normal(*rows, n_in, dtype=dtype, seed=seed),
        normal(n_out, n_in, dtype=dtype, seed=seed + 1),
        normal(n_out, dtype=dtype, seed=seed + 2),
    )


def grad_of(x, weight, seed=7):
    return normal(*x.shape[:-1], len(weight), dtype=x.dtype, seed=seed)


def sizes(x, weight, bias=None):
    """The sum of its terms' sizes, of each element of the result."""
    return wide(reference.project, *(np.abs(a) for a in (x, weight, bias) if a is not None))


def check(*given, **options):
    got = selfattn.project(*given, **options)
    assert got.dtype == given[0].dtype
    bound = 8 * unit_roundoff(got.dtype) * sizes(*given)
    shapes = [a.shape for a in given]
    assert_close(got, wide(reference.project, *given), bound, (shapes, got.dtype))
    return got


def check_each(each_isa, *given, **options):
    """`check` of the first kernel set; the others have its bits."""
    want = None
    for isa in each_isa():
        if want is None:
            want = check(*given, **options)
            continue
        got = selfattn.project(*given, **options)
        assert same_bits(got, want), (isa, [a.shape for a in given], want.dtype)
    return want


def check_gradients(grad_out, *given, **options):
    got = selfattn.project_backward(grad_out, *given, **options)
    want = wide(reference.project_backward, grad_out, *given)
    size = wide(reference.project_backward, *map(np.abs, (grad_out, *given)))
    for name, a in got._asdict().items():
        if a is None:
            assert name == "bias"
            assert len(given) == 2
            continue
        assert a.dtype == grad_out.dtype
        bound = 8 * unit_roundoff(a.dtype) * getattr(size, name)
        assert_close(a, getattr(want, name), bound, (name, [b.shape for b in given], a.dtype))
    return got


def check_each_gradient(each_isa, grad_out, *given, **options):
    """`check_gradients` of the first kernel set; the others have its bits."""
    want = None
    for isa in each_isa():
        if want is None:
            want = check_gradients(grad_out, *given, **options)
            continue
        got = selfattn.project_backward(grad_out, *given, **options)
        for name, a in got._asdict().items():
            if a is not None:
                same = same_bits(a, getattr(want, name))
                assert same, (isa, name, [b.shape for b in given], a.dtype)
    return want


def _padded(x):
    """The inside of a larger array whose rest is NaN."""
    memory = np.full([n + 4 for n in x.shape], np.nan, x.dtype)
    inside = memory[(slice(2, -2),) * x.ndim]
    inside[...] = x
    return inside


def _by_pages(x):
    """Rows that lie a multiple of 4096 bytes apart: they share lines of the nearest cache."""
    columns = -(-x.shape[-1] * x.itemsize // 4096) * 4096 // x.itemsize
    memory = np.full((*x.shape[:-1], columns), np.nan, x.dtype)
    memory[..., : x.shape[-1]] = x
    return memory[..., : x.shape[-1]]


# Copies of an array, of one axis or more.
LAYOUTS = {
    "Fortran": np.asfortranarray,
    "all reversed": lambda x: np.flip(np.flip(x).copy()),
    "columns reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
    "every other column": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "every third row": lambda x: np.repeat(x, 3, 0)[::3],
    "by minus two": lambda x: np.repeat(x[..., ::-1], 2, -1)[..., ::-2],
    "packed structs": in_structs,
    "unaligned": unaligned,
    "inside of NaN": _padded,
    "pages apart": _by_pages,
}
