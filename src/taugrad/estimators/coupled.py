"""Unbiased estimators from pairs of samples that are coupled: each has the right distribution, both are opposed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from taugrad.checks import check_count
from taugrad.estimators.base import Estimator
from taugrad.estimators.score_function import with_gradient
from taugrad.ops._checks import check_rows, compute_dtype
from taugrad.ops.noise import gumbel_noise
from taugrad.ops.onehot import one_hot
from taugrad.ops.softmax import softmax


@dataclass(frozen=True)
class DisARM(Estimator):
    r"""DisARM: the difference of f at two antithetic samples; for K > 2 by stick-breaking (DisARM-SB).

    A latent's classes are sorted, the most probable first. With $\varphi_k = \log\pi_k - \log\sum_{j>k} \pi_j$ and
    logistic noise, $z$ is the first class with $\varphi_k + \epsilon_k > 0$, and $\tilde z$ the first with
    $\varphi_k - \epsilon_k > 0$. Value $\frac12 (f(z) + f(\tilde z))$; gradient, the sum of all latents for which
    $i = z < \tilde z$ (or the same with a minus for $i = \tilde z < z$),
    $\frac12 (f(z) - f(\tilde z)) \, (\max(p_i, 1 - p_i) \nabla\varphi_i - \nabla\log q(\tilde z \mid \tilde z > i))$,
    $p_i = \sigma(\varphi_i)$. For K = 2 it is $\sigma(|\varphi|) \nabla\varphi$, the paper's.

    Bias: none. tau has no effect. The mean over `pairs` is taken. Cost: 2 evaluations of f for each pair, in one call,
    which must take two further leading dimensions. Source: 2006.10680, for K > 2 2106.08056.

    >>> DisARM().expectation(lambda z: z.sum((-2, -1)), torch.zeros(5, 2, 3))
    tensor([2., 2., 2., 2., 2.])
    """

    pairs: int = 1

    def __post_init__(self) -> None:
        check_count("pairs", self.pairs)

    def expectation(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean of f over the pairs, (...), for `f` from (2, pairs, ..., N, K) to (2, pairs, ...)."""
        pi = softmax(logits.detach().to(compute_dtype(logits.dtype)))
        check_rows(pi, -1)
        sticks, order = pi.sort(-1, descending=True)
        left = _sum_of_later(sticks)
        phi = (sticks.log() - left.log()).expand(self.pairs, *pi.shape)  # inf for the last class, NaN for masked ones
        g = gumbel_noise(phi.expand(2, *phi.shape), generator=generator)
        noise = g[0] - g[1]
        place = torch.stack([(phi + noise > 0), (phi - noise > 0)]).to(torch.uint8).argmax(-1, keepdim=True)
        index = order.expand(*place.shape[:-1], -1).gather(-1, place).squeeze(-1)
        z = one_hot(index, logits.detach().expand(*index.shape, -1))
        values = f(z)
        first = place.amin(0)
        own, left = (x.expand(*first.shape[:-1], -1).gather(-1, first) for x in (sticks, left))
        rank = order.argsort(-1)
        # d phi_i / d logits; where there is no class left, both samples are class i
        split = (rank == first).to(pi.dtype) - (rank > first) * pi / left.clamp_min(torch.finfo(pi.dtype).tiny)
        shorter = torch.minimum(own, left) / (own + left)  # 1 - max(p, 1 - p)
        difference = (z[0] - z[1]).to(pi.dtype) - (place[1] - place[0]).sign() * shorter * split
        weight = (0.5 * (values[0] - values[1])).detach()
        return with_gradient(values.mean(0), weight[..., None, None] * difference, logits).mean(0)


def _sum_of_later(x: Tensor) -> Tensor:
    """Return for each entry along the last dimension the sum of those after it.

    >>> _sum_of_later(torch.tensor([1.0, 2.0, 3.0]))
    tensor([5., 3., 0.])
    """
    later = torch.cat([x[..., 1:], torch.zeros_like(x[..., :1])], -1)
    return later.flip(-1).cumsum(-1).flip(-1)
