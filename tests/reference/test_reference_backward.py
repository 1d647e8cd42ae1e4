"""The reference's gradients against finite differences of its forward pass, and against PyTorch.

The forward pass is compared with plain Python in test_reference.py; here every element of every
gradient is a difference of two of its results, for each option alone; for options together, the
derivative along one random direction of each input, which no wrong element leaves as it is. What
has no derivative, NaN, inf and rows without keys, is in test_reference_backward_nonfinite.py.
"""

import itertools

import numpy as np
import pytest

from selfattn import reference
from selfattn.gradients import AttentionGradients
from support.arrays import normal, one_head, qkv
from support.option_arrays import broadcasts, described, float_mask

STEP = 1e-5  # its square and float64's rounding over it are both near 1e-10


def loss_of(grad_out, query, key, value, options):
    """The number whose gradients are asked for."""
    out = reference.scaled_dot_product_attention(query, key, value, **options)
    return float((grad_out * out).sum())


def packed_loss_of(grad_out, query, key, value, options):
    out = reference.varlen_attention(query, key, value, **options)
    return float((grad_out * out).sum())


def inputs_of(query, key, value, options):
    """What has a gradient, by the names of AttentionGradients."""
    inputs = {"query": query, "key": key, "value": value}
    if options.get("attn_mask") is not None and options["attn_mask"].dtype != bool:
        inputs["attn_mask"] = options["attn_mask"]
    for name in ("attn_bias", "sinks"):
        if options.get(name) is not None:
            inputs[name] = options[name]
    return inputs


def difference(loss, grad_out, inputs, options, name, direction):
    """The derivative of `loss` along `direction` of one input, by central differences."""
    losses = []
    for step in (STEP, -STEP):
        moved = {**inputs, name: inputs[name] + step * direction}
        arrays = [moved.pop(x) for x in ("query", "key", "value")]
        losses.append(loss(grad_out, *arrays, {**options, **moved}))
    return (losses[0] - losses[1]) / (2 * STEP)


def each_difference(loss, grad_out, inputs, options, name):
    want = np.empty(inputs[name].shape)
    for at in np.ndindex(want.shape):
        direction = np.zeros(want.shape)
        direction[at] = 1
        want[at] = difference(loss, grad_out, inputs, options, name, direction)
    return want


def gradients(grad_out, query, key, value, call=None, **options):
    """Those that the reference gives; out and lse, which it does not look at, are None."""
    call = call or reference.scaled_dot_product_attention_backward
    asked = inputs_of(query, key, value, options)
    got = call(
        grad_out, query, key, value, None, None,
        mask_grad="attn_mask" in asked, bias_grad="attn_bias" in asked,
        sinks_grad="sinks" in asked, **options,
    )  # fmt: skip
    assert isinstance(got, AttentionGradients)
    for name, x in got._asdict().items():
        assert (x is not None) == (name in asked), name
        if x is not None:
            assert (x.shape, x.dtype) == (asked[name].shape, asked[name].dtype), name
    return got


def out_shape(query, key, value):
    """Heads of a group are the query's; the rest broadcasts."""
    heads = max(x.shape[-3] if x.ndim > 2 else 1 for x in (query, key, value))
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in (query, key, value)))
    plain_head = () if max(x.ndim for x in (query, key, value)) == 2 else (heads,)
    return (*batch, *plain_head, query.shape[-2], value.shape[-1])


def check_elements(query, key, value, **options):
    """Every element of every gradient."""
    grad_out = normal(*out_shape(query, key, value), dtype=np.float64, seed=9)
    got = gradients(grad_out, query, key, value, **options)
    inputs = inputs_of(query, key, value, options)
    for name in inputs:
        want = each_difference(loss_of, grad_out, inputs, options, name)
        np.testing.assert_allclose(
            getattr(got, name), want, rtol=1e-7, atol=1e-8, err_msg=f"{name} {described(options)}"
        )


def check_directions(query, key, value, loss=loss_of, call=None, shape=None, **options):
    """Along one direction of each input."""
    shape = shape or out_shape(query, key, value)
    grad_out = normal(*shape, dtype=np.float64, seed=9)
    got = gradients(grad_out, query, key, value, call, **options)
    inputs = inputs_of(query, key, value, options)
    for name, x in inputs.items():
        direction = normal(*x.shape, dtype=np.float64, seed=10)
        want = difference(loss, grad_out, inputs, options, name, direction)
        along = float((getattr(got, name) * direction).sum())
        assert along == pytest.approx(want, rel=1e-7, abs=1e-7), (name, described(options))


IDS = np.array([0, 1, 1, 2]), np.array([1, 0, 1, 2, 2])
ALONE = {
    "nothing": {},
    "scale": {"scale": 1.7},
    "scale 0": {"scale": 0.0},
    "scale below 0": {"scale": -0.6},
    "causal": {"is_causal": True},
    "offset": {"is_causal": True, "query_offset": -1},
    "offsets": {"is_causal": True, "query_offset": np.array([2, -2])},
    "window": {"window_size": (1, 2)},
    "lengths": {"kv_lengths": np.array([3, 0])},
    "segments": {"segment_ids": IDS},
    "bool mask": {"attn_mask": normal(2, 4, 4, 5) > -0.3},
    "float mask": {"attn_mask": float_mask(2, 4, 4, 5, dtype=np.float64)},
    "bias": {
        "attn_mask": normal(2, 1, 1, 5) > -0.3,
        "attn_bias": float_mask(4, 4, 5, dtype=np.float64),
    },
    "bias and float mask": {
        "attn_mask": normal(2, 1, 1, 5, dtype=np.float64),
        "attn_bias": float_mask(4, 4, 5, dtype=np.float64),
    },
    "padding": {
        "query_lengths": np.array([2, 4]),
        "kv_starts": np.array([1, 3]),
        "sinks": normal(4, dtype=np.float64),
    },
    "softcap": {"softcap": 0.8},
    "slopes": {"alibi_slopes": normal(2, 4, dtype=np.float64)},
    "sinks": {"sinks": normal(4, dtype=np.float64)},
    "dropout": {"dropout_p": 0.4, "dropout_seed": 5},
    "dropout 1": {"dropout_p": 1.0},
}


@pytest.mark.parametrize("options", ALONE.values(), ids=ALONE.keys())
def test_each_option_alone(options):
    """Fault 7: a row without keys, which some of these have, has gradients that are numbers."""
    query, key, value = qkv((2, 4, 4, 3), 2, 5, 2, dtype=np.float64)
    check_elements(query, key, value, enable_gqa=True, **options)


@pytest.mark.parametrize("kind", [None, "bool", "float"])
def test_every_combination(kind):
    """Each option with every other; scores are large enough that the order of options counts."""
    query, key, value = qkv((2, 4, 4, 3), 2, 5, 2, dtype=np.float64)
    query *= 2
    masks = {None: None, "bool": ALONE["bool mask"], "float": ALONE["float mask"]}
    ranges = {
        "is_causal": True,
        "query_offset": np.array([2, 1]),
        "window_size": (2, 1),
        "kv_lengths": np.array([5, 3]),
    }
    for softcap, slopes, sinks, ids, dropout, limits in itertools.product(
        (0.0, 1.5),
        (None, ALONE["slopes"]["alibi_slopes"]),
        (None, ALONE["sinks"]["sinks"]),
        (None, (IDS[0] > 0, IDS[1] > 0)),
        ({}, {"dropout_p": 0.3, "dropout_seed": -7}),
        ({}, ranges),
    ):
        check_directions(
            query, key, value, enable_gqa=True, softcap=softcap, alibi_slopes=slopes,
            sinks=sinks, segment_ids=ids, **(masks[kind] or {}), **dropout, **limits,
        )  # fmt: skip


def test_masks_of_every_shape():
    """The gradient of a mask is summed over whichever of its axes are 1 or missing."""
    query, key, value = qkv((2, 4, 3, 3), 2, 5, 2, dtype=np.float64)
    for shape in broadcasts((2, 4, 3, 5)):
        attn_mask = float_mask(*shape, dtype=np.float64)
        options = {"enable_gqa": True, "softcap": 2.0, "is_causal": True, "query_offset": 1}
        check_directions(query, key, value, attn_mask=attn_mask, **options)
    for shape in [(1, 1, 1, 5), (3, 1), (), (2, 1, 3, 1), (4, 1, 5)]:
        attn_mask = normal(*shape, dtype=np.float64)
        check_elements(query, key, value, attn_mask=attn_mask, enable_gqa=True)


SHAPES = {
    "2-D": [(3, 2), (5, 2), (5, 4)],
    "one of them 2-D": [(3, 3, 2), (5, 2), (3, 5, 4)],
    "3-D": [(4, 3, 2), (4, 5, 2), (4, 5, 4)],
    "groups": [(6, 3, 2), (2, 5, 2), (2, 5, 4)],
    "groups of different sizes": [(6, 3, 2), (2, 5, 2), (3, 5, 4)],
    "one key head": [(2, 6, 3, 2), (2, 1, 5, 2), (2, 1, 5, 4)],
    "one query head": [(2, 1, 3, 2), (2, 6, 5, 2), (2, 6, 5, 4)],
    "keys shared by the batch": [(3, 4, 3, 2), (1, 2, 5, 2), (2, 5, 4)],
    "queries shared by the batch": [(1, 4, 3, 2), (3, 2, 5, 2), (2, 5, 4)],
    "a batch of values alone": [(4, 3, 2), (4, 5, 2), (2, 3, 4, 5, 4)],
    "two batch axes": [(2, 1, 4, 3, 2), (3, 2, 5, 2), (1, 3, 2, 5, 4)],
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(shapes):
    """A gradient is summed over the batch axes, heads and groups that its input serves."""
    query, key, value = (
        normal(*shape, dtype=np.float64, seed=n) for n, shape in enumerate(shapes)
    )  # fmt: skip
    heads = max(x.shape[-3] if x.ndim > 2 else 1 for x in (query, key, value))
    more = {
        "enable_gqa": True,
        "sinks": normal(heads, dtype=np.float64),
        "alibi_slopes": normal(heads, dtype=np.float64),
        "dropout_p": 0.3,
        "dropout_seed": 2**63,
    }
    check_elements(query, key, value, attn_mask=normal(3, 5, dtype=np.float64), **more)


def test_rounded_once():
    """float32 inputs: computed as in float64, then rounded to each input's own dtype."""
    query, key, value = qkv((2, 4, 4, 3), 2, 5, 2)
    grad_out, attn_mask = normal(2, 4, 4, 2), normal(4, 5)
    options = {"enable_gqa": True, "softcap": 2.0}
    got = gradients(grad_out, query, key, value, attn_mask=attn_mask, **options)
    wide = [x.astype(np.float64) for x in (grad_out, query, key, value)]
    want = gradients(*wide, attn_mask=attn_mask.astype(np.float64), **options)
    for x, wanted in zip(got[:4], want[:4], strict=True):
        assert np.array_equal(x, wanted.astype(np.float32))
    mixed = gradients(*wide, attn_mask=attn_mask, **options)
    assert np.array_equal(mixed.attn_mask, got.attn_mask)


# ------------------------------------------------------------------ packed sequences


CU_Q, CU_K = np.array([0, 2, 5, 5, 6, 6, 9]), np.array([0, 4, 6, 9, 9, 9, 14])


def packed_options(per_sequence):
    options = {
        "cu_seqlens_q": CU_Q,
        "cu_seqlens_k": CU_K,
        "enable_gqa": True,
        "is_causal": True,
        "softcap": 2.0,
        "sinks": normal(4, dtype=np.float64),
        "alibi_slopes": normal(*((6,) if per_sequence else ()), 4, dtype=np.float64),
        "segment_ids": (normal(9) > -1, normal(14) > -1),
    }
    if per_sequence:
        options["query_offset"] = np.array([1, 0, 2, 5, -1, 3])
        options["kv_lengths"] = np.array([3, 2, 1, 0, 0, 5])
    return options


def packed_inputs():
    return normal(9, 4, 3, dtype=np.float64), *(
        normal(14, 2, n, dtype=np.float64, seed=n) for n in (3, 5)
    )


@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_varlen(per_sequence, dropout_p):
    """Sequences of no query, of no key, of neither; masks of every shape."""
    query, key, value = packed_inputs()
    options = {**packed_options(per_sequence), "dropout_p": dropout_p, "dropout_seed": 3}
    masks = [None, normal(4, 9, 5) > -0.5]
    masks += [float_mask(*shape, dtype=np.float64) for shape in broadcasts((4, 9, 5))]
    for attn_mask in masks:
        check_directions(
            query, key, value, packed_loss_of, reference.varlen_attention_backward, (9, 4, 5),
            attn_mask=attn_mask, **options,
        )  # fmt: skip


def test_varlen_is_a_call_for_each_sequence():
    """Not by differences: to a few roundings of sums over the same numbers."""
    query, key, value = packed_inputs()
    options, grad_out = packed_options(True), normal(9, 4, 5, dtype=np.float64)
    attn_mask = float_mask(4, 9, 5, dtype=np.float64)
    got = gradients(
        grad_out, query, key, value, reference.varlen_attention_backward,
        attn_mask=attn_mask, **options,
    )  # fmt: skip
    want = [np.zeros(x.shape) for x in got]
    for b in range(6):
        q, k = slice(*CU_Q[b : b + 2]), slice(*CU_K[b : b + 2])
        count = k.stop - k.start
        one = gradients(
            *(x.swapaxes(0, 1) for x in (grad_out[q], query[q], key[k], value[k])),
            attn_mask=attn_mask[:, q, :count],
            query_offset=options["query_offset"][b],
            kv_lengths=options["kv_lengths"][b],
            alibi_slopes=options["alibi_slopes"][b],
            segment_ids=(options["segment_ids"][0][q], options["segment_ids"][1][k]),
            sinks=options["sinks"], enable_gqa=True, is_causal=True, softcap=2.0,
        )  # fmt: skip
        for x, part, at in zip(want[:3], one[:3], (q, k, k), strict=True):
            x[at] = part.swapaxes(0, 1)
        want[3][:, q, :count] = one.attn_mask
        want[4] += one.sinks
    for x, wanted in zip(got, want, strict=True):
        np.testing.assert_allclose(x, wanted, rtol=1e-12, atol=1e-13)


def test_varlen_of_nothing():
    """No sequence at all, and only empty ones: gradients of the inputs' shapes, of zeros."""
    for cu in ([0], [0, 0, 0]):
        query, key, value = (normal(0, heads, 3) for heads in (4, 2, 2))
        got = gradients(
            query, query, key, value, reference.varlen_attention_backward, enable_gqa=True,
            cu_seqlens_q=cu, cu_seqlens_k=cu, attn_mask=normal(4, 1, 1)[:, :, :0],
            sinks=normal(4),
        )  # fmt: skip
        assert (got.sinks == 0).all()


# ------------------------------------------------------------------ PyTorch's autograd


def by_torch(torch, grad_out, query, key, value, *, attn_mask=None, sinks=None, **options):
    """Gradients by autograd through the formula, written once more in torch's operations.

    What is seen comes as `seen`, slopes times distances as `bias`, the factor of dropout as `kept`.
    """
    leaves = [torch.from_numpy(x).requires_grad_() for x in (query, key, value)]
    groups = query.shape[-3] // key.shape[-3]
    q, k, v = leaves[0], *(x.repeat_interleave(groups, -3) for x in leaves[1:])
    scores = options["scale"] * (q @ k.transpose(-1, -2))
    if options.get("softcap"):
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    if "bias" in options:
        scores = scores - torch.from_numpy(options["bias"])
    if attn_mask is not None:
        leaves.append(torch.from_numpy(attn_mask).requires_grad_())
        scores = scores + leaves[-1]
    scores = scores.masked_fill(torch.from_numpy(~options["seen"]), -torch.inf)
    columns = [scores]
    if sinks is not None:
        leaves.append(torch.from_numpy(sinks).requires_grad_())
        columns.append(leaves[-1][:, None, None].expand(*scores.shape[:-1], 1))
    weights = torch.softmax(torch.cat(columns, -1), -1)[..., : scores.shape[-1]]
    out = (weights * torch.from_numpy(options["kept"])) @ v
    return [x.numpy() for x in torch.autograd.grad(out, leaves, torch.from_numpy(grad_out))]


def test_against_torch():
    """Everything together and apart, at sizes where differences would be slow."""
    torch = pytest.importorskip("torch")
    query, key, value = qkv((2, 6, 17, 8), 2, 23, 5, dtype=np.float64)
    grad_out = normal(2, 6, 17, 5, dtype=np.float64)
    position, j = np.arange(17)[:, None] + 4, np.arange(23)
    distance = np.abs(position - j)
    slopes, sinks = normal(6, dtype=np.float64), normal(6, dtype=np.float64)
    kept = reference.dropout_kept((2, 6, 17, 23), 0.25, 11) / 0.75
    for softcap, sloped, mask_shape, with_sinks, ranged, dropped in itertools.product(
        (0.0, 1.5), (False, True), (None, (2, 6, 17, 23), (6, 1, 23), (17, 1)), (False, True),
        (False, True), (False, True),
    ):  # fmt: skip
        attn_mask = None if mask_shape is None else normal(*mask_shape, dtype=np.float64)
        chosen = {"scale": 0.4, "softcap": softcap, "attn_mask": attn_mask}
        chosen["sinks"] = sinks if with_sinks else None
        mine, torchs = {"query_offset": 4}, {"seen": np.ones((17, 23), bool), "kept": np.ones(1)}
        if sloped:
            mine["alibi_slopes"], torchs["bias"] = slopes, slopes[:, None, None] * distance
        if ranged:
            mine |= {"is_causal": True, "window_size": (9, -1)}
            torchs["seen"] = (j <= position) & (j >= position - 9)
        if dropped:
            mine |= {"dropout_p": 0.25, "dropout_seed": 11}
            torchs["kept"] = kept
        got = gradients(grad_out, query, key, value, enable_gqa=True, **chosen, **mine)
        got = [x for x in got if x is not None]
        want = by_torch(torch, grad_out, query, key, value, **chosen, **torchs)
        for x, wanted in zip(got, want, strict=True):
            np.testing.assert_allclose(x, wanted, rtol=1e-11, atol=1e-12)


def test_against_torchs_own_attention():
    """torch's function itself, with what it knows: a mask, causal, groups."""
    torch = pytest.importorskip("torch")
    call = torch.nn.functional.scaled_dot_product_attention
    query, key, value = qkv((2, 6, 9, 8), 2, 11, dtype=np.float64)
    grad_out, bias = normal(2, 6, 9, 8, dtype=np.float64), normal(2, 6, 9, 11, dtype=np.float64)
    bias[..., 0] = np.abs(bias[..., 0])  # no row is wholly masked
    for attn_mask in (None, bias, bias > 0, np.where(bias > 0, bias, -np.inf)):
        for causal in (False, True) if attn_mask is None else (False,):
            leaves = [torch.from_numpy(x).requires_grad_() for x in (query, key, value)]
            mask = None if attn_mask is None else torch.from_numpy(attn_mask)
            out = call(*leaves, mask, is_causal=causal, enable_gqa=True)
            want = torch.autograd.grad(out, leaves, torch.from_numpy(grad_out))
            got = gradients(
                grad_out, query, key, value, attn_mask=attn_mask, is_causal=causal, enable_gqa=True
            )
            for x, wanted in zip(got[:3], want, strict=True):
                np.testing.assert_allclose(x, wanted.numpy(), rtol=1e-11, atol=1e-12)


def test_one_key():
    """By hand. Alone it has all the weight, and only its value a gradient; beside a sink it has
    the sigmoid p of t - sink, whose derivative is p (1 - p).
    """
    query, key, value = one_head(1, 1, 1, dtype=np.float64)
    q, k, v = (x.item() for x in (query, key, value))
    got = gradients(np.array([[2.0]]), query, key, value, scale=1.0)
    assert [x.item() for x in got[:3]] == [0, 0, 2]
    got = gradients(
        np.array([[2.0]]), query, key, value, scale=1.0, sinks=np.array([0.5]),
        attn_mask=np.array([[0.25]]),
    )  # fmt: skip
    p = 1 / (1 + np.exp(0.5 - q * k - 0.25))
    slope = 2 * v * p * (1 - p)
    for x, wanted in zip(got, (slope * k, slope * q, 2 * p, slope, -slope), strict=True):
        assert x.item() == pytest.approx(wanted, rel=1e-13)
