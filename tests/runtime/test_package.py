"""The package as it is installed: version, kernel sets, what importing it costs, its docstrings."""

import doctest
import importlib.metadata
import inspect
import json
import os
import re
import sys
from pathlib import Path

import pytest

import selfattn
from selfattn import (
    _config,
    _core,
    _threads,
    attention,
    backward,
    gradients,
    linear,
    nn,
    steps,
    varlen,
)
from selfattn.nn import files, multihead, rotary
from support import subprocesses


def test_version():
    assert selfattn.__version__ == importlib.metadata.version("selfattn")
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d*)?", selfattn.__version__)


def test_all_is_what_the_api_names():
    assert sorted(selfattn.__all__) == [
        "AttentionGradients",
        "AttentionState",
        "KVCache",
        "MergeGradients",
        "PagedKVCache",
        "ProjectionGradients",
        "__version__",
        "attention_weights",
        "get_num_threads",
        "isas",
        "merge_states",
        "merge_states_backward",
        "merge_states_many",
        "project",
        "project_backward",
        "scaled_dot_product",
        "scaled_dot_product_attention",
        "scaled_dot_product_attention_backward",
        "set_num_threads",
        "show_config",
        "softmax",
        "threads",
        "varlen_attention",
        "varlen_attention_backward",
        "weighted_sum",
    ]
    assert all(hasattr(selfattn, name) for name in selfattn.__all__)


def test_signature_is_torchs_to_the_bar():
    parameters = inspect.signature(selfattn.scaled_dot_product_attention).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["query", "key", "value", "attn_mask", "dropout_p", "is_causal"]
    keyword = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert keyword == [
        "scale", "enable_gqa", "attn_bias", "query_offset", "query_lengths", "kv_starts",
        "kv_lengths", "window_size", "softcap", "alibi_slopes", "sinks", "segment_ids",
        "dropout_seed", "return_lse", "out", "num_threads",
    ]  # fmt: skip


def test_isas():
    isas = selfattn.isas()
    assert isas
    assert isas[-1] == "portable"
    assert len(set(isas)) == len(isas)
    assert set(isas) <= set(_core.isas_built())
    in_use = _core.isa()
    isas.append("mine")
    assert "mine" not in selfattn.isas()
    assert not _core.force_isa("mine")
    assert not _core.force_isa("")
    assert _core.isa() == in_use


def test_show_config(capsys):
    config = selfattn.show_config("dicts")
    assert capsys.readouterr().out == ""
    assert config["isa"] == _core.isa()
    assert config["isas"] == selfattn.isas()
    assert config["num_threads"] == selfattn.get_num_threads()
    json.dumps(config)
    assert selfattn.show_config() is None
    printed = capsys.readouterr().out
    for name, what in config.items():
        shown = re.escape(", ".join(what) if isinstance(what, list) else str(what))
        assert re.search(rf"^{name}: +{shown}$", printed, re.M)
    assert selfattn.show_config(mode="stdout") is None
    with pytest.raises(ValueError, match="mode: expected 'stdout' or 'dicts', got 'json'"):
        selfattn.show_config("json")


CONFIG = "import json, selfattn; print(json.dumps(selfattn.show_config('dicts')))"


@pytest.mark.parametrize("isa", selfattn.isas())
def test_selfattn_isa_forces_a_set(isa):
    config = json.loads(subprocesses.run(CONFIG, SELFATTN_ISA=isa))
    assert config["isa"] == isa
    assert "SELFATTN_ISA" in config["reason"]


@pytest.mark.parametrize("nothing", ["", None])
def test_selfattn_isa_that_says_nothing(nothing):
    config = json.loads(subprocesses.run(CONFIG, SELFATTN_ISA=nothing))
    assert config["isa"] == selfattn.isas()[0]
    assert "SELFATTN_ISA" not in config["reason"]


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "avx2 ", "portable,avx2"])
def test_selfattn_isa_that_cannot_run(isa):
    """Fault 23: a clear error, before anything of it is run."""
    done = subprocesses.attempt("import selfattn", SELFATTN_ISA=isa)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: SELFATTN_ISA: expected one of ")
    assert last.endswith(f"got {isa!r}")
    assert all(name in last for name in selfattn.isas())


def test_import_needs_numpy_alone():
    code = """
    import sys
    import numpy
    before = set(sys.modules)
    import selfattn
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    # Cython's own entries are no modules of any file.
    new = {name for name in new if getattr(sys.modules[name], "__file__", None)}
    print(sorted(new - set(sys.stdlib_module_names)))
    """
    assert subprocesses.run(code) == "['selfattn']\n"


def test_import_starts_no_thread_and_prints_nothing():
    code = """
    import os
    import numpy
    count = lambda: len(os.listdir("/proc/self/task")) if os.path.exists("/proc") else 0
    before = count()
    import selfattn
    assert count() == before
    """
    done = subprocesses.attempt(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_submodules_load_lazily():
    code = "import sys, selfattn; print([n for n in sys.modules if n.startswith('selfattn.')])"
    loaded = set(eval(subprocesses.run(code)))
    assert not loaded & {"selfattn.cli", "selfattn.demo", "selfattn.reference", "selfattn.nn"}
    assert not loaded & {"selfattn.bench", "selfattn.caches", "selfattn.state"}


def test_import_needs_little_of_the_standard_library():
    """Modules that take long to import, each longer than most of ours."""
    code = """
    import sys
    import numpy
    before = set(sys.modules)
    import selfattn
    print(sorted(set(sys.modules) - before))
    """
    new = eval(subprocesses.run(code))
    assert not {"dataclasses", "inspect", "pathlib", "subprocess", "threading"} & set(new)


@pytest.mark.parametrize("is_source_tree", [True, False])
def test_import_without_the_core(tmp_path, is_source_tree):
    """From a clone, say: where one stands and what to do, and nothing of circular imports."""
    for path in Path(selfattn.__file__).parent.rglob("*.py"):
        copy = tmp_path / "selfattn" / path.relative_to(Path(selfattn.__file__).parent)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    if is_source_tree:
        (tmp_path / "setup.py").touch()
    done = subprocesses.attempt("import selfattn", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: selfattn: {tmp_path / 'selfattn'} has no compiled core ")
    assert ("source tree" in last and f"pip install -e {tmp_path}" in last) == is_source_tree
    assert "circular" not in done.stderr


def test_import_of_a_core_that_does_not_load(tmp_path):
    """What the system says of it is passed on."""
    package = tmp_path / "selfattn"
    package.mkdir()
    for name in ("__init__.py", "_no_core.py"):
        (package / name).write_bytes((Path(selfattn.__file__).parent / name).read_bytes())
    (package / Path(_core.__file__).name).write_bytes(b"no library")
    done = subprocesses.attempt("import selfattn", PYTHONPATH=str(tmp_path))
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "has no compiled core" not in last


def test_install_is_small():
    """Under 4 MB: everything of the package that an installation holds."""
    folder = Path(selfattn.__file__).parent
    files = [
        path
        for path in folder.rglob("*")
        # A source folder holds the bridge's sources besides, and other interpreters' cores.
        if path.is_file() and "__pycache__" not in path.parts
        if path.suffix not in (".c", ".pyx", ".pxd", ".pxi")
        if path.suffix not in (".so", ".pyd") or path == Path(_core.__file__)
    ]
    sizes = {path.name: path.stat().st_size for path in files}
    assert sum(sizes.values()) < 4_000_000, sorted(sizes.items(), key=lambda item: -item[1])[:3]


def test_the_core_is_linked_without_fast_math():
    """Fault 22: crtfastm.o, which sets flush-to-zero for the process, is not in it.

    Its effect is tested in test_process_state.py; this is for who loads it where that cannot be.
    """
    assert b"set_fast_math" not in Path(_core.__file__).read_bytes()


@pytest.mark.parametrize(
    "module",
    [
        attention,
        backward,
        gradients,
        linear,
        steps,
        varlen,
        _threads,
        _config,
        files,
        multihead,
        rotary,
    ],
)
def test_docstrings(module):
    """Every example of a docstring runs and shows what it says."""
    failed, tried = doctest.testmod(module, optionflags=doctest.FAIL_FAST)
    assert tried > 0
    assert failed == 0


PUBLIC = [getattr(selfattn, name) for name in selfattn.__all__ if name != "__version__"]
PUBLIC += [getattr(nn, name) for name in nn.__all__]


@pytest.mark.parametrize("what", PUBLIC, ids=lambda what: what.__name__)
def test_every_public_function_is_documented(what):
    text = what.__doc__
    assert ">>> " in text, "no example"
    assert text.splitlines()[0].endswith(".")
    if inspect.isroutine(what) and inspect.signature(what).parameters:
        assert re.search("Raises|errors are those\\s+of|and errors are those of", text)


def test_nn_is_there_without_importing_it():
    code = """
    import selfattn
    assert "nn" in dir(selfattn)
    print(selfattn.nn.MultiheadAttention(8, 2, seed=0).forward.__name__)
    try:
        selfattn.no_such_thing
    except AttributeError as error:
        print(error)
    """
    expected = "forward\nmodule 'selfattn' has no attribute 'no_such_thing'"
    assert subprocesses.run(code).strip() == expected


def test_the_environment_of_the_tests():
    """The sets under test are those that the environment asks for."""
    forced = os.environ.get("SELFATTN_ISA")
    assert _core.isa() == (forced or selfattn.isas()[0])
    assert sys.version_info >= (3, 11)
