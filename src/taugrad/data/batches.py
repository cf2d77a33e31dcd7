"""Batches of images, as index slices of tensors in memory."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from taugrad.data.images import Split
from taugrad.data.pictures_on_disk import PicturesOnDisk, take_each

_GOLDEN = (math.sqrt(5) - 1) / 2


class Batches:
    """Batches (x, labels) of an evaluation, in order; x is (batch, *image), float32 in [0, 1]."""

    def __init__(self, split: Split, batch_size: int) -> None:
        self.split = split
        self.batch_size = _fitting(batch_size, split)  # the last batch may hold fewer

    def __len__(self) -> int:
        return -(-len(self.split.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rows = torch.arange(len(self.split.labels)).split(self.batch_size)
        labels_of = self.split.labels.split(self.batch_size)
        for images, labels in zip(take_each(self.split.images, rows), labels_of, strict=True):
            yield images.float().div_(255), labels

    def spread(self, n: int) -> tuple[Tensor, Tensor]:
        """Return `n` images of the split and their labels, or all if there are fewer, in an order to take the first of.

        The first few are spread over the whole split as well, whose images may be sorted by class.
        """
        size = len(self.split.labels)
        places = (torch.arange(size, dtype=torch.float64) * _GOLDEN).frac()  # multiples of it leave no large gap
        rows = places.argsort().argsort()[:n]
        images = next(iter(take_each(self.split.images, [rows])))
        return images.float().div_(255), self.split.labels[rows]


class ShuffledBatches:
    """Batches of a training, in an order that seed and epoch determine, several at a time.

    An item is a stack of up to `stack` batches, (x, labels) with x (stack, batch, *image) float32 in [0, 1], one
    optimizer step each: the work of a trainer around a training step is then done once for the stack.

    The state is the epoch and the number of its batches that were taken, so that a resumed run continues in the middle
    of an epoch with the batches that were left. Without a loaded state each `iter` starts the next epoch. An epoch
    drops its incomplete last batch.

    For semi-supervised learning, `labelled` has the indices of the only images whose labels may be used: labels of a
    batch are then -1, and `labelled_batch_size` of these images follow with their labels.

    Each of several processes that train together takes its `share` of every batch; the sizes are of all shares
    together. With `sample_pixels` each pixel is sampled by its intensity anew at every visit (dynamic binarization). An
    epoch ends after `items` of its items, from a trainer's `limit_train_batches`.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int,
        stack: int = 1,
        sample_pixels: bool = False,
        labelled: Tensor | None = None,
        labelled_batch_size: int = 0,
        share: slice = slice(None),
        items: int | None = None,
    ) -> None:
        self.split = split
        self.batch_size = _fitting(batch_size, split)
        self.seed, self.stack, self.sample_pixels = seed, stack, sample_pixels
        self.labelled, self.labelled_batch_size = labelled, labelled_batch_size
        self.share, self.items = share, items
        self._epoch, self._batch = -1, 0
        self._loaded = False

    def __len__(self) -> int:
        return -(-self._whole // self.stack)  # length of a whole epoch, because a trainer applies its limit itself

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not (self._loaded and self._batch < self._batches):
            self._epoch, self._batch = self._epoch + 1, 0
        self._loaded = False
        order = np.random.default_rng([self.seed, self._epoch]).permutation(len(self.split.labels))
        batches = torch.from_numpy(order)[: self._batches * self.batch_size].view(self._batches, self.batch_size)
        batches, known = batches[self._batch :, self.share], None
        if self.labelled is not None:
            known = torch.stack([self._known(self._batch + i) for i in range(len(batches))])
            batches = torch.cat([batches, known], 1)
        there = batches.to(self.split.images.device)  # once an epoch
        places = batches if isinstance(self.split.images, PicturesOnDisk) else there
        taken = take_each(self.split.images, places.split(self.stack))
        for rows, images in zip(there.split(self.stack), taken, strict=True):
            labels = self.split.labels[rows]
            if known is not None:
                labels[:, : -known.shape[1]] = -1
            self._batch += len(rows)
            x = images.float().div_(255)
            yield (torch.bernoulli(x) if self.sample_pixels else x), labels

    def state_dict(self) -> dict[str, int]:
        """Position: the epoch in progress, and the number of its batches that were taken."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next `iter` continue from a position."""
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._loaded = self._epoch >= 0

    def _known(self, batch: int) -> Tensor:
        """Draw indices of the labelled images for a batch of the epoch, without replacement."""
        assert self.labelled is not None  # this is called only with labelled images
        rng = np.random.default_rng([self.seed, self._epoch, batch])
        return torch.from_numpy(rng.choice(self.labelled.numpy(), self.labelled_batch_size, replace=False))[self.share]

    @property
    def _batches(self) -> int:
        return self._whole if self.items is None else min(self._whole, self.items * self.stack)

    @property
    def _whole(self) -> int:
        """Number of batches of a whole epoch."""
        return len(self.split.labels) // self.batch_size


def first_images(batches: Iterable[tuple[Tensor, Tensor]], n: int) -> tuple[Tensor, Tensor]:
    """Join the first `n` images and labels of an evaluation's batches, or all if there are fewer."""
    xs, labels = [], []
    for x, y in batches:
        xs.append(x)
        labels.append(y)
        if sum(map(len, xs)) >= n:
            break
    return torch.cat(xs)[:n], torch.cat(labels)[:n]


def images_to_show(batches: Iterable[tuple[Tensor, Tensor]], n: int) -> tuple[Tensor, Tensor]:
    """Return up to `n` images and labels spread over a split; of other batches than ours the first."""
    return batches.spread(n) if isinstance(batches, Batches) else first_images(batches, n)


def _fitting(batch_size: int, split: Split) -> int:
    n = len(split.labels)
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must be in [1, {n}], the size of the split, got {batch_size}")
    return batch_size
