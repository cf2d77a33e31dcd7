"""Protocols between a model of images and the task that trains it: a loss, and whatever else the model has.

A model is an `nn.Module` with `loss_terms`; it inherits nothing of ours. Each protocol below names one more capability,
which the task uses where a model has it. Three attributes are optional too: `image_size`, the shape that the
data's images must have; `metrics`, names of what evaluations report next to the loss, such as `val/elbo`; and
`changeable`, names of arguments that a resumed run may change.

Throughout, `x` is images (batch, height, width), or (batch, C, height, width), in [0, 1], and `labels` are (batch,),
int64, -1 for none.
"""

from typing import Protocol, runtime_checkable

from torch import Generator, Tensor

from taugrad.circuits import Circuit
from taugrad.estimators import Estimator


@runtime_checkable
class ImageModel(Protocol):
    """The one method that every model has."""

    def loss_terms(self, x: Tensor, labels: Tensor, estimator: Estimator, tau: float) -> dict[str, Tensor]:
        """Return the `loss` of a training batch, and terms to log next to it; all are scalars."""
        ...


@runtime_checkable
class Checked(Protocol):
    """Refuses an estimator or labels that it cannot be trained with, before the first step."""

    def check(self, estimator: Estimator, labels: Tensor | None = None) -> None:
        """Raise ValueError or DataError; `labels` are all labels of the data, where they are known."""
        ...


@runtime_checkable
class Started(Protocol):
    """Initializes itself from the data before its first step."""

    def start(self, mean: Tensor) -> None:
        """Initialize from the mean of the first images, of an image's shape."""
        ...


@runtime_checkable
class Evaluated(Protocol):
    """Evaluates by hard samples itself; of every other model the task evaluates `loss_terms` by hard samples."""

    def evaluation_terms(self, x: Tensor, labels: Tensor, generator: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Return the `loss` and other terms, means over the batch, and the logits (batch, N, K) of the codes."""
        ...


@runtime_checkable
class Coded(Protocol):
    """Measures by itself how its codes are used; its `evaluation_terms` return counts of them in place of logits.

    Of every other model that is `Evaluated` the task reports the usage of each latent, from the logits.
    """

    def usage(self, counts: Tensor) -> dict[str, Tensor]:
        """Return scalars by name, of counts that are summed over the images of an evaluation."""
        ...


@runtime_checkable
class Tested(Protocol):
    """Has terms that only the test computes."""

    def test_terms(self, x: Tensor, labels: Tensor, generator: Generator) -> dict[str, Tensor | float]:
        """Return the terms, means over the batch."""
        ...


@runtime_checkable
class Greedy(Protocol):
    """Can be exported."""

    def greedy(self, x: Tensor) -> Tensor:
        """Return the most probable choices, without sampling."""
        ...


@runtime_checkable
class Decoded(Protocol):
    """Can be exported the other way too: from codes to pictures."""

    def picture(self, codes: Tensor) -> Tensor:
        """Return the mean pictures, in [0, 1], of codes as `greedy` returns them."""
        ...


@runtime_checkable
class Gated(Protocol):
    """Is a circuit of logic gates once it is trained, and can be exported as one.

    Attributes:
        thresholds: bits of an intensity, by `circuits.input_bits`; None for images of 0 and 1.
    """

    thresholds: int | None

    def circuit(self) -> Circuit:
        """Return the gates, each its most probable function."""
        ...


@runtime_checkable
class Pictured(Protocol):
    """Has pictures of what it learned."""

    def pictures(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return pictures (height, width) or (3, height, width) in [0, 1] by their names."""
        ...


@runtime_checkable
class Latent(Protocol):
    """Has categorical latents whose gradient can be probed: f(z) = log p(x|z) at the logits of q(z|x)."""

    def encode(self, x: Tensor) -> Tensor:
        """Return the logits (batch, N, K) of q(z|x)."""
        ...

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z), (*more, batch), for one-hot `z` (*more, batch, N, K)."""
        ...
