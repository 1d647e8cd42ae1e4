"""Arrays by name in a file: weights, or all that training needs to go on. Called by users.

By NumPy (.npz), or by the package safetensors where it is installed (.safetensors, which other
frameworks and Hugging Face's models use).
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .._args import flag
from .._args.arrays import as_array
from .._args.foreign import without_gradient
from . import tensors

if TYPE_CHECKING:
    from .._typing import Array

_SUFFIXES = (".npz", ".safetensors")
_LONGEST_NAME = 65000  # bytes; a zip file counts them in 16 bits
_RESERVED = ("file", "allow_pickle", "__metadata__")  # np.savez's own, and safetensors'


def save(state: Mapping[str, Array], path: str | os.PathLike[str]) -> None:
    """Save arrays by name: a layer's `state_dict()`, say.

    Parameters
    ----------
    state : mapping of str to array
        Real numbers or bools, of any shape; in `.safetensors` of ml_dtypes' bfloat16 and dtypes of
        8 bits that the format has, too.
    path : str or path
        Its suffix is the format: `.npz`, or `.safetensors` (`pip install safetensors`). A file
        that is there is replaced, at once and as a whole: one that cannot be written to its end
        leaves it as it was.

    Raises
    ------
    TypeError, ValueError
        For something else than arrays of numbers by name, of a dtype that the format has; for
        another suffix.
    OSError
        When the file cannot be written.
    ModuleNotFoundError
        When the package safetensors is needed and missing.

    Examples
    --------
    >>> import os, tempfile, numpy as np
    >>> from selfattn import nn
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.npz")
    >>> nn.save(nn.MultiheadAttention(8, 2, seed=0).state_dict(), path)
    >>> layer = nn.MultiheadAttention(8, 2)
    >>> layer.load_state_dict(nn.load(path))
    """
    checked = _path(path)
    arrays = _arrays(state, checked.suffix)
    write = _write_npz if checked.suffix == ".npz" else _write_safetensors
    # In the same folder, so that it can be moved into place: that of the file behind a link.
    target = Path(os.path.realpath(checked))
    temporary = _new_file(target)
    try:
        like = target if target.exists() else temporary
        mode = like.stat().st_mode & 0o7777
        write(arrays, temporary)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # interrupted when it was in place already
            os.unlink(temporary)
        raise


def load(path: str | os.PathLike[str], *, strict: bool = True) -> dict[str, np.ndarray]:
    """Load what `save`, NumPy or safetensors saved: arrays by name.

    Parameters
    ----------
    path : str or path
        Its suffix is the format: `.npz` or `.safetensors` (`pip install safetensors`).
    strict : bool
        Of a `.safetensors` file, refuse one that holds an array of a dtype that cannot be had here;
        False leaves out such arrays and returns the others. NumPy has no bfloat16 and no dtypes
        of 8 bits: they are those of ml_dtypes, where that is installed. F4 and F6, of which several
        numbers share a byte, can be had nowhere.

    Returns
    -------
    dict of str to array
        In memory of their own. Nothing in the file is run: pickled objects are refused.

    Raises
    ------
    TypeError
        With `strict`, for an array of such a dtype, by its name; for a `path` that is none.
    ValueError
        For another suffix; for a file that does not hold what its suffix says.
    OSError
        When the file cannot be read.
    ModuleNotFoundError
        When the package safetensors is needed and missing.

    Examples
    --------
    >>> import os, tempfile, numpy as np
    >>> from selfattn import nn
    >>> path = os.path.join(tempfile.mkdtemp(), "step.npz")
    >>> nn.save({"step": np.array(7)}, path)
    >>> nn.load(path)
    {'step': array(7)}
    """
    checked, strict = _path(path), flag("strict", strict)
    if checked.suffix == ".npz":
        with open(checked, "rb") as file:
            return _read_npz(file, checked)
    library = importlib.import_module("safetensors")
    content = checked.read_bytes()
    try:
        return tensors.read(library, content, strict)
    except (ValueError, library.SafetensorError) as error:
        raise ValueError(f"path: expected a .safetensors file, got {checked}: {error}") from error


def _path(given: str | os.PathLike[str]) -> Path:
    try:
        path = Path(given)
    except TypeError:
        raise TypeError(f"path: expected a str or a path, got {type(given).__name__}") from None
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"path: expected a name that ends in .npz or .safetensors, got {path}")
    return path


def _arrays(state: Any, suffix: str) -> dict[str, np.ndarray]:
    """The arrays, each in one piece, and nothing that would come back as something else."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a mapping of arrays, got {type(state).__name__}")
    arrays = {}
    for name, x in state.items():
        if not isinstance(name, str) or name in _RESERVED:
            raise ValueError(f"state: expected names other than {_RESERVED}, got {name!r}")
        if "\0" in name:
            raise ValueError(f"state: expected names without a null character, got {name!r}")
        if len(name.encode(errors="replace")) > _LONGEST_NAME:
            raise ValueError(
                f"state: expected names of up to {_LONGEST_NAME} bytes, got one that begins with "
                f"{name[:40]!r}"
            )
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise ValueError(f"state: expected names that are valid text, got {name!r}")
        x = as_array(name, without_gradient(x))
        if not tensors.is_kept(x.dtype, suffix):
            raise TypeError(
                f"{name}: expected an array of numbers that a {suffix} file keeps, got {x.dtype!r}"
            )
        arrays[name] = np.ascontiguousarray(x).reshape(x.shape)
    return arrays


def _write_npz(arrays: dict[str, Any], path: Path) -> None:
    np.savez(path, **arrays)


def _read_npz(file: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is not a zip file")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            # By their full names: without ".npy" two may be alike.
            members = archive.zip.namelist()
            if strange := [name for name in members if not name.endswith(".npy")]:
                raise ValueError(f"it holds {strange[0]!r}, which is no array")
            return {name.removesuffix(".npy"): archive[name] for name in members}
    except Exception as error:  # a damaged file has many, bz2's OSError without errno too
        is_of_disk = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
        if is_of_disk or isinstance(error, MemoryError):
            raise
        raise ValueError(f"path: expected a .npz file, got {path}: {error}") from error


def _write_safetensors(arrays: dict[str, np.ndarray], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, path)


def _new_file(target: Path) -> Path:
    """The path of a new, empty file beside `target`, with the permissions that new files get."""
    name = f".{target.stem[:40]}.{secrets.token_hex(8)}{target.suffix}"
    temporary = target.with_name(name)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(target)) from None
    return temporary
