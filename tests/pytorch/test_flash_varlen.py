"""flash_attn_varlen_func and its packed forms: each sequence as the oracle has it, and alone."""

import itertools

import numpy as np
import pytest

from support.arrays import normal

torch = pytest.importorskip("torch")

from selfattn.flash_attn import (  # noqa: E402
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from support import flash  # noqa: E402
from support.tensors import BACKENDS, normal_tensor, tensor, tensors  # noqa: E402

# (queries, keys) of each sequence: keys that are more, fewer, and none; no queries; nothing.
LENGTHS = [(5, 5), (3, 11), (0, 2), (11, 3), (0, 0), (2, 0), (1, 40)]
Q, K = (list(itertools.accumulate(x, initial=0)) for x in zip(*LENGTHS, strict=True))
CU_Q, CU_K = (torch.tensor(x, dtype=torch.int32) for x in (Q, K))
MOST = CU_Q, CU_K, 11, 40
OPTIONS = flash.OPTIONS | {
    "alibi of entries": {"alibi_slopes": torch.arange(28.0).reshape(7, 4) / 32, "causal": True}
}


def operands(dtype=np.float32, heads_k=2, more=0):
    shapes = (Q[-1] + more, 4, 16), (K[-1] + more, heads_k, 16), (K[-1] + more, heads_k, 16)
    return [normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


def sequences(*operands):
    """(q, k, v) of each sequence, as batches of one."""
    for i in range(len(LENGTHS)):
        starts = (Q, K, K)
        yield [
            x[None, at[i] : at[i + 1]]
            for x, at in zip(operands, starts[: len(operands)], strict=True)
        ]


def options_of(options, i):
    """Those of one sequence."""
    slopes = options.get("alibi_slopes")
    if slopes is None or slopes.dim() == 1:
        return options
    return options | {"alibi_slopes": slopes[i]}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda x: x.__name__)
def test_the_oracle(dtype, name):
    options = OPTIONS[name]
    leaves = tensors(*operands(dtype), requires_grad=True)
    out, lse, weights = flash_attn_varlen_func(*leaves, *MOST, return_attn_probs=True, **options)
    assert weights is None
    assert lse.shape == (4, Q[-1])
    grad_out = normal_tensor(*out.shape, dtype=out.dtype, seed=9)
    of_q, of_k, of_v = torch.autograd.grad(out, leaves, grad_out)
    for i, alone in enumerate(sequences(*leaves)):
        of_queries, of_keys = slice(*Q[i : i + 2]), slice(*K[i : i + 2])
        given = options_of(options, i)
        want, want_lse, gradients, bounds = flash.gradients(
            grad_out[None, of_queries], *alone, **given
        )
        got = out[of_queries], of_q[of_queries], of_k[of_keys], of_v[of_keys]
        for x, y, bound in zip(got, (want, *gradients), bounds, strict=True):
            flash.assert_within(x[None], y, bound, (i, name))
        flash.assert_lse_within(lse[None, :, of_queries], want_lse, alone, given)


@pytest.mark.parametrize("name", OPTIONS)
def test_bits_of_each_sequence_alone(dtype, name):
    """Those of flash_attn_func, whose bits are the NumPy API's: values and gradients."""
    options = OPTIONS[name]
    leaves = tensors(*operands(dtype), requires_grad=True)
    grad_out = tensor(normal(Q[-1], 4, 16, dtype=dtype, seed=9))
    out, lse, _ = flash_attn_varlen_func(*leaves, *MOST, return_attn_probs=True, **options)
    out.backward(grad_out)
    kv = torch.stack([x.detach() for x in leaves[1:]], 1).requires_grad_()
    of_packed = flash_attn_varlen_kvpacked_func(leaves[0].detach(), kv, *MOST, **options)
    assert torch.equal(of_packed, out)
    of_packed.backward(grad_out)
    assert torch.equal(kv.grad, torch.stack([x.grad for x in leaves[1:]], 1))
    for i, alone in enumerate(sequences(*leaves)):
        alone = [x.detach().requires_grad_() for x in alone]
        given = options_of(options, i)
        want, want_lse, _ = flash_attn_func(*alone, return_attn_probs=True, **given)
        rows, keys = slice(*Q[i : i + 2]), slice(*K[i : i + 2])
        assert torch.equal(out[None, rows], want)
        assert torch.equal(lse[None, :, rows], want_lse)
        want.backward(grad_out[None, rows])
        for x, y, of in zip(leaves, alone, (rows, keys, keys), strict=True):
            assert torch.equal(x.grad[None, of], y.grad)


def test_qkvpacked(dtype):
    qkv = tensor(normal(K[-1], 3, 4, 16, dtype=dtype), requires_grad=True)
    apart = [x.detach().requires_grad_() for x in qkv.unbind(1)]
    slopes = torch.arange(28.0).reshape(7, 4) / 32
    options = {"causal": True, "window_size": (7, -1), "alibi_slopes": slopes}
    got = flash_attn_varlen_qkvpacked_func(qkv, CU_K, 40, return_attn_probs=True, **options)
    want = flash_attn_varlen_func(
        *apart, CU_K, CU_K.clone(), 40, 40, return_attn_probs=True, **options
    )
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    (got[0] ** 2).sum().backward()
    (want[0] ** 2).sum().backward()
    assert torch.equal(qkv.grad, torch.stack([x.grad for x in apart], 1))


@pytest.mark.parametrize("causal", [False, True])
def test_buffers_longer_than_the_sequences(dtype, causal):
    """Rows of no sequence have results and gradients of 0, whatever they hold, and lse of -inf."""
    longer = tensors(*operands(dtype, more=3), requires_grad=True)
    exact = [x.detach()[:-3].requires_grad_() for x in longer]
    with torch.no_grad():
        for x in longer:
            x[-3:] = torch.nan
    out, lse, _ = flash_attn_varlen_func(*longer, *MOST, causal=causal, return_attn_probs=True)
    want = flash_attn_varlen_func(*exact, *MOST, causal=causal, return_attn_probs=True)
    assert torch.equal(out[:-3], want[0])
    assert not out[-3:].any()
    assert torch.equal(lse[:, :-3], want[1])
    assert (lse[:, -3:] == -torch.inf).all()
    assert torch.equal(flash_attn_varlen_func(*longer, *MOST, causal=causal), out)
    out.sum().backward()
    want[0].sum().backward()
    for x, y in zip(longer, exact, strict=True):
        assert torch.equal(x.grad[:-3], y.grad)
        assert not x.grad[-3:].any()


def test_dropout(dtype):
    """S_dmask has each sequence's rows and keys first, the rest is 0; the result is of what is
    kept."""
    q, k, v = tensors(*operands(dtype), requires_grad=True)
    torch.manual_seed(3)
    out, _, weights = flash_attn_varlen_func(q, k, v, *MOST, 0.3, return_attn_probs=True)
    torch.manual_seed(3)
    assert torch.equal(flash_attn_varlen_func(q, k, v, *MOST, dropout_p=0.3), out)
    assert weights.shape == (7, 4, 11, 40)
    near = 20 * torch.finfo(q.dtype).eps
    for i, (rows, keys) in enumerate(LENGTHS):
        of_sequence = weights[i, :, :rows, :keys].double()
        assert not weights[i, :, rows:].any()
        assert not weights[i, :, :, keys:].any()
        kept = of_sequence.clamp(min=0) / 0.7
        values = v[K[i] : K[i + 1]].detach().double().repeat_interleave(2, 1)
        want = torch.einsum("hij,jhd->ihd", kept, values)
        torch.testing.assert_close(out[Q[i] : Q[i + 1]].double(), want, rtol=near, atol=3 * near)
        if rows and keys:
            sums = of_sequence.abs().sum(-1)
            torch.testing.assert_close(sums, torch.ones_like(sums), rtol=near, atol=near)
    assert (weights < 0).any()
    out.sum().backward()


@pytest.mark.filterwarnings("ignore")  # those of the compilers about their own
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled(dtype, backend):
    def function(q, k, v, cu_q, cu_k):
        return flash_attn_varlen_func(q, k, v, cu_q, cu_k, 11, 40, causal=True, softcap=2.0)

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    leaves = tensors(*operands(dtype), requires_grad=True)
    want, got = function(*leaves, CU_Q, CU_K), compiled(*leaves, CU_Q, CU_K)
    assert torch.equal(got, want)
    for x, y in zip(*(torch.autograd.grad(x.sum(), leaves) for x in (got, want)), strict=True):
        assert torch.equal(x, y)


def test_errors():
    q, k, v = tensors(*operands())
    for starts, error, message in (
        ((CU_Q.tolist(), CU_K), TypeError, "cu_seqlens_q: expected a tensor"),
        ((CU_Q, CU_K[None]), ValueError, "cu_seqlens_k: expected shape"),
        ((CU_Q, CU_K.float()), TypeError, "cu_seqlens_k: expected an array or list of ints"),
        ((CU_Q, CU_K + 1), ValueError, "cu_seqlens_k: expected numbers that start at 0"),
        ((CU_Q.flip(0), CU_K), ValueError, "cu_seqlens_q: expected numbers that start at 0"),
        ((CU_Q[:0], CU_K[:0]), ValueError, "cu_seqlens_q: expected shape"),
        ((CU_Q[[0, -1]], CU_K), ValueError, r"cu_seqlens_k: expected shape \(2,\), cu_seqlens_q's"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            flash_attn_varlen_func(q, k, v, *starts, 11, 40, causal=True)
    with pytest.raises(ValueError, match=r"^q: expected shape \(total, heads, head_dim\), got"):
        flash_attn_varlen_func(q[None], k, v, *MOST)
    with pytest.raises(ValueError, match=r"^v: expected shape \(61, 2, head_dim\), got"):
        flash_attn_varlen_func(q, k, v[1:], *MOST)
    with pytest.raises(ValueError, match=r"^qkv: expected shape \(total, 3, heads, head_dim\)"):
        flash_attn_varlen_qkvpacked_func(torch.ones(5, 2, 4, 8), CU_K, 40)
    with pytest.raises(ValueError, match=r"^kv: expected shape \(total, 2, heads, head_dim\)"):
        flash_attn_varlen_kvpacked_func(q, k, *MOST)
    with pytest.raises(NotImplementedError, match=r"^block_table: caches in pages"):
        flash_attn_varlen_func(q, k, v, *MOST, block_table=torch.zeros(7, 1, dtype=torch.int32))
