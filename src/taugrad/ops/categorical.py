r"""Log-probability, entropy, KL and a uniform mixture of categoricals as functions of their logits, safe at -inf.

    log p(z) = <z, log_softmax(logits)>
    H(p)     = -sum_k p_k log p_k
    KL(p||q) = sum_k p_k (log p_k - log q_k)
    unimix   = log((1 - s) p + s / K)

The contract: logits (..., K) along `dim`, results without `dim`, natural logarithms (nats). A masked class, logit
-inf, counts as 0 log 0 = 0 in value and has zero gradient. A row with every class masked, or with NaN, is NaN.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from taugrad.checks import check_mixed
from taugrad.ops import _fused
from taugrad.ops._checks import check_logits, compute_dtype


def log_prob(logits: Tensor, z: Tensor, dim: int = -1) -> Tensor:
    r"""Return $\log p(z) = \sum_k z_k \log \mathrm{softmax}(\mathrm{logits})_k$ of one-hot `z`, in nats.

    Args:
        logits: (..., K, ...).
        z: one-hot, of a shape that broadcasts with `logits`.
        dim: the dimension of the K classes.

    Returns:
        The broadcast shape without `dim`; -inf for a masked class.

    >>> log_prob(torch.tensor([0.0, 0.0, -torch.inf]), torch.eye(3))
    tensor([-0.6931, -0.6931,    -inf])
    """
    if has_torch_function_variadic(logits, z):
        return handle_torch_function(log_prob, (logits, z), logits, z, dim)
    check_logits(logits, dim)
    fused = _fused.log_prob(logits, z, dim)
    if fused is not None:
        return fused
    log_p = torch.log_softmax(logits, dim)
    # Where z is zero the product is zero, also for a log_p of -inf.
    return (z * log_p.masked_fill((z == 0) & (log_p == -math.inf), 0.0)).sum(dim)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    r"""Return $\log p(x) = \sum_d x_d \log \sigma(l_d) + (1 - x_d) \log \sigma(-l_d)$ of Bernoullis, in nats.

    Args:
        logits: l, (..., D).
        x: in [0, 1], of a shape that broadcasts to that of `logits`.

    Returns:
        (...).

    >>> bernoulli_log_prob(torch.zeros(2), torch.tensor([0.0, 1.0]))
    tensor(-1.3863)
    """
    if has_torch_function_variadic(logits, x):
        return handle_torch_function(bernoulli_log_prob, (logits, x), logits, x)
    fused = _fused.bernoulli_log_prob(logits, x)
    if fused is not None:
        return fused
    return -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def entropy(logits: Tensor, dim: int = -1) -> Tensor:
    r"""Return the entropy $H(p) = -\sum_k p_k \log p_k$ in nats.

    Args:
        logits: (..., K, ...).
        dim: the dimension of the K classes.

    Returns:
        The shape of `logits` without `dim`, in [0, log K].

    >>> entropy(torch.tensor([0.0, 0.0, -torch.inf]))
    tensor(0.6931)
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(entropy, (logits,), logits, dim)
    check_logits(logits, dim)
    fused = _fused.entropy(logits, dim)
    if fused is not None:
        return fused
    log_p = torch.log_softmax(logits, dim)
    return -_expectation(log_p, log_p, dim)


def kl_to_uniform(logits: Tensor, dim: int = -1) -> Tensor:
    r"""Return $\mathrm{KL}(p \| \mathrm{uniform}) = \log K - H(p)$ in nats, over all K classes, masked ones included.

    Args:
        logits: (..., K, ...).
        dim: the dimension of the K classes.

    Returns:
        The shape of `logits` without `dim`, in [0, log K].

    >>> kl_to_uniform(torch.tensor([0.0, -torch.inf]))
    tensor(0.6931)
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(kl_to_uniform, (logits,), logits, dim)
    check_logits(logits, dim)
    return math.log(logits.shape[dim]) - entropy(logits, dim)


def kl(logits_p: Tensor, logits_q: Tensor, dim: int = -1) -> Tensor:
    r"""Return $\mathrm{KL}(p \| q) = \sum_k p_k (\log p_k - \log q_k)$ in nats.

    Args:
        logits_p: (..., K, ...).
        logits_q: (..., K, ...), of a shape that broadcasts with `logits_p`.
        dim: the dimension of the K classes.

    Returns:
        The broadcast shape without `dim`, at least 0; inf where q masks a class that p allows.

    >>> kl(torch.tensor([0.0, -torch.inf]), torch.tensor([0.0, 0.0]))
    tensor(0.6931)
    """
    if has_torch_function_variadic(logits_p, logits_q):
        return handle_torch_function(kl, (logits_p, logits_q), logits_p, logits_q, dim)
    check_logits(logits_p, dim, "logits_p")
    check_logits(logits_q, dim, "logits_q")
    log_p = torch.log_softmax(logits_p, dim)
    return _expectation(log_p, log_p - torch.log_softmax(logits_q, dim), dim)


def unimix(logits: Tensor, share: float, dim: int = -1) -> Tensor:
    r"""Mix a categorical with the uniform one: return $\log((1 - s) \, \mathrm{softmax}(\mathrm{logits}) + s / K)$.

    The result is normalized log-probabilities, so that sampling, `entropy`, `kl` and `log_prob` of it are exactly those
    of the mixture. No class that is allowed has a probability below $s / K$, and the KL from it is bounded.

    Args:
        logits: (..., K, ...); a masked class, -inf, stays masked, and K counts the others.
        share: $s$, the share of the uniform categorical, in [0, 1); DreamerV3 takes 0.01.
        dim: the dimension of the K classes.

    Returns:
        The shape and dtype of `logits`.

    Raises:
        ValueError: `share` is out of range.

    Source: 2301.04104.

    >>> unimix(torch.tensor([100.0, 0.0, -torch.inf]), 0.01).exp()
    tensor([0.9950, 0.0050, 0.0000])
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(unimix, (logits,), logits, share, dim)
    check_logits(logits, dim)
    check_mixed("share", share)
    log_p = torch.log_softmax(logits, dim, dtype=compute_dtype(logits.dtype))
    if share == 0:
        return log_p.to(logits.dtype)
    masked = logits == -math.inf
    log_uniform = math.log(share) - (~masked).sum(dim, keepdim=True).to(log_p.dtype).log()
    mixed = torch.logaddexp(log_p + math.log1p(-share), log_uniform)
    return mixed.masked_fill(masked, -math.inf).to(logits.dtype)


def _expectation(log_p: Tensor, values: Tensor, dim: int) -> Tensor:
    """Return sum_k p_k values_k, where a class of probability zero counts as zero for any value."""
    return (log_p.exp() * values.masked_fill(log_p == -math.inf, 0.0)).sum(dim)
