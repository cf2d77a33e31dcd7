"""CIFAR-10 from its archives, pickled or binary, packed or unpacked; the pickled one can be downloaded.

A pickled batch is a dictionary of `data`, uint8 (n, 3072), and `labels`, a list. A record of a binary batch is one byte
of label, then 3,072 of pixels. Both order pixels by channel, then row. Only arrays are unpickled, so that a file cannot
run code.
"""

import io
import pickle
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch

from taugrad.data.images import Split, Splits, split
from taugrad.errors import DataError
from taugrad.files import user_path

_URL = "https://www.cs.toronto.edu/~kriz/"
_PYTHON, _BINARY = "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"
_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"  # hash of the pickled archive
_FOLDERS = {_PYTHON: "cifar-10-batches-py", _BINARY: "cifar-10-batches-bin"}
_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_IMAGE = 3, 32, 32
_PIXELS = 3 * 32 * 32
_GLOBALS = {  # all that a pickled array needs, by the names of numpy's several versions
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("_codecs", "encode"),
}


def cifar10(root: str | Path, validation: int = 5_000) -> Splits:
    """Load CIFAR-10, 32 x 32 photographs in colour of ten classes, images (n, 3, 32, 32).

    Args:
        root: the folder that holds, or gets, cifar-10-python.tar.gz or cifar-10-binary.tar.gz, or what was unpacked
            from it; or that unpacked folder, or the archive, itself.
        validation: number of the 50,000 training images to set aside, the last ones, whose order is random; 0
            validates on the test split.

    Raises:
        DataError: nothing is there and it cannot be downloaded, or a file is damaged or of another kind.
        ValueError: `validation` is out of range.
    """
    read, ending, where = _found(user_path(root))
    parse = _pickled if not ending else _records
    train = [parse(read(name + ending), where / (name + ending)) for name in _TRAIN]
    test = parse(read(f"test_batch{ending}"), where / f"test_batch{ending}")
    joined = Split(torch.cat([images for images, _ in train]), torch.cat([labels for _, labels in train]))
    return split(joined, Split(*test), validation)


def _found(root: Path) -> tuple[Callable[[str], bytes], str, Path]:
    """Return what reads a batch by its name, the ending of those names, and where they are."""
    for archive, ending in ((_PYTHON, ""), (_BINARY, ".bin")):
        for folder in (root, root / _FOLDERS[archive]):
            if (folder / f"test_batch{ending}").is_file():
                return lambda name, folder=folder: _bytes(folder / name), ending, folder
        path = root if root.name == archive and root.is_file() else root / archive
        if path.is_file():
            return _packed(path), ending, path
    if root.exists() and not root.is_dir():
        raise DataError(f"data.source.root must be a folder, or one of {_PYTHON}, {_BINARY}, got the file {root}")
    path = _download(root)
    return _packed(path), "", path


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _packed(path: Path) -> Callable[[str], bytes]:
    """Read all batches of an archive, in memory: nothing is unpacked to the disk."""
    try:
        with tarfile.open(path) as archive:
            files = {Path(m.name).name: f.read() for m in archive if m.isfile() and (f := archive.extractfile(m))}
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error

    def read(name: str) -> bytes:
        if name not in files:
            raise DataError(f"{path} holds no {name}")
        return files[name]

    return read


class _Arrays(pickle.Unpickler):
    """Unpickler of arrays and plain containers alone."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every function and class but those of which an array is made."""
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays are admitted")
        return super().find_class(module, name)


def _pickled(raw: bytes, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        content = _Arrays(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} is no batch of CIFAR-10: {error}") from error
    named = content if isinstance(content, dict) else {}
    data, labels = (named.get(key.encode(), named.get(key)) for key in ("data", "labels"))  # by Python 2, or by 3
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == _PIXELS):
        raise DataError(f"{path} is no batch of CIFAR-10: it holds no array data of uint8 (n, {_PIXELS})")
    if not (isinstance(labels, list) and len(labels) == len(data) and all(type(y) is int for y in labels)):
        raise DataError(f"{path} is no batch of CIFAR-10: it holds no list labels of {len(data)} whole numbers")
    return _checked(data, np.array(labels), path)


def _records(raw: bytes, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    if not raw or len(raw) % (1 + _PIXELS):
        raise DataError(f"{path} must hold records of {1 + _PIXELS} bytes, got {len(raw)} bytes")
    records = np.frombuffer(raw, np.uint8).reshape(-1, 1 + _PIXELS)
    return _checked(records[:, 1:], records[:, 0], path)


def _checked(pixels: np.ndarray, labels: np.ndarray, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    if not len(labels) or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path} must hold images with labels 0 to 9")
    return torch.from_numpy(pixels.copy()).view(-1, *_IMAGE), torch.from_numpy(labels.astype(np.int64))


def _download(root: Path) -> Path:
    try:
        root.mkdir(parents=True, exist_ok=True)
        sha256 = f"sha256:{_SHA256}"
        return Path(pooch.retrieve(_URL + _PYTHON, sha256, _PYTHON, root, progressbar=sys.stderr.isatty()))
    except (OSError, ValueError) as error:  # no network; a checksum that does not match
        raise DataError(
            f"{root} lacks {_PYTHON} and it could not be downloaded ({type(error).__name__}): put it or {_BINARY} "
            "there, packed or unpacked, or set data.source.root to its folder"
        ) from error
