r"""Subsets of k of K classes without replacement, by the k largest of logits + Gumbel noise.

s = logits + g;  the classes of the k largest s, in their order, are a sample without replacement (1903.06059)
a_1 = s,  y_j = softmax(a_j / tau),  a_{j+1} = a_j + log(1 - y_j),  y = sum_j y_j          (1901.10517)
"""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from taugrad.checks import check_count
from taugrad.ops._checks import check_logits
from taugrad.ops._torch import readable, tracing
from taugrad.ops.noise import perturbed
from taugrad.ops.onehot import straight_through
from taugrad.ops.softmax import softmax


def gumbel_top_k(logits: Tensor, k: int, dim: int = -1, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw the indices of k classes, one after another from softmax(logits) without replacement.

    Args:
        logits: (..., K, ...), floating point; -inf masks a class.
        k: number of classes to draw, at most the number that every row allows.
        dim: the dimension of the K classes.
        generator: a source of randomness; default torch's own.

    Returns:
        Class indices in the order drawn, int64, (..., k, ...).

    Raises:
        ValueError: `k` is below 1, or a row allows fewer than k classes.
        TypeError, IndexError: `logits` is not floating point, `dim` is out of range.

    Source: 1903.06059.

    >>> gumbel_top_k(torch.tensor([0.0, -torch.inf, 0.0]), k=2).sort().values
    tensor([0, 2])
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(gumbel_top_k, (logits,), logits, k, dim, generator=generator)
    return _perturbed_top_k(logits.detach(), k, dim, generator)[2].contiguous()


def gumbel_k_hot(
    logits: Tensor, k: int, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Draw a k-hot sample of k classes without replacement, with the gradient of its relaxation.

    The relaxation is a sum of k softmaxes, each without the classes before it, $y = \sum_j y_j$.

    Args:
        logits: (..., K, ...), floating point; -inf masks a class.
        k: number of classes to draw, at most the number that every row allows.
        tau: temperature of the relaxation, a positive number or a tensor that broadcasts to `logits`, of size 1 along
            `dim`.
        dim: the dimension of the K classes.
        generator: a source of randomness; default torch's own.

    Returns:
        k ones and otherwise zeros along `dim`, in the shape and dtype of `logits`.

    Raises:
        ValueError: `k` is below 1, or a row allows fewer than k classes; `tau` is not positive.
        TypeError, IndexError: `logits` is not floating point, `dim` is out of range.

    Bias: none in the value; the gradient is biased. Source: 1903.06059, 1901.10517.

    >>> gumbel_k_hot(torch.tensor([0.0, -torch.inf, 0.0]), k=2, tau=0.5)
    tensor([1., 0., 1.])
    """
    if has_torch_function_variadic(logits, tau):
        return handle_torch_function(gumbel_k_hot, (logits, tau), logits, k, tau, dim, generator=generator)
    s, top, index = _perturbed_top_k(logits, k, dim, generator)
    hard = torch.zeros_like(s, memory_format=torch.contiguous_format).scatter(dim, index, 1.0)
    if not readable(top):
        hard = hard + 0 * top.detach().sum(dim, keepdim=True)  # NaN where a row allows fewer than k classes
    soft = torch.zeros_like(hard)
    for _ in range(k):
        y = softmax(s, tau, dim)
        soft = soft + y
        # A class that is certain would leave -inf, which has no gradient, so it stays just finite.
        s = s + torch.log1p(-y.clamp_max(1 - torch.finfo(y.dtype).eps))
    return straight_through(hard, soft).to(logits.dtype)


def _perturbed_top_k(
    logits: Tensor, k: int, dim: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    check_logits(logits, dim)
    check_count("k", k)
    if not tracing() and k > logits.shape[dim]:
        raise ValueError(f"k must be at most {logits.shape[dim]}, the number of classes, got {k}")
    s = perturbed(logits, generator=generator)
    top, index = s.topk(k, dim)
    if readable(top) and not torch.isfinite(top).all():
        raise ValueError(f"logits must have {k} finite entries in every row and no NaN or +inf, as k = {k}")
    return s, top, index
