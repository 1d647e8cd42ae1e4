"""bfloat16 of other libraries: DLPack capsules become arrays of ml_dtypes' bfloat16, uncopied.

ml_dtypes is optional: it is imported where such a capsule comes, and its lack is told in words.
"""

import gc

import numpy as np
import pytest

import selfattn
from selfattn import _args, nn
from support import subprocesses
from support.array_likes import Bfloat16Capsules
from support.arrays import normal, one_head, same_bits

ml_dtypes = pytest.importorskip("ml_dtypes")
bfloat16 = np.dtype(ml_dtypes.bfloat16)

LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T.copy().T,
    "every other column": lambda x: np.repeat(x, 2, -1)[:, ::2],
    "part of a larger array": lambda x: np.pad(x, 2)[2:-2, 2:-2],
    "rows reversed": lambda x: x[::-1].copy()[::-1],
    "one row repeated": lambda x: np.repeat(x[:1], len(x), 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_capsules_are_read_as_they_lie(layout):
    query, key, value = (LAYOUTS[layout](x) for x in one_head(5, 9, 8, dtype=bfloat16))
    want = selfattn.scaled_dot_product_attention(query, key, value)
    lent = [Bfloat16Capsules(x) for x in (query, key, value)]
    got = selfattn.scaled_dot_product_attention(*lent)
    assert got.dtype == bfloat16
    assert same_bits(got, want)


def test_no_copy_is_made():
    x = normal(7, 30, dtype=bfloat16)
    y = _args.array("x", Bfloat16Capsules(x))
    assert y.dtype == bfloat16
    assert np.shares_memory(x.view(np.uint16), y.view(np.uint16))
    assert (y.shape, y.strides) == (x.shape, x.strides)
    want = selfattn.softmax(x, 0)
    memory = x.copy()
    selfattn.softmax(Bfloat16Capsules(memory), 0, out=memory)  # it is found out to overlap
    assert same_bits(memory, want)


def test_shapes_of_capsules():
    """Of no axis, of none and of many elements, with an offset, with strides left out."""
    for shape in ((), (1,), (0,), (3, 0, 2), (2,) * 9):
        x = normal(*shape, dtype=bfloat16) if shape else np.array(1.5, bfloat16)
        assert same_bits(_args.array("x", Bfloat16Capsules(x)), x)
    x = normal(3, 5, dtype=bfloat16)
    assert same_bits(_args.array("x", Bfloat16Capsules(x, strides=None)), x)
    nothing = Bfloat16Capsules(np.empty((0, 3), bfloat16), data=None)
    assert _args.array("x", nothing).shape == (0, 3)
    moved = Bfloat16Capsules(x[:2], byte_offset=10)
    assert same_bits(_args.array("x", moved), x[1:])


def test_every_capsules_deleter_runs_once():
    """That of the array's capsule when the array dies, not before; its views keep it alive."""
    lender = Bfloat16Capsules(normal(3, 5, dtype=bfloat16))
    y = _args.array("x", lender)
    assert lender.made >= 1
    assert lender.lent == 1
    row = y[1:2]
    del y
    gc.collect()
    assert lender.lent == 1
    values = row.astype(np.float32)
    assert same_bits(values, lender.bits.view(bfloat16)[1:2].astype(np.float32))
    del row
    gc.collect()
    assert lender.lent == 0
    for _ in range(50):
        selfattn.softmax(lender)
        selfattn.scaled_dot_product_attention(lender, lender, lender)
    gc.collect()
    assert lender.lent == 0
    assert lender.made > 200


@pytest.mark.parametrize(
    "changes", [{"bits": 32}, {"bits": 8}, {"lanes": 2}, {"device_type": 2}, {"ndim": 65}]
)
def test_capsules_that_cannot_be_read(changes):
    """They are given back, and the error is ours."""
    lender = Bfloat16Capsules(normal(3, 5, dtype=bfloat16), **changes)
    with pytest.raises((TypeError, BufferError, RuntimeError), match=r"^x: expected "):
        selfattn.softmax(lender)
    gc.collect()
    assert lender.lent == 0


def test_the_core_takes_only_capsules_of_16_bits_on_the_cpu():
    from selfattn import _core

    lender = Bfloat16Capsules(normal(3, dtype=bfloat16), device_type=2)
    with pytest.raises(ValueError, match="expected memory of the CPU"):
        _core.dlpack_uint16(lender.__dlpack__())
    with pytest.raises(ValueError, match="expected elements of 16 bits, got 32 x 1"):
        _core.dlpack_uint16(np.ones(3, np.float32).__dlpack__())
    with pytest.raises(ValueError, match="PyCapsule"):
        _core.dlpack_uint16(object())
    capsule = np.ones(3, np.float16).__dlpack__()
    _core.dlpack_uint16(capsule)
    with pytest.raises(ValueError, match="PyCapsule"):
        _core.dlpack_uint16(capsule)  # it is used up
    gc.collect()
    assert lender.lent == 0


def test_in_the_place_of_every_array():
    """Options, gradients and layers too, and beside arrays of ml_dtypes' own."""
    query, key, value = one_head(5, 9, 8, dtype=bfloat16)
    mask = normal(5, 9, dtype=bfloat16, seed=3)
    lend = Bfloat16Capsules
    want = selfattn.scaled_dot_product_attention(query, key, value, mask, return_lse=True)
    got = selfattn.scaled_dot_product_attention(
        query, lend(key), value, lend(mask), return_lse=True
    )
    assert same_bits(got, want)
    arguments = query, query, key, value, want[0]
    backward = selfattn.scaled_dot_product_attention_backward
    wanted = backward(*arguments, want[1], mask, mask_grad=True)
    got = backward(*map(lend, arguments), want[1], lend(mask), mask_grad=True)
    for x, y in zip(got[:4], wanted[:4], strict=True):
        assert x.dtype == bfloat16
        assert same_bits(x, y)
    assert same_bits(selfattn.project(lend(query), lend(key)), selfattn.project(query, key))
    assert same_bits(nn.rope(lend(query), 3), nn.rope(query, 3))
    layer = nn.MultiheadAttention(8, 2, dtype=bfloat16, seed=0)
    assert same_bits(layer.forward(lend(query)), layer.forward(query))
    layer.load_state_dict({name: lend(x + x) for name, x in layer.params.items()})


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    query, key, value = (torch.randn(2, 3, n, 8) for n in (5, 9, 9))
    tensors = [x.bfloat16() for x in (query, key, value)]
    arrays = [x.float().numpy().astype(bfloat16) for x in tensors]
    want = selfattn.scaled_dot_product_attention(*arrays)
    got = selfattn.scaled_dot_product_attention(*tensors)
    assert got.dtype == bfloat16
    assert same_bits(got, want)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    assert same_bits(selfattn.scaled_dot_product_attention(*strided), want)
    with pytest.raises(TypeError, match="query: expected a tensor that does not require grad"):
        selfattn.scaled_dot_product_attention(tensors[0].requires_grad_(), *tensors[1:])
    assert selfattn.softmax(torch.zeros(0, 3, dtype=torch.bfloat16)).shape == (0, 3)


# ------------------------------------------------------------------ ml_dtypes is optional


def test_import_leaves_ml_dtypes_alone():
    """So does a call in other types, and in float16."""
    code = """
    import sys
    import numpy as np, selfattn
    from selfattn import nn
    x = np.ones((2, 3, 8), np.float16)
    selfattn.scaled_dot_product_attention(x, x, x)
    nn.MultiheadAttention(8, 2, dtype=np.float16).forward(x)
    assert "ml_dtypes" not in sys.modules
    """
    subprocesses.run(code)


WITHOUT = """
import sys
sys.modules["ml_dtypes"] = None  # importing it is an ImportError
import numpy as np, selfattn
from support.array_likes import Bfloat16Capsules
lender = Bfloat16Capsules(np.ones((2, 3), np.float16))
"""


def test_without_ml_dtypes():
    code = """
    for f in (selfattn.softmax, lambda x: selfattn.project(np.ones((4, 3), "f4"), x)):
        try:
            f(lender)
        except TypeError as error:
            print(error)
    assert lender.lent == 0 and lender.made > 0
    """
    said = "expected ml_dtypes to be installed, whose bfloat16 is NumPy's, got Bfloat16Capsules of "
    expected = [f"{name}: {said}bfloat16" for name in ("x", "weight")]
    assert subprocesses.run(WITHOUT, code).splitlines() == expected
