r"""Log-probability, entropy and KL of categoricals as functions of their logits, safe at -inf.

    log p(z) = <z, log_softmax(logits)>
    H(p)     = -sum_k p_k log p_k
    KL(p||q) = sum_k p_k (log p_k - log q_k)

The contract: logits (..., K) along `dim`, results without `dim`, natural logarithms (nats). A masked class, logit
-inf, counts as 0 log 0 = 0 in value and has zero gradient. A row with every class masked, or with NaN, is NaN.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from taugrad.ops._checks import check_logits
from taugrad.ops.native import kernels


def log_prob(logits: Tensor, z: Tensor, dim: int = -1) -> Tensor:
    r"""$\log p(z) = \sum_k z_k \log \mathrm{softmax}(\mathrm{logits})_k$ of one-hot `z`, in nats.

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
    if _kernels_take_log_prob(logits, z, dim):
        return kernels.log_prob(logits.contiguous(), z.contiguous())
    log_p = torch.log_softmax(logits, dim)
    # Where z is zero its product counts as zero, also for a log_p of -inf.
    return (z * log_p.masked_fill((z == 0) & (log_p == -math.inf), 0.0)).sum(dim)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    r"""$\log p(x) = \sum_d x_d \log \sigma(l_d) + (1 - x_d) \log \sigma(-l_d)$ of independent Bernoullis, in nats.

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
    tracked = torch.is_grad_enabled() and x.requires_grad
    if not tracked and x.dtype is logits.dtype and kernels.takes(logits, x) and _extends(logits, x):
        return _BernoulliLogProb.apply(logits, x)
    return -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def entropy(logits: Tensor, dim: int = -1) -> Tensor:
    r"""$H(p) = -\sum_k p_k \log p_k$ in nats.

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
    if dim in (-1, logits.ndim - 1) and kernels.takes(logits):
        return _Entropy.apply(logits)
    log_p = torch.log_softmax(logits, dim)
    return -_expectation(log_p, log_p, dim)


def kl_to_uniform(logits: Tensor, dim: int = -1) -> Tensor:
    r"""$\mathrm{KL}(p \| \mathrm{uniform}) = \log K - H(p)$ in nats, over all K classes, masked ones included.

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
    r"""$\mathrm{KL}(p \| q) = \sum_k p_k (\log p_k - \log q_k)$ in nats.

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


def _expectation(log_p: Tensor, values: Tensor, dim: int) -> Tensor:
    """sum_k p_k values_k, where a class of probability zero counts nothing, whatever its value."""
    return (log_p.exp() * values.masked_fill(log_p == -math.inf, 0.0)).sum(dim)


def _kernels_take_log_prob(logits: Tensor, z: Tensor, dim: int) -> bool:
    """Without gradient, and for z of the shape of the logits or with leading dimensions more."""
    return (
        not (torch.is_grad_enabled() and (logits.requires_grad or z.requires_grad))
        and dim in (-1, logits.ndim - 1)
        and z.dtype is logits.dtype
        and kernels.takes(logits, z)
        and _extends(z, logits)
    )


def _extends(many: Tensor, few: Tensor) -> bool:
    """Whether `many` has the shape of `few`, perhaps after leading dimensions more."""
    return few.ndim > 0 and many.shape[-few.ndim :] == few.shape


class _Entropy(torch.autograd.Function):
    """By the kernels: x and H are saved, dH/dx_k = -p_k (log p_k + H)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        H = kernels.entropy(x.contiguous())
        ctx.save_for_backward(x, H)
        return H

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, H = ctx.saved_tensors
        if not torch.is_grad_enabled() and kernels.takes(grad, x):
            return kernels.entropy_backward(grad.contiguous(), x.contiguous(), H)
        log_p = torch.log_softmax(x, -1)
        p = log_p.exp()
        return -grad.unsqueeze(-1) * p * (log_p.masked_fill(log_p == -math.inf, 0.0) + H.unsqueeze(-1))


class _BernoulliLogProb(torch.autograd.Function):
    """By the kernels: logits l and x are saved, d/dl = x - sigma(l)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        return kernels.bernoulli(logits.contiguous(), x.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, x = ctx.saved_tensors
        if not torch.is_grad_enabled() and kernels.takes(grad, logits):
            return kernels.bernoulli_backward(grad.contiguous(), logits.contiguous(), x.contiguous()), None
        return grad.unsqueeze(-1) * (x - logits.sigmoid()), None
