"""Estimators whose gradient is that of a Gumbel-Softmax relaxation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from taugrad.checks import check_count, check_positive
from taugrad.estimators.base import Pathwise
from taugrad.ops._checks import check_logits, check_rows, check_tau, classes_last, log_where_positive
from taugrad.ops._sampling import gumbel_rao
from taugrad.ops.gumbel import gumbel_max, gumbel_softmax
from taugrad.ops.noise import conditional_perturbed
from taugrad.ops.onehot import Relaxation, straight_through, tangent
from taugrad.ops.softmax import softmax, softmax_jacobian


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
        """Draw `y`, soft: strictly between 0 and 1 up to rounding."""
        return gumbel_softmax(logits, tau, dim=dim, generator=generator)


@dataclass(frozen=True)
class STGumbelSoftmax(Pathwise):
    r"""Straight-through Gumbel-Softmax: z = onehot(argmax(logits + g)), dz := dy of the same noise's relaxation y.

    Bias: none in the value; the gradient is biased, also for a linear f; its variance grows as tau falls.
    Source: 1611.01144.

    >>> STGumbelSoftmax().sample(torch.zeros(2, 3), tau=0.5).sum(-1)
    tensor([1., 1.])
    """

    relaxation: ClassVar[Relaxation | None] = Relaxation.PERTURBED

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `z`, exactly one-hot."""
        return gumbel_softmax(logits, tau, hard=True, dim=dim, generator=generator)


@dataclass(frozen=True)
class DecoupledSTGumbelSoftmax(Pathwise):
    r"""Straight-through Gumbel-Softmax with a temperature of its own for the gradient.

    $z = \mathrm{onehot}(\arg\max_k y^f_k)$, $y^f = \mathrm{softmax}((\mathrm{logits} + g) / \tau)$;
    $dz := dy^b$, $y^b = \mathrm{softmax}((\mathrm{logits} + g) / \tau_b)$, the same noise.

    A temperature on logits and noise together leaves the argmax of y^f where it is, so a hard `z` of this form depends
    on `backward_tau` alone. The one difference from straight-through Gumbel-Softmax is that no schedule sets the
    gradient's temperature. Deviation: the paper divides the logits alone, logits / tau + g, and its forward temperature
    then changes the distribution that z is drawn from; `DecoupledStraightThrough` has such a one.

    Bias: as straight-through Gumbel-Softmax's at `backward_tau`. Source: the first version of 2410.13331.

    >>> DecoupledSTGumbelSoftmax(backward_tau=1.0).sample(torch.zeros(2, 3), tau=0.5).sum(-1)
    tensor([1., 1.])
    """

    backward_tau: float = 1.0

    def __post_init__(self) -> None:
        check_positive("backward_tau", self.backward_tau)

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `z`, exactly one-hot."""
        if not has_torch_function_variadic(logits, tau):
            check_logits(logits, dim)
            check_tau(tau, logits, dim)
        return gumbel_softmax(logits, self.backward_tau, hard=True, dim=dim, generator=generator)


@dataclass(frozen=True)
class GumbelRao(Pathwise):
    r"""Gumbel-Rao: straight-through Gumbel-Softmax, its Jacobian averaged over the noise that fits the drawn class.

    $z \sim \mathrm{softmax}(\mathrm{logits})$; $dz := \frac1n \sum_{i=1}^n dy_i$,
    $y_i = \mathrm{softmax}((\mathrm{logits} + g_i) / \tau)$, $g_i \sim p(g \mid z)$.

    With one draw it is straight-through Gumbel-Softmax in distribution; with more, its variance is never larger and
    its expectation the same. The memory does not depend on the number of draws. Kernels draw the noise in the backward
    from a seed, and save only that and the logits; torch code saves the average Jacobian, K numbers a logit.

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
        """Draw `z`, exactly one-hot."""
        return _sample_of_many(logits, tau, dim, self.draws, generator=generator)


def _sample_of_many(
    logits: Tensor, tau: float | Tensor, dim: int, draws: int, *, generator: torch.Generator | None
) -> Tensor:
    if has_torch_function_variadic(logits, tau):
        return handle_torch_function(_sample_of_many, (logits, tau), logits, tau, dim, draws, generator=generator)
    check_logits(logits, dim)
    fused = gumbel_rao(logits, check_tau(tau, logits, dim), dim, draws, generator)
    if fused is not None:
        return fused
    x, tau = classes_last(logits, tau, dim)
    z = gumbel_max(logits, dim, generator=generator)
    x, one_hot = x.detach(), z.movedim(dim, -1)
    fixed = tau.detach() if isinstance(tau, Tensor) else tau
    jacobian: float | Tensor = 0.0
    to_tau: float | Tensor = 0.0
    for _ in range(draws):
        y = softmax(conditional_perturbed(x, one_hot, generator=generator), fixed)
        check_rows(y, -1, tau)
        J = softmax_jacobian(y, fixed) / draws
        jacobian = jacobian + J
        if isinstance(tau, Tensor):  # dy/dtau = -J x / tau = -J log y, because J of a constant is zero
            to_tau = to_tau - (J * log_where_positive(y).unsqueeze(-2)).sum(-1)
    # A product and a sum, because autocast would compute a matrix product in half precision.
    dy = (jacobian * tangent(logits).movedim(dim, -1).unsqueeze(-2)).sum(-1)
    if isinstance(tau, Tensor):
        dy = dy + to_tau * (tau - tau.detach())
    return straight_through(z, dy.movedim(-1, dim).to(z.dtype))
