"""Unbiased estimators from pairs of samples that are coupled: each has the right distribution, both are opposed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from taugrad.estimators.base import Estimator
from taugrad.estimators.score_function import with_gradient
from taugrad.ops._checks import check_latents, check_rows, compute_dtype, values_of
from taugrad.ops.noise import gumbel_noise
from taugrad.ops.onehot import one_hot
from taugrad.ops.softmax import softmax


@dataclass(frozen=True)
class DisARM(Estimator):
    r"""DisARM: the difference of f at two antithetic samples; for K > 2 by stick-breaking (DisARM-SB).

    A latent's classes are sorted, the most probable first. With $\varphi_k = \log\pi_k - \log\sum_{j>k} \pi_j$ and
    logistic noise, $z$ is the first class with $\varphi_k + \epsilon_k > 0$, and $\tilde z$ the first with
    $\varphi_k - \epsilon_k > 0$. Value $\frac12 (f(z) + f(\tilde z))$; gradient, from every latent for which
    $i = z < \tilde z$ (or with a minus where $i = \tilde z < z$), $\frac12 (f(z) - f(\tilde z))$ times
    $\max(p_i, 1 - p_i) \nabla\varphi_i - \nabla\log q(\tilde z \mid \tilde z > i)$, $p_i = \sigma(\varphi_i)$.
    For K = 2 this is the first paper's $\sigma(|\varphi|) \nabla\varphi$.

    Bias: none. tau has no effect. Cost: 2 evaluations of f in one call, which must take a further leading dimension.
    At 2 evaluations it varies less than `RLOO`, the more the fewer the classes; the mean of two pairs is often behind
    `RLOO(samples=4)`. Source: 2006.10680, for K > 2 2106.08056.

    >>> DisARM().expectation(lambda z: z.sum((-2, -1)), torch.zeros(5, 2, 3))
    tensor([2., 2., 2., 2., 2.])
    """

    def expectation(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean of f over the pair, (...), for `f` from (2, ..., N, K) to (2, ...) and logits (..., N, K)."""
        check_latents(logits)
        pi = softmax(logits.detach().to(compute_dtype(logits.dtype)))
        check_rows(pi, -1)
        sticks, order = pi.sort(-1, descending=True)
        left = _sum_of_later(sticks)
        phi = sticks.log() - left.log()  # inf for the last class that is allowed, NaN for masked ones: never above 0
        g = gumbel_noise(phi.expand(2, *phi.shape), generator=generator)
        noise = g[0] - g[1]
        place = torch.stack([phi + noise > 0, phi - noise > 0]).to(torch.uint8).argmax(-1, keepdim=True)
        index = order.expand(2, *order.shape).gather(-1, place).squeeze(-1)
        z = one_hot(index, logits.detach().expand(2, *logits.shape))
        values = values_of(f, z)
        first = place.amin(0)  # i
        own, left = sticks.gather(-1, first), left.gather(-1, first)
        rank = torch.zeros_like(order).scatter(-1, order, torch.arange(pi.shape[-1], device=pi.device).expand_as(order))
        later = (rank > first) * pi / left.clamp_min(torch.finfo(pi.dtype).tiny)  # where left is 0, z and z~ are equal
        d_phi = (rank == first).to(pi.dtype) - later
        # With all of d_phi in place of max(p, 1 - p) of it, the bracket is the difference of the scores, z - z~.
        excess = (place[1] - place[0]).sign() * torch.minimum(own, left) / (own + left) * d_phi
        bracket = (z[0] - z[1]).to(pi.dtype) - excess
        difference = (0.5 * (values[0] - values[1])).detach()
        return with_gradient(values.mean(0), difference[..., None, None] * bracket, logits)


def _sum_of_later(x: Tensor) -> Tensor:
    """Return for each entry along the last dimension the sum of those after it.

    >>> _sum_of_later(torch.tensor([1.0, 2.0, 3.0]))
    tensor([5., 3., 0.])
    """
    later = torch.cat([x[..., 1:], torch.zeros_like(x[..., :1])], -1)
    return later.flip(-1).cumsum(-1).flip(-1)
