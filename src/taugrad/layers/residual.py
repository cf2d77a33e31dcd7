"""Quantizers in sequence, for audio codecs and semantic ids."""

from collections.abc import Callable
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from taugrad.checks import check_count
from taugrad.estimators import Pathwise
from taugrad.layers.codes import features_last, indices_of, standardized
from taugrad.layers.quantizer import CategoricalQuantizer, Quantized
from taugrad.ops._torch import tracing


@final
class ResidualQuantizer(nn.Module):
    r"""Several quantizers by distance in sequence, each of what the ones before left.

    $r_0 = (x - \mathrm{mean}) / \mathrm{std}$ and $r_{i+1} = r_i - e_i$, where $e_i$ is the entry that stands for $r_i$
    in the i-th codebook. The quantized features are $\sum_i e_i$, the loss is the sum of theirs. Each quantizer
    standardizes the rest that it gets, so that the codes of a late one are as alive as those of the first.

    Args:
        dim: D, of the features and of all entries.
        codes: K, the size of each codebook, at least 2.
        estimator: any pathwise estimator.
        levels: the number of quantizers.
        loss: "kl" or "diversity", as of `CategoricalQuantizer`.
        weight: of the loss.
        unimix: share of the uniform categorical in each q, in [0, 1).
        channel_first: features are (batch, D, ...) in place of (..., D).

    Raises:
        ValueError, TypeError: as of `CategoricalQuantizer`.

    Bias: that of the estimator.
    Source: 2107.03312, 2203.01941; for semantic ids 2305.05065.

    >>> from taugrad import STGumbelSoftmax
    >>> quantizer = ResidualQuantizer(4, codes=256, estimator=STGumbelSoftmax(), levels=3)
    >>> quantized, indices, loss = quantizer(torch.randn(2, 10, 4), tau=0.5)
    >>> quantized.shape, indices.shape
    (torch.Size([2, 10, 4]), torch.Size([2, 10, 3]))
    """

    def __init__(
        self,
        dim: int,
        codes: int,
        estimator: Pathwise,
        *,
        levels: int,
        loss: str = "kl",
        weight: float = 0.0,
        unimix: float = 0.0,
        channel_first: bool = False,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("levels", levels)
        self.codes, self.channel_first = codes, channel_first
        self.standardize = nn.BatchNorm1d(dim, affine=False)
        arguments: dict[str, Any] = {"logits": "distance", "loss": loss, "weight": weight, "unimix": unimix}
        self.quantizers = nn.ModuleList(
            CategoricalQuantizer(dim, codes, estimator, restore=True, **arguments) for _ in range(levels)
        )

    def forward(self, x: Tensor, tau: float | Tensor = 1.0, *, generator: torch.Generator | None = None) -> Quantized:
        """Quantize features (..., D), or (batch, D, ...); indices are (..., levels)."""
        return self._quantize(x, lambda quantizer, rest: quantizer(rest, tau, generator=generator), self.training)

    def encode(self, x: Tensor) -> Tensor:
        """Return the indices of the most probable codes, (..., levels); the same in training."""

        def greedy(quantizer: CategoricalQuantizer, rest: Tensor) -> Quantized:
            indices = quantizer.encode(rest)
            return Quantized(quantizer.decode(indices), indices, rest.new_zeros(()))

        return self._quantize(x, greedy, training=False).indices

    def decode(self, indices: Tensor) -> Tensor:
        """Return the sums of the entries of codes (..., n), laid out as the features are.

        Raises:
            ValueError: n is more than `levels`, or an index is out of range.
            TypeError: the indices are no whole numbers.
        """
        indices = indices_of(indices, self.codes)
        fewest = 2 if self.channel_first else 1  # dimensions
        if not tracing() and not (indices.ndim >= fewest and 1 <= indices.shape[-1] <= len(self.quantizers)):
            most = len(self.quantizers)
            layout = f"({'batch, ' * self.channel_first}..., n)"
            raise ValueError(f"indices must have shape {layout} with n in [1, {most}], got {tuple(indices.shape)}")
        levels = zip(self.quantizers, indices.unbind(-1), strict=False)
        total = torch.stack([cast(CategoricalQuantizer, q).decode(index) for q, index in levels]).sum(0)
        return total.movedim(-1, 1).contiguous() if self.channel_first else total

    def _quantize(
        self, x: Tensor, draw: Callable[[CategoricalQuantizer, Tensor], Quantized], training: bool
    ) -> Quantized:
        D = self.standardize.num_features
        x = features_last(x, D, self.channel_first, cast(CategoricalQuantizer, self.quantizers[0]).codebook.dtype)
        rest = standardized(self.standardize, x.reshape(-1, D), training).view(x.shape)
        parts = []
        for quantizer in self.quantizers:
            parts.append(draw(cast(CategoricalQuantizer, quantizer), rest))
            rest = rest - parts[-1].quantized
        e, indices, losses = zip(*parts, strict=True)
        total = torch.stack(e).sum(0)
        total = total.movedim(-1, 1).contiguous() if self.channel_first else total
        return Quantized(total, torch.stack(indices, -1), torch.stack(losses).sum())
