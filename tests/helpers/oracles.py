"""Oracles: textbook forms in float64, written without the library."""

import itertools

import torch
from torch import Tensor


def textbook_softmax(x: Tensor, tau: float, dim: int) -> Tensor:
    """exp(x / tau) over its sum, in float64."""
    shifted = (x.double() - x.double().amax(dim, keepdim=True)) / tau
    return shifted.exp() / shifted.exp().sum(dim, keepdim=True)


def jacobian(y: Tensor) -> Tensor:
    """dy/dx of y = softmax(x), (..., K, K), written out."""
    return torch.diag_embed(y) - y.unsqueeze(-1) * y.unsqueeze(-2)


def relaxed_gradient(s: Tensor, weights: Tensor, tau: float) -> Tensor:
    """d <weights, softmax(s / tau)> / ds by the dense Jacobian, a row at a time, in float64; classes last."""
    y = textbook_softmax(s, tau, -1)
    gradient = torch.empty_like(y)
    for row in itertools.product(*map(range, s.shape[:-1])):
        gradient[row] = jacobian(y[row]) / tau @ weights.double()[row]
    return gradient


def enumerated_expectation(f, logits: Tensor) -> Tensor:
    """E f(z) for logits (N, K), one configuration at a time, in float64; f takes (N, K) and returns a number."""
    N, K = logits.shape
    pi = logits.double().softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for configuration in itertools.product(range(K), repeat=N):
        z = torch.zeros(N, K, dtype=torch.float64)
        probability = torch.ones((), dtype=torch.float64)
        for n, k in enumerate(configuration):
            z[n, k] = 1.0
            probability = probability * pi[n, k]
        total = total + probability * f(z)
    return total
