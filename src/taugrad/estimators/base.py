"""Interface of the estimators of E f(z) over one-hot `z`, with a gradient to the logits."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from taugrad.ops.embedding import embedding_with_index
from taugrad.ops.onehot import Relaxation


class Estimator(ABC):
    """Estimator of E f(z) with a gradient."""

    @abstractmethod
    def expectation(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Estimate E f(z), (...), for `f` from (*more, ..., N, K) to (*more, ...) and logits (..., N, K)."""


class Pathwise(Estimator):
    """Estimator whose gradient flows through the sample itself."""

    relaxation: ClassVar[Relaxation | None] = None  # whose gradient a hard sample takes, if that is all of its gradient
    gap: float = 0.0  # lead of the drawn class, of Relaxation.GAPPED alone

    @abstractmethod
    def sample(self, logits: Tensor, tau: float | Tensor = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw a sample in the shape and dtype of `logits` (..., K), with a gradient.

        An estimator of one's own needs no more. The estimators here also take `dim`, for logits (..., K, ...).
        """

    def embedding(
        self,
        logits: Tensor,
        weight: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw rows of a table (K, D): `sample @ weight`, (..., D), and the drawn classes, (...), of logits (..., K).

        The classes of a soft sample are its largest ones. An estimator with a `relaxation` needs no one-hot for it.
        """
        if self.relaxation is not None:
            how = self.relaxation
            return embedding_with_index(logits, weight, tau, -1, how, gap=self.gap, generator=generator)
        z = self.sample(logits, tau, generator=generator)
        return (z.to(weight.dtype) @ weight).to(weight.dtype), z.argmax(-1)

    def expectation(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Estimate E f(z) by f of one sample, (...), for `f` from (..., N, K) to (...) and logits (..., N, K)."""
        return f(self.sample(logits, tau, generator=generator))


def check_estimator(estimator: object) -> None:
    """Raise TypeError unless `estimator` is one; a class of estimators is none."""
    if not isinstance(estimator, Estimator):
        raise TypeError(f"estimator must be an Estimator, such as STGumbelSoftmax(), got {estimator!r}")


def check_pathwise(estimator: object) -> None:
    """Raise TypeError unless an estimator gives samples."""
    if not isinstance(estimator, Pathwise):
        raise TypeError(f"estimator must be a pathwise estimator, which gives samples, got {estimator!r}")
