"""How far a gradient may be from the reference, and the checks that say so.

The bounds, element by element, in u (compare.py), for what rounding does to the formulas of the
kernels. With q, k, v, g = grad_out, P the weights, D what dropout multiplies them by, abs() of each
element, and "of itself" standing for exp(.) - 1 where it is not small:

    A      = |scale| abs(q) abs(k)': a score moves by 3 A, and by what options round in it
    d      = 3 A + options - 2 log P     what exp(score - top) moves by, as a part of itself: the
                                         difference, and the constant that multiplies it
    e      = sum of P d + 4 + 3 |lse|    what exp(top - lse) does: lse has d of all keys in it, and
                                         is rounded. Above 512 it is not used, and 4 are left
    P      by d + e of itself
    out    by (P D d) abs(v) + (sum of P d) abs(out) + 4 P D abs(v): what moves it, sums, division
    dP     = D g v' - delta: by 3 D abs(g) abs(v)' for the product, 5 with dropout's factor; for
             delta by abs(g) times what out moves by and 3 abs(out). It may be a small difference.
             A gradient of lse is added to it: one rounding before and one after
    dS     = P dP: by d + e + 3 of itself, and P times what dP does. It is the mask's gradient
    dT     = dS (1 - t^2), t = tanh(x), with a soft cap: t moves by 5 of itself and by 1 - t^2 of
             what x does, 3 A / softcap + 2 x; its square by 2 t times that, the difference by 1

and the sums: where y moves by dy, the sum of y z does by that of (dy + 3 abs(y)) abs(z). They are

    dV     of P D g,  (d + e + 3) P D         dQ, dK    of dT k and dT q, times |scale|
    dmask  of dS alone                        dsinks    of P delta, P the weight of the sink

and what underflows is off by the smallest number more. A long sum of terms that are alike may round
the same way at each step, to more than 3; none is drawn. In float64 the reference may be as far off
(unit_roundoff).

How much of a bound is used, in 3,000 calls of test_backward.py and test_backward_options.py and in
1,500 at random: at most .5 in float32 (dV, where one key has all the weight) and .3 in float64,
where half of a bound is the reference's; most often .03 to .15. Of dsinks, a sum over all rows, it
is less, .07 at most: errors do not add up as bounds do.
"""

import numpy as np

from selfattn import reference
from selfattn.reference.axes import aligned, per_head, summed_over_groups, summed_to
from selfattn.reference.backward import sum_by_head
from selfattn.reference.dropout import dropout_factor
from selfattn.reference.scores import factor
from support.arrays import same_bits
from support.compare import UNIT, assert_close, rounded_by_options, unit_roundoff
from support.gradients import backward, expected, wanted_grads
from support.option_arrays import described

DOT, SUM = 3, 3
FROM_LSE = 512  # up to here the weights come from lse


def finite(x):
    """In float64, 0 where x is not finite: what attends to that is no number, and has no bound."""
    return np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


class Weights:
    """Those of aligned queries and keys, and the parts of themselves that they move by."""

    def __init__(self, q, k, **options):
        self.score_size = abs(factor(q, options.get("scale"))) * np.abs(q) @ across(np.abs(k))
        self.p = reference.attention_weights(q, k, **options)
        _, lse = reference.scaled_dot_product_attention(q, k, k, return_lse=True, **options)
        lse = lse[..., None]
        d = DOT * self.score_size + rounded_by_options(q, k, **options) - 2 * np.log(self.p)
        self.d = np.where(self.p > 0, d, 0.0)
        self.total_d = (self.p * self.d).sum(-1, keepdims=True)
        if options.get("sinks") is not None:
            sink, is_padding = per_head(options["sinks"], self.p), lse == -np.inf
            lse = np.where(is_padding, 0.0, lse)
            self.sink_p = np.where(is_padding, 0.0, np.exp(sink - lse))
            sink_d = 2 * (np.abs(sink) + np.abs(sink - lse))
            self.total_d += np.where(self.sink_p > 0, self.sink_p * sink_d, 0.0)
            self.sink_moved = sink_d + self.total_d + 4 + 3 * np.abs(lse)
        of_lse = np.where(np.abs(lse) <= FROM_LSE, 3 * np.abs(lse), 0.0)
        self.moved = self.d + self.total_d + 4 + of_lse


def across(x):
    return x.swapaxes(-1, -2)


@np.errstate(all="ignore")
def gradient_bounds(
    *inputs,
    enable_gqa=False,
    dropout_p=0.0,
    dropout_seed=0,
    sequence=0,
    grad_lse=None,
    **options,
):
    """By how much each gradient may be off, by name, of inputs grad_out, query, key and value.

    Of packed sequences it is one, and which.
    """
    dtype, shapes = inputs[1].dtype, [x.shape for x in inputs[1:]]
    u = unit_roundoff(dtype)
    least = float(np.finfo(dtype).smallest_subnormal) / u
    g, *arrays = map(finite, inputs)
    q, k, v = aligned(*arrays, enable_gqa=enable_gqa)
    scale, softcap = factor(q, options.get("scale")), options.get("softcap", 0.0)
    dropout = dropout_factor(
        (*q.shape[:-1], k.shape[-2]), dropout_p, dropout_seed, sequence=sequence
    )
    w = Weights(q, k, **options)
    moved, kept = np.expm1(u * w.moved) / u, dropout * w.p
    dot = DOT + 2 * (dropout_p > 0)

    out = kept @ v
    out_off = (kept * (w.d + 4)) @ np.abs(v) + w.total_d * np.abs(out)
    delta = (g * out).sum(-1, keepdims=True)
    delta_off = (np.abs(g) * (out_off + DOT * np.abs(out) + least)).sum(-1, keepdims=True)
    dp = dropout * (g @ across(v)) - delta
    dp_off = dot * dropout * (np.abs(g) @ across(np.abs(v))) + delta_off
    if grad_lse is not None:
        of_lse = finite(grad_lse)[..., None]
        dp_off += np.abs(dp)  # before the gradient of lse is added
        dp, delta = dp + of_lse, delta - of_lse
        dp_off += np.abs(dp)
    ds = w.p * dp
    ds_off = (moved + 3) * np.abs(ds) + w.p * dp_off + least * (np.abs(dp) + v.shape[-1] + 1)
    dt, dt_off = ds, ds_off
    if softcap:
        x = scale * (q @ across(k)) / softcap
        t = np.tanh(x)
        bend = 1 - t**2
        t_off = 5 * np.abs(t) + bend * (DOT * w.score_size / softcap + 2 * np.abs(x))
        dt, dt_off = ds * bend, ds_off * bend + np.abs(ds) * (2 * np.abs(t) * t_off + 1)
    # Times the scale, before the sum as in the reference or after it, as in the kernels.
    dt_off = abs(scale) * (dt_off + SUM * np.abs(dt)) + least
    least_of_product = (1 + abs(scale)) * least

    bounds = {
        "query": dt_off @ np.abs(k) + least_of_product * k.shape[-2],
        "key": across(dt_off) @ np.abs(q) + least_of_product * q.shape[-2],
        "value": across((moved + dot + SUM) * kept + least) @ np.abs(g) + least * q.shape[-2],
    }
    for name, shape in zip(bounds, shapes, strict=True):
        bounds[name] = summed_over_groups(bounds[name], shape)
    more = wanted_grads(options)
    for name, wanted in (("attn_mask", "mask_grad"), ("attn_bias", "bias_grad")):
        if more[wanted]:
            bounds[name] = summed_to(ds_off + SUM * np.abs(ds), options[name].shape)
    if more["sinks_grad"]:
        of_row = w.sink_p * ((w.sink_moved + SUM) * np.abs(delta) + delta_off) + least
        bounds["sinks"] = sum_by_head(of_row)
    return {name: u * np.nan_to_num(x, nan=0.0, posinf=np.inf) for name, x in bounds.items()}


def assert_near(got, want, bounds, inputs, context=""):
    """All gradients, by name, within their bounds, of the shapes and dtypes of the inputs."""
    assert got.keys() == want.keys() == bounds.keys(), context
    for name, gradient in got.items():
        dtype = inputs[name].dtype
        assert gradient.dtype == dtype, (name, context)
        assert gradient.shape == inputs[name].shape, (name, context)
        # A float32 mask of a float64 call has its gradient rounded to float32 at the end.
        own = UNIT[dtype] * np.abs(finite(want[name])) + np.finfo(dtype).smallest_subnormal
        assert_close(gradient, want[name], bounds[name] + own, f"gradient of {name}, {context}")


def check_gradients(grad_out, query, key, value, context="", **options):
    """Every gradient that there is, after a forward call, against the reference; returns them."""
    got = backward(grad_out, query, key, value, **options)
    known = {name: x for name, x in options.items() if name != "num_threads"}
    arrays = grad_out, query, key, value
    inputs = {"query": query, "key": key, "value": value} | known
    shapes = f"{query.shape} {key.shape} {value.shape}"
    context = f"{context} {query.dtype} {shapes} {described(options)}"
    want, bounds = expected(*arrays, **known), gradient_bounds(*arrays, **known)
    assert_near(got, want, bounds, inputs, context)
    return got


def check_each_gradient(each_isa, grad_out, query, key, value, context="", **options):
    """All of it under every set of kernels: the first is compared, the others have its bits."""
    arrays, want = (grad_out, query, key, value), None
    for isa in each_isa():
        if want is None:
            want = check_gradients(*arrays, context, **options)
            continue
        for name, x in backward(*arrays, **options).items():
            shapes = f"{query.shape} {key.shape} {value.shape} {described(options)}"
            assert same_bits(x, want[name]), (isa, name, context, query.dtype, shapes)
