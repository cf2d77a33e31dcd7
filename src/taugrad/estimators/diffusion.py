r"""Estimators that sample by a diffusion on the simplex: a Gaussian, denoised in a few deterministic steps.

    x_T ~ N(0, I),   x0(x_t) = softmax(theta + alpha_t x_t / sigma_t^2)     posterior mean of a one-hot z given x_t
    x_s = alpha_s x0(x_t) + sigma_s (x_t - alpha_t x0(x_t)) / sigma_t       from a time t to s, the one before it
    z   ~ x0(x_1)

The times go from alpha_1 = 1 - tau to alpha_T = 10^-4, evenly, and sigma = 1 - alpha. At tau = 1, x_1 has no effect,
and x0 is softmax(theta): both estimators are then what they are built on, straight-through and ReinMax.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from taugrad.checks import check_count
from taugrad.estimators._products import gradient_by
from taugrad.estimators.base import Pathwise
from taugrad.estimators.second_order import zgr_product
from taugrad.ops._checks import check_rows, classes_last, compute_dtype
from taugrad.ops.gumbel import gumbel_max
from taugrad.ops.onehot import straight_through, tangent
from taugrad.ops.softmax import softmax

_LAST_ALPHA = 1e-4
_LEAST_TAU = 1e-4


@dataclass(frozen=True)
class ReDGE(Pathwise):
    r"""ReDGE: a hard sample of a diffusion's last posterior, with the gradient through all of its steps.

    $z \sim p = \mathrm{softmax}(\theta + \alpha_1 x_1 / \sigma_1^2)$, $dz := dp$; $x_1$ is $x_T \sim N(0, I)$ after
    `steps` - 2 deterministic steps, each a function of $\theta$; $\alpha_1 = 1 - \tau$, $\sigma_1 = \tau$.

    tau is the time of the last step, up to 1; a larger one counts as 1, where this is straight-through, and one below
    10^-4 as that. The lower, the less bias in the gradient and the more variance. What is saved is a few numbers a
    logit and step.

    Bias: in the value: z is softmax(logits) in distribution only as `steps` grows. With 5 steps, 8 classes and logits
    of standard deviation 2 the total variation is 0.07 at tau 0.1, 0.02 at 0.3 and below 0.01 from 0.5 on; with 2
    steps it is 0.5, 0.4 and 0.2. The gradient is biased. Source: 2601.00781.

    >>> ReDGE().sample(torch.zeros(2, 3), tau=0.5).sum(-1)
    tensor([1., 1.])
    """

    steps: int = 5

    def __post_init__(self) -> None:
        check_count("steps", self.steps, smallest=2)

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `z`, exactly one-hot."""
        return _diffused(logits, tau, dim, self.steps, False, generator=generator)


@dataclass(frozen=True)
class ReinDGE(Pathwise):
    r"""ReinDGE: ReDGE with ReinMax's gradient at the last posterior, and straight-through's to the steps before it.

    $z \sim p$ as of `ReDGE`; $dz := J_z\, d\theta + J(p)\, d(\alpha_1 x_1 / \sigma_1^2)$, where $J_z = \frac12 J(p) +
    \frac12 (z - p)(z - p)^\top$ is ReinMax's Jacobian at p and $J(p) = \mathrm{diag}(p) - p p^\top$.

    tau is as of `ReDGE`; at 1 this is ReinMax, at its tau 1. With 2 steps the second term is zero.

    Bias: in the value, as ReDGE's; the gradient is biased, at tau = 1 exact for linear and quadratic f.
    Source: 2601.00781.

    >>> ReinDGE().sample(torch.zeros(2, 3), tau=0.5).sum(-1)
    tensor([1., 1.])
    """

    steps: int = 5

    def __post_init__(self) -> None:
        check_count("steps", self.steps, smallest=2)

    def sample(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw `z`, exactly one-hot."""
        return _diffused(logits, tau, dim, self.steps, True, generator=generator)


def _diffused(
    logits: Tensor, tau: float | Tensor, dim: int, steps: int, second_order: bool, *, generator: torch.Generator | None
) -> Tensor:
    if has_torch_function_variadic(logits, tau):
        return handle_torch_function(
            _diffused, (logits, tau), logits, tau, dim, steps, second_order, generator=generator
        )
    rows, tau = classes_last(logits, tau, dim)
    theta = rows.to(compute_dtype(rows.dtype))
    shift = _shift(theta, _gaussian(theta, generator), tau, steps)
    p = softmax(theta + shift)
    check_rows(p, -1, tau)
    z = gumbel_max((theta + shift).detach(), generator=generator)
    if second_order:
        p = softmax(theta.detach() + shift)
        z = z + gradient_by(zgr_product, tangent(theta), p.detach(), z, 1.0)
    return straight_through(z, p).movedim(-1, dim).to(logits.dtype).contiguous()


def _shift(theta: Tensor, x: Tensor, tau: float | Tensor, steps: int) -> Tensor:
    """Return alpha_1 x_1 / sigma_1^2, differentiable, for x_T, (..., K): what the last x adds to theta."""
    last = tau.clamp(_LEAST_TAU, 1.0) if isinstance(tau, Tensor) else min(max(tau, _LEAST_TAU), 1.0)
    alpha = [1 - last + (_LAST_ALPHA - 1 + last) * (j / max(steps - 2, 1)) for j in range(steps - 1)]
    for t in range(steps - 2, 0, -1):
        s = t - 1
        x0 = softmax(theta + alpha[t] / (1 - alpha[t]) ** 2 * x)
        x = alpha[s] * x0 + (1 - alpha[s]) / (1 - alpha[t]) * (x - alpha[t] * x0)
    return alpha[0] / last**2 * x


def _gaussian(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw N(0, 1) in the shape of `like`: a fake or traced `like` gives noise of its own kind."""
    if generator is None:
        return torch.randn_like(like, memory_format=torch.contiguous_format)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
