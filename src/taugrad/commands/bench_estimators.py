"""Measurements of `taugrad bench estimators`: every estimator's gradient on two choices among K classes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from taugrad import estimators
from taugrad.estimators import Enumeration, Estimator
from taugrad.probe import Function, probe

CHOICES = 2
_DIM = 8  # size of an entry: a sum of entries says more than which classes were drawn
_ENTRIES = 2**22  # entries of one-hots held at a time
_MOST = 2**13  # configurations that enumeration is measured with


def every() -> dict[str, Estimator]:
    """Return an estimator of each public class, at its defaults, by name."""
    classes = (getattr(estimators, name) for name in estimators.__all__)
    found = [c for c in classes if isinstance(c, type) and issubclass(c, Estimator)]
    return {c.__name__: c() for c in found if not c.__abstractmethods__}


def problem(K: int, rows: int) -> tuple[Function, Tensor]:
    r"""Return $f(z) = \tanh((\langle u_1, A u_2\rangle + \langle a, u_1 + u_2\rangle)/2)$, $u_n = W_n z_n$, and logits.

    The logits (rows, 2, K) are normal; f is neither linear nor quadratic.
    """
    random = torch.Generator().manual_seed(0)
    W = torch.randn(CHOICES, K, _DIM, generator=random) / math.sqrt(_DIM)
    A, a = torch.randn(_DIM, _DIM, generator=random) / 2, torch.randn(_DIM, generator=random)

    def f(z: Tensor) -> Tensor:
        u = torch.einsum("...nk,nkd->...nd", z, W)
        return torch.tanh((((u[..., 0, :] @ A) * u[..., 1, :]).sum(-1) + u.sum(-2) @ a) / 2)

    return f, torch.randn(rows, CHOICES, K, generator=random)


def exact_gradient(f: Function, logits: Tensor) -> Tensor:
    r"""Return the gradient of E f(z) to logits (..., 2, K), a share of the K^2 configurations at a time.

    $\mathbb{E} f(z) = \sum_k \pi_{1k} \sum_j \pi_{2j} f(k, j)$.
    """
    K = logits.shape[-1]
    leaf = logits.detach().requires_grad_()
    total = torch.zeros_like(logits)
    eye, step = torch.eye(K), max(1, _ENTRIES // (CHOICES * K * logits[..., 0, 0].numel()))
    for k in range(K):
        for part in torch.arange(K).split(step):
            z = torch.stack([eye[k].expand(len(part), K), eye[part]], 1)
            z = z.view(len(part), *[1] * (logits.ndim - 2), CHOICES, K).expand(len(part), *logits.shape)
            log_pi = torch.log_softmax(leaf, -1)
            p = (log_pi[..., 0, k, None] + log_pi[..., 1, part]).exp()
            total += torch.autograd.grad((p * f(z).movedim(0, -1)).sum(), leaf)[0]
    return total


def measure(
    K: int, rows: int, draws: int, tau: float, seconds: Callable[[dict[str, Callable[[Tensor], Tensor]], Tensor], Any]
) -> list[dict[str, Any]]:
    """Return bias, variance and cosine of each estimator next to what `seconds` says of its calls."""
    f, logits = problem(K, rows)
    exact = exact_gradient(f, logits)
    found = {name: e for name, e in every().items() if not isinstance(e, Enumeration) or K**CHOICES <= _MOST}
    calls = {name: (lambda x, e=e: e.expectation(f, x, tau)) for name, e in found.items()}
    costs = seconds(calls, logits.clone().requires_grad_())
    records: list[dict[str, Any]] = []
    for name, estimator in found.items():
        torch.manual_seed(0)
        q = probe(estimator, f, logits, exact, tau=tau, draws=draws, name=name)
        quality = {part: getattr(q, part) for part in ("bias", "bias_error", "variance", "cosine")}
        records.append({"shape": f"K = {K}", "contestant": name} | quality | costs[name])
    return records
