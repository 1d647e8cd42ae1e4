"""flash_attn_with_kvcache: the call of what a cache holds after it, and that caches are written."""

import numpy as np
import pytest

import selfattn
from selfattn import reference
from support.arrays import normal

torch = pytest.importorskip("torch")

from selfattn.flash_attn import flash_attn_func, flash_attn_with_kvcache  # noqa: E402
from support import flash  # noqa: E402
from support.tensors import BACKENDS, array, tensor, tensors  # noqa: E402

BATCH, CAPACITY, NEW = 3, 40, 4
LENGTHS = torch.tensor([0, 36, 17], dtype=torch.int32)
OPTIONS = {
    name: x
    for name, x in flash.OPTIONS.items()
    if name in ("plain", "causal", "window", "causal window", "softcap", "alibi", "all")
}


def given(dtype=np.float32, seqlen_q=NEW, batch_cache=BATCH):
    shapes = (
        (BATCH, seqlen_q, 4, 16),
        (batch_cache, CAPACITY, 2, 16),
        (batch_cache, CAPACITY, 2, 16),
        (BATCH, NEW, 2, 16),
        (BATCH, NEW, 2, 16),
    )
    return tensors(*(normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)))


def tables(dtype, rows=CAPACITY, rotary_dim=12):
    angles = np.arange(rows)[:, None] * 10000.0 ** -(np.arange(rotary_dim // 2) / rotary_dim * 2)
    return [tensor(x.astype(dtype)) for x in (np.cos(angles), np.sin(angles))]


def check(q, k_cache, v_cache, k=None, v=None, lengths=None, entries=None, leftpad=None, **options):
    """Each entry alone, of the keys that its cache holds in the end; and the caches themselves."""
    caches = k_cache.clone(), v_cache.clone()
    out, lse = flash_attn_with_kvcache(
        q, *caches, k, v, cache_seqlens=lengths, cache_batch_idx=entries, cache_leftpad=leftpad,
        return_softmax_lse=True, **options,
    )  # fmt: skip
    expected = k_cache.clone(), v_cache.clone()
    for b in range(BATCH):
        entry = b if entries is None else int(entries[b])
        end = (
            CAPACITY
            if lengths is None
            else int(lengths if isinstance(lengths, int) else lengths[b])
        )
        if k is not None:
            for cache, x in zip(expected, (k, v), strict=True):
                cache[entry, end : end + NEW] = x[b]
            end += NEW
        start = 0 if leftpad is None else int(leftpad[b])
        seen = [x[entry : entry + 1, start:end] for x in expected]
        want, want_lse, _ = flash_attn_func(q[b : b + 1], *seen, return_attn_probs=True, **options)
        assert torch.equal(out[b : b + 1], want), b
        assert torch.equal(lse[b : b + 1], want_lse), b
    assert all(torch.equal(x, y) for x, y in zip(caches, expected, strict=True))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("seqlen_q", [1, NEW, 9])
def test_appended(dtype, seqlen_q, name):
    """By lengths of each entry, by one for all, by none; with keys to append and without."""
    q, k_cache, v_cache, k, v = given(dtype, seqlen_q)
    options = OPTIONS[name]
    check(q, k_cache, v_cache, k, v, LENGTHS, **options)
    check(q, k_cache, v_cache, k, v, 11, **options)
    check(q, k_cache, v_cache, lengths=LENGTHS, **options)
    check(q, k_cache, v_cache, lengths=7, **options)
    check(q, k_cache, v_cache, **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_oracle(name):
    """Of caches of lengths, some rows of which do not count."""
    q, k_cache, v_cache, k, v = given()
    starts = torch.tensor([2, 9, 17], dtype=torch.int32)
    out, lse = flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens=LENGTHS, cache_leftpad=starts,
        return_softmax_lse=True, **OPTIONS[name],
    )  # fmt: skip
    wide = [x.double() for x in (q, k_cache, v_cache)]
    options = OPTIONS[name] | {"lengths": LENGTHS + NEW, "starts": starts}
    grad_out = torch.ones_like(out)
    want, want_lse, _, bounds = flash.gradients(grad_out, q, k_cache, v_cache, **options)
    assert torch.equal(want, flash.attention(*wide, **options)[0])
    flash.assert_within(out, want, bounds[0])
    flash.assert_lse_within(lse, want_lse, (q, k_cache, v_cache), options)


@pytest.mark.parametrize("lengths", [LENGTHS, 11, None], ids=["lengths", "a length", "none"])
def test_chosen_entries(dtype, lengths):
    """Of a cache of more entries than the batch; the others stay as they are."""
    q, k_cache, v_cache, k, v = given(dtype, batch_cache=5)
    entries = torch.tensor([4, 0, 2], dtype=torch.int32)
    if lengths is None:
        k = v = None
    check(q, k_cache, v_cache, k, v, lengths, entries, causal=True)
    check(q, k_cache, v_cache, k, v, lengths, entries, window_size=(3, 0))


@pytest.mark.parametrize("name", ["plain", "causal", "window", "alibi"])
def test_padding_at_the_left(name):
    """Other blocks of keys are summed than without padding, so it is to rounding."""
    q, k_cache, v_cache, k, v = given()
    starts = torch.tensor([0, 30, 21], dtype=torch.int32)
    for lengths in (LENGTHS, 17):
        caches = k_cache.clone(), v_cache.clone()
        out = flash_attn_with_kvcache(
            q, *caches, k, v, cache_seqlens=lengths, cache_leftpad=starts, **OPTIONS[name]
        )
        for b in range(BATCH):
            end = NEW + int(lengths if isinstance(lengths, int) else lengths[b])
            seen = [x[b : b + 1, int(starts[b]) : end] for x in caches]
            want = flash_attn_func(q[b : b + 1], *seen, **OPTIONS[name])
            torch.testing.assert_close(out[b : b + 1], want, rtol=1e-5, atol=1e-5)
    assert not flash_attn_with_kvcache(q, *caches, cache_seqlens=17, cache_leftpad=starts)[1:].any()


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window_size": (5, 0)}], ids=str)
@pytest.mark.parametrize("lengths", [LENGTHS, 11], ids=["lengths", "a length"])
def test_rotary(dtype, lengths, options, interleaved):
    """Queries and new keys are rotated by NumPy's reference, then it is the call without tables."""
    q, k_cache, v_cache, k, v = given(dtype)
    cos, sin = tables(dtype)
    starts = LENGTHS if isinstance(lengths, torch.Tensor) else torch.full((BATCH,), lengths)
    rotated = []
    for x, step in ((q, int(bool(options))), (k, 1)):
        wide = x.double()[..., :12]
        positions = starts.long()[:, None] + step * torch.arange(x.shape[1])
        c, s = (y.double()[positions][:, :, None] for y in (cos, sin))
        a, b = (wide[..., ::2], wide[..., 1::2]) if interleaved else wide.chunk(2, -1)
        turned = [a * c - b * s, b * c + a * s]
        y = x.clone().double()
        y[..., :12] = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
        rotated.append(y)
    caches, plain = [[x.clone() for x in (k_cache, v_cache)] for _ in range(2)]
    out = flash_attn_with_kvcache(
        q, *caches, k, v, cos, sin, lengths, rotary_interleaved=interleaved, **options
    )
    near = 8 * torch.finfo(q.dtype).eps
    for b, start in enumerate(starts.tolist()):
        got = caches[0][b, start : start + NEW].double()
        torch.testing.assert_close(got, rotated[1][b], rtol=near, atol=near)
        assert torch.equal(caches[0][b, :start], k_cache[b, :start])
    new_keys = torch.stack([caches[0][b, n : n + NEW] for b, n in enumerate(starts.tolist())])
    want = flash_attn_with_kvcache(
        rotated[0].to(q.dtype), *plain, new_keys, v, cache_seqlens=lengths, **options
    )
    assert torch.equal(plain[0], caches[0])
    torch.testing.assert_close(out, want, rtol=10 * near, atol=10 * near)


def test_rotary_is_that_of_the_reference():
    """The pairs and the sense of rotation are those of `selfattn.nn.rope`'s truth."""
    _, k_cache, v_cache, k, v = given(np.float64)
    cos, sin = tables(np.float64, rotary_dim=16)
    for interleaved, layout in ((True, "interleaved"), (False, "half")):
        cache = k_cache.clone()
        flash_attn_with_kvcache(
            k, cache, v_cache.clone(), k, v, cos, sin, 5, rotary_interleaved=interleaved
        )
        want = reference.rope(array(k).swapaxes(1, 2), 5, layout=layout).swapaxes(1, 2)
        np.testing.assert_allclose(array(cache[:, 5:9]), want, rtol=1e-12, atol=1e-12)


def test_decoding_has_the_bits_of_one_causal_call(dtype):
    """A token at a time, by the cache, as all of them at once."""
    q, k, v = tensors(*(normal(2, 9, 4, 16, dtype=dtype, seed=i) for i in range(3)))
    k_cache, v_cache = torch.zeros_like(k), torch.zeros_like(v)
    want = flash_attn_func(q, k, v, causal=True)
    for i in range(9):
        one = slice(i, i + 1)
        out = flash_attn_with_kvcache(
            q[:, one], k_cache, v_cache, k[:, one], v[:, one], cache_seqlens=i, causal=True
        )
        assert torch.equal(out, want[:, one])


def test_no_gradient():
    """As flash-attn's: the result requires none, and caches that do are written to."""
    q, k_cache, v_cache, k, v = (x.requires_grad_() for x in given())
    out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=3)
    assert not out.requires_grad
    assert torch.equal(k_cache[:, 3 : 3 + NEW], k)


def test_threads_and_splits():
    q, k_cache, v_cache, *_ = given(seqlen_q=1)
    want = flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=LENGTHS)
    for n in (1, 2, 5):
        with selfattn.threads(n):
            got = flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=LENGTHS, num_splits=n)
        assert torch.equal(got, want)


@pytest.mark.filterwarnings("ignore")  # those of the compilers about their own
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [LENGTHS, 11], ids=["lengths", "a length"])
def test_compiled(backend, lengths):
    def function(q, k_cache, v_cache, k, v, cos, sin, lengths, entries):
        return flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, cos, sin, lengths, entries, causal=True
        )

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    q, k_cache, v_cache, k, v = given()
    for entries in (None, torch.tensor([1, 0, 2])):
        caches, others = [[x.clone() for x in (k_cache, v_cache)] for _ in range(2)]
        want = function(q, *caches, k, v, *tables(np.float32), lengths, entries)
        got = compiled(q, *others, k, v, *tables(np.float32), lengths, entries)
        # A compiler may contract the rotation's products and sums.
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        for x, y in zip(others, caches, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


ERRORS = [
    ({"cache_seqlens": 37}, ValueError, "cache_seqlens: expected lengths from 0 to 36, of a cache"),
    ({"cache_seqlens": -1}, ValueError, "cache_seqlens: expected lengths from 0 .* got -1"),
    ({"cache_seqlens": LENGTHS + 1}, ValueError, "cache_seqlens: expected lengths .* got 37"),
    ({"cache_seqlens": LENGTHS - 1}, ValueError, "cache_seqlens: expected lengths .* got -1"),
    ({"cache_seqlens": LENGTHS[:2]}, ValueError, r"cache_seqlens: expected shape \(3,\)"),
    ({"cache_seqlens": LENGTHS.float()}, TypeError, "cache_seqlens: expected a tensor of int32"),
    ({"cache_seqlens": 3.0}, TypeError, "cache_seqlens: expected an int, got float"),
    ({"cache_seqlens": None}, ValueError, "cache_seqlens: expected an int or a tensor beside"),
    ({"k": None}, ValueError, "k: expected k and v, or neither"),
    ({"v": None}, ValueError, "v: expected k and v, or neither"),
    ({"k": torch.ones(3, 4, 1, 16)}, ValueError, "v: expected shape|k: expected shape"),
    ({"k": torch.ones(3, 4, 2, 16).half()}, TypeError, "k: expected torch.float32, q's dtype"),
    ({"k_cache": torch.ones(2, 40, 2, 16)}, ValueError, "k_cache: expected a batch of 3, got 2"),
    ({"v_cache": torch.ones(3, 9, 2, 16)}, ValueError, r"v_cache: expected shape \(3, 40, 2, h"),
    ({"k_cache": torch.ones(3, 40, 2, 8)}, ValueError, "k_cache: expected head_dim 16, got 8"),
    ({"cache_batch_idx": [0, 1, 2]}, TypeError, "cache_batch_idx: expected a tensor of int32"),
    ({"cache_batch_idx": torch.tensor([0, 1])}, ValueError, r"cache_batch_idx: expected shape"),
    ({"cache_batch_idx": torch.tensor([0, 1, 3])}, ValueError, "cache_batch_idx: expected 0 to 2"),
    ({"cache_leftpad": torch.tensor([0, 1])}, ValueError, r"cache_leftpad: expected shape \(3,\)"),
    ({"rotary_cos": torch.ones(40, 8)}, TypeError, "rotary_sin: expected a tensor, got NoneType"),
    ({"rotary_sin": torch.ones(40, 8)}, TypeError, "rotary_cos: expected a tensor, got NoneType"),
    ({"rotary_cos": torch.ones(40, 9), "rotary_sin": torch.ones(40, 9)}, ValueError, "rotary_cos"),
    (
        {"rotary_cos": torch.ones(40, 8), "rotary_sin": torch.ones(40, 7)},
        ValueError,
        "rotary_sin: expected shape",
    ),
    (
        {"rotary_cos": torch.ones(14, 8), "rotary_sin": torch.ones(14, 8)},
        ValueError,
        "rotary_cos: expected 15 positions or more, got 14",
    ),
    ({"block_table": torch.ones(3, 1)}, NotImplementedError, "block_table: caches in pages"),
]


@pytest.mark.parametrize(("changed", "error", "message"), ERRORS, ids=lambda x: str(x)[:40])
def test_errors(changed, error, message):
    """Nothing has been written when they are raised."""
    names = ("q", "k_cache", "v_cache", "k", "v")
    arguments = dict(zip(names, given(), strict=True)) | {"cache_seqlens": 11} | changed
    before = [arguments[name].clone() for name in ("k_cache", "v_cache")]
    with pytest.raises(error, match=f"^({message})"):
        flash_attn_with_kvcache(**arguments)
    for x, name in zip(before, ("k_cache", "v_cache"), strict=True):
        assert torch.equal(arguments[name], x)


def test_tables_without_keys():
    q, k_cache, v_cache, *_ = given()
    with pytest.raises(ValueError, match=r"^rotary_cos: expected k and v beside it"):
        flash_attn_with_kvcache(q, k_cache, v_cache, rotary_cos=torch.ones(40, 8))
