"""Interface of the estimators of E f(z) over one-hot `z`, with a gradient to the logits."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor


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

        The classes of a soft sample are its largest ones. Straight-through estimators need no one-hot for it.
        """
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
