"""Every dtype of .safetensors files: read where NumPy or ml_dtypes has it, else refused by name.

Fault 38: one tensor of a dtype that NumPy lacks must not make the whole file unreadable.
"""

import json
import os
import sys

import numpy as np
import pytest

from selfattn import nn
from support import subprocesses

pytest.importorskip("safetensors")

# What the format has, with the bits of a number, and what NumPy or ml_dtypes calls it.
OF_NUMPY = {
    "BOOL": (8, "bool"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "U16": (16, "uint16"),
    "I16": (16, "int16"),
    "F16": (16, "float16"),
    "U32": (32, "uint32"),
    "I32": (32, "int32"),
    "F32": (32, "float32"),
    "U64": (64, "uint64"),
    "I64": (64, "int64"),
    "F64": (64, "float64"),
    "C64": (64, "complex64"),
}
OF_ML_DTYPES = {
    "BF16": (16, "bfloat16"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
}
OF_NOBODY = {"F4": (4, None), "F6_E2M3": (6, None), "F6_E3M2": (6, None), "I4096": (4096, None)}
ALL = OF_NUMPY | OF_ML_DTYPES | OF_NOBODY
SHAPE = [2, 4]
DATA = {code: bytes(n % 2 for n in range(bits)) for code, (bits, _) in ALL.items()}


def write(path, codes, text=None):
    """A file of an array of SHAPE of each dtype, under its name, and 10 and 20 in float32."""
    header, data = {"__metadata__": {"by": "a test"}}, b""
    for code in codes:
        header[code] = {"dtype": code, "shape": SHAPE, "data_offsets": [len(data), 0]}
        data += DATA[code]
        header[code]["data_offsets"][1] = len(data)
    header["other"] = {"dtype": "F32", "shape": [2], "data_offsets": [len(data), len(data) + 8]}
    text = json.dumps(header).encode() if text is None else text
    data += np.array([10, 20], np.float32).tobytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


@pytest.fixture
def no_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)


@pytest.mark.parametrize("code", OF_NUMPY)
@pytest.mark.usefixtures("no_ml_dtypes")
def test_dtypes_of_numpy(path, code):
    loaded = nn.load(write(path, [code]))
    assert loaded[code].dtype == np.dtype(OF_NUMPY[code][1])
    assert (loaded[code].shape, loaded[code].tobytes()) == (tuple(SHAPE), DATA[code])
    np.testing.assert_array_equal(loaded["other"], [10, 20])


@pytest.mark.parametrize("code", OF_ML_DTYPES)
def test_dtypes_of_ml_dtypes(path, code):
    """Read, and saved as they were."""
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), OF_ML_DTYPES[code][1]))
    loaded = nn.load(write(path, [code]))
    for _ in range(2):
        assert loaded[code].dtype == dtype
        assert (loaded[code].shape, loaded[code].tobytes()) == (tuple(SHAPE), DATA[code])
        np.testing.assert_array_equal(loaded["other"], [10, 20])
        nn.save(loaded, path)
        loaded = nn.load(path)


def refuses(path, code):
    message = rf"^{code}: expected a dtype that NumPy or, .* ml_dtypes has, got {code} \(strict=F"
    with pytest.raises(TypeError, match=message):
        nn.load(path)


@pytest.mark.parametrize("code", OF_ML_DTYPES)
@pytest.mark.usefixtures("no_ml_dtypes")
def test_without_ml_dtypes(path, code):
    write(path, [code])
    refuses(path, code)
    loaded = nn.load(path, strict=False)
    assert list(loaded) == ["other"]
    np.testing.assert_array_equal(loaded["other"], [10, 20])


@pytest.mark.parametrize("code", OF_NOBODY)
def test_unknown_dtypes(path, code):
    """Several numbers to a byte; and one that the format may have some day."""
    write(path, [code])
    refuses(path, code)
    assert list(nn.load(path, strict=False)) == ["other"]


@pytest.mark.usefixtures("no_ml_dtypes")
def test_several_of_them(path):
    """The first by its name, and how many there are; of the others none is missing."""
    write(path, ALL)
    count = len(OF_ML_DTYPES) + len(OF_NOBODY)
    with pytest.raises(TypeError, match=rf"^\w+: .*, and {count - 1} more such arrays \(strict"):
        nn.load(path)
    loaded = nn.load(path, strict=False)
    assert set(loaded) == {*OF_NUMPY, "other"}
    for code in OF_NUMPY:
        assert loaded[code].tobytes() == DATA[code]


def test_what_a_library_of_before_does_not_know(path, monkeypatch):
    """Versions of the package safetensors differ in the dtypes that they take."""
    import safetensors

    known, deserialize = {*OF_NUMPY, "BF16"} - {"C64"}, safetensors.deserialize

    def of_before(content):
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] not in known:
                raise safetensors.SafetensorError(f"unknown variant `{entry['dtype']}`")
        return deserialize(content)

    monkeypatch.setattr(safetensors, "deserialize", of_before)
    loaded = nn.load(write(path, ALL), strict=False)
    assert loaded["C64"].dtype == np.complex64
    assert (loaded["C64"].shape, loaded["C64"].tobytes()) == (tuple(SHAPE), DATA["C64"])
    assert not {*OF_NOBODY} & {*loaded}
    assert {*OF_NUMPY} <= {*loaded}


def test_strict_is_a_bool(path):
    with pytest.raises(TypeError, match=r"^strict: expected a bool, got str$"):
        nn.load(write(path, []), strict="yes")


@pytest.mark.parametrize("code", ["BF16", "F4", "I4096"])
def test_damaged(path, code):
    """With such a dtype in it too: a file that is none is one, whatever bit is wrong."""
    pytest.importorskip("ml_dtypes")
    whole = write(path, [code, "F32"]).read_bytes()
    for at in range(len(whole)):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        try:
            loaded = nn.load(path, strict=False)
        except ValueError as error:
            loaded, message = {}, str(error)
        else:
            message = None
        assert message is None or message.startswith(
            f"path: expected a .safetensors file, got {path}"
        )
        assert all(isinstance(x, np.ndarray) for x in loaded.values())
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"path: expected a \.safetensors file"):
            nn.load(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "I4096"},
        {"dtype": "I4096", "shape": [1], "data_offsets": [0]},
        {"dtype": "I4096", "shape": [1], "data_offsets": [0, "x"]},
        {"dtype": "I4096", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "I4096", "shape": [1], "data_offsets": None},
        {"dtype": ["I4096"], "shape": [1], "data_offsets": [0, 0]},
        {"dtype": "F8_E9M9", "shape": "x", "data_offsets": [0, 2**70]},
        5,
        None,
    ],
    ids=str,
)
def test_headers_of_nonsense(path, entry):
    write(path, [], json.dumps({"x": entry}).encode())
    with pytest.raises(ValueError, match=r"path: expected a \.safetensors file"):
        nn.load(path, strict=False)
    write(path, [], json.dumps([entry]).encode())
    with pytest.raises(ValueError, match=r"path: expected a \.safetensors file"):
        nn.load(path, strict=False)


def test_the_layer_reads_bfloat16(path):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    layer = nn.MultiheadAttention(8, 2, seed=0)
    state = {name: x.astype(bfloat16) for name, x in layer.state_dict().items()}
    nn.save(state, path)
    layer.load_state_dict(nn.load(path))
    for name, x in layer.params.items():
        np.testing.assert_array_equal(x, state[name].astype(np.float32))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_dtypes_that_a_file_would_not_give_back(tmp_path, suffix):
    """Of ml_dtypes, a .npz keeps none, and a .safetensors those that the format has."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    path = tmp_path / f"w{suffix}"
    kept = {name for _, name in OF_ML_DTYPES.values()} if suffix == ".safetensors" else set()
    names = [name for name in dir(ml_dtypes) if name.startswith(("bfloat", "float", "int", "uint"))]
    assert len(names) > 10
    for name in set(names) - kept:
        x = np.ones(3).astype(getattr(ml_dtypes, name))
        with pytest.raises(
            TypeError, match=rf"^x: expected .* a \{suffix} file keeps, got .*{name}"
        ):
            nn.save({"x": x}, path)
    assert not os.listdir(tmp_path)


def test_ml_dtypes_is_loaded_where_it_is_needed_alone(tmp_path):
    pytest.importorskip("ml_dtypes")
    write(tmp_path / "usual.safetensors", OF_NUMPY)
    write(tmp_path / "half.safetensors", ["BF16"])
    code = """
    import sys
    from selfattn import nn
    nn.save(nn.load("usual.safetensors") | {"C64": nn.load("usual.safetensors")["F32"]}, "a.npz")
    assert "ml_dtypes" not in sys.modules
    nn.load("half.safetensors")
    assert "ml_dtypes" in sys.modules
    """
    subprocesses.run(code, cwd=tmp_path)


class Tensor:
    """One that requires grad, or whose dtype NumPy lacks."""

    def __init__(self, dtype, requires_grad):
        self.dtype, self.requires_grad = f"torch.{dtype}", requires_grad

    def detach(self):
        return Tensor(self.dtype.removeprefix("torch."), False)

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad or self.dtype != "torch.float32":
            raise RuntimeError("not as it is")
        return np.arange(3, dtype=np.float32)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_tensors(tmp_path, suffix):
    """Parameters are numbers like others; a dtype is not changed silently."""
    path = tmp_path / f"w{suffix}"
    nn.save({"x": Tensor("float32", True)}, path)
    np.testing.assert_array_equal(nn.load(path)["x"], [0, 1, 2])
    message = "^y: expected an array of a dtype that NumPy has, got Tensor of bfloat16"
    with pytest.raises(TypeError, match=message):
        nn.save({"y": Tensor("bfloat16", True)}, path)
