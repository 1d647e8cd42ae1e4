"""ONNX.md: its code, as it stands there, is ONNX's Attention, by the onnx package's own reference.

The reference evaluator runs on the inputs in float64, and what the page returns in either dtype may
be as far from that as compare.py says. In three places the evaluator of onnx 1.23 is not what
the operator's text and its function body (onnx/defs/nn) say, and the tests ask for the latter:

- mode 0 is the product before the softcap; the evaluator returns it after;
- in opset 23 a mask's last axis of 1 broadcasts; the evaluator fills it up with -inf, as the
  opsets from 24 on do;
- is_causal counts all L queries; the evaluator counts the rows of the mask: where that has 1, all
  queries see what the first does, and where it has no such axis, there is an error.
"""

import ast
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

import selfattn
from support.arrays import normal, qkv, same_bits
from support.compare import assert_close, largest, score_size, unit_roundoff

onnx = pytest.importorskip("onnx", minversion="1.23")  # the first with all of today's meanings
evaluator = pytest.importorskip("onnx.reference")

PAGE = Path(__file__).parents[2] / "ONNX.md"
INPUTS = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
OUTPUTS = ("Y", "present_key", "present_value", "qk_matmul_output")
OPSETS = (23, 24, 25)


def code():
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 1
    return blocks[0]


@pytest.fixture(scope="module")
def attention():
    namespace = {}
    exec(compile(code(), str(PAGE), "exec"), namespace)
    return namespace["attention"]


# ------------------------------------------------------------------ the operator, by the package


def evaluate(opset, inputs, attributes):
    """The outputs by the package's evaluator, in float64 throughout.

    That is why Q comes scaled: of a `scale` the evaluator takes the root in float32.
    """
    scale = attributes.get("scale")
    inputs = {
        name: x.astype(np.float64) if x.dtype.kind == "f" else x for name, x in inputs.items()
    }
    if scale is not None:
        inputs["Q"] = inputs["Q"] * scale
        attributes = attributes | {"scale": 1.0}
    node = onnx.helper.make_node(
        "Attention", [name if name in inputs else "" for name in INPUTS], OUTPUTS, **attributes
    )
    types = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape
        )
        for name, x in inputs.items()
    ]
    wanted = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in OUTPUTS
    ]
    graph = onnx.helper.make_graph([node], "attention", types, wanted)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return evaluator.ReferenceEvaluator(model).run(None, inputs)


def expected(opset, inputs, attributes):
    """The outputs by the operator's text."""
    if "attn_mask" in inputs:
        mask = inputs["attn_mask"]
        axis = 1 if inputs["Q"].ndim == 3 else 2
        rows, columns = inputs["Q"].shape[axis], mask.shape[-1]
        if opset == 23 and columns == 1:
            past = inputs["past_key"].shape[2] if "past_key" in inputs else 0
            columns = past + inputs["K"].shape[axis]
        mask = np.broadcast_to(mask, (*mask.shape[:-2], rows, columns))
        inputs = inputs | {"attn_mask": mask}
    outputs = evaluate(opset, inputs, attributes)
    if attributes.get("softcap") and not attributes.get("qk_matmul_output_mode"):
        outputs[3] = evaluate(opset, inputs, attributes | {"softcap": 0.0})[3]
    return outputs


def check(attention, opset, inputs, attributes):
    """All that the page returns against the operator."""
    context = f"opset {opset} {attributes} " + str({k: x.shape for k, x in inputs.items()})
    want = expected(opset, inputs, attributes)
    got = attention(**inputs, **attributes, qk_matmul_output=True, opset=opset)
    query, value = inputs["Q"], want[2]
    dtype = query.dtype
    for name, x in zip(OUTPUTS, got, strict=True):
        assert x.dtype == dtype, (name, context)
    for n in (1, 2):
        assert same_bits(np.ascontiguousarray(got[n]), want[n].astype(dtype)), (OUTPUTS[n], context)

    heads = attributes.get("q_num_heads", query.shape[1])
    if query.ndim == 3:
        query = query.reshape(*query.shape[:2], heads, -1).swapaxes(1, 2)
    size = score_size(query, want[1].astype(dtype), attributes.get("scale"))
    moved, average = moves(size, inputs.get("attn_mask"), attributes.get("softcap"), value.shape[2])
    u = unit_roundoff(dtype)
    plain_sum = value.shape[2] / 4 if dtype == np.float64 else 0
    bound = u * (8 + 3 * size + plain_sum + 2 * average) * largest(value)
    assert_close(got[0], want[0], bound, f"Y {context}")
    least = float(np.finfo(dtype).smallest_subnormal)
    if attributes.get("qk_matmul_output_mode") == 3:
        part = 8 * (1 + size) + moved + average - 3 * np.log(np.where(want[3] > 0, want[3], 1.0))
        bound = u * part * want[3] + least
    else:
        bound = u * (3 * size + moved) + least * (1 + query.shape[3] * (1 + largest(want[1])))
    assert_close(got[3], want[3], bound, f"qk_matmul_output {context}")

    without = attention(**inputs, **attributes, opset=opset)
    assert without[3] is None, context
    assert all(same_bits(a, b) for a, b in zip(without[:3], got[:3], strict=True)), context


def moves(size, mask, softcap, seqlen_k):
    """d and e of compare.py, in u, for scores up to `size`: the largest that they can be.

    An average of -log w over the weights w is at most the log of their number.
    """
    moved = 6 * min(size, softcap) if softcap else 0.0
    if mask is not None and mask.dtype != bool:
        moved += size + largest(mask[mask != -np.inf])
    return moved, moved + 3 * math.log(max(seqlen_k, 1)) if moved else 0.0


# ------------------------------------------------------------------ the page


def test_the_page_is_a_page_of_public_functions():
    text = code()
    assert len(text.splitlines()) <= 90
    used = {
        node.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "selfattn"
    }
    assert used == {"scaled_dot_product_attention", "scaled_dot_product", "attention_weights"}
    assert used <= set(selfattn.__all__)
    assert "import" not in text.replace("import numpy as np\nimport selfattn\n", "")


@pytest.mark.parametrize("opset", OPSETS)
def test_the_page_has_the_operators_names(attention, opset):
    schema = onnx.defs.get_schema("Attention", opset)
    names = set(attention.__kwdefaults__) | set(attention.__code__.co_varnames[: len(INPUTS)])
    assert {x.name for x in schema.inputs} | set(schema.attributes) <= names
    assert [x.name for x in schema.outputs] == list(OUTPUTS)
    for name, attribute in schema.attributes.items():
        if attribute.default_value.name:
            value = onnx.helper.get_attribute_value(attribute.default_value)
            assert attention.__kwdefaults__[name] == value, name


# ------------------------------------------------------------------ every option

BATCH, PAST = 3, 4
MASK_SHAPES = [
    lambda b, h, q, k: (b, h, q, k),
    lambda b, h, q, k: (b, 1, q, k),
    lambda b, h, q, k: (1, h, 1, k),
    lambda b, h, q, k: (h, q, k),
    lambda b, h, q, k: (1, q, k),
    lambda b, h, q, k: (q, k),
    lambda b, h, q, k: (1, k),
    lambda b, h, q, k: (k,),
]


def draw_mask(rng, kind, shape, dtype):
    """Some of it masked, a row of it wholly, where it has rows."""
    keep = rng.random(shape) < 0.7
    if len(shape) > 1 and shape[-2] > 1:
        keep[..., 1, :] = False
    if kind == "bool":
        return keep
    return np.where(keep, rng.standard_normal(shape).astype(dtype), dtype(-np.inf))


def random_case(rng, opset, rank, dtype, mask_kind, cache, mode, causal, softcap):
    """Inputs and attributes: what is not given is random."""
    heads_kv = int(rng.choice([1, 2, 3]))
    heads = heads_kv * int(rng.choice([1, 2]))
    seqlen_q, seqlen_k = int(rng.integers(2, 6)), int(rng.integers(2, 8))
    head_dim, head_dim_v = int(rng.choice([1, 4, 9])), int(rng.choice([1, 4, 6]))

    def array(n, rows, width, of_rank=4):
        shape = (BATCH, n, rows, width) if of_rank == 4 else (BATCH, rows, n * width)
        return rng.standard_normal(shape).astype(dtype)

    inputs = {
        "Q": array(heads, seqlen_q, head_dim, rank),
        "K": array(heads_kv, seqlen_k, head_dim, rank),
        "V": array(heads_kv, seqlen_k, head_dim_v, rank),
    }
    attributes = {"qk_matmul_output_mode": mode, "is_causal": causal, "softcap": softcap}
    total, columns = seqlen_k, seqlen_k
    if cache == "past":
        total = columns = seqlen_k + PAST
        inputs["past_key"] = array(heads_kv, PAST, head_dim)
        inputs["past_value"] = array(heads_kv, PAST, head_dim_v)
    elif cache == "nonpad":
        lengths = rng.integers(0, seqlen_k + 1, BATCH)
        inputs["nonpad_kv_seqlen"] = lengths
        columns = int(rng.integers(max(1, lengths.max()), total + 1))
    if opset >= 24 and rng.random() < 0.3:
        columns = int(rng.integers(1, total + 1))
    if mask_kind:
        shape = MASK_SHAPES[rng.integers(len(MASK_SHAPES))](BATCH, heads, seqlen_q, columns)
        inputs["attn_mask"] = draw_mask(rng, mask_kind, shape, dtype)
    if rank == 3:
        attributes |= {"q_num_heads": heads, "kv_num_heads": heads_kv}
    if rng.random() < 0.5:
        attributes["scale"] = float(np.float32(rng.choice([0.0, 0.3, 2.0])))
    if opset >= 25 and rng.random() < 0.7:
        attributes["left_window_size"] = int(rng.integers(-1, 4))
        attributes["right_window_size"] = int(rng.integers(-1, 4))
    return inputs, attributes


@pytest.mark.parametrize("mode", range(4))
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("opset", OPSETS)
def test_options(attention, opset, rank, mode, dtype):
    """Each cache, mask, causal or not, softcap or not; with it any scale, window, heads, shapes."""
    rng = np.random.default_rng((opset, rank, mode))
    caches = [None, "past"] if opset == 23 else [None, "past", "nonpad"]
    for cache, mask, causal, softcap in itertools.product(
        caches, [None, "bool", "float"], [0, 1], [0.0, 0.75]
    ):
        for _ in range(2):
            case = random_case(rng, opset, rank, dtype, mask, cache, mode, causal, softcap)
            check(attention, opset, *case)


@pytest.mark.parametrize("precision", ["FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"])
@pytest.mark.parametrize("opset", OPSETS)
def test_softmax_precision(attention, opset, precision, dtype):
    """It is accepted, and changes no bit."""
    rng = np.random.default_rng(opset)
    inputs, attributes = random_case(rng, opset, 4, dtype, "bool", None, 3, 0, 0.0)
    number = getattr(onnx.TensorProto, precision)
    want = attention(**inputs, **attributes, qk_matmul_output=True, opset=opset)
    attributes["softmax_precision"] = number
    got = attention(**inputs, **attributes, qk_matmul_output=True, opset=opset)
    assert same_bits(got, want)
    if precision == "DOUBLE":
        check(attention, opset, inputs, attributes)


@pytest.mark.parametrize("opset", OPSETS)
def test_a_mask_of_one_column(attention, opset, dtype):
    """It broadcasts in opset 23, and is filled up with "masked" from 24 on."""
    rng = np.random.default_rng(0)
    inputs, attributes = random_case(rng, opset, 4, dtype, None, None, 2, 0, 0.0)
    rows = inputs["Q"].shape[2]
    for mask in (np.arange(rows)[:, None] > 0, normal(rows, 1, dtype=dtype)):
        check(attention, opset, inputs | {"attn_mask": mask}, attributes)


@pytest.mark.parametrize("opset", OPSETS)
def test_a_mask_of_nothing_but_the_least_number(attention, opset, dtype):
    """Fault 2: it is a number, in which every score is lost: the row attends to all keys alike."""
    inputs = dict(zip("QKV", qkv((2, 2, 3, 4), seqlen_k=7, dtype=dtype), strict=True))
    inputs["attn_mask"] = np.full((1, 7), np.finfo(dtype).min, dtype)
    options = {"qk_matmul_output": True, "opset": opset}
    out, _, _, scores = attention(**inputs, qk_matmul_output_mode=2, **options)
    assert (scores == np.finfo(dtype).min).all()
    _, _, _, weights = attention(**inputs, qk_matmul_output_mode=3, **options)
    assert_close(weights, np.full(weights.shape, 1 / 7), unit_roundoff(dtype))
    mean = inputs["V"].mean(2, keepdims=True, dtype=np.float64)
    bound = unit_roundoff(dtype) * (8 + 7 / 4) * largest(inputs["V"])
    assert_close(out, np.broadcast_to(mean, out.shape), bound)


def test_fully_masked_rows(attention, dtype):
    """Fault 1: 0 in Y and in mode 3, -inf in mode 2, for every way to mask a row."""
    inputs, attributes = random_case(np.random.default_rng(2), 25, 4, dtype, None, None, 0, 1, 0.0)
    rows, seqlen_k = inputs["Q"].shape[2], inputs["K"].shape[2]
    nothing = np.zeros((rows, seqlen_k), bool)
    for given in (
        {"attn_mask": nothing},
        {"attn_mask": np.where(nothing, dtype(0), dtype(-np.inf))},
        {"nonpad_kv_seqlen": np.zeros(BATCH, np.int64)},
        {"nonpad_kv_seqlen": np.zeros(BATCH, np.int64), "is_causal": 0},
    ):
        for mode, inside in ((2, -np.inf), (3, 0.0)):
            options = inputs | attributes | given | {"qk_matmul_output_mode": mode}
            out, _, _, qk = attention(**options, qk_matmul_output=True)
            assert not out.any(), given
            assert (qk == inside).all(), given


def test_padding_may_hold_anything(attention, dtype):
    """Fault 5: NaN and inf in a cache past its length change no bit; in ONNX's formula they do."""
    rng = np.random.default_rng(3)
    for causal, softcap in itertools.product([0, 1], [0.0, 0.75]):
        inputs, attributes = random_case(rng, 25, 4, dtype, "bool", "nonpad", 3, causal, softcap)
        want = attention(**inputs, **attributes, qk_matmul_output=True)
        past_length = np.arange(inputs["K"].shape[2]) >= inputs["nonpad_kv_seqlen"][:, None]
        assert past_length.any()
        for poison in (np.nan, np.inf, -np.inf):
            spoiled = inputs | {
                name: np.where(past_length[:, None, :, None], dtype(poison), inputs[name])
                for name in "KV"
            }
            got = attention(**spoiled, **attributes, qk_matmul_output=True)
            assert same_bits((got[0], got[3]), (want[0], want[3]))


def test_hidden_inputs_are_not_copied(attention, dtype):
    """(batch, rows, heads * width) is read and written in place: views of it all the way."""
    Q, K, V = (normal(2, 5, 12, dtype=dtype, seed=n) for n in range(3))
    Y, present_key, present_value, _ = attention(Q, K, V, q_num_heads=3, kv_num_heads=3)
    assert np.shares_memory(present_key, K)
    assert np.shares_memory(present_value, V)
    assert Y.flags.c_contiguous
    assert Y.base is not None


@pytest.mark.parametrize("opset", OPSETS)
def test_empty_axes(attention, opset, dtype):
    """Fault 9: no batch, no query, no key, no width of a value."""
    for shape_q, shape_k, width in (
        ((0, 2, 3, 4), (0, 2, 5, 4), 4),
        ((2, 2, 0, 4), (2, 2, 5, 4), 4),
        ((2, 2, 3, 4), (2, 2, 0, 4), 4),
        ((2, 2, 3, 4), (2, 2, 5, 4), 0),
    ):
        query, key = normal(*shape_q, dtype=dtype), normal(*shape_k, dtype=dtype)
        value = normal(*shape_k[:3], width, dtype=dtype)
        Y, _, _, qk = attention(query, key, value, qk_matmul_output=True, opset=opset)
        assert Y.shape == (*shape_q[:3], width)
        assert not Y.any() or shape_k[2]
        assert qk.shape == (*shape_q[:3], shape_k[2])
        hidden = [
            x.swapaxes(1, 2).reshape(len(x), x.shape[2], 2 * x.shape[3])
            for x in (query, key, value)
        ]
        Y, *_ = attention(*hidden, q_num_heads=2, kv_num_heads=2, opset=opset)
        assert Y.shape == (shape_q[0], shape_q[2], 2 * width)


def test_the_order_before_release_1_22(attention, dtype):
    """What the page says of a runtime that caps after the mask: here written out in NumPy."""
    rng = np.random.default_rng(4)
    softcap = 0.75
    for causal in (False, True):
        inputs, _ = random_case(rng, 24, 4, dtype, "float", None, 0, 0, 0.0)
        query, key, value, mask = (inputs[name] for name in ("Q", "K", "V", "attn_mask"))
        masked = {"attn_mask": mask, "is_causal": causal, "enable_gqa": True}
        weights = selfattn.softmax(
            softcap * np.tanh(selfattn.scaled_dot_product(query, key, **masked) / softcap)
        )
        got = selfattn.weighted_sum(weights, value, enable_gqa=True)

        q, k, v = (x.astype(np.float64) for x in (query, key, value))
        group = q.shape[1] // k.shape[1]
        scores = q @ np.repeat(k, group, 1).swapaxes(2, 3) / np.sqrt(q.shape[3]) + mask
        if causal:
            scores[..., ~np.tri(*scores.shape[2:], dtype=bool)] = -np.inf
        shares = np.exp(softcap * np.tanh(scores / softcap))
        assert (shares > 0).all()  # no key is masked any more
        want = shares / shares.sum(-1, keepdims=True) @ np.repeat(v, group, 1)
        size = score_size(query, key)
        _, average = moves(size, mask, softcap, value.shape[2])
        # One unit more for NumPy's tanh, which may be off by two last places.
        units = 9 + 3 * size + value.shape[2] / 4 + 2 * average
        bound = unit_roundoff(dtype) * units * largest(value)
        assert_close(got, want, bound)


# ------------------------------------------------------------------ the package's own cases


@pytest.fixture
def cases(monkeypatch):
    """The operator's backend tests: (opset, inputs, attributes, outputs) of each."""
    module = pytest.importorskip("onnx.backend.test.case.node.attention")
    recorded = []

    def expect(node, inputs, outputs, name, opset_imports):
        names = [name for name in node.input if name]
        attributes = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
        given = dict(zip(names, inputs, strict=True))
        theirs = {
            OUTPUTS[list(node.output).index(name)]: x
            for name, x in zip([name for name in node.output if name], outputs, strict=True)
        }
        recorded.append((opset_imports[0].version, given, attributes, theirs))

    monkeypatch.setattr(module, "expect", expect)
    state = np.random.get_state()  # noqa: NPY002 (theirs)
    for name, export in vars(module.Attention).items():
        if name.startswith("export"):
            export.__func__()
    np.random.set_state(state)  # noqa: NPY002
    return recorded


def test_the_packages_own_cases(attention, cases):
    """Shapes and options that the authors of the operator thought worth a test."""
    cases = [case for case in cases if case[1]["Q"].dtype in (np.float32, np.float64)]
    assert len(cases) >= 80
    for opset, inputs, attributes, _ in cases:
        check(attention, opset, inputs, attributes)


def test_the_packages_own_cases_in_half_types(attention, cases):
    """The result of float32, which is checked as above, rounded once; near what they expect.

    Theirs is rounded at every step, to a few last places of the largest number.
    """
    cases = [case for case in cases if case[1]["Q"].dtype.itemsize == 2]
    assert {case[1]["Q"].dtype.name for case in cases} == {"float16", "bfloat16"}
    assert len(cases) >= 10
    for opset, inputs, attributes, theirs in cases:
        dtype = inputs["Q"].dtype
        wide = {name: x.astype(np.float32) if x.dtype == dtype else x for name, x in inputs.items()}
        check(attention, opset, wide, attributes)
        arguments = {**attributes, "qk_matmul_output": True, "opset": opset}
        got = dict(zip(OUTPUTS, attention(**inputs, **arguments), strict=True))
        want = dict(zip(OUTPUTS, attention(**wide, **arguments), strict=True))
        unit = 2.0**-11 if dtype == np.float16 else 2.0**-8
        for name, x in got.items():
            rounded = np.ascontiguousarray(want[name].astype(dtype)).view(np.uint16)
            assert np.array_equal(np.ascontiguousarray(x).view(np.uint16), rounded), name
        for name, x in theirs.items():
            x = x.astype(np.float64)
            assert_close(got[name].astype(np.float64), x, 8 * unit * largest(x), name)
