"""Data module of Lightning for any data set of images."""

from collections.abc import Callable

import torch
from lightning import LightningDataModule
from torch import Tensor

from taugrad.checks import check_count
from taugrad.data.batches import Batches, ShuffledBatches
from taugrad.data.images import Split, Splits, balanced, binarize, binarize_at
from taugrad.errors import ConfigError, TaugradError

_BINARIZE = ("none", "static", "dynamic")


class ImageData(LightningDataModule):
    """Training, validation and test batches (x, labels) of one source, x (batch, *image) in [0, 1].

    An image is (height, width) in grey, or (C, height, width).
    Training batches come in stacks, x (stack, batch, *image), with one optimizer step for each batch. Each of
    several processes gets its share of every training batch, and of the other splits.

    Args:
        source: a function that returns the three splits, such as `binarized_mnist`.
        batch_size: images of a training batch, all processes together.
        eval_batch_size: images of a batch of validation and test.
        stack: batches of a training step.
        binarize: `none` keeps intensities; `static` samples each pixel once, by a fixed seed; `dynamic` samples the
            training pixels anew at every visit and keeps validation and test static.
        seed: of the order of the training images, and of the choice of those that keep their labels.
        labels: number of training labels that are kept, as many of each class, for semi-supervised learning (see
            `ShuffledBatches`); None keeps all.
        labelled_batch_size: labelled images after every training batch, if `labels` is given; at most all of them.

    Raises:
        TypeError: `source` is no function.
        ValueError: a size below 1, an unknown `binarize`.
        ConfigError: `batch_size` is larger than the training split, `labels` does not fit its classes, or a batch
            cannot be shared evenly.
        DataError: the source's files are missing or damaged.
    """

    def __init__(
        self,
        source: Callable[[], Splits],
        batch_size: int = 100,
        eval_batch_size: int = 100,
        stack: int = 10,
        binarize: str = "none",
        seed: int = 0,
        labels: int | None = None,
        labelled_batch_size: int = 50,
    ) -> None:
        super().__init__()
        if binarize not in _BINARIZE:
            raise ValueError(f"binarize must be one of {', '.join(_BINARIZE)}, got {binarize}")
        if not callable(source):
            kind = type(source).__name__
            raise TypeError(f"source must be a function, in a config a node with _partial_: true, got {kind}")
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "stack": stack}
        for name, size in (sizes | {"labelled_batch_size": labelled_batch_size}).items():
            check_count(name, size)
        self.source, self.binarize, self.seed = source, binarize, seed
        self.batch_size, self.eval_batch_size, self.stack, self.labels_kept = batch_size, eval_batch_size, stack, labels
        self.labelled_batch_size = min(labelled_batch_size, labels or 0)
        self._splits: Splits | None = None
        self._labelled: Tensor | None = None  # indices of the training images that keep their labels

    def setup(self, stage: str) -> None:
        """Load the splits, once."""
        train = self._load().train
        if (size := self.batch_size) > (n := len(train.labels)):
            raise ConfigError(f"data.batch_size must be at most {n}, the size of the training split, got {size}")
        self.check_shares(self.trainer.world_size if self.trainer else 1)
        if self.labels_kept is not None:
            try:
                self._labelled = balanced(train.labels, self.labels_kept, self.seed)
            except ValueError as error:
                raise ConfigError(f"data.{error}") from error

    def check_shares(self, processes: int) -> None:
        """Check that every process gets as much of a batch; ConfigError."""
        for name in ("batch_size", "labelled_batch_size"):
            if (size := getattr(self, name)) % processes:
                raise ConfigError(f"data.{name} must be a multiple of the number of processes, {processes}, got {size}")

    @property
    def splits(self) -> Splits:
        """The three splits as the source has them."""
        return self._load()

    @property
    def image_size(self) -> tuple[int, ...]:
        """Shape of an image: height and width, or channels, height and width."""
        return tuple(self._load().train.images.shape[1:])

    def epoch_steps(self, limit: int | float | None = None) -> int:
        """Optimizer steps of an epoch, under a trainer's `limit_train_batches`, a number or a share of stacks."""
        batches = len(self._load().train.labels) // self.batch_size
        stacks = -(-batches // self.stack)
        return min(batches, _limited(stacks, 1.0 if limit is None else limit) * self.stack)

    def labels(self) -> Tensor:
        """Join the labels of all splits, also those that a semi-supervised training does not see."""
        return torch.cat([part.labels for part in self._load()])

    def train_dataloader(self) -> ShuffledBatches:
        """Make the stacks of shuffled batches of the training split."""
        split, binarize = self._load().train, self.binarize
        limit = self.trainer.limit_train_batches if self.trainer else 1.0
        batches = ShuffledBatches(
            (_binary(split) if binarize == "static" else split).to(self._device()),
            self.batch_size,
            seed=self.seed,
            stack=self.stack,
            sample_pixels=binarize == "dynamic",
            labelled=self._labelled,
            labelled_batch_size=self.labelled_batch_size,
            share=self._share(),
        )
        batches.items = _limited(len(batches), limit)
        return batches

    def val_dataloader(self) -> Batches:
        """Make the batches of the validation split, in order."""
        return self._evaluation(self._load().val)

    def test_dataloader(self) -> Batches:
        """Make the batches of the test split, in order."""
        return self._evaluation(self._load().test)

    def _device(self) -> torch.device:
        """Device of the training, where the splits lie whole: no step waits for a batch to get there."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _share(self) -> slice:
        """Rows of this process."""
        return slice(self.trainer.global_rank, None, self.trainer.world_size) if self.trainer else slice(None)

    def _load(self) -> Splits:
        if self._splits is None:
            try:
                self._splits = self.source()
            except TaugradError:
                raise
            except (TypeError, ValueError) as error:
                raise ConfigError(f"data.source: {error}") from error
        return self._splits

    def _evaluation(self, split: Split) -> Batches:
        images, labels = split if self.binarize == "none" else _binary(split)
        split = Split(images[self._share()], labels[self._share()]).to(self._device())
        return Batches(split, min(self.eval_batch_size, len(split.labels)))


def _limited(stacks: int, limit: int | float) -> int:
    """Number of stacks that a trainer's `limit_train_batches` leaves: 1 is one of them, 1.0 all."""
    return limit if isinstance(limit, int) else int(limit * stacks)


def _binary(split: Split) -> Split:
    images = split.images
    return Split(binarize(images) if isinstance(images, Tensor) else images.map(binarize_at), split.labels)
