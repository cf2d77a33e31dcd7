"""Sampling as a module: soft or straight-through in training, discrete in evaluation."""

import torch
from torch import Tensor, nn

from taugrad.estimators import Pathwise
from taugrad.gumbel import gumbel_max


class OneHotSample(nn.Module):
    """One-hot samples of logits with an estimator's gradient; hard samples without gradient in evaluation mode.

    Args:
        estimator: any pathwise estimator.

    >>> from taugrad.estimators import STGumbelSoftmax
    >>> layer = OneHotSample(STGumbelSoftmax())
    >>> z = layer(torch.zeros(2, 3), tau=0.5)
    >>> z.shape, z.sum(-1)
    (torch.Size([2, 3]), tensor([1., 1.]))
    """

    def __init__(self, estimator: Pathwise) -> None:
        super().__init__()
        if not isinstance(estimator, Pathwise):
            raise TypeError(f"estimator must be a pathwise estimator, which gives samples, got {estimator!r}")
        self.estimator = estimator

    def forward(
        self, logits: Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Z in the shape and dtype of `logits` (..., K, ...), the K classes along `dim`."""
        if self.training:
            return self.estimator.sample(logits, tau, dim, generator=generator)
        return gumbel_max(logits, dim, generator=generator)

    def extra_repr(self) -> str:
        """The estimator, in the module's repr."""
        return repr(self.estimator)
