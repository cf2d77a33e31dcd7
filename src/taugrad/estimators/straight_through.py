"""Estimators that draw a class and take the gradient of a softmax, without noise in it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from taugrad.checks import check_positive
from taugrad.estimators.base import Pathwise
from taugrad.ops._sampling import sample
from taugrad.ops.onehot import Relaxation


@dataclass(frozen=True)
class StraightThrough(Pathwise):
    r"""Straight-through: z ~ softmax(logits), dz := d softmax(logits / tau).

    Bias: none in the value; the gradient is exact for a linear f at tau = 1, biased for others.
    Source: 1308.3432; with tau as in 2304.08612.

    >>> StraightThrough().sample(torch.zeros(2, 3)).sum(-1)
    tensor([1., 1.])
    """

    relaxation: ClassVar[Relaxation | None] = Relaxation.PLAIN

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `z`, exactly one-hot."""
        return sample(logits, tau, dim, Relaxation.PLAIN, generator=generator)


@dataclass(frozen=True)
class GappedStraightThrough(Pathwise):
    r"""Gapped straight-through: the logits are shifted until the drawn class leads by a gap; no noise in the gradient.

    $z \sim \mathrm{softmax}(\theta)$; $dz := d\,\mathrm{softmax}((\theta + m) / \tau)$ with m constant:
    $m_k = \max\theta - \theta_k$ for the drawn class, $-(\theta_k - \max\theta + \mathrm{gap})_+$ for the others.

    Bias: none in the value; the gradient is biased. Its only randomness is z. Source: 2206.07235.

    >>> GappedStraightThrough(gap=1.0).sample(torch.zeros(2, 3), tau=0.5).sum(-1)
    tensor([1., 1.])
    """

    relaxation: ClassVar[Relaxation | None] = Relaxation.GAPPED

    gap: float = 1.0

    def __post_init__(self) -> None:
        check_positive("gap", self.gap)

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `z`, exactly one-hot."""
        return sample(logits, tau, dim, Relaxation.GAPPED, gap=self.gap, generator=generator)


@dataclass(frozen=True)
class ReinMax(Pathwise):
    r"""ReinMax: second-order accurate, by Heun's method in place of straight-through's Euler step.

    $D \sim \pi = \mathrm{softmax}(\theta)$, $\pi_D = (\mathrm{softmax}(\theta/\tau) + D) / 2$;
    gradient $2 J(\pi_D)\, g - \frac12 J(\pi)\, g$, $J(p) = \mathrm{diag}(p) - p p^\top$.

    Bias: none in the value; at tau = 1 the gradient is exact for linear and quadratic f. Above 1 it trades some bias
    for less variance; a tau below 1 has no advantage. tau itself gets no gradient. Source: 2304.08612.

    >>> ReinMax().sample(torch.zeros(2, 3)).sum(-1)
    tensor([1., 1.])
    """

    relaxation: ClassVar[Relaxation | None] = Relaxation.MARKED

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `z`, exactly one-hot."""
        return sample(logits, tau, dim, Relaxation.MARKED, generator=generator)
