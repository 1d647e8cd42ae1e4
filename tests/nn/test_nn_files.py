"""nn.save and nn.load: what comes back, what is refused, what a failure leaves behind."""

import os
import stat
import sys
import zipfile

import numpy as np
import pytest

from selfattn import nn


@pytest.fixture(params=[".npz", ".safetensors"])
def path(request, tmp_path):
    if request.param == ".safetensors":
        pytest.importorskip("safetensors")
    return tmp_path / f"weights{request.param}"


STATE = {
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "in_proj.weight": np.array([[0.1, -0.0], [np.inf, np.nan]], np.float32),
    "first.out_proj.bias": np.array([1e-300, 5e-324]),
    "bytes": np.arange(5, dtype=np.uint8),
    "long": np.array([2**62, -1]),
    "flags": np.array([True, False]),
    "step": np.array(1234),
    "none": np.empty((0, 3), np.float32),
    "columns": np.arange(12.0).reshape(3, 4)[:, ::2].T,
}


def test_round_trip(path):
    nn.save(STATE, path)
    loaded = nn.load(path)
    assert set(loaded) == set(STATE)
    for name, x in STATE.items():
        assert (loaded[name].dtype, loaded[name].shape) == (x.dtype, x.shape), name
        assert loaded[name].tobytes() == x.tobytes(), name
        loaded[name][...] = 0  # it is memory of its own
    assert nn.load(path)["step"] == 1234
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("code", "?bBhHiIlLqQefd")
def test_dtypes(path, code):
    x = np.array([0, 1, 100]).astype(code)
    nn.save({"x": x}, path)
    loaded = nn.load(path)["x"]
    assert (loaded.dtype, loaded.tobytes()) == (x.dtype, x.tobytes())


def test_a_foreign_byte_order_keeps_its_numbers(path):
    x = np.arange(4.0).astype(">f8")
    nn.save({"x": x}, str(path))
    np.testing.assert_array_equal(nn.load(str(path))["x"], x)


def test_a_layer_moves_through_a_file(path, rng):
    layer, other = (nn.MultiheadAttention(8, 2, seed=seed) for seed in (0, 1))
    x = rng.standard_normal((5, 8)).astype(np.float32)
    assert (layer.forward(x) != other.forward(x)).any()
    nn.save(layer.state_dict(), path)
    other.load_state_dict(nn.load(path))
    np.testing.assert_array_equal(layer.forward(x), other.forward(x))


def test_files_of_others(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(3))
    np.testing.assert_array_equal(nn.load(tmp_path / "a.npz")["x"], np.arange(3))
    library = pytest.importorskip("safetensors.numpy")
    library.save_file({"y": np.ones(2, np.float32)}, tmp_path / "b.safetensors")
    np.testing.assert_array_equal(nn.load(tmp_path / "b.safetensors")["y"], np.ones(2))
    nn.save({"z": np.ones(2)}, tmp_path / "c.safetensors")
    np.testing.assert_array_equal(library.load_file(tmp_path / "c.safetensors")["z"], np.ones(2))


@pytest.mark.parametrize("content", [b"", b"no such thing", b"\x80\x04N."])
def test_garbage(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"path: expected a {path.suffix} file, got .*{path.name}"):
        nn.load(path)


def test_truncated(path):
    nn.save(STATE, path)
    whole = path.read_bytes()
    for length in (len(whole) // 3, len(whole) - 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"path: expected a {path.suffix} file"):
            nn.load(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged(tmp_path, method):
    """Whatever bit is wrong: a ValueError, or the arrays as they were."""
    path = tmp_path / "a.npz"
    x = np.arange(20.0).repeat(5)
    np.savez(tmp_path / "plain.npz", x=x)
    with zipfile.ZipFile(tmp_path / "plain.npz") as plain, zipfile.ZipFile(path, "w") as packed:
        packed.writestr("x.npy", plain.read("x.npy"), method)
    whole = path.read_bytes()
    refused = kept = 0
    for at in range(len(whole)):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        try:
            loaded = nn.load(path)
        except ValueError as error:
            refused += str(error).startswith(f"path: expected a .npz file, got {path}: ")
        else:
            assert all(array.tobytes() == x.tobytes() for array in loaded.values())
            kept += 1
    assert refused + kept == len(whole)
    assert refused > kept / 3


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError("no more")])
def test_a_machine_that_fails_is_no_damaged_file(path, monkeypatch, error):
    nn.save(STATE, path)

    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(np, "load", fail)
    monkeypatch.setattr(type(path), "read_bytes", fail)
    with pytest.raises(type(error)) as caught:
        nn.load(path)
    assert caught.value is error


def test_an_archive_of_other_things(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(ValueError, match=r"a \.npz file, got .*: it holds 'readme\.txt', which is"):
        nn.load(path)


def test_names_that_end_as_files_do(path):
    nn.save({"x": np.zeros(2), "x.npy": np.ones(2)}, path)
    loaded = nn.load(path)
    assert set(loaded) == {"x", "x.npy"}
    np.testing.assert_array_equal(loaded["x"], np.zeros(2))
    np.testing.assert_array_equal(loaded["x.npy"], np.ones(2))


@pytest.mark.skipif(np.longdouble(0).itemsize <= 8, reason="longdouble is double")
def test_wider_numbers_are_refused(path):
    with pytest.raises(TypeError, match=r"x: expected an array of numbers that a \.\w+ file"):
        nn.save({"x": np.ones(2, np.longdouble)}, path)
    assert not os.listdir(path.parent)


def test_npz_cannot_keep_bfloat16(tmp_path):
    """It would come back as two bytes of no dtype."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    with pytest.raises(TypeError, match=r"x: expected an array of numbers that a \.npz file keeps"):
        nn.save({"x": np.ones(2, bfloat16)}, tmp_path / "a.npz")
    assert not os.listdir(tmp_path)


def test_a_pickle_is_not_run(tmp_path):
    path = tmp_path / "evil.npz"
    np.savez(path, x=np.array([print, None], object))
    with pytest.raises(ValueError, match=r"expected a \.npz file.*allow_pickle"):
        nn.load(path)


def test_missing(path):
    with pytest.raises(FileNotFoundError, match=path.name):
        nn.load(path)
    with pytest.raises(FileNotFoundError):
        nn.save(STATE, path.parent / "nowhere" / path.name)


@pytest.mark.parametrize("path", ["weights", "weights.pt", "weights.npz.gz", ".npz"])
def test_other_suffixes(path):
    for call in (lambda: nn.load(path), lambda: nn.save({}, path)):
        with pytest.raises(ValueError, match=r"path: expected a name that ends in \.npz or"):
            call()
    with pytest.raises(TypeError, match="path: expected a str or a path, got int"):
        nn.load(3)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ([], TypeError, "state: expected a mapping of arrays, got list"),
        ({1: np.ones(2)}, ValueError, "state: expected names other than .*, got 1"),
        ({"file": np.ones(2)}, ValueError, "state: expected names other than .*, got 'file'"),
        ({"allow_pickle": np.ones(2)}, ValueError, "names other than .*, got 'allow_pickle'"),
        ({"x": np.array("text")}, TypeError, "x: expected an array of numbers .*, got dtype"),
        ({"x": np.array([None])}, TypeError, "x: expected an array of numbers .*, got dtype"),
        (
            {"x": np.ones(2, np.complex64)},
            TypeError,
            "x: expected an array of numbers .*, got dtype",
        ),
        ({"__metadata__": np.ones(2)}, ValueError, "names other than .*, got '__metadata__'"),
        ({"n" * 65001: np.ones(2)}, ValueError, "state: expected names of up to 65000 bytes"),
        ({"\ud800": np.ones(2)}, ValueError, "state: expected names that are valid text"),
        ({"x": [1.0]}, TypeError, "x: expected an array, got list"),
        ({"x": np.ma.array([1, 2], mask=[0, 1])}, TypeError, "x: expected .* without a mask"),
        ({"a\0b": np.ones(2)}, ValueError, "state: expected names without a null character"),
    ],
)
def test_states_that_cannot_be_saved(path, state, error, message):
    path.write_bytes(b"as it was")
    with pytest.raises(error, match=message):
        nn.save(state, path)
    assert path.read_bytes() == b"as it was"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_file(path, monkeypatch, error):
    nn.save({"x": np.ones(3)}, path)
    before = path.read_bytes()

    library = np if path.suffix == ".npz" else pytest.importorskip("safetensors.numpy")
    writer = "savez" if path.suffix == ".npz" else "save_file"
    written = []

    def write_half(*arguments, **arrays):
        half = next(x for x in arguments if isinstance(x, (str, os.PathLike)))
        with open(half, "wb") as file:
            file.write(before[: len(before) // 2])
        written.append(half)
        raise error

    def fail(*arguments):
        written.append(arguments[0])
        raise error

    for module, name, failing in ((library, writer, write_half), (os, "replace", fail)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            with pytest.raises(type(error)) as caught:
                nn.save({"x": np.zeros(3)}, path)
        assert caught.value is error
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]
    assert len(written) == 2
    nn.save({"x": np.zeros(3)}, path)
    assert not nn.load(path)["x"].any()


def test_an_interrupt_after_the_last_step_stays_one(path, monkeypatch):
    move = os.replace

    def interrupted(*arguments):
        move(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nn.save({"x": np.ones(3)}, path)
    assert os.listdir(path.parent) == [path.name]
    np.testing.assert_array_equal(nn.load(path)["x"], np.ones(3))


def test_the_file_is_written_beside_its_place(path, monkeypatch):
    """A folder of temporary files may be on another disk, from which nothing moves at once."""
    moves, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: moves.append((a, b)) or replace(a, b))
    descriptors = "/proc/self/fd"
    before = len(os.listdir(descriptors)) if os.path.exists(descriptors) else 0
    nn.save({"x": np.ones(3)}, path)
    assert before == (len(os.listdir(descriptors)) if before else 0)  # closed
    assert [(a.parent, b) for a, b in moves] == [(path.parent, path)]
    np.testing.assert_array_equal(nn.load(path)["x"], np.ones(3))


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_the_file_behind_a_link(path):
    link = path.with_name(f"link{path.suffix}")
    nn.save({"x": np.ones(3)}, path)
    link.symlink_to(path.name)
    nn.save({"x": np.zeros(3)}, link)
    assert link.is_symlink()
    assert not nn.load(path)["x"].any()


def test_a_folder_in_its_place(path):
    path.mkdir()
    for call in (lambda: nn.load(path), lambda: nn.save({"x": np.ones(3)}, path)):
        with pytest.raises(OSError, match=path.name):
            call()
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
def test_permissions(path):
    def mode():
        return stat.S_IMODE(path.stat().st_mode)

    mask = os.umask(0o027)
    try:
        nn.save({"x": np.ones(3)}, path)
        assert mode() == 0o640
        path.chmod(0o604)
        nn.save({"x": np.zeros(3)}, path)
        assert mode() == 0o604
    finally:
        os.umask(mask)


def test_safetensors_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    path = tmp_path / "w.safetensors"
    with pytest.raises(ModuleNotFoundError, match="safetensors"):
        nn.save({"x": np.ones(3)}, path)
    with pytest.raises(ModuleNotFoundError, match="safetensors"):
        nn.load(path)
    assert not os.listdir(tmp_path)
