r"""Logits of a codebook's entries by their distance to the features.

logits_k = -s |x' - e_k|^2,  x' = (x - mean) / std                  after 2205.07547
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from taugrad.checks import check_positive
from taugrad.layers.codes import standardized


@final
class Distances(nn.Module):
    r"""Precision s of each group, learned, and the statistics that standardize features, as those of a batch norm.

    Args:
        dim: D, of the features.
        codes: K, the number of entries of a group.
        groups: G, which divides D.
        precision: s at first, in units of $K^{2/d} / d$ with $d = D / G$.

    >>> Distances(4, codes=8, groups=2)(torch.randn(5, 3, 4), torch.randn(2, 8, 2), training=True).shape
    torch.Size([5, 3, 2, 8])
    """

    def __init__(self, dim: int, codes: int, groups: int, precision: float = 2.0) -> None:
        super().__init__()
        check_positive("precision", precision)
        d = dim // groups
        self.standardize = nn.BatchNorm1d(dim, affine=False)
        self.log_precision = nn.Parameter(torch.full((groups,), math.log(precision * codes ** (2 / d) / d)))

    def forward(self, x: Tensor, e: Tensor, *, training: bool, mask: Tensor | None = None) -> Tensor:
        """Return logits (..., G, K) of features (..., D) by entries (G, K, D / G).

        In training they are standardized over the positions of the boolean `mask` (...), which the running mean and
        deviation follow.
        """
        rows = x.reshape(-1, x.shape[-1])
        rows = standardized(self.standardize, rows, training, None if mask is None else mask.flatten())
        rows = rows.unflatten(-1, (len(e), -1)).transpose(0, 1)
        s = self.log_precision.exp().view(-1, 1, 1)
        # -s |x - e|^2 + s |x|^2, which is the same for all k; s meets the small tensors, not the logits
        squares = s * e.square().sum(-1).unsqueeze(1)
        logits = torch.baddbmm(squares, s * rows, e.mT, beta=-1, alpha=2)
        return logits.transpose(0, 1).view(*x.shape[:-1], *e.shape[:2])

    def restored(self, e: Tensor) -> Tensor:
        """Return entries (..., D) in the scale of the features, by the running mean and deviation."""
        mean, var = self.standardize.running_mean, self.standardize.running_var
        assert mean is not None
        assert var is not None
        return e * (var + self.standardize.eps).sqrt() + mean
