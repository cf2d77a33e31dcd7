"""Estimators whose gradient is that of a Gumbel-Softmax relaxation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from taugrad._arguments import check_count, check_positive, check_tau
from taugrad.estimators.base import Pathwise
from taugrad.gumbel import gumbel_max, gumbel_softmax
from taugrad.noise import conditional_perturbed
from taugrad.sampling import straight_through, tangent
from taugrad.softmax import softmax, softmax_jacobian


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
class DecoupledSTGumbelSoftmax(Pathwise):
    r"""Straight-through Gumbel-Softmax with a temperature of its own for the gradient.

    $z = \mathrm{onehot}(\arg\max_k y^f_k)$, $y^f = \mathrm{softmax}((\mathrm{logits} + g) / \tau)$;
    $dz := dy^b$, $y^b = \mathrm{softmax}((\mathrm{logits} + g) / \tau_b)$, the same noise.

    The argmax of y^f is the same at every forward temperature, so that a hard z depends on `backward_tau` alone: what
    decoupling changes beside straight-through Gumbel-Softmax is that the gradient's temperature is no schedule's.

    Bias: as straight-through Gumbel-Softmax's at `backward_tau`. Source: 2410.13331.

    >>> DecoupledSTGumbelSoftmax(backward_tau=1.0).sample(torch.zeros(2, 3), tau=0.5).sum(-1)
    tensor([1., 1.])
    """

    backward_tau: float = 1.0

    def __post_init__(self) -> None:
        check_positive("backward_tau", self.backward_tau)

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """z, exactly one-hot."""
        check_tau(tau)
        return gumbel_softmax(logits, self.backward_tau, hard=True, dim=dim, generator=generator)


@dataclass(frozen=True)
class GumbelRao(Pathwise):
    r"""Gumbel-Rao: straight-through Gumbel-Softmax, its Jacobian averaged over the noise that fits the drawn class.

    $z \sim \mathrm{softmax}(\mathrm{logits})$; $dz := \frac1n \sum_{i=1}^n dy_i$,
    $y_i = \mathrm{softmax}((\mathrm{logits} + g_i) / \tau)$, $g_i \sim p(g \mid z)$.

    With one draw it is straight-through Gumbel-Softmax in distribution; with more, its variance is never larger and
    its expectation the same. The average Jacobian is kept, K numbers a logit, whatever the number of draws.

    Bias: as straight-through Gumbel-Softmax's. Source: 2010.04838.

    >>> GumbelRao(draws=10).sample(torch.zeros(2, 3), tau=0.5).sum(-1)
    tensor([1., 1.])
    """

    draws: int = 100

    def __post_init__(self) -> None:
        check_count("draws", self.draws)

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """z, exactly one-hot."""
        z = gumbel_max(logits, dim, generator=generator)
        x = logits.detach().movedim(dim, -1)
        one_hot = z.movedim(dim, -1)
        jacobian: float | Tensor = 0.0
        for _ in range(self.draws):
            s = conditional_perturbed(x, one_hot, generator=generator)
            jacobian = jacobian + softmax_jacobian(softmax(s, tau), check_tau(tau)) / self.draws
        dy = torch.einsum("...ij,...j->...i", jacobian, tangent(logits).movedim(dim, -1))
        return straight_through(z, dy.movedim(-1, dim).to(z.dtype))
