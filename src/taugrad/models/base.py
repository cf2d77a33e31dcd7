"""What a model of images is to the task that trains it: a loss, and as much more as it has.

A model is an `nn.Module` with `loss_terms`; nothing of ours is to be inherited. Each protocol below names one more
method, which the task uses where a model has it. Three attributes count likewise: `image_size`, height and width, which
the data's images must have; `metrics`, names of what evaluations report beside the loss, such as `val/elbo`; and
`changeable`, names of arguments that a resumed run may change.

In all of them x is images (batch, height, width) in [0, 1], and labels are (batch,), int64, -1 for none.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from taugrad.estimators import Estimator


@runtime_checkable
class ImageModel(Protocol):
    """What every model has."""

    def loss_terms(self, x: Tensor, labels: Tensor, estimator: Estimator, tau: float) -> dict[str, Tensor]:
        """The `loss` of a training batch, and terms to show next to it; all are scalars."""
        ...


@runtime_checkable
class Checked(Protocol):
    """Refuses what it cannot be trained with, before anything is trained."""

    def check(self, estimator: Estimator, labels: Tensor | None = None) -> None:
        """Raise ValueError or DataError; `labels` are all labels of the data, where they are known."""
        ...


@runtime_checkable
class Started(Protocol):
    """Takes something from the data before its first step."""

    def start(self, mean: Tensor) -> None:
        """Take the mean (height, width) of the first images."""
        ...


@runtime_checkable
class Evaluated(Protocol):
    """Evaluates by hard samples itself; the task evaluates the other models' `loss_terms` by hard samples."""

    def evaluation_terms(
        self, x: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The `loss` and other terms, means over the batch, and the logits (batch, N, K) of the codes."""
        ...


@runtime_checkable
class Tested(Protocol):
    """Has terms that only the test computes."""

    def test_terms(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor | float]:
        """The terms, means over the batch."""
        ...


@runtime_checkable
class Greedy(Protocol):
    """Can be exported."""

    def greedy(self, x: Tensor) -> Tensor:
        """The most probable choices, without sampling."""
        ...


@runtime_checkable
class Pictured(Protocol):
    """Shows what it learned."""

    def pictures(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Pictures (height, width) in [0, 1] by their names."""
        ...


@runtime_checkable
class Latent(Protocol):
    """Has categorical latents whose gradient can be probed: f(z) = log p(x|z) at the logits of q(z|x)."""

    def encode(self, x: Tensor) -> Tensor:
        """Logits (batch, N, K)."""
        ...

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Log p(x|z), (*more, batch), for one-hot z (*more, batch, N, K)."""
        ...
