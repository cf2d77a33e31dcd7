"""Batches as index slices of tensors in memory, in an order that a seed and an epoch determine."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from taugrad.data.images import Split


class Batches:
    """An iterable over (x, labels), x (batch, height, width) float32 in [0, 1].

    Its state is the epoch and the number of batches already handed out, so that a resumed run goes on in the middle of
    an epoch with the batches that were left. Without a loaded state each `iter` starts the next epoch.

    Args:
        split: the images and labels.
        batch_size: images a batch. A shuffled epoch drops the incomplete last batch, a sequential one keeps it.
        seed: of the shuffling; None goes through the split in order.
        sample_pixels: draw each pixel from its intensity anew at every visit (dynamic binarization).
    """

    def __init__(self, split: Split, batch_size: int, *, seed: int | None = None, sample_pixels: bool = False) -> None:
        n = len(split.labels)
        if not 1 <= batch_size <= n:
            raise ValueError(f"batch_size must be in [1, {n}], the size of the split, got {batch_size}")
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.sample_pixels = sample_pixels
        self._epoch = -1
        self._batch = 0
        self._loaded = False

    def __len__(self) -> int:
        full, rest = divmod(len(self.split.labels), self.batch_size)
        return full + (self.seed is None and rest > 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not (self._loaded and self._batch < len(self)):
            self._epoch, self._batch = self._epoch + 1, 0
        self._loaded = False
        for rows in self._order().split(self.batch_size)[self._batch : len(self)]:
            self._batch += 1
            x = self.split.images[rows].float().div_(255)
            yield (torch.bernoulli(x) if self.sample_pixels else x), self.split.labels[rows]

    def state_dict(self) -> dict[str, int]:
        """The position: the epoch in progress and the batches of it handed out."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next `iter` go on from a position."""
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._loaded = self._epoch >= 0

    def _order(self) -> Tensor:
        n = len(self.split.labels)
        if self.seed is None:
            return torch.arange(n)
        return torch.from_numpy(np.random.default_rng([self.seed, self._epoch]).permutation(n))
