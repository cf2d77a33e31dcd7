"""Sampling as a module: soft or straight-through in training, discrete in evaluation."""

from typing import final

import torch
from torch import Tensor, nn

from taugrad.checks import check_mixed
from taugrad.estimators import Pathwise, check_pathwise
from taugrad.ops import categorical
from taugrad.ops._checks import classes_last
from taugrad.ops.gumbel import gumbel_max


@final
class OneHotSample(nn.Module):
    """One-hot samples of logits with an estimator's gradient; hard samples without gradient in evaluation mode.

    Args:
        estimator: any pathwise estimator; one of your own needs no `dim`.
        dim: the dimension of the K classes.
        unimix: share of the uniform categorical that is mixed in, in [0, 1), in evaluation too; see
            `taugrad.ops.categorical.unimix`.

    >>> from taugrad.estimators import STGumbelSoftmax
    >>> layer = OneHotSample(STGumbelSoftmax(), dim=1)
    >>> z = layer(torch.zeros(2, 3, 4), tau=0.5)
    >>> z.shape, z.sum(1).unique()
    (torch.Size([2, 3, 4]), tensor([1.]))
    """

    def __init__(self, estimator: Pathwise, dim: int = -1, unimix: float = 0.0) -> None:
        super().__init__()
        check_pathwise(estimator)
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"dim must be a whole number, got {dim!r}")
        check_mixed("unimix", unimix)
        self.estimator = estimator
        self.dim = dim
        self.unimix = unimix

    def forward(self, logits: Tensor, tau: float | Tensor = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `z` in the shape and dtype of `logits` (..., K, ...), the K classes along the layer's `dim`."""
        if self.unimix > 0:
            logits = categorical.unimix(logits, self.unimix, self.dim)
        if not self.training:
            return gumbel_max(logits, self.dim, generator=generator)
        if self.dim == -1:
            return self.estimator.sample(logits, tau, generator=generator)
        rows, tau = classes_last(logits, tau, self.dim)
        z = self.estimator.sample(rows, tau, generator=generator)
        return z.movedim(z.ndim - 1, self.dim).contiguous()  # torch's old export to ONNX has no -1

    def extra_repr(self) -> str:
        """Show the estimator, the dimension and a share of the uniform in the module's repr."""
        return f"{self.estimator!r}, dim={self.dim}" + (f", unimix={self.unimix}" if self.unimix > 0 else "")
