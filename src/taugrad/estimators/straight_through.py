"""Estimators that draw a class and take the gradient of a softmax, without noise in it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from taugrad.checks import check_positive
from taugrad.estimators.base import Pathwise
from taugrad.ops._checks import check_logits, check_tau, compute_dtype
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
class DecoupledStraightThrough(Pathwise):
    r"""Straight-through with a temperature of its own for the sample: how much it explores, apart from its gradient.

    $z \sim \mathrm{softmax}(\theta / \tau_f)$; $dz := d\,\mathrm{softmax}(\theta / \tau)$.

    `forward_tau` above 1 flattens the distribution of z, below 1 sharpens it; tau is the gradient's temperature, as of
    straight-through, which it is at forward_tau 1.

    Bias: in the value, unless forward_tau is 1: it is E f(z) under softmax(logits / forward_tau), which a bound or an
    entropy of the logits does not know of. The gradient of that is exact for a linear f at tau = forward_tau, biased
    for others. Source: the second version of 2410.13331.

    >>> DecoupledStraightThrough(forward_tau=2.0).sample(torch.zeros(2, 3)).sum(-1)
    tensor([1., 1.])
    """

    forward_tau: float = 1.0

    def __post_init__(self) -> None:
        check_positive("forward_tau", self.forward_tau)

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `z`, exactly one-hot."""
        return _decoupled(logits, tau, dim, self.forward_tau, generator=generator)


@dataclass(frozen=True)
class CAGE(Pathwise):
    r"""Straight-through whose temperature follows the confidence of each row: no gradient dies of a low tau.

    $z \sim \pi = \mathrm{softmax}(\theta)$; $dz := d\,\mathrm{softmax}(\theta / \tau_b)$, with $\tau_b$ constant:
    $\tau_b = \tau_{\max} - c\,(\tau_{\max} - \tau_{\min})$, $c = (K \max_k \pi_k - 1) / (K - 1)$.

    The confidence c is 0 for a row that is uniform over its K classes, masked ones not counted, and 1 for a decided
    one. tau has no effect: no schedule makes the gradient colder than `least_tau`.

    Bias: none in the value; the gradient is biased, also for a linear f. Deviation: the paper has one confidence for a
    network, averaged over the steps, and takes the most likely class; here each row has its own, of this step, and z is
    drawn. The range is a public implementation's. Source: after 2603.14157.

    >>> CAGE().sample(torch.zeros(2, 3), tau=0.01).sum(-1)
    tensor([1., 1.])
    """

    least_tau: float = 0.5
    most_tau: float = 3.0

    def __post_init__(self) -> None:
        check_positive("least_tau", self.least_tau)
        check_positive("most_tau", self.most_tau)
        if self.most_tau < self.least_tau:
            raise ValueError(f"most_tau must be at least least_tau, {self.least_tau}, got {self.most_tau}")

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `z`, exactly one-hot."""
        return _adapted(logits, tau, dim, self.least_tau, self.most_tau, generator=generator)


def confidence(logits: Tensor, dim: int = -1) -> Tensor:
    r"""Return how decided each row is, $(K \max_k \pi_k - 1) / (K - 1)$ over its K unmasked classes.

    Of size 1 along `dim`, without gradient, float32 at least. A row of one class, or without one, has 0.

    >>> confidence(torch.tensor([[0.0, 0.0, -torch.inf], [9.0, 0.0, 0.0]]))
    tensor([[0.0000],
            [0.9996]])
    """
    x = logits.detach()
    top = torch.softmax(x.to(compute_dtype(x.dtype)), dim).amax(dim, keepdim=True)
    K = (x > -torch.inf).sum(dim, keepdim=True)
    return ((K * top - 1) / (K - 1).clamp_min(1)).nan_to_num(0.0).clamp(0.0, 1.0)


def _decoupled(
    logits: Tensor, tau: float | Tensor, dim: int, forward_tau: float, *, generator: torch.Generator | None
) -> Tensor:
    if has_torch_function_variadic(logits, tau):
        return handle_torch_function(_decoupled, (logits, tau), logits, tau, dim, forward_tau, generator=generator)
    check_logits(logits, dim)
    tau = check_tau(tau, logits, dim)
    x = logits.to(compute_dtype(logits.dtype)) / forward_tau
    return sample(x, tau / forward_tau, dim, Relaxation.PLAIN, generator=generator).to(logits.dtype)


def _adapted(
    logits: Tensor,
    tau: float | Tensor,
    dim: int,
    least_tau: float,
    most_tau: float,
    *,
    generator: torch.Generator | None,
) -> Tensor:
    if has_torch_function_variadic(logits, tau):
        return handle_torch_function(
            _adapted, (logits, tau), logits, tau, dim, least_tau, most_tau, generator=generator
        )
    check_logits(logits, dim)
    check_tau(tau, logits, dim)
    adapted = most_tau - confidence(logits, dim) * (most_tau - least_tau)
    return sample(logits, adapted, dim, Relaxation.PLAIN, generator=generator)
