"""Unbiased estimators by the score function: they use values of f at independent samples, and not its gradient."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from taugrad.bounds import hard_samples
from taugrad.checks import check_count
from taugrad.estimators.base import Estimator
from taugrad.ops._checks import check_latents, compute_dtype, values_of
from taugrad.ops.categorical import log_prob
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
        check_latents(logits)
        n = self.samples
        z = hard_samples(logits.detach(), n, generator=generator)
        values = values_of(f, z)
        others = (values.sum(0) - values) / (n - 1)
        log_q = log_prob(logits, z).sum(-1)
        return (values + (values - others).detach() * (log_q - log_q.detach())).mean(0)


@dataclass(frozen=True)
class IndeCateR(Estimator):
    r"""IndeCateR: each latent's gradient by its K classes in turn, the other latents sampled.

    Value $\frac1S \sum_s f(z_s)$; gradient
    $\frac1S \sum_s \sum_n \sum_k \nabla\pi_n(k) \, f(z_s \text{ with } z_{s,n} = k)$.

    Bias: none. tau has no effect. A single latent's gradient is exact, and so is that of a sum over the latents of
    a function of each; where f is far from one, `RLOO` of as many evaluations varies less. Cost: S (1 + N (K - 1))
    evaluations of f in two calls, which must take further leading dimensions; those of the second keep nothing for
    the backward, but take S N (K - 1) inputs of N K numbers at once. Deviation: the N sums share a sample, whose
    own class is not evaluated again. Source: 2311.12569.

    >>> logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
    >>> value = IndeCateR().expectation(lambda z: z[..., 0, 0], logits)
    >>> torch.autograd.grad(value, logits)[0].tolist()
    [[0.25, -0.25]]
    """

    samples: int = 1

    def __post_init__(self) -> None:
        check_count("samples", self.samples)

    def expectation(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean of f over the samples, (...), for `f` from (*more, ..., N, K) to (*more, ...), logits (..., N, K)."""
        check_latents(logits)
        z = hard_samples(logits.detach(), self.samples, generator=generator)
        value = values_of(f, z)
        with torch.no_grad():
            other, neighbours = _neighbours(z, logits == -torch.inf)
            gain = (values_of(f, neighbours) - value).movedim(0, -1)  # (K - 1, S, ..., N)
            gain = (other * gain.unsqueeze(-1)).sum(0)  # (S, ..., N, K), over what f(z) is
            pi = softmax(logits.to(compute_dtype(logits.dtype)))
            gradient = pi * (gain - (pi * gain).sum(-1, keepdim=True))
        return with_gradient(value, gradient, logits).mean(0)


def _neighbours(z: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """Return the other classes of every latent and `z` with one latent of another class, both one-hot.

    Of `z` (S, ..., N, K) they are (K - 1, S, ..., N, K) and (N, K - 1, S, ..., N, K). f may not be defined at a masked
    class: there `z` stays as it is.
    """
    N, K = z.shape[-2:]
    step = torch.arange(1, K, device=z.device).view(-1, *[1] * (z.ndim - 1))
    other = one_hot((z.argmax(-1) + step) % K, z.expand(K - 1, *z.shape))
    allowed = torch.where((other.bool() & masked).any(-1, keepdim=True), z, other)
    own = torch.eye(N, dtype=torch.bool, device=z.device).view(N, *[1] * (z.ndim - 1), N, 1)
    return other, torch.where(own, allowed, z)


def with_gradient(value: Tensor, gradient: Tensor, logits: Tensor) -> Tensor:
    """Return `value` (S, ...), to the bit, with a further gradient (S, ..., N, K) to `logits` (..., N, K).

    >>> logits = torch.zeros(1, 2, requires_grad=True)
    >>> value = with_gradient(torch.tensor(3.0), torch.tensor([[1.0, -1.0]]), logits)
    >>> value.item(), torch.autograd.grad(value, logits)[0].tolist()
    (3.0, [[1.0, -1.0]])
    """
    x = logits.masked_fill(logits == -torch.inf, 0.0)
    return value + (gradient * (x - x.detach())).sum((-2, -1)).to(value.dtype)
