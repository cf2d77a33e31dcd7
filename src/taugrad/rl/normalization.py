"""Normalization of observations to mean 0 and variance 1, by the statistics of all observations so far.

The statistics are float64: float32 would keep no digit below 64 of observations near 1e9.
"""

import torch
from torch import Tensor, nn

_CLIP = 10.0


class RunningNorm(nn.Module):
    """Computes (x - mean) / std by the running mean and variance of all observations so far, clipped at 10.

    Args:
        size: D, numbers of an observation.

    >>> norm = RunningNorm(1)
    >>> norm.update(torch.tensor([[0.0], [2.0]]))
    >>> norm(torch.tensor([[3.0]]))
    tensor([[2.]])
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Update mean and variance by x, (n, D) (Chan et al. 1979); n may be 0."""
        n = len(x)
        if n == 0:
            return
        x = x.double()
        total = self.count + n
        share = n / total
        delta = x.mean(0) - self.mean
        self.variance.lerp_(x.var(0, correction=0), share).add_(delta.square() * share * (1 - share))
        self.mean.add_(delta * share)
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, (..., D), to float32."""
        return ((x - self.mean) / (self.variance + 1e-8).sqrt()).clamp(-_CLIP, _CLIP).float()
