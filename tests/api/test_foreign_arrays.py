"""Arrays of other libraries that cannot be read are refused by name, in words of ours.

Fault 48. By objects that act as tensors do, in the place of every array; by PyTorch's own where it
is installed.
"""

import numpy as np
import pytest

import selfattn
from selfattn import nn
from support.array_likes import OfDLPack
from support.errors import ARGUMENTS, KEY, PACKED, QUERY, VALUE
from support.errors_backward import DENSE, SEQUENCES


class Tensor:
    """What is asked of a tensor; NumPy is refused as PyTorch refuses it."""

    def __init__(self, x, dtype="float32", device="cpu", requires_grad=False):
        self.x, self.device, self.requires_grad = x, device, requires_grad
        self.dtype = f"torch.{dtype}"

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.device != "cpu":
            raise TypeError(f"can't convert {self.device} device type tensor to numpy.")
        if self.dtype != "torch.float32":
            raise TypeError("Got unsupported ScalarType")
        return self.x

    def detach(self):
        return Tensor(self.x, self.dtype.removeprefix("torch."), self.device)

    def float(self):
        assert not self.requires_grad
        return Tensor(self.x.astype(np.float32))


PLACES = [
    *ARGUMENTS,
    (
        selfattn.merge_states,
        {"out_a": KEY, "lse_a": KEY[..., 0], "out_b": KEY, "lse_b": KEY[..., 0]},
    ),
    (selfattn.scaled_dot_product_attention_backward, DENSE),
    (selfattn.varlen_attention_backward, SEQUENCES),
    (selfattn.varlen_attention, PACKED),
    (nn.rope, {"x": QUERY, "frequencies": np.ones(4)}),
    (nn.rope_backward, {"grad_out": QUERY}),
    (nn.rope, {"x": QUERY, "cos": QUERY[0, 0], "sin": QUERY[0, 1]}),
    (selfattn.merge_states_many, {"outs": KEY, "lses": KEY[..., 0]}),
    (
        selfattn.merge_states_backward,
        {"grad_out": KEY[0], "grad_lse": KEY[0, ..., 0], "outs": KEY, "lses": KEY[..., 0]},
    ),
    (nn.MultiheadAttention(8, 2).forward, {"x": QUERY, "context": KEY}),
    (nn.MultiheadAttention(8, 2).attention_weights, {"x": QUERY, "context": KEY}),
]
OPTIONS = {
    "attn_mask": np.zeros((5, 7), np.float32),
    "alibi_slopes": np.ones(4, np.float32),
    "sinks": np.ones(4, np.float32),
    "kv_lengths": np.array([3, 4]),
    "query_offset": np.array([3, 4]),
}
ATTENTION = {"query": QUERY, "key": KEY, "value": VALUE}


CASES = [(f, arrays, name) for f, arrays in PLACES for name in arrays]
CASES += [(selfattn.scaled_dot_product_attention, ATTENTION | OPTIONS, name) for name in OPTIONS]


@pytest.mark.parametrize(
    ("f", "arrays", "name"), CASES, ids=[f"{f.__qualname__}-{name}" for f, _, name in CASES]
)
def test_every_place(f, arrays, name):
    """Nothing is written: an `out` is not even looked at."""
    x = arrays[name]
    for wrong, error, message in (
        (
            Tensor(x, requires_grad=True),
            TypeError,
            r"expected a tensor that does not require grad \(call \.detach\(\)\), got one that "
            "does",
        ),
        (Tensor(x, device="cuda:0"), TypeError, "expected .* on the CPU, got Tensor on cuda:0"),
        (
            Tensor(x, "float8_e4m3fn"),
            TypeError,
            "expected .* of a dtype that NumPy has, got Tensor of float8_e4m3fn",
        ),
        (  # DLPack would offer it
            Tensor(x, "bfloat16"),
            TypeError,
            "expected .* of a dtype that NumPy has, got Tensor of bfloat16",
        ),
    ):
        with pytest.raises(error, match=f"^{name}: {message}$") as caught:
            f(**(arrays | {name: wrong}))
        assert type(caught.value) is error
        assert isinstance(caught.value.__cause__, (TypeError, RuntimeError))


class Fails:
    """Cannot be read for a reason of its own."""

    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error


@pytest.mark.parametrize("error", [TypeError, ValueError, BufferError, RuntimeError])
def test_other_reasons(error):
    """The message is the argument's name and the reason; errors of another kind pass."""
    kind = RuntimeError if error is RuntimeError else TypeError
    message = "^attn_mask: expected an array that NumPy can read, got Fails: it is frozen$"
    with pytest.raises(kind, match=message) as caught:
        selfattn.scaled_dot_product_attention(QUERY, KEY, VALUE, Fails(error("it is frozen")))
    assert type(caught.value) is kind
    for passes in (MemoryError("no more"), KeyboardInterrupt(), ZeroDivisionError()):
        with pytest.raises(type(passes)) as caught:
            selfattn.softmax(Fails(passes))
        assert caught.value is passes


class Capsule(OfDLPack):
    """DLPack alone, of an array that says of itself to be somewhere."""

    def __init__(self, x, device=1):
        super().__init__(x)
        self.where = device

    def __dlpack__(self, **options):
        if self.where != 1:
            raise BufferError("not on the CPU")
        return super().__dlpack__(**options)

    def __dlpack_device__(self):
        return (self.where, 0)


def test_dlpack():
    x = np.ones((3, 4), np.float32)
    with pytest.raises(TypeError, match=r"^x: expected float16, bfloat16, .* float64 .*complex64"):
        selfattn.softmax(Capsule(x.astype(np.complex64)))
    with pytest.raises(TypeError, match=r"^x: expected an array on the CPU, got Capsule on DLPack"):
        selfattn.softmax(Capsule(x, device=2))
    assert selfattn.softmax(Capsule(x.astype(np.float16))).dtype == np.float16


def test_the_dtype_in_a_capsule():
    """It is read where nothing else says it; the capsule is given back."""
    from selfattn import _core

    for dtype, want in ((np.float16, (2, 16)), (np.int64, (0, 64)), (np.complex64, (5, 64))):
        assert _core.dlpack_dtype(np.ones(3, dtype).__dlpack__()) == want
    with pytest.raises(ValueError, match="PyCapsule"):
        _core.dlpack_dtype(object())


# ------------------------------------------------------------------ state dicts


def test_states(rng):
    """Numbers are copied: gradients are of no concern, and bfloat16 fits into float32."""
    layer = nn.MultiheadAttention(8, 2, seed=0)
    x = {name: rng.standard_normal(p.shape).astype(np.float32) for name, p in layer.params.items()}
    for options in ({"requires_grad": True}, {"dtype": "bfloat16"}):
        layer.load_state_dict({name: Tensor(array + 1, **options) for name, array in x.items()})
        for name, array in layer.params.items():
            np.testing.assert_array_equal(array, x[name] + 1)
    before = layer.state_dict()
    for wrong, message in (
        (
            Tensor(x["in_proj_bias"], "float8_e5m2"),
            "expected .* NumPy has, got Tensor of float8_e5m2",
        ),
        (
            Tensor(x["in_proj_bias"], device="meta"),
            "expected an array on the CPU, got Tensor on meta",
        ),
    ):
        with pytest.raises(TypeError, match=rf"^in_proj_bias: {message}"):
            layer.load_state_dict(x | {"in_proj_bias": wrong})
        for name, array in before.items():
            np.testing.assert_array_equal(layer.params[name], array)


# ------------------------------------------------------------------ PyTorch's own


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    x = torch.zeros(2, 3, 4)
    call = selfattn.scaled_dot_product_attention
    with pytest.raises(TypeError, match=r"^value: expected float32, query's dtype, got bfloat16"):
        call(x, x, x.bfloat16())
    with pytest.raises(TypeError, match=r"^attn_mask: expected .* float32 .* got .*bfloat16"):
        call(x, x, x, torch.zeros(3, 3).bfloat16())
    gradient = x.clone().requires_grad_()
    for name, arguments in (
        ("query", (gradient, x, x)),
        ("value", (x, x, gradient)),
        ("attn_mask", (x, x, x, torch.zeros(3, 3).requires_grad_())),
    ):
        with pytest.raises(TypeError, match=f"^{name}: expected a tensor that does not require"):
            call(*arguments)
        with torch.no_grad():  # where PyTorch itself lends it
            call(*arguments)
    for wrong, message in (
        (x.to("meta"), "expected an array on the CPU, got Tensor on meta"),
        (x.to(torch.float8_e4m3fn), "expected .* NumPy has, got Tensor of float8_e4m3fn"),
        (x.to_sparse(), "expected an array that NumPy can read, got Tensor: .*[Ss]parse"),
    ):
        with pytest.raises(TypeError, match=f"^key: {message}"):
            call(x, wrong, x)


def test_layers_of_torch():
    torch = pytest.importorskip("torch")
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        theirs = torch.nn.MultiheadAttention(8, 2).to(dtype)
        for state in (theirs.state_dict(), dict(theirs.named_parameters())):
            layer = nn.MultiheadAttention(8, 2, seed=0)
            layer.load_state_dict(state)
            for name, x in layer.params.items():
                np.testing.assert_array_equal(x, state[name].detach().float().numpy())
