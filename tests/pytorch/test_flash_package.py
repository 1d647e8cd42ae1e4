"""selfattn.flash_attn as a package: signatures, its place in `sys.modules`, padding, its page."""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import selfattn.flash_attn as ours  # noqa: E402
from selfattn.flash_attn import bert_padding  # noqa: E402
from support import subprocesses  # noqa: E402
from support.tensors import normal_tensor  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "flash_attn.md"

# What flash-attn 2.8 has, in its order; None among the names stands for no default.
COMMON = {
    "dropout_p": 0.0, "softmax_scale": None, "causal": False, "window_size": (-1, -1),
    "softcap": 0.0, "alibi_slopes": None, "deterministic": False, "return_attn_probs": False,
}  # fmt: skip
OF_LENGTHS = ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
SIGNATURES = {
    "flash_attn_func": (["q", "k", "v"], COMMON),
    "flash_attn_qkvpacked_func": (["qkv"], COMMON),
    "flash_attn_kvpacked_func": (["q", "kv"], COMMON),
    "flash_attn_varlen_func": (["q", "k", "v", *OF_LENGTHS], COMMON | {"block_table": None}),
    "flash_attn_varlen_qkvpacked_func": (["qkv", "cu_seqlens", "max_seqlen"], COMMON),
    "flash_attn_varlen_kvpacked_func": (["q", "kv", *OF_LENGTHS], COMMON),
    "flash_attn_with_kvcache": (
        ["q", "k_cache", "v_cache"],
        {
            "k": None, "v": None, "rotary_cos": None, "rotary_sin": None, "cache_seqlens": None,
            "cache_batch_idx": None, "cache_leftpad": None, "block_table": None,
            "softmax_scale": None, "causal": False, "window_size": (-1, -1), "softcap": 0.0,
            "rotary_interleaved": True, "alibi_slopes": None, "num_splits": 0,
            "return_softmax_lse": False,
        },
    ),
}  # fmt: skip
PADDING_SIGNATURES = {
    "unpad_input": (["hidden_states", "attention_mask"], {"unused_mask": None}),
    "pad_input": (["hidden_states", "indices", "batch", "seqlen"], {}),
    "index_first_axis": (["input", "indices"], {}),
    "index_put_first_axis": (["values", "indices", "first_axis_dim"], {}),
}


def assert_signature(function, required, defaults):
    parameters = inspect.signature(function).parameters.values()
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    assert [p.name for p in parameters] == [*required, *defaults]
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == defaults


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    assert_signature(getattr(ours, name), *SIGNATURES[name])


@pytest.mark.parametrize("name", PADDING_SIGNATURES)
def test_signatures_of_padding(name):
    assert_signature(getattr(bert_padding, name), *PADDING_SIGNATURES[name])


@pytest.fixture
def no_flash_attn():
    if importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("flash-attn itself is installed")
    yield
    assert not [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]


MODEL = """
from flash_attn import __version__, flash_attn_func, flash_attn_varlen_qkvpacked_func
from flash_attn.bert_padding import index_first_axis, pad_input, unpad_input
from flash_attn.flash_attn_interface import flash_attn_with_kvcache
import flash_attn.flash_attn_interface as interface
assert interface.flash_attn_func is flash_attn_func
"""


@pytest.mark.usefixtures("no_flash_attn")
def test_installed():
    with pytest.raises(ModuleNotFoundError):
        exec(MODEL)
    with ours.installed() as is_ours:
        assert is_ours
        names = {}
        exec(MODEL, names)
        assert names["flash_attn_func"] is ours.flash_attn_func
        assert names["pad_input"] is bert_padding.pad_input
        assert tuple(map(int, names["__version__"].split("."))) >= (2, 7)
        assert importlib.util.find_spec("flash_attn") is not None
        assert importlib.util.find_spec("flash_attn.bert_padding") is not None
        package = importlib.import_module("flash_attn")
        for name, (required, defaults) in SIGNATURES.items():
            assert_signature(getattr(package, name), required, defaults)
        with pytest.raises(ModuleNotFoundError, match=r"flash_attn\.layers"):
            importlib.import_module("flash_attn.layers")
        with ours.installed():  # the inner block leaves it where it is
            pass
        assert sys.modules["flash_attn"] is package
    with pytest.raises(ModuleNotFoundError):
        exec(MODEL)


@pytest.mark.usefixtures("no_flash_attn")
def test_install_and_uninstall():
    assert ours.install()
    assert ours.install()
    exec(MODEL)
    with ours.installed():
        pass
    exec(MODEL)
    ours.uninstall()
    ours.uninstall()
    with pytest.raises(ModuleNotFoundError):
        exec(MODEL)


@pytest.mark.usefixtures("no_flash_attn")
def test_left_by_an_exception():
    with pytest.raises(KeyError), ours.installed():
        raise KeyError
    assert "flash_attn" not in sys.modules


def test_the_package_itself_stays(tmp_path):
    """Where there is one, imported or not."""
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("name = 'its own'\n")
    code = f"""
        import sys
        import selfattn.flash_attn
        sys.path.insert(0, {str(tmp_path)!r})
        assert selfattn.flash_attn.install() is False
        import flash_attn
        assert selfattn.flash_attn.install() is False
        with selfattn.flash_attn.installed() as is_ours:
            assert is_ours is False
        selfattn.flash_attn.uninstall()
        assert sys.modules["flash_attn"] is flash_attn
        print(flash_attn.name)
    """
    assert subprocesses.run(code).strip() == "its own"


def test_it_is_loaded_when_it_is_asked_for():
    code = """
        import sys, selfattn
        assert "torch" not in sys.modules
        selfattn.flash_attn.flash_attn_func
        assert "torch" in sys.modules
        assert "flash_attn" not in sys.modules
    """
    subprocesses.run(code)


def test_without_pytorch():
    code = """
        import sys
        sys.modules["torch"] = None
        try:
            import selfattn.flash_attn
        except ModuleNotFoundError as error:
            print(error)
    """
    assert "expected PyTorch, which is not installed" in subprocesses.run(code)


def test_padding():
    """Rows of a mask, packed and put back; gradients go the same way."""
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
    x = normal_tensor(3, 4, 2, 5, requires_grad=True)
    rows, indices, starts, longest, used = bert_padding.unpad_input(x, mask)
    assert torch.equal(rows, x[mask.bool()])
    assert indices.tolist() == [0, 1, 5, 6, 7]
    assert starts.tolist() == [0, 2, 5, 5]
    assert starts.dtype == used.dtype == torch.int32
    assert longest == 3
    assert used.tolist() == [2, 3, 0]
    back = bert_padding.pad_input(rows, indices, 3, 4)
    assert torch.equal(back, x * mask[..., None, None])
    weights = normal_tensor(3, 4, 2, 5, seed=1)
    (back * weights).sum().backward()
    assert torch.equal(x.grad, weights * mask[..., None, None])
    of_bools = bert_padding.unpad_input(x, mask.bool())
    assert torch.equal(of_bools[2], starts)


def test_padding_that_is_allocated_and_not_used():
    mask = torch.tensor([[1, 0, 0], [1, 1, 0]])
    unused = torch.tensor([[0, 1, 0], [0, 0, 0]])
    rows, _, starts, longest, used = bert_padding.unpad_input(
        torch.arange(6.0).reshape(2, 3, 1), mask, unused
    )
    assert rows.flatten().tolist() == [0, 1, 3, 4]
    assert starts.tolist() == [0, 2, 4]
    assert longest == 2
    assert used.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_padded_batch_has_the_bits_of_its_sequences(dtype):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    qkv = normal_tensor(2, 4, 3, 2, 8, dtype=dtype)
    rows, indices, starts, longest, _ = bert_padding.unpad_input(qkv, mask)
    out = ours.flash_attn_varlen_qkvpacked_func(rows, starts, longest, causal=True)
    out = bert_padding.pad_input(out, indices, 2, 4)
    assert torch.equal(out[1:], ours.flash_attn_qkvpacked_func(qkv[1:], causal=True))
    assert torch.equal(out[:1, :3], ours.flash_attn_qkvpacked_func(qkv[:1, :3], causal=True))
    assert not out[0, 3].any()


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(ours.__path__)])
def test_examples(name):
    module = importlib.import_module(f"selfattn.flash_attn.{name}")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", [*ours.__all__, *PADDING_SIGNATURES])
def test_public_functions_have_examples(name):
    if name == "pad_input":  # stands in the example of its inverse
        name = "unpad_input"
    function = getattr(ours, name, None) or getattr(bert_padding, name)
    assert "Examples\n" in function.__doc__
    assert ">>> " in function.__doc__


def test_the_pages_code_runs():
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 2
    try:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), {})
    finally:
        ours.uninstall()
