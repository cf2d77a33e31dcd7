r"""Quality of an estimator's gradient: bias, variance, mean squared error and cosine against a reference.

Let g be the exact gradient of E f(z), summed over rows, with respect to all logits (..., N, K) together, and G an
estimator's from one draw for each row. Then

    bias^2   = |E G - g|^2 / |g|^2          variance = E |G - E G|^2 / |g|^2
    mse      = bias^2 + variance             cosine   = E <G, g> / (|G| |g|)
    snr      = |E G|^2 / E |G - E G|^2

Rows are taken together, not one by one, because the exact gradient of a row whose choice is nearly certain is nearly
zero: relative errors of such rows would dominate here, though not in training. The estimates of bias^2 and of |E G|^2
from n draws are themselves unbiased: the variance of the mean, variance / n, is subtracted. Standard errors come from
ten groups of draws. Throughout, `f` is a function from one-hot `z` (*more, ..., N, K) to (*more, ...).
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from taugrad.checks import check_count
from taugrad.estimators import RLOO, Enumeration, Estimator

Function = Callable[[Tensor], Tensor]

_MOST_BITS = 13  # log2 of the largest number of configurations to enumerate
GROUPS = 10  # groups of draws, for standard errors
_TIMED = 20  # steps whose median is the time


@dataclass(frozen=True)
class Quality:
    """Result of a probe for one estimator at one tau; `x_error` is the standard error of `x`."""

    estimator: str
    tau: float
    bias: float
    bias_error: float
    variance: float
    variance_error: float
    mse: float
    mse_error: float
    cosine: float
    cosine_error: float
    snr: float
    milliseconds: float

    def as_dict(self) -> dict[str, float | str]:
        """Return the fields as plain values."""
        return asdict(self)


def gradients(estimator: Estimator, f: Function, logits: Tensor, tau: float, draws: int, *, chunk: int = 100) -> Tensor:
    """Draw gradients of E f(z) from one sample each, (draws, ..., N, K), without graph, `chunk` of them at a time."""
    parts = []
    for start in range(0, draws, chunk):
        n = min(chunk, draws - start)
        leaf = logits.detach().expand(n, *logits.shape).clone().requires_grad_()
        parts.append(torch.autograd.grad(estimator.expectation(f, leaf, tau, generator=None).sum(), leaf)[0])
    return torch.cat(parts)


def reference(f: Function, logits: Tensor, *, samples: int = 100_000) -> tuple[Tensor, str]:
    """Return the gradient of E f(z), (..., N, K), and how it was obtained.

    It is exact, by enumeration, or where that costs too much unbiased, by `samples` of f (RLOO, a hundred at a time).
    """
    N, K = logits.shape[-2:]
    if N * math.log2(K) <= _MOST_BITS:
        leaf = logits.detach().clone().requires_grad_()
        return torch.autograd.grad(Enumeration().expectation(f, leaf).sum(), leaf)[0], "enumeration"
    check_count("samples", samples, smallest=100)
    estimate = gradients(RLOO(samples=100), f, logits, 1.0, samples // 100, chunk=1).mean(0)
    return estimate, f"RLOO, {samples:,} samples"


def probe(
    estimator: Estimator,
    f: Function,
    logits: Tensor,
    exact: Tensor,
    *,
    tau: float = 1.0,
    draws: int = 1000,
    name: str = "",
) -> Quality:
    """Compare an estimator's one-sample gradients with the exact one, (..., N, K), as from `reference`.

    The result names the estimator by `name`, or by its repr.

    Raises:
        ValueError: `draws` is below 20 or no multiple of ten, or the exact gradient is zero.
    """
    check_count("draws", draws, smallest=2 * GROUPS)
    if draws % GROUPS:
        raise ValueError(f"draws must be a multiple of {GROUPS}, got {draws}")
    scale = exact.norm()
    if not scale > 0:
        raise ValueError("the exact gradient is zero: nothing can be compared with it")
    g = exact.flatten() / scale
    G = gradients(estimator, f, logits, tau, draws).view(GROUPS, -1, len(g)) / scale  # (groups, draws a group, ...)
    n = G.shape[1]
    mean = G.mean(1)
    variance = (G - mean.unsqueeze(1)).square().sum((1, -1)) / (n - 1)
    bias2 = (mean - g).square().sum(-1) - variance / n
    cosine = torch.cosine_similarity(G, g.expand_as(G), dim=-1).mean(1)
    signal = mean.square().sum(-1) - variance / n
    bias = bias2.mean().clamp_min(0).sqrt()
    return Quality(
        estimator=name or repr(estimator),
        tau=tau,
        bias=bias.item(),
        bias_error=(_error(bias2) / (2 * bias.clamp_min(bias2.std().sqrt() / 2))).item(),
        variance=variance.mean().item(),
        variance_error=_error(variance).item(),
        mse=(bias2 + variance).mean().item(),
        mse_error=_error(bias2 + variance).item(),
        cosine=cosine.mean().item(),
        cosine_error=_error(cosine).item(),
        snr=(signal.mean() / variance.mean()).item() if variance.mean() > 0 else math.inf,
        milliseconds=_milliseconds(estimator, f, logits, tau),
    )


def _error(groups: Tensor) -> Tensor:
    return groups.std() / len(groups) ** 0.5


def _milliseconds(estimator: Estimator, f: Function, logits: Tensor, tau: float) -> float:
    """Return the median time of one forward and backward on these logits."""
    times = []
    for _ in range(_TIMED):
        start = time.perf_counter()
        gradients(estimator, f, logits, tau, 1)
        times.append(time.perf_counter() - start)
    return 1e3 * sorted(times)[_TIMED // 2]
