"""The truth that selfattn.flash_attn is tested against, written from what flash-attn documents.

For query i of L and key j, with S keys that count in the query's entry, of which the first `start`
do not, p = i + S - L is the query's position:

    x = scale * q_i . k_j      (query head h has key head h // (heads / heads_k))
    x = softcap * tanh(x / softcap), where there is a softcap
    x = x - slope * |p - j|, where there are slopes
    key j is seen if start <= j < S, j <= p where causal, p - left <= j <= p + right

and out is the average of the values with weights exp(x) over the keys that are seen, 0 where there
is none; lse is log(sum(exp(x))). In float64; autograd differentiates it.

How far a result may be from it, with u the unit roundoff and A = scale * max sum(|q| |k|): a weight
is off by 8 (1 + A) u of itself (compare.py), and where options change scores, by 2 e u more, e what
they round: 6 |softcap| + 4 |largest bias| + A + 3 log S. A sum of n products adds n u. These are
relative to the sums of the products' absolute values, the sizes below:

    out    sum w |v|
    dv     sum w |do|
    dq     scale * sum w (|do| . |v| + |do| . |out|) |k|       and so dk, with |q|
"""

import math

import torch


def attention(
    q, k, v, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    softmax_scale=None, lengths=None, starts=None,
):  # fmt: skip
    """out (batch, L, heads, Ev), lse (batch, heads, L), weights of (batch, rows, heads, E)."""
    batch, seqlen_q, heads, head_dim = q.shape
    seqlen_k = k.shape[1]
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    lengths = torch.full((batch,), seqlen_k) if lengths is None else lengths
    starts = torch.zeros(batch) if starts is None else starts
    k, v = (x.repeat_interleave(heads // x.shape[2], 2) for x in (k, v))
    x = scale * torch.einsum("bihd,bjhd->bhij", q, k)
    if softcap > 0:
        x = softcap * torch.tanh(x / softcap)
    position = (torch.arange(seqlen_q) + lengths[:, None] - seqlen_q)[:, None, :, None]
    j = torch.arange(seqlen_k)
    if alibi_slopes is not None:
        slopes = alibi_slopes.double().expand(batch, heads)[..., None, None]
        x = x - slopes * (position - j).abs()
    seen = (j < lengths[:, None, None, None]) & (j >= starts[:, None, None, None])
    left, right = window_size
    if causal:
        right = 0 if right < 0 else min(right, 0)
    if left >= 0:
        seen = seen & (j >= position - left)
    if right >= 0:
        seen = seen & (j <= position + right)
    x = x.masked_fill(~seen, -torch.inf)
    lse = x.logsumexp(-1)
    weights = torch.exp(x - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    return torch.einsum("bhij,bjhd->bihd", weights, v), lse, weights


def gradients(grad_out, *operands, **options):
    """The oracle's out, lse and gradients of q, k and v, with the bounds of all but lse."""
    leaves = [x.detach().double().requires_grad_() for x in operands]
    out, lse, weights = attention(*leaves, **options)
    found = torch.autograd.grad(out, leaves, grad_out.double())
    sizes = _sizes(grad_out.double().abs(), out.detach().abs(), weights.detach(), leaves, options)
    factor = _factor(operands, options)
    return out.detach(), lse.detach(), found, [factor * x for x in sizes]


def _sizes(grad_out, out, weights, leaves, options):
    q, k, v = (x.detach().abs() for x in leaves)
    heads, heads_k = q.shape[2], k.shape[2]
    scale = options.get("softmax_scale") or q.shape[-1] ** -0.5
    all_k, all_v = (x.repeat_interleave(heads // heads_k, 2) for x in (k, v))
    of_score = weights * (
        torch.einsum("bihd,bjhd->bhij", grad_out, all_v)
        + torch.einsum("bihd,bihd->bhi", grad_out, out)[..., None]
    )

    def of_groups(x):
        return x.unflatten(2, (heads_k, -1)).sum(3)

    return (
        torch.einsum("bhij,bjhd->bihd", weights, all_v),
        abs(scale) * torch.einsum("bhij,bjhd->bihd", of_score, all_k),
        abs(scale) * of_groups(torch.einsum("bhij,bihd->bjhd", of_score, q)),
        of_groups(torch.einsum("bhij,bihd->bjhd", weights, grad_out)),
    )


def _factor(operands, options):
    q, k, _ = (x.detach().double().abs() for x in operands)
    u = torch.finfo(operands[0].dtype).eps / 2
    scale = options.get("softmax_scale") or q.shape[-1] ** -0.5
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k)
    size = abs(scale) * float(scores.max()) if scores.numel() else 0.0
    rounded = 0.0
    slopes = options.get("alibi_slopes")
    if options.get("softcap", 0) > 0 or slopes is not None:
        bias = 0.0 if slopes is None else float(slopes.abs().max()) * max(q.shape[1], k.shape[1])
        rounded = 6 * options.get("softcap", 0) + 4 * bias + size + 3 * math.log(k.shape[1] + 1)
    sums = q.shape[-1] + q.shape[1] + k.shape[1]
    # The oracle rounds as well, in float64.
    return u * (8 * (1 + size) + 2 * rounded + sums) * (2 if q.dtype == operands[0].dtype else 1)


def assert_within(got, want, bound, name=""):
    """Equal up to the bound, an element at a time; a bound of 0 asks for 0."""
    assert got.shape == want.shape, name
    off = (got.double() - want).abs()
    assert (off <= bound).all(), (name, float(off.max()), float((off - bound).max()))


def assert_lse_within(got, want, operands, options):
    assert got.shape == want.shape
    finite = want.isfinite()
    assert torch.equal(got[~finite].double(), want[~finite])
    off = (got.double() - want)[finite].abs()
    eps = torch.finfo(got.dtype).eps
    assert (off <= _factor(operands, options) + eps * want[finite].abs()).all()


# (seqlen_q, seqlen_k)
LENGTHS = [(1, 1), (1, 7), (5, 5), (3, 11), (11, 3), (40, 33), (33, 130)]
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "scale": {"softmax_scale": 0.3},
    "window": {"window_size": (3, 2)},
    "left": {"window_size": (4, -1)},
    "right": {"window_size": (-1, 1)},
    "causal window": {"causal": True, "window_size": (5, 3)},
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
    "alibi of entries": {"alibi_slopes": torch.arange(8.0).reshape(2, 4) / 16, "causal": True},
    "all": {
        "causal": True, "window_size": (6, -1), "softcap": 2.0, "softmax_scale": 0.4,
        "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625]),
    },
}  # fmt: skip
