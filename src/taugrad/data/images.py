"""Data set of images: three splits of uint8 images with labels, whole in memory."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from taugrad.data.pictures_on_disk import PicturesOnDisk

BINARIZATION_SEED = 0  # seed of the fixed binarization, in the package's own data set and in `binarize=static`


class Split(NamedTuple):
    """Images, in memory or on disk, as uint8 intensities 0 to 255, binary ones 0 or 255, and labels (n,) as int64.

    Images are (n, height, width) in grey, or (n, C, height, width); three channels are red, green and blue.
    """

    images: Tensor | PicturesOnDisk
    labels: Tensor

    def to(self, device: torch.device) -> "Split":
        """Return the split on a device."""
        return Split(self.images.to(device), self.labels.to(device))


class Splits(NamedTuple):
    """Training, validation and test split of one data set."""

    train: Split
    val: Split
    test: Split


def split(train: Split, test: Split, validation: int) -> Splits:
    """Set the last `validation` training images aside; with 0 the test split is the validation split too.

    Raises:
        ValueError: `validation` is negative, or leaves nothing to train on.
    """
    n = len(train.labels) - validation
    if validation < 0 or n < 1:
        raise ValueError(f"validation must be in [0, {len(train.labels) - 1}], got {validation}")
    val = Split(train.images[n:], train.labels[n:]) if validation else test
    return Splits(Split(train.images[:n], train.labels[:n]), val, test)


def balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draw indices of `count` labels, as many of each class, by `seed`.

    Raises:
        ValueError: `count` is no positive multiple of the number of classes, or a class has too few.

    >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])
    >>> labels[balanced(labels, count=4, seed=0)]
    tensor([0, 0, 1, 1])
    """
    classes = labels.unique()
    if count < 1 or count % len(classes):
        raise ValueError(f"labels must be a positive multiple of the number of classes, {len(classes)}, got {count}")
    share, fewest = count // len(classes), int(labels.bincount()[classes].min())
    if share > fewest:
        raise ValueError(f"labels must be at most {fewest * len(classes)}, as one class has {fewest}, got {count}")
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(torch.nonzero(labels == c)[:, 0].numpy())[:share] for c in classes]
    return torch.from_numpy(np.concatenate(chosen))


def binarize(images: Tensor) -> Tensor:
    """Binarize images (n, ...), uint8, in one fixed way: a pixel is 255 with the probability of its intensity, else 0.

    The random numbers are the raw output of PCG64, whose stream numpy guarantees, so that the result is the same on
    every machine and version. The result for an image depends on its position in `images`.

    >>> binarize(torch.tensor([[0, 255, 0, 255]], dtype=torch.uint8))
    tensor([[  0, 255,   0, 255]], dtype=torch.uint8)
    """
    binary = np.empty(images.shape, dtype=np.uint8)
    bits = np.random.PCG64(BINARIZATION_SEED)
    for image, out in zip(images.numpy(), binary, strict=True):
        out[...] = _sampled(image, bits)
    return torch.from_numpy(binary)


def binarize_at(image: Tensor, place: int) -> Tensor:
    """Binarize one image as `binarize` does at a place among others.

    >>> images = torch.full((5, 2, 3), 128, dtype=torch.uint8)
    >>> torch.equal(binarize_at(images[4], 4), binarize(images)[4])
    True
    """
    bits = np.random.PCG64(BINARIZATION_SEED)
    bits.advance(place * image.numel())
    return torch.from_numpy(_sampled(image.numpy(), bits))


def _sampled(image: np.ndarray, bits: np.random.PCG64) -> np.ndarray:
    """Return 255 with the probability of a pixel's intensity, else 0, by the next random numbers."""
    u = (bits.random_raw(image.size) >> np.uint64(32)).reshape(image.shape)  # uniform in 0 .. 2^32 - 1
    return np.where(u * np.uint64(255) < image.astype(np.uint64) << np.uint64(32), 255, 0).astype(np.uint8)
