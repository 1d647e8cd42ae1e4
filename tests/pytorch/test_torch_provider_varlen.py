"""torch.nn.attention.varlen under the provider: it has no kernel on the CPU otherwise."""

import numpy as np
import pytest

import selfattn
from support.arrays import normal

torch = pytest.importorskip("torch")
varlen = pytest.importorskip("torch.nn.attention.varlen")

from selfattn import torch as ours  # noqa: E402
from support.tensors import BACKENDS, array, assert_same_bits, tensor  # noqa: E402

LENGTHS_Q, LENGTHS_K = [3, 1, 0, 20, 5], [4, 9, 2, 20, 3]
STARTS_Q, STARTS_K = (np.concatenate(([0], np.cumsum(n))) for n in (LENGTHS_Q, LENGTHS_K))
CU_Q, CU_K = (torch.tensor(x, dtype=torch.int32) for x in (STARTS_Q, STARTS_K))


@pytest.fixture(autouse=True)
def provider():
    with ours.enabled():
        yield


def packed(dtype, heads_kv=2, more=0):
    rows_q, rows_k = sum(LENGTHS_Q) + more, sum(LENGTHS_K) + more
    return [
        tensor(normal(rows, heads, 8, dtype=dtype, seed=i), requires_grad=True)
        for i, (rows, heads) in enumerate(((rows_q, 4), (rows_k, heads_kv), (rows_k, heads_kv)))
    ]


def attend(query, key, value, **options):
    return varlen.varlen_attn(
        query, key, value, CU_Q, CU_K, max(LENGTHS_Q), max(LENGTHS_K), enable_gqa=True, **options
    )


def alone(inputs, b, used=None, window=(-1, -1), scale=None):
    """Sequence b by a call of its own, aligned with the last key: the result, and its inputs."""
    query, key, value = (
        x.detach()[start:end].transpose(0, 1).requires_grad_()
        for x, (start, end) in zip(
            inputs,
            (STARTS_Q[b : b + 2], STARTS_K[b : b + 2], STARTS_K[b : b + 2]),
            strict=True,
        )
    )
    used = key.shape[1] if used is None else used
    out = ours.scaled_dot_product_attention(
        query, key, value, enable_gqa=True, window_size=window, scale=scale, kv_lengths=used,
        query_offset=used - query.shape[1],
    )  # fmt: skip
    return out, (query, key, value)


WINDOWS = [(-1, -1), (-1, 0), (3, 0), (2, 1), (0, 0)]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("heads_kv", [1, 2, 4])
def test_each_sequence_as_alone(dtype, window, heads_kv):
    """Bits of values and of gradients."""
    inputs = packed(dtype, heads_kv)
    out = attend(*inputs, window_size=window, scale=0.4)
    out.sum().backward()
    for b in range(len(LENGTHS_Q)):
        want, leaves = alone(inputs, b, window=window, scale=0.4)
        want.sum().backward()
        rows, keys = slice(*STARTS_Q[b : b + 2]), slice(*STARTS_K[b : b + 2])
        assert torch.equal(out[rows].transpose(0, 1), want)
        for x, leaf, part in zip(inputs, leaves, (rows, keys, keys), strict=True):
            assert torch.equal(x.grad[part].transpose(0, 1), leaf.grad)


def test_causal_is_bottom_right(dtype):
    """The last query sees the last key; a query that comes before all keys sees none."""
    query, key, value = packed(dtype, 4)
    out = attend(query, key, value, window_size=(-1, 0))
    last = STARTS_Q[5] - 1
    seen = [x[STARTS_K[4] :].transpose(0, 1) for x in (key, value)]
    want = ours.scaled_dot_product_attention(query[last:].transpose(0, 1), *seen)
    assert torch.equal(out[last:].transpose(0, 1), want)
    assert not out[STARTS_Q[4]].any()  # 5 queries, 3 keys


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_used_keys(dtype, window):
    """Of caches that are not full; alignment is to the last used key."""
    used = torch.tensor([2, 9, 0, 11, 1], dtype=torch.int32)
    inputs = [x.detach() for x in packed(dtype)]
    with torch.no_grad():
        out = attend(*inputs, window_size=window, seqused_k=used)
        for b in range(len(LENGTHS_Q)):
            want, _ = alone(inputs, b, int(used[b]), window)
            assert torch.equal(out[slice(*STARTS_Q[b : b + 2])].transpose(0, 1), want)


def test_lse(dtype):
    inputs = [x.detach() for x in packed(dtype)]
    out, lse = attend(*inputs, return_aux=varlen.AuxRequest(lse=True))
    arrays = [array(x) for x in inputs]
    want = selfattn.varlen_attention(*arrays, STARTS_Q, STARTS_K, enable_gqa=True, return_lse=True)
    assert_same_bits((out, lse), want)


def test_buffers_longer_than_the_sequences(dtype):
    """Rows beyond the last sequence have results and gradients of 0."""
    longer = packed(dtype, more=3)
    exact = [x.detach()[:-3].requires_grad_() for x in longer]
    out, want = attend(*longer), attend(*exact)
    assert torch.equal(out[:-3], want)
    assert not out[-3:].any()
    out.sum().backward()
    want.sum().backward()
    for x, y in zip(longer, exact, strict=True):
        assert torch.equal(x.grad[:-3], y.grad)
        assert not x.grad[-3:].any()


def test_into_a_given_tensor(dtype):
    inputs = [x.detach() for x in packed(dtype)]
    out = torch.empty_like(inputs[0])
    varlen.varlen_attn_out(
        out, *inputs, CU_Q, CU_K, max(LENGTHS_Q), max(LENGTHS_K), enable_gqa=True
    )
    assert torch.equal(out, attend(*inputs))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_compiled(dtype, backend):
    def results(function):
        inputs = packed(dtype)
        out = function(*inputs)
        return [out.detach(), *torch.autograd.grad((out * out).sum(), inputs)]

    def function(query, key, value):
        return attend(query, key, value, window_size=(-1, 0))

    got = results(torch.compile(function, fullgraph=True, backend=backend))
    assert all(torch.equal(x, y) for x, y in zip(got, results(function), strict=True))


def test_what_is_not_built():
    query = torch.randn(4, 1, 8)
    pages = torch.zeros(1, 1, dtype=torch.int32)
    starts = torch.tensor([0, 4])
    with pytest.raises(NotImplementedError, match="block_table is not built"):
        varlen.varlen_attn(
            query, query[None], query[None], starts, None, 4, 4, seqused_k=starts[1:],
            block_table=pages,
        )  # fmt: skip
    with pytest.raises(NotImplementedError, match="cu_seq_q and cu_seq_k"):
        torch.ops.aten._flash_attention_forward(
            *[query[None]] * 3, None, None, 4, 4, 0.0, False, False
        )
