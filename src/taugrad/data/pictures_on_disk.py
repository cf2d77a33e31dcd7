"""Images that are decoded from disk whenever a batch needs them, for sets that do not fit in memory."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

_GROUP = 64  # items of a thread at a time: a small picture is decoded faster than it is handed over

X = TypeVar("X")
Y = TypeVar("Y")


class PicturesOnDisk:
    """Images that stand where a tensor (n, *image) of uint8 would, each decoded when it is indexed.

    Args:
        decode: returns the image of a name; threads call it at once.
        names: of the images, in order.
        image: shape of an image.
        device: of the images.

    >>> images = PicturesOnDisk(lambda name: torch.tensor([int(name)]), ["5", "6", "7"], (1,))
    >>> images.shape, images[1:].shape, images.take(torch.tensor([2, 0]))
    (torch.Size([3, 1]), torch.Size([2, 1]), tensor([[7],
            [5]]))
    """

    def __init__(
        self,
        decode: Callable[[Any], Tensor],
        names: Sequence[Any] | np.ndarray,
        image: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self._decode, self._names, self._image = decode, np.array(names, dtype=object), tuple(image)
        self.device = torch.device(device)

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor for which the images stand."""
        return torch.Size((len(self._names), *self._image))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, rows: Tensor | slice) -> "PicturesOnDisk":
        """Choose images, without decoding any."""
        chosen = self._names[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        return PicturesOnDisk(self._decode, chosen, self._image, self.device)

    def to(self, device: torch.device | str) -> "PicturesOnDisk":
        """Return the same images, to be decoded to a device."""
        return PicturesOnDisk(self._decode, self._names, self._image, device)

    def map(self, function: Callable[[Tensor, int], Tensor]) -> "PicturesOnDisk":
        """Return images that `function`, which also takes an image's place among these, changes as they are decoded."""
        decode, names = self._decode, self._names

        def changed(i: int) -> Tensor:
            return function(decode(names[i]), i)

        return PicturesOnDisk(changed, range(len(names)), self._image, self.device)

    def take(self, rows: Tensor) -> Tensor:
        """Decode images, (*rows, *image)."""
        return next(self.take_each([rows]))

    def take_each(self, groups: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode one group of rows after another; threads decode the next while the caller uses the last."""
        waiting: list[tuple[Tensor, list[Future[Tensor]]]] = []
        try:
            for rows in groups:
                names = self._names[rows.cpu().numpy().ravel()]
                waiting.append((rows, [_pool().submit(self._decode, name) for name in names]))
                if len(waiting) == 2:
                    yield self._joined(*waiting.pop(0))
            for group in waiting:
                yield self._joined(*group)
        finally:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()

    def _joined(self, rows: Tensor, futures: list[Future[Tensor]]) -> Tensor:
        images = torch.stack([future.result() for future in futures])
        return images.view(*rows.shape, *self._image).to(self.device)


def take_each(images: Tensor | PicturesOnDisk, groups: Iterable[Tensor]) -> Iterator[Tensor]:
    """Return the images of each group of rows, from memory or from disk."""
    return images.take_each(groups) if isinstance(images, PicturesOnDisk) else (images[rows] for rows in groups)


def each_of(function: Callable[[X], Y], items: Iterable[X]) -> list[Y]:
    """Apply a function to all items by threads, in order."""
    items = list(items)
    groups = [items[i : i + _GROUP] for i in range(0, len(items), _GROUP)]
    return [found for group in _pool().map(lambda group: list(map(function, group)), groups) for found in group]


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that decode: Pillow lets others run while it does."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
