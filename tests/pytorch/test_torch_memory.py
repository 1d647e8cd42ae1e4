"""Tensors as arrays by DLPack's table of C functions: memory, strides, dtypes; what has none."""

import numpy as np
import pytest

from selfattn import _core

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")

from selfattn.torch.arrays import array_of, memory  # noqa: E402

KINDS = [
    torch.float32, torch.float64, torch.float16, torch.bool, torch.int64, torch.int32, torch.int16,
    torch.int8,
]  # fmt: skip
X = torch.arange(24).reshape(2, 3, 4) - 5


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_arrays(kind):
    x = X.to(kind)
    for y in (x, x.transpose(0, 2), x[:, ::2, 1:], x[0, 0, 0], x[:, :1].expand(2, 5, 4), x[:, :0]):
        want, got = y.numpy(), memory.array(y)
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        if got.size:
            assert (got.strides, got.ctypes.data) == (want.strides, want.ctypes.data)
        assert got.flags.writeable
        assert np.array_equal(got, want)


def test_bfloat16():
    x = X.to(torch.bfloat16).mT
    assert array_of("x", x).dtype.name == "bfloat16"
    assert memory.array(x).strides == array_of("x", x).strides == tuple(2 * n for n in x.stride())
    assert np.array_equal(memory.array(x).astype(np.float32), x.float().numpy())


def test_an_array_keeps_the_memory():
    array = memory.array(torch.full((1000,), 3.0))
    del_me = [torch.zeros(1000) for _ in range(100)]
    assert (array == 3).all()
    assert len(del_me) == 100


def test_a_tensor_that_requires_grad():
    x = torch.randn(3, requires_grad=True)
    assert np.array_equal(memory.array(x * 2), (x * 2).detach().numpy())
    assert memory.array(torch.nn.Parameter(x.detach())) is not None


def test_what_has_no_memory_of_numbers():
    complex_numbers = torch.randn(3, dtype=torch.complex64)
    for x in (
        None, 3.0, np.ones(3), torch.ones(3, device="meta"), torch.eye(3).to_sparse(),
        complex_numbers, complex_numbers.conj().imag, torch._efficientzerotensor(3),
        torch.ones(3).to(torch.float8_e4m3fn), torch.ones((1,) * 64).expand((1,) * 70),
    ):  # fmt: skip
        assert memory.array(x) is None
    seen = []
    torch.func.vmap(lambda x: seen.append(memory.array(x)) or x)(torch.ones(3, 2))
    torch.func.grad(lambda x: seen.append(memory.array(x)) or x.sum())(torch.ones(3))
    assert seen == [None, None]
    negated = complex_numbers.conj().imag
    assert np.array_equal(array_of("x", negated), negated.resolve_neg().numpy())


def test_new_tensors():
    for like in (torch.ones(2, 3), torch.ones(2, dtype=torch.bfloat16), torch.ones(1).double()):
        for shape in ((), (0, 3), (2, 1, 5)):
            new = memory.new(like, shape)
            assert (new.dtype, tuple(new.shape)) == (like.dtype, shape)
            assert new.is_contiguous()
            assert not new.requires_grad
    assert memory.new(None, (2,)) is None
    assert memory.new(torch.ones(2, device="meta"), (2,)) is None
    with torch.inference_mode():
        assert memory.new(torch.ones(2), (2,)).is_inference()
    with pytest.raises(RuntimeError, match=r"memory|overflow|size"):
        memory.new(torch.ones(2), (2**45, 2**10))
    with pytest.raises(ValueError, match="at most 64 axes"):
        memory.new(torch.ones(2), (1,) * 65)


def test_alike():
    x = torch.ones(2)
    assert memory.are_alike(x, x, torch.nn.Parameter(x))
    assert memory.are_alike(x.bfloat16(), x.bfloat16())
    for y in (x.double(), x.half(), x.bfloat16(), x.long(), None, x.to("meta")):
        assert not memory.are_alike(x, y)
    assert not memory.are_alike(x.long(), x.long())


def test_gradients_need_memory():
    """Where an argument has none, or another shape or dtype, nothing is written."""
    query = torch.randn(2, 3, 5, 4)
    problem = memory.problem(query, query, query, False)
    out = torch.empty_like(query)
    lse = memory.attend(problem, out, True, 1)
    assert lse.shape == (2, 3, 5)
    gradients = tuple(torch.zeros_like(query) for _ in range(3))
    usual = query, out, lse, None, gradients
    for place, wrong in (
        (0, query[:1]), (0, query.double()), (1, None), (1, query.to("meta")), (2, lse.double()),
        (2, lse[..., :4]), (3, query), (4, (None, *gradients[1:])),
    ):  # fmt: skip
        call = [*usual[:place], wrong, *usual[place + 1 :]]
        assert memory.differentiate(problem, *call, 1) is False
    assert not any(x.any() for x in gradients)
    assert memory.differentiate(problem, *usual, 1)
    assert all(x.any() for x in gradients)


def test_a_type_without_a_table():
    with pytest.raises(AttributeError):
        _core.TensorMemory(np.ndarray, bool)
