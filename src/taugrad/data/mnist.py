"""MNIST, Fashion-MNIST and a user's own sets from four IDX files in a directory; the first two can be downloaded.

IDX is magic, sizes, then bytes. The magic is two zero bytes, 0x08 for unsigned bytes, and the number of dimensions; the
sizes are big-endian uint32.
"""

import gzip
import hashlib
import math
import re
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pooch
import torch
from torch import Tensor

from taugrad.data.images import Split, Splits, split
from taugrad.errors import DataError
from taugrad.files import user_path

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_PATTERNS = [  # other names of these files: train-images.idx3-ubyte, test-labels.idx.gz
    re.compile(rf"(?:{part})(?:[-_.]idx\d?)?(?:[-_.]ubyte)?(?:\.idx)?(?:\.gz)?", re.IGNORECASE)
    for part in ("train[-_.]images", "train[-_.]labels", "(?:t10k|test)[-_.]images", "(?:t10k|test)[-_.]labels")
]
_UNSIGNED_BYTE = 0x08
_SIZES = 60_000, 60_000, 10_000, 10_000


@dataclass(frozen=True)
class _Published:
    """Data set that can be downloaded."""

    name: str
    url: str
    archives: tuple[str, ...]  # SHA-256 of the gzipped files
    contents: tuple[str, ...] = ()  # SHA-256 of the unpacked images and labels; none are published for Fashion-MNIST

    def holds(self, part: int, path: Path) -> bool:
        """Return whether a file is one of the set."""
        if self.contents and _digest(read_idx(path)) == self.contents[part]:
            return True
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest() == self.archives[part]
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error


_MNIST = _Published(
    "MNIST",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    (
        "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    ),
)
_FASHION_MNIST = _Published(
    "Fashion-MNIST",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
)


def mnist(root: str | Path, validation: int = 10_000) -> Splits:
    """Load MNIST, 28 x 28 handwritten digits.

    Args:
        root: the directory of the four IDX files, gzipped or not, or torchvision's root; missing files are downloaded
            into it if the others are MNIST's. Files with another number of images, such as a part of MNIST, are read
            as they are; files with MNIST's number of images must hold MNIST.
        validation: number of the 60,000 training images to set aside; 0 validates on the test split.

    Raises:
        DataError: a file is missing and cannot be downloaded, or is damaged, or is not of the set's kind.
        ValueError: `validation` is out of range.
    """
    files = _downloaded(user_path(root), _MNIST)
    train, test = _splits(files)
    for path, content, size, sha256 in zip(files, (*train, *test), _SIZES, _MNIST.contents, strict=True):
        if len(content) == size and _digest(cast(Tensor, content)) != sha256:
            raise DataError(
                f"{path} is damaged, or not of MNIST: its content does not have the SHA-256 of MNIST's; another set of "
                f"its size and names, as KMNIST, is read by data=idx data.source.root={path.parent}"
            )
    return split(train, test, validation)


def fashion_mnist(root: str | Path, validation: int = 10_000) -> Splits:
    """Load Fashion-MNIST (1708.07747), 28 x 28 pictures of clothes; arguments, result and errors as for `mnist`."""
    return split(*_splits(_downloaded(user_path(root), _FASHION_MNIST)), validation)


def idx(root: str | Path, validation: int = 10_000) -> Splits:
    """Load any set of 28 x 28 images and labels 0 to 9 from four IDX files, such as KMNIST; nothing is downloaded.

    The files are named as MNIST's, gzipped or not; arguments, result and errors are as for `mnist`.
    """
    directory, found = _found(user_path(root))
    files = [path for path in found if path is not None]
    if len(files) < len(_FILES):
        raise DataError(f"{directory} lacks {_lacking(found)}: put them there, gzipped or not")
    return split(*_splits(files), validation)


def read_split(images: Path, labels: Path) -> Split:
    """Read one pair of IDX files; DataError unless they hold images of 28 x 28, and a label 0 to 9 for each."""
    x, y = read_idx(images), read_idx(labels)
    if x.shape[1:] != (28, 28):
        raise DataError(f"{images} must hold images of 28 x 28, got shape {tuple(x.shape)}")
    if y.shape != x.shape[:1]:
        raise DataError(f"{labels} must hold one label for each of {len(x)} images, got shape {tuple(y.shape)}")
    if y.max() > 9:
        raise DataError(f"{labels} must hold labels 0 to 9, got {int(y.max())}")
    return Split(x, y.to(torch.int64))


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes as uint8, in the shape that it declares; its first bytes show gzip.

    Raises:
        DataError: the file cannot be read, is not IDX of unsigned bytes, or is empty, truncated or too long.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if raw[:4] == b"PK\x03\x04":
        raise DataError(f"{path} is a zip archive: unpack it")
    if len(raw) < 4 or raw[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise DataError(f"{path} is not an IDX file of unsigned bytes: it starts with {raw[:4].hex(' ') or 'nothing'}")
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise DataError(f"{path} is truncated: its header ends after {len(raw)} of {header} bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4:header])
    if math.prod(shape) == 0:
        raise DataError(f"{path} holds no data: its shape is {shape}")
    if len(raw) - header != math.prod(shape):
        raise DataError(f"{path} should hold {math.prod(shape)} bytes for shape {shape}, but holds {len(raw) - header}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header).view(shape)


def _splits(files: list[Path]) -> tuple[Split, Split]:
    return read_split(*files[:2]), read_split(*files[2:])


def _downloaded(root: Path, published: _Published) -> list[Path]:
    """Return the four files; download missing ones, unless that would complete another set than the published one."""
    directory, found = _found(root, published.name.replace("-", ""))  # named as torchvision's folder
    if None in found:
        for part, path in enumerate(found):
            if path is not None and not published.holds(part, path):
                raise DataError(
                    f"{directory} lacks {_lacking(found)}, and {path.name} is not known as {published.name}'s, so that "
                    "nothing is downloaded beside it: put your own there and take data=idx, or name another directory"
                )
    return [path or _download(directory, part, published) for part, path in enumerate(found)]


def _found(root: Path, folder: str = "") -> tuple[Path, list[Path | None]]:
    """Find the directory of the four files, `root` or torchvision's below it, and those files that are there."""
    try:
        if root.exists() and not root.is_dir():
            named = any(pattern.fullmatch(root.name) for pattern in _PATTERNS)
            told = "name its directory" if named else "unpack it, if it is an archive, and name the directory"
            raise DataError(f"data.source.root must be the directory of four IDX files, got the file {root}: {told}")
        for directory in (root, root / "raw", root / folder / "raw"):
            found = _files(directory)
            if any(found):
                return directory, found
        below = [place for child in root.glob("*/") for place in (child, child / "raw") if any(_files(place))]
    except OSError as error:
        raise DataError(f"data.source.root={root} cannot be read: {error.strerror}") from error
    if below:
        raise DataError(f"{root} holds none of the four files, but {min(below)} does: give that as data.source.root")
    return root, [None] * len(_FILES)


def _files(directory: Path) -> list[Path | None]:
    """Find the four files of a directory, those with the published names first."""
    if not directory.is_dir():
        return [None] * len(_FILES)
    paths = sorted(directory.iterdir(), key=lambda path: (not path.name.startswith(_FILES), path.name))
    return [next((p for p in paths if pattern.fullmatch(p.name) and p.is_file()), None) for pattern in _PATTERNS]


def _lacking(found: list[Path | None]) -> str:
    return ", ".join(name for name, path in zip(_FILES, found, strict=True) if path is None)


def _digest(content: Tensor) -> str:
    return hashlib.sha256(content.to(torch.uint8).numpy().data).hexdigest()


def _download(root: Path, part: int, published: _Published) -> Path:
    name = _FILES[part]
    try:
        root.mkdir(parents=True, exist_ok=True)
        sha256 = f"sha256:{published.archives[part]}"
        url, bar = f"{published.url}{name}.gz", sys.stderr.isatty()
        return Path(pooch.retrieve(url, sha256, f"{name}.gz", root, progressbar=bar))
    except (OSError, ValueError) as error:  # no network; a checksum that does not match
        raise DataError(
            f"{root} lacks {name} and it could not be downloaded ({type(error).__name__}): put the files "
            f"{', '.join(_FILES)} there, gzipped or not, or set data.source.root to their directory"
        ) from error
