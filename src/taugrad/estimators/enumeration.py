"""Enumeration of every value of `z`: exact, and the oracle of the other estimators."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from taugrad.estimators.base import Estimator
from taugrad.ops._checks import check_latents, check_rows, values_of
from taugrad.ops.categorical import log_prob
from taugrad.ops.onehot import one_hot
from taugrad.ops.softmax import softmax

_MOST_CONFIGURATIONS = 2**20  # more are refused: another estimator is the right tool


@dataclass(frozen=True)
class Enumeration(Estimator):
    r"""Exact enumeration: $\sum_z \prod_n p_n(z_n) f(z)$ over all K^N values of `z`: the oracle.

    Bias: none; no variance. tau and generator have no effect. Cost: K^N evaluations of f, at most 2^20.

    >>> logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
    >>> e = Enumeration().expectation(lambda z: z[..., 0, 0], logits)
    >>> e.item(), torch.autograd.grad(e, logits)[0].tolist()
    (0.5, [[0.25, -0.25]])
    """

    def expectation(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return E f(z), (...), for `f` from (K^N, ..., N, K) to (K^N, ...) and logits (..., N, K)."""
        z = configurations(logits)
        check_rows(softmax(logits.detach()), -1)
        values = values_of(f, z)
        log_p = log_prob(logits, z).sum(-1)
        return (log_p.exp() * values.masked_fill(log_p == -torch.inf, 0.0)).sum(0)  # f may be NaN at a masked class


def configurations(logits: Tensor) -> Tensor:
    """Return every value of `z` for logits (..., N, K): one-hot (K^N, ..., N, K), without gradient.

    >>> configurations(torch.zeros(1, 2)).tolist()
    [[[1.0, 0.0]], [[0.0, 1.0]]]
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(configurations, (logits,), logits)
    check_latents(logits)
    N, K = logits.shape[-2:]
    check_enumerable(N, K)
    place = K ** torch.arange(N - 1, -1, -1, device=logits.device)
    index = torch.arange(K**N, device=logits.device).unsqueeze(-1) // place % K
    index = index.view(K**N, *[1] * (logits.ndim - 2), N).expand(K**N, *logits.shape[:-1])
    return one_hot(index, logits.new_zeros(1).expand(*index.shape, K))


def check_enumerable(N: int, K: int) -> None:
    """Raise unless the K^N configurations of N latents of K classes are few enough to enumerate.

    >>> check_enumerable(20, 10)
    Traceback (most recent call last):
    ValueError: 20 latents of 10 classes have 10^20 configurations, more than the 1048576 that enumeration takes
    """
    if N * math.log2(K) > math.log2(_MOST_CONFIGURATIONS):
        raise ValueError(
            f"{N} latents of {K} classes have {K}^{N} configurations, more than the {_MOST_CONFIGURATIONS} that "
            "enumeration takes"
        )
