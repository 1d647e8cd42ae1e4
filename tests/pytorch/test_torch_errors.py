"""What selfattn.torch refuses: by errors that name the argument, in eager calls of every kind."""

import numpy as np
import pytest

from support import subprocesses

torch = pytest.importorskip("torch")

from selfattn import torch as ours  # noqa: E402

X = torch.randn(2, 4, 5, 8)
FUNCTION = ours.scaled_dot_product_attention
PACKED, STARTS = torch.randn(5, 2, 4), torch.tensor([0, 5])

OPTIONS = [
    ({"attn_mask": np.ones((5, 5), bool)}, TypeError, "attn_mask: expected a tensor, got ndarray"),
    ({"attn_mask": torch.ones(5, 5, dtype=torch.int64)}, TypeError, "attn_mask: expected bool or"),
    ({"attn_mask": torch.ones(5, 6)}, ValueError, "attn_mask: expected a shape that broadcasts"),
    ({"dropout_p": 1.5}, ValueError, "dropout_p: expected a probability"),
    ({"dropout_p": "0"}, TypeError, "dropout_p: expected a number"),
    ({"is_causal": 2}, ValueError, "is_causal: expected a bool, or 0 or 1, got 2"),
    ({"scale": float("nan")}, ValueError, "scale: expected a finite number"),
    ({"scale": True}, TypeError, "scale: expected a number"),
    ({"enable_gqa": None}, TypeError, "enable_gqa: expected a bool"),
    ({"query_offset": 1.5}, TypeError, "query_offset: expected an int, got float"),
    ({"query_offset": torch.ones(3, dtype=torch.int64)}, ValueError, "query_offset: expected a"),
    ({"kv_lengths": 6}, ValueError, "kv_lengths: expected values from 0 to 5"),
    ({"kv_lengths": [1, 2]}, TypeError, "kv_lengths: expected a tensor, got list"),
    ({"window_size": (1, 2, 3)}, TypeError, "window_size: expected two ints"),
    ({"window_size": 3}, TypeError, "window_size: expected two ints"),
    ({"window_size": (1, -2)}, ValueError, "window_size: expected sides of -1 or more"),
    ({"softcap": -1.0}, ValueError, "softcap: expected 0 or more"),
    ({"alibi_slopes": torch.ones(3)}, ValueError, "alibi_slopes: expected a shape"),
    ({"sinks": torch.ones(4, dtype=torch.float64)}, TypeError, "sinks: expected float32"),
    ({"segment_ids": torch.ones(5)}, TypeError, "segment_ids: expected an array of ints"),
    ({"segment_ids": (torch.ones(5),) * 3}, ValueError, "segment_ids: expected one tensor or a"),
    ({"dropout_seed": 2**64}, ValueError, "dropout_seed: expected an int of 64 bits"),
    (
        {"dropout_seed": torch.tensor([1, 2]), "dropout_p": 0.5},
        ValueError,
        "dropout_seed: expected",
    ),
    ({"return_lse": "1"}, TypeError, "return_lse: expected a bool"),
    ({"num_threads": 0}, ValueError, "num_threads: expected"),
]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("options", "error", "message"), OPTIONS, ids=lambda x: str(x)[:40])
def test_options(options, error, message, requires_grad):
    x = X.clone().requires_grad_(requires_grad)
    with pytest.raises(error, match=f"^{message}"):
        FUNCTION(x, X, X, **options)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_operands(requires_grad):
    x = X.clone().requires_grad_(requires_grad)
    for operands, error, message in (
        ((x, X.double(), X), TypeError, "key: expected float32, query's dtype, got float64"),
        ((x, X, X.double()), TypeError, "value: expected float32, query's dtype, got float64"),
        ((x, X.to("meta"), X), TypeError, "key: expected a tensor on the CPU, got one on meta"),
        ((x.to("meta"), X, X), TypeError, "query: expected a tensor on the CPU, got one on meta"),
        ((x, X.numpy(), X), TypeError, "key: expected a tensor, got ndarray"),
        ((x, None, X), TypeError, "key: expected a tensor, got NoneType"),
        ((x, X[..., :7], X), ValueError, "key: expected head_dim 8"),
        ((x, X, X[:, :, :4]), ValueError, "value: expected 5 rows"),
        ((x, X[:, :2], X[:, :2]), ValueError, "key: expected 4 heads"),
        ((x, X[:, :, 0, 0], X), ValueError, "key: expected head_dim|value: expected"),
        ((x[0, 0, 0], X, X), ValueError, "query: expected 2 or more axes"),
        (
            (x.long(), X.long(), X.long()),
            TypeError,
            "query: expected float16, bfloat16, float32 or",
        ),
        ((x.to(torch.complex64), X, X), TypeError, "query: expected float16, bfloat16, float32 or"),
        ((x.to_sparse(), X, X), TypeError, "query: expected a dense tensor, got one of torch.spa"),
        ((torch.randn(3, 4, 5, 8), X, X), ValueError, "key: expected leading axes that broadcast"),
    ):
        with pytest.raises(error, match=f"^({message})"):
            FUNCTION(*operands)


def test_options_on_other_devices():
    for name, x in (
        ("attn_mask", torch.ones(5, 5, device="meta")),
        ("sinks", torch.ones(4, device="meta")),
        ("kv_lengths", torch.ones(2, dtype=torch.int64, device="meta")),
    ):
        with pytest.raises(
            (TypeError, NotImplementedError), match=f"^{name}: expected a tensor on"
        ):
            FUNCTION(X, X, X, **{name: x})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_beside_another(dtype):
    """A dtype is never converted on the way."""
    name = str(dtype).removeprefix("torch.")
    half = X.to(dtype)
    for operands, message in (
        ((half, X, half), f"key: expected {name}, query's dtype, got float32"),
        ((X, X, half), f"value: expected float32, query's dtype, got {name}"),
    ):
        for operand in (operands[0], operands[0].clone().requires_grad_()):
            with pytest.raises(TypeError, match=f"^{message}"):
                FUNCTION(operand, *operands[1:])
    with pytest.raises(TypeError, match=f"^weight: expected {name}, x's dtype, got float32"):
        ours.linear(half, X[0, 0])


def test_bfloat16_without_ml_dtypes():
    """It is imported when the first tensor of it comes; its absence is told by name."""
    code = """
import sys, torch, selfattn.torch
assert "ml_dtypes" not in sys.modules
sys.modules["ml_dtypes"] = None
x = torch.ones(1, 2, 3, 4)
for dtype in (torch.float32, torch.float16):
    selfattn.torch.scaled_dot_product_attention(*[x.to(dtype)] * 3)
x = x.bfloat16()
for y in (x, x.clone().requires_grad_()):
    try:
        selfattn.torch.scaled_dot_product_attention(y, x, x)
    except TypeError as error:
        print(error)
try:
    selfattn.torch.linear(x, x[0, 0])
except TypeError as error:
    print(error)
"""
    lines = subprocesses.run(code).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["query", "query", "x"]
    assert all("expected ml_dtypes to be installed" in line for line in lines)


def test_packed_sequences():
    for arguments, error, message in (
        ((PACKED[0], PACKED, PACKED, STARTS, STARTS), ValueError, "query: expected 3 axes"),
        ((PACKED,) * 3 + (STARTS, STARTS + 1), ValueError, "cu_seqlens_k: expected numbers that"),
        (
            (PACKED,) * 3 + (STARTS, STARTS.float()),
            TypeError,
            "cu_seqlens_k: expected an array or list",
        ),
        ((PACKED,) * 3 + (STARTS, None), TypeError, "cu_seqlens_k: expected a tensor, got None"),
        ((PACKED,) * 3 + ([0, 5], STARTS), TypeError, "cu_seqlens_q: expected a tensor, got list"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            ours.varlen_attention(*arguments)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_linear(requires_grad):
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    x.requires_grad_(requires_grad)
    for arguments, error, message in (
        ((x, weight[:, :3]), ValueError, r"weight: expected shape \(n_out, 4\)"),
        ((x, weight[0]), ValueError, r"weight: expected shape \(n_out, 4\)"),
        ((x, weight, bias[:4]), ValueError, r"bias: expected shape \(5,\)"),
        ((x, weight.double()), TypeError, "weight: expected float32, x's dtype"),
        ((x, weight, bias.double()), TypeError, "bias: expected float32, x's dtype"),
        ((x.to("meta"), weight), TypeError, "x: expected a tensor on the CPU, got one on meta"),
        ((x, weight.numpy()), TypeError, "weight: expected a tensor, got ndarray"),
        ((x, weight, 1.0), TypeError, "bias: expected a tensor, got float"),
        ((x[0, 0], weight), ValueError, "x: expected 1 or more axes"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            ours.linear(*arguments)


def test_a_negative_bit_is_resolved():
    """The imaginary part of a conjugate is a view whose memory holds the opposite numbers."""
    x = torch.view_as_complex(torch.randn(2, 3, 4, 2)).conj().imag
    assert x.is_neg()
    for dtype in (x.dtype, torch.bfloat16):
        y = torch._neg_view(-x.resolve_neg().to(dtype))
        assert y.is_neg()
        assert torch.equal(FUNCTION(y, y, y), FUNCTION(*[y.resolve_neg()] * 3))
    assert torch.equal(FUNCTION(x, x, x), FUNCTION(*[x.resolve_neg()] * 3))
