"""MNIST and Fashion-MNIST from their four IDX files, in a directory or downloaded into it once."""

import hashlib
import sys
from pathlib import Path

import pooch
import torch

from taugrad.data.idx import read_idx
from taugrad.data.images import Split, Splits, split
from taugrad.errors import DataError

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MNIST_SHA256 = (
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
# Of the four files' images and labels themselves. Of Fashion-MNIST only its archives' sums are published.
_MNIST_CONTENT = (
    "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
)
_SIZES = 60_000, 60_000, 10_000, 10_000
_FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FASHION_MNIST_SHA256 = (
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
)


def mnist(root: str | Path, validation: int = 10_000) -> Splits:
    """MNIST, 28 x 28 handwritten digits.

    Args:
        root: the directory of the four IDX files, gzipped or not; missing ones are downloaded into it. Files of
            another number of images, as of a part of MNIST, are taken as they are; of MNIST's own number they must
            hold MNIST.
        validation: how many of the 60,000 training images to set aside; 0 validates on the test split.

    Returns:
        The three splits.

    Raises:
        DataError: a file is missing and cannot be downloaded, or is damaged, or is not of the set's kind.
        ValueError: `validation` is out of range.
    """
    files = _find(Path(root), _MNIST_URL, _MNIST_SHA256)
    train, test = _splits(files)
    contents = (*train, *test)
    for path, content, size, sha256 in zip(files, contents, _SIZES, _MNIST_CONTENT, strict=True):
        if len(content) == size and hashlib.sha256(content.to(torch.uint8).numpy().data).hexdigest() != sha256:
            raise DataError(f"{path} is damaged, or not of MNIST: its content does not have the SHA-256 of MNIST's")
    return split(train, test, validation)


def fashion_mnist(root: str | Path, validation: int = 10_000) -> Splits:
    """Fashion-MNIST (1708.07747), 28 x 28 pictures of clothes; arguments, result and errors as for `mnist`."""
    return split(*_splits(_find(Path(root), _FASHION_MNIST_URL, _FASHION_MNIST_SHA256)), validation)


def read_split(images: Path, labels: Path) -> Split:
    """Read one pair of IDX files.

    Raises:
        DataError: a file is damaged, the images are not 28 x 28, or the labels are not 0 to 9, one for each image.
    """
    x, y = read_idx(images), read_idx(labels)
    if x.shape[1:] != (28, 28):
        raise DataError(f"{images} must hold images of 28 x 28, got shape {tuple(x.shape)}")
    if y.shape != x.shape[:1]:
        raise DataError(f"{labels} must hold one label for each of {len(x)} images, got shape {tuple(y.shape)}")
    if y.max() > 9:
        raise DataError(f"{labels} must hold labels 0 to 9, got {int(y.max())}")
    return Split(x, y.to(torch.int64))


def _splits(files: list[Path]) -> tuple[Split, Split]:
    train_x, train_y, test_x, test_y = files
    return read_split(train_x, train_y), read_split(test_x, test_y)


def _find(root: Path, url: str, sha256: tuple[str, ...]) -> list[Path]:
    return [
        _file(root, name) or _download(root, name, url, digest) for name, digest in zip(_FILES, sha256, strict=True)
    ]


def _file(root: Path, name: str) -> Path | None:
    candidates = (root / name, root / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _download(root: Path, name: str, url: str, sha256: str) -> Path:
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = pooch.retrieve(
            f"{url}{name}.gz", f"sha256:{sha256}", f"{name}.gz", root, progressbar=sys.stderr.isatty()
        )
    except (OSError, ValueError) as error:  # no network; a checksum that does not match
        raise DataError(
            f"{root} lacks {name} and it could not be downloaded ({type(error).__name__}): put the files "
            f"{', '.join(_FILES)} there, gzipped or not, or set data.source.root to their directory"
        ) from error
    return Path(path)
