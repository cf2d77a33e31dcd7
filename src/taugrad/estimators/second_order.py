r"""Straight-through estimators that are exact for linear and quadratic f: ZGR, and the one of least variance.

    D ~ pi = softmax(theta),   gradient J_D g,   J = diag(pi) - pi pi^T

For f(z) = <b, z> + <z, A z> / 2 the gradient at D is g = b + A D, and that of E f is J (b + diag(A) / 2). The families
of matrices J_D that give it for every b and symmetric A are those for which M_i[D, j] = pi_D J_D[i, j] has

    M_i[D, j] = -M_i[j, D]   for j != D,      M_i[j, j] = pi_i (1[i = j] - pi_j) / 2 = sum over D != j of M_i[D, j]

so that M_i is a flow between the classes, of given strength, from i to all others. ZGR sends it straight; least
variance is the electrical flow in a network of resistances 1 / pi_D + 1 / pi_j.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from taugrad.checks import check_share
from taugrad.estimators import _products
from taugrad.estimators.base import Pathwise
from taugrad.ops.softmax import softmax_backward

_BLOCK = 64  # classes: a network of more is never there whole


@dataclass(frozen=True)
class ZGR(Pathwise):
    r"""ZGR: the limit of Gumbel-Rao at zero temperature, the mean of straight-through and DARN.

    $D \sim \pi = \mathrm{softmax}(\theta)$; gradient $(1 - \alpha) J g + \alpha J_D g$,
    $J_D g = \frac12 J g + \frac12 (D - \pi) \langle D - \pi, g \rangle$, $J = \mathrm{diag}(\pi) - \pi \pi^\top$.

    alpha = 0 is straight-through, 1 is ZGR, which is ReinMax at tau = 1; between them bias is traded for variance. tau
    has no effect. What is saved is two numbers a logit.

    Bias: none in the value; the gradient is exact for linear f, and at alpha = 1 for quadratic f: below, it has a share
    1 - alpha of straight-through's bias there. Source: Shekhovtsov (2023), "Cold Analysis of Rao-Blackwellized
    Straight-Through Gumbel-Softmax Gradient Estimator".

    >>> ZGR().sample(torch.zeros(2, 3)).sum(-1)
    tensor([1., 1.])
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `z`, exactly one-hot."""
        return _sample_zgr(logits, tau, dim, self.alpha, generator=generator)


@dataclass(frozen=True)
class MinimumVarianceStraightThrough(Pathwise):
    r"""Straight-through of least variance among all that are exact for quadratic f.

    $D \sim \pi = \mathrm{softmax}(\theta)$; gradient $(1 - \alpha) J g + \alpha J_D g$, $J_D g = \frac12 J \psi$,
    $J = \mathrm{diag}(\pi) - \pi \pi^\top$, $L \psi = a$, $a_j = v_j (g_j - g_D)$ for $j \ne D$, $a_D = -\sum_j a_j$,
    with $v_j = \pi_j / (\pi_D + \pi_j)$ and $L$ the Laplacian of the complete graph with weights
    $w_{jk} = \pi_j \pi_k / (\pi_j + \pi_k)$.

    The variance is that of a gradient g whose entries are independent, of one variance, whatever z: the least
    $\sum_D \pi_D \lVert J_D \rVert^2$. alpha = 0 is straight-through. tau has no effect.

    The system is solved in the backward by Chebyshev's iteration, to rounding: 17 steps for 10 classes in float32 and
    26 for 1,000, since the spectrum of the scaled L lies in [1 / (1 + log(K) / 1.5), 2] (measured up to 1,024
    classes, not proved). It takes O(K^2) time a row and step and O(K) memory, where a dense solution takes O(K^3) and
    O(K^2). What is saved is two numbers a logit.

    Bias: as ZGR's. Source: after Shekhovtsov (2023), "Cold Analysis of Rao-Blackwellized Straight-Through
    Gumbel-Softmax Gradient Estimator"; the member of least variance is derived here.

    >>> MinimumVarianceStraightThrough().sample(torch.zeros(2, 3)).sum(-1)
    tensor([1., 1.])
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `z`, exactly one-hot."""
        return _sample_least(logits, tau, dim, self.alpha, generator=generator)


def _sample_zgr(
    logits: Tensor, tau: float | Tensor, dim: int, alpha: float, *, generator: torch.Generator | None
) -> Tensor:
    if has_torch_function_variadic(logits, tau):
        return handle_torch_function(_sample_zgr, (logits, tau), logits, tau, dim, alpha, generator=generator)
    return _products.sample(logits, tau, dim, zgr_product, generator=generator, alpha=alpha)


def _sample_least(
    logits: Tensor, tau: float | Tensor, dim: int, alpha: float, *, generator: torch.Generator | None
) -> Tensor:
    if has_torch_function_variadic(logits, tau):
        return handle_torch_function(_sample_least, (logits, tau), logits, tau, dim, alpha, generator=generator)
    return _products.sample(logits, tau, dim, _minimum_variance, generator=generator, alpha=alpha)


def zgr_product(g: Tensor, pi: Tensor, D: Tensor, tau: float | Tensor = 1.0, *, alpha: float = 1.0) -> Tensor:
    """Return ZGR's gradient, (..., K), of g, pi and one-hot D, (..., K).

    >>> zgr_product(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
    tensor([ 0.2500, -0.2500])
    """
    darn = (D - pi) * ((D - pi) * g).sum(-1, keepdim=True)
    return (1 - alpha / 2) * softmax_backward(g, pi) + alpha / 2 * darn


def _minimum_variance(g: Tensor, pi: Tensor, D: Tensor, tau: float | Tensor, *, alpha: float) -> Tensor:
    ahead = g - (g * D).sum(-1, keepdim=True)
    a = pi / ((pi * D).sum(-1, keepdim=True) + pi) * ahead
    a = a - D * a.sum(-1, keepdim=True)
    return (1 - alpha) * softmax_backward(g, pi) + alpha / 2 * softmax_backward(_solution(pi, a), pi)


def _solution(pi: Tensor, a: Tensor) -> Tensor:
    """Return psi with L psi = a up to a constant, (..., K), where a sums to zero: Chebyshev's iteration."""
    K = pi.shape[-1]
    low, high = 1 / (1 + math.log(K) / 1.5), 2.0
    middle, half = (high + low) / 2, (high - low) / 2
    rate = middle / half - math.sqrt((middle / half) ** 2 - 1)  # factor of the error in each step
    steps = math.ceil(math.log(torch.finfo(pi.dtype).eps / 2) / math.log(rate))
    blocks = list(_weights(pi)) if K <= _BLOCK else None
    degree = torch.full_like(pi, torch.finfo(pi.dtype).tiny)  # a masked class has no other
    for w in blocks or _weights(pi):
        degree = degree + w.sum(-1)
    step = a / degree / middle
    psi, rho = step, half / middle
    for _ in range(steps):
        flows = zip(blocks or _weights(pi), psi.split(_BLOCK, -1), strict=True)
        left = a - sum((w * (psi.unsqueeze(-1) - x.unsqueeze(-2))).sum(-1) for w, x in flows)
        following = 1 / (2 * middle / half - rho)
        step = following * rho * step + 2 * following / half * left / degree
        psi, rho = psi + step, following
    return psi


def _weights(pi: Tensor) -> Iterator[Tensor]:
    """Yield the weights between all classes and a block of them, (..., K, block), zero from a class to itself."""
    classes, tiny = torch.arange(pi.shape[-1], device=pi.device), torch.finfo(pi.dtype).tiny
    one = pi.unsqueeze(-1)
    for other, k in zip(pi.unsqueeze(-2).split(_BLOCK, -1), classes.split(_BLOCK), strict=True):
        w = one / (one + other).clamp_min(tiny) * other
        yield w.masked_fill(classes.unsqueeze(-1) == k, 0.0)
