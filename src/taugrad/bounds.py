r"""Bounds on log p(x) of a model with discrete latents, in nats.

    ELBO      = E_q [log p(x|z)] - KL(q(z|x) || p(z))
    IWAE_m    = E_{z_1..z_m ~ q} [log 1/m sum_i p(x, z_i) / q(z_i|x)]       (1509.00519)
    the same with q = p(z):  E [log 1/m sum_i p(x|z_i)]                       (1602.06725)
    VIMCO     = IWAE_m with a gradient to q, for training                     (1602.06725)

The contract: ELBO = IWAE_1 <= IWAE_m <= log p(x), and IWAE_m approaches log p(x) as m grows. Samples here are always
hard, even if training used a relaxation.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from taugrad.checks import check_count
from taugrad.ops._checks import check_latents, values_of
from taugrad.ops.categorical import kl_to_uniform, log_prob
from taugrad.ops.gumbel import gumbel_max


def elbo(log_likelihood: Tensor, logits: Tensor) -> Tensor:
    r"""ELBO under a uniform prior: $\log p(x|z) - \sum_n \mathrm{KL}(q_n \| \mathrm{uniform})$, the KL analytic.

    Args:
        log_likelihood: an estimate of E_q log p(x|z), (...).
        logits: of q(z|x), (..., N, K).

    Returns:
        (...), in nats; differentiable in both.

    Bias: none, when `log_likelihood` has none.

    >>> elbo(torch.tensor(-3.0), torch.tensor([[0.0, -torch.inf]]))
    tensor(-3.6931)
    """
    return log_likelihood - kl_to_uniform(logits).sum(-1)


def importance_weighted_bound(
    log_joint: Callable[[Tensor], Tensor],
    logits: Tensor,
    num_samples: int,
    *,
    chunk_size: int = 16,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""IWAE bound $\log \frac1m \sum_{i=1}^m p(x, z_i) / q(z_i|x)$ with hard $z_i \sim q$, in bounded memory.

    Args:
        log_joint: log p(x, z) of one-hot z: from (S, ..., N, K) to (S, ...).
        logits: of q(z|x), (..., N, K).
        num_samples: m, at least 1.
        chunk_size: number of samples in memory at once; the result's distribution does not depend on it.
        generator: a source of randomness; default torch's own.

    Returns:
        (...), in nats.

    Raises:
        ValueError: `num_samples` or `chunk_size` below 1, or `log_joint` returns another shape.

    Bias: a lower bound on log p(x) in expectation; its gap falls as 1/m. Source: 1509.00519.

    >>> logits = torch.zeros(1, 2)  # q is the posterior of a model that ignores z: the bound is exact
    >>> bound = importance_weighted_bound(lambda z: torch.full(z.shape[:-2], -3.0 - math.log(2)), logits, 5)
    >>> round(bound.item(), 5)
    -3.0
    """
    check_latents(logits)

    def log_weights(S: int) -> Tensor:
        z = hard_samples(logits, S, generator=generator)
        return values_of(log_joint, z, "log_joint") - log_prob(logits, z).sum(-1)

    return multi_sample_bound(log_weights, num_samples, chunk_size=chunk_size)


def multi_sample_bound(log_weights: Callable[[int], Tensor], num_samples: int, *, chunk_size: int = 16) -> Tensor:
    r"""Estimate $\log \frac1m \sum_{i=1}^m w_i$ for weights of expectation p(x), in bounded memory.

    Args:
        log_weights: log w of S new samples: from S to (S, ...).
        num_samples: m, at least 1.
        chunk_size: number of samples computed at once; the result's distribution does not depend on it.

    Returns:
        (...), in nats.

    Raises:
        ValueError: `num_samples` or `chunk_size` below 1.

    Bias: a lower bound on log p(x) in expectation; its gap falls as 1/m. Source: 1602.06725, 1509.00519.

    >>> multi_sample_bound(lambda S: torch.full((S, 2), -3.0), num_samples=5, chunk_size=2)
    tensor([-3., -3.])
    """
    check_count("num_samples", num_samples)
    check_count("chunk_size", chunk_size)
    chunks = [chunk_size] * (num_samples // chunk_size) + [num_samples % chunk_size] * (num_samples % chunk_size > 0)
    log_sum = log_weights(chunks[0]).logsumexp(0)
    for S in chunks[1:]:
        log_sum = torch.logaddexp(log_sum, log_weights(S).logsumexp(0))
    return log_sum - math.log(num_samples)


def vimco(
    log_joint: Callable[[Tensor], Tensor],
    logits: Tensor,
    num_samples: int,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Estimate the IWAE bound for training: `importance_weighted_bound` with VIMCO's gradient.

    $L = \log \frac1m \sum_i w_i$ with $w_i = p(x, z_i) / q(z_i|x)$ and hard $z_i \sim q$. Its gradient is
    $\sum_i (L - L_{-i}) \nabla\log q(z_i|x) + \nabla L$, where $L_{-i}$ is $L$ with the geometric mean of the other
    weights in place of $w_i$: each sample's baseline comes from the others.

    It is no estimator of E f(z), because a mean over samples stands inside of the logarithm: use it in place of the
    whole ELBO, with the KL in the weights. Where z comes from the model's own prior, add `log_prob(logits, z)` to the
    likelihood, so that the weights are the likelihood alone.

    Args:
        log_joint: log p(x, z) of one-hot z: from (m, ..., N, K) to (m, ...).
        logits: of q(z|x), (..., N, K).
        num_samples: m, at least 2; all are in memory at once.
        generator: a source of randomness; default torch's own.

    Returns:
        (...), in nats; differentiable in the logits and in all else that `log_joint` depends on.

    Raises:
        ValueError: `num_samples` below 2, or `log_joint` returns another shape.

    Bias: none in the gradient of the bound's expectation, which is itself a lower bound on log p(x). Source:
    1602.06725.

    >>> logits = torch.zeros(1, 2)  # q is the posterior of a model that ignores z: the bound is exact
    >>> bound = vimco(lambda z: torch.full(z.shape[:-2], -3.0 - math.log(2)), logits, 5)
    >>> round(bound.item(), 5)
    -3.0
    """
    check_latents(logits)
    check_count("num_samples", num_samples, smallest=2)
    m = num_samples
    z = hard_samples(logits.detach(), m, generator=generator)
    log_q = log_prob(logits, z).sum(-1)
    log_w = values_of(log_joint, z, "log_joint") - log_q
    L = log_w.logsumexp(0) - math.log(m)
    others = log_w.movedim(0, -1).unsqueeze(-2)  # (..., 1, m), for each of m left out
    own = log_w.new_ones(m, m).tril().triu().bool()
    mean_of_others = others.masked_fill(own, 0.0).sum(-1, keepdim=True) / (m - 1)
    L_without = (torch.where(own, mean_of_others, others).logsumexp(-1) - math.log(m)).movedim(-1, 0)
    return L + ((L - L_without).detach() * (log_q - log_q.detach())).sum(0)


def hard_samples(logits: Tensor, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw `num_samples` one-hot z ~ softmax(logits), without gradient.

    Args:
        logits: (..., K).
        num_samples: number of draws.
        generator: a source of randomness; default torch's own.

    Returns:
        (num_samples, ..., K).

    >>> hard_samples(torch.tensor([0.0, -torch.inf]), 2)
    tensor([[1., 0.],
            [1., 0.]])
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(hard_samples, (logits,), logits, num_samples, generator=generator)
    return gumbel_max(logits.expand(num_samples, *logits.shape), generator=generator)
