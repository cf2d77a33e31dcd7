"""Unbiased estimators, which use the values of f and not its gradient."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from taugrad.bounds import hard_samples
from taugrad.checks import check_count, check_positive
from taugrad.estimators.base import Estimator
from taugrad.ops._checks import check_rows
from taugrad.ops.categorical import log_prob
from taugrad.ops.noise import gumbel_noise
from taugrad.ops.onehot import one_hot
from taugrad.ops.softmax import softmax


@dataclass(frozen=True)
class RLOO(Estimator):
    r"""REINFORCE with a leave-one-out baseline over n samples.

    Value $\frac1n \sum_i f(z_i)$; gradient
    $\frac1n \sum_i (f(z_i) - \frac{1}{n-1} \sum_{j \ne i} f(z_j)) \nabla \log q(z_i)$.

    Bias: none. tau has no effect. Cost: n evaluations of f in one call, which must take a further leading dimension.
    Source: Kool, van Hoof and Welling (2019), "Buy 4 REINFORCE samples, get a baseline for free!".

    >>> RLOO(samples=4).expectation(lambda z: z.sum((-2, -1)), torch.zeros(5, 2, 3))
    tensor([2., 2., 2., 2., 2.])
    """

    samples: int = 4

    def __post_init__(self) -> None:
        check_count("samples", self.samples, smallest=2)

    def expectation(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean of f over the samples, (...), for `f` from (n, ..., N, K) to (n, ...) and logits (..., N, K)."""
        n = self.samples
        z = hard_samples(logits.detach(), n, generator=generator)
        values = f(z)
        others = (values.sum(0) - values) / (n - 1)
        score = (values - others).detach() * log_prob(logits, z).sum(-1)
        return (values + score - score.detach()).mean(0)


@dataclass(frozen=True)
class REBAR(Estimator):
    r"""REBAR: REINFORCE with f of the relaxation as control variate, corrected by reparametrization given `z`.

    $s = \log\pi + g$, $z = \mathrm{onehot}(\arg\max s)$, and $\tilde s \sim p(s \mid z)$ reparametrized in the
    logits; $y = \mathrm{softmax}(s/\tau)$, $\tilde y = \mathrm{softmax}(\tilde s/\tau)$. The gradient is
    $(f(z) - \eta f(\tilde y)) \nabla \log q(z) + \eta \nabla f(y) - \eta \nabla f(\tilde y)$.

    The noise of s~ is taken from s itself, so that y~ and y are the same point with different gradients: the paper's
    coupling at its strongest, and the gradient to f's own parameters has no share of the relaxation.

    Bias: none, at every tau and eta; they set the variance. f must take soft z. Deviation: eta is fixed, not adapted.
    Source: 1703.07370.

    >>> REBAR().expectation(lambda z: z.sum((-2, -1)), torch.zeros(5, 2, 3), tau=0.5)
    tensor([2., 2., 2., 2., 2.])
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_positive("eta", self.eta)

    def expectation(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return f(z), (...), for `f` from (..., N, K) to (...) and logits (..., N, K)."""
        g = gumbel_noise(logits, generator=generator)
        log_pi = torch.log_softmax(logits.to(g.dtype), -1)
        s = log_pi + g
        z = one_hot(s.argmax(-1), logits)
        y, y_given_z = (softmax(x, tau).to(logits.dtype) for x in (s, _reparametrized_given(z, s.detach(), log_pi)))
        check_rows(y, -1, tau)
        value, relaxed, relaxed_given_z = f(z), f(y), f(y_given_z)
        score = (value - self.eta * relaxed_given_z).detach() * log_prob(logits, z).sum(-1)
        correction = score + self.eta * (relaxed - relaxed_given_z)
        return value + correction - correction.detach()


def _reparametrized_given(z: Tensor, s: Tensor, log_pi: Tensor) -> Tensor:
    """Return the value of `s` as a function of log_pi and of noise independent of `z` (see `conditional_perturbed`).

    Given `z` the largest s is a Gumbel(0) variable, and another is -log(E / pi + exp(-top)) with E ~ Exp(1). The
    equation is solved for E, which is then constant.
    """
    masked = log_pi == -torch.inf
    log_pi = log_pi.masked_fill(masked, 0.0)
    top = s.amax(-1, keepdim=True)
    log_e = (log_pi - s.masked_fill(masked, 0.0) + torch.log1p(-(s - top).exp())).detach()
    others = -torch.logaddexp(log_e - log_pi, -top)
    return torch.where(z > 0, top, others.masked_fill(masked, -torch.inf))
