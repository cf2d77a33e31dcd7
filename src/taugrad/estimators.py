r"""E_z f(z) over one-hot z, with a gradient to the logits.

    estimator.expectation(f, logits, tau) ~ E_{z ~ softmax(logits)} f(z)

The contract: logits (..., N, K) are N independent categoricals of K classes. `f` takes one-hot vectors
(*more, ..., N, K), with further leading dimensions or without, and returns one value for each, (*more, ...).
`expectation` returns (...): an estimate of E f(z) whose backward is the estimator's gradient. Pathwise estimators also
give the one-hot itself, with a gradient, as `sample`. tau is an argument and never state; an estimator is a frozen
dataclass of plain numbers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from taugrad.categorical import log_prob
from taugrad.gumbel import gumbel_argmax, gumbel_softmax, one_hot, straight_through
from taugrad.softmax import softmax

_MOST_CONFIGURATIONS = 2**20  # of z: what enumeration takes before it says that it is the wrong tool


class Estimator(ABC):
    """An estimator of E f(z) with a gradient."""

    @abstractmethod
    def expectation(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """An estimate of E f(z), (...), for `f` from (*more, ..., N, K) to (*more, ...) and logits (..., N, K)."""


class Pathwise(Estimator):
    """An estimator whose gradient flows through the sample itself."""

    @abstractmethod
    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """A sample in the shape and dtype of `logits` (..., K, ...), with a gradient."""

    def expectation(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The one-sample estimate f(z), (...), for `f` from (..., N, K) to (...) and logits (..., N, K)."""
        return f(self.sample(logits, tau, generator=generator))


@dataclass(frozen=True)
class GumbelSoftmax(Pathwise):
    r"""Soft Gumbel-Softmax: $y = \mathrm{softmax}((\mathrm{logits} + g) / \tau)$, not one-hot.

    Bias: in the value, E f(y) for E f(z), the less the smaller tau; the gradient of E f(y) is unbiased.
    Source: 1611.01144, 1611.00712.

    >>> y = GumbelSoftmax().sample(torch.zeros(2, 3), tau=0.5)
    >>> torch.allclose(y.sum(-1), torch.ones(2))
    True
    """

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """y, soft: strictly between 0 and 1 up to rounding."""
        return gumbel_softmax(logits, tau, dim=dim, generator=generator)


@dataclass(frozen=True)
class STGumbelSoftmax(Pathwise):
    r"""Straight-through Gumbel-Softmax: z = onehot(argmax(logits + g)), dz := dy of the same noise's relaxation y.

    Bias: none in the value; the gradient is biased, also for a linear f; its variance grows as tau falls.
    Source: 1611.01144.

    >>> STGumbelSoftmax().sample(torch.zeros(2, 3), tau=0.5).sum(-1)
    tensor([1., 1.])
    """

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """z, exactly one-hot."""
        return gumbel_softmax(logits, tau, hard=True, dim=dim, generator=generator)


@dataclass(frozen=True)
class StraightThrough(Pathwise):
    r"""Straight-through: z ~ softmax(logits), dz := d softmax(logits / tau).

    Bias: none in the value; the gradient is exact for a linear f at tau = 1, biased for others.
    Source: 1308.3432; with tau as in 2304.08612.

    >>> StraightThrough().sample(torch.zeros(2, 3)).sum(-1)
    tensor([1., 1.])
    """

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """z, exactly one-hot."""
        z = one_hot(gumbel_argmax(logits, dim, generator=generator), logits, dim)
        return straight_through(z, softmax(logits, tau, dim))


@dataclass(frozen=True)
class Enumeration(Estimator):
    r"""Exact: $\sum_z \prod_n p_n(z_n) f(z)$ over all K^N values of z: the oracle.

    Bias: none; no variance. tau and generator have no effect. Cost: K^N evaluations of f, at most 2^20.

    >>> logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
    >>> e = Enumeration().expectation(lambda z: z[..., 0, 0], logits)
    >>> e.item(), torch.autograd.grad(e, logits)[0].tolist()
    (0.5, [[0.25, -0.25]])
    """

    def expectation(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """E f(z), (...), for `f` from (K^N, ..., N, K) to (K^N, ...) and logits (..., N, K)."""
        z = configurations(logits)
        values = f(z)
        if values.shape != z.shape[:-2]:
            raise ValueError(
                f"f must return one value for each sample, shape {tuple(z.shape[:-2])} for z of shape "
                f"{tuple(z.shape)}, got {tuple(values.shape)}"
            )
        return (log_prob(logits, z).sum(-1).exp() * values).sum(0)


def configurations(logits: Tensor) -> Tensor:
    """Every value that z can take, for logits (..., N, K): one-hot (K^N, ..., N, K), without gradient.

    >>> configurations(torch.zeros(1, 2)).tolist()
    [[[1.0, 0.0]], [[0.0, 1.0]]]
    """
    if logits.ndim < 2:
        raise ValueError(f"logits must have shape (..., N, K), got {tuple(logits.shape)}")
    N, K = logits.shape[-2:]
    if N * math.log2(max(K, 1)) > math.log2(_MOST_CONFIGURATIONS):
        raise ValueError(
            f"logits of {N} x {K} have {K}^{N} configurations, more than the {_MOST_CONFIGURATIONS} that enumeration "
            "takes"
        )
    index = torch.cartesian_prod(*[torch.arange(K, device=logits.device)] * N).view(K**N, N)
    index = index.view(K**N, *[1] * (logits.ndim - 2), N).expand(K**N, *logits.shape[:-1])
    return one_hot(index, logits.new_zeros(1).expand(*index.shape, K))
