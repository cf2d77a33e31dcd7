"""MNIST under one fixed binarization, 50,000 / 10,000 / 10,000 images with labels, embedded in the package.

The images are bytes, as in every data set here, 0 for off and 255 for on: `images / 255` is 0.0 and 1.0.

The file is xz over 70,000 x 98 bytes of packed pixels (row-major, the highest bit first), then 70,000 bytes of labels;
`scripts/pack_binarized_mnist.py` makes it from the IDX files. Its licence is next to it.
"""

import hashlib
import lzma
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from taugrad.data.images import Split, Splits, split
from taugrad.errors import DataError

PATH = Path(__file__).with_name("binarized_mnist.xz")
SHA256 = "792f8383fcdbd31bacc9351c41f402a12b15baaca45dcda1b7c17b22fe9d908b"  # hash of the unpacked content

_TRAIN, _TEST, _SIZE = 60_000, 10_000, 28
_PIXEL_BYTES = (_TRAIN + _TEST) * _SIZE * _SIZE // 8


def binarized_mnist(path: Path = PATH) -> Splits:
    """Load the embedded data set, images (28, 28), uint8, 0 or 255.

    Raises:
        DataError: the file is missing, damaged, or not the one that the package was built with.

    >>> binarized_mnist().test.images[:100].div(255).unique()
    tensor([0., 1.])
    """
    try:
        payload = lzma.decompress(path.read_bytes())
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    digest = hashlib.sha256(payload).hexdigest()
    if digest != SHA256:
        raise DataError(f"{path} is damaged: its content has SHA-256 {digest}, expected {SHA256}")
    images, labels = unpack(payload)
    train = Split(images[:_TRAIN], labels[:_TRAIN])
    return split(train, Split(images[_TRAIN:], labels[_TRAIN:]), validation=_TEST)


def pack(images: Tensor, labels: Tensor) -> bytes:
    """Pack 70,000 binary images (28, 28), 0 or 255, and their labels into a payload."""
    return np.packbits(images.numpy() > 0).tobytes() + labels.to(torch.uint8).numpy().tobytes()


def unpack(payload: bytes) -> tuple[Tensor, Tensor]:
    """Return images (70,000, 28, 28), uint8, 0 or 255, and labels (70,000,), int64: the inverse of `pack`."""
    pixels = np.unpackbits(np.frombuffer(payload, np.uint8, _PIXEL_BYTES)) * np.uint8(255)
    labels = np.frombuffer(payload, np.uint8, offset=_PIXEL_BYTES).astype(np.int64)
    return torch.from_numpy(pixels).view(-1, _SIZE, _SIZE), torch.from_numpy(labels)
