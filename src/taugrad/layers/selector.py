r"""Selection of k of d features, learned with the network that reads them: a concrete autoencoder's first layer."""

import math
from collections.abc import Callable
from itertools import repeat
from typing import final

import torch
from torch import Tensor, nn

from taugrad.checks import check_count
from taugrad.estimators import Pathwise, check_pathwise
from taugrad.ops._checks import check_rows, check_tau
from taugrad.ops.onehot import one_hot


@final
class Selector(nn.Module):
    r"""Selection of k of d features by learnable logits; plain indexing of the most probable ones in evaluation mode.

    $z_j \sim \mathrm{softmax}(\mathrm{logits}_j)$, $u_j = \langle z_j, x \rangle$, one draw a call for all rows of x.
    Without repetition the features that $z_1, \ldots, z_{j-1}$ took are masked for $z_j$.

    Args:
        features: $d$, number of features.
        k: number of features to select.
        estimator: any pathwise estimator.
        repetition: whether a feature may be selected twice, as in the paper. Without repetition the k draws follow one
            another, and no gradient flows through the masks.

    Bias: that of the estimator; without repetition also the effect of a draw on later ones is missing.
    Source: 1901.09346.

    >>> from taugrad.estimators import STGumbelSoftmax
    >>> selector = Selector(features=5, k=2, estimator=STGumbelSoftmax(), repetition=False)
    >>> selector(torch.randn(7, 5), tau=0.5).shape
    torch.Size([7, 2])
    >>> x = torch.randn(7, 5)
    >>> torch.equal(selector.eval()(x), x[:, selector.indices()])
    True
    """

    def __init__(self, features: int, k: int, estimator: Pathwise, *, repetition: bool = True) -> None:
        super().__init__()
        check_count("features", features)
        check_count("k", k)
        if k > features and not repetition:
            raise ValueError(f"k must be at most features = {features} without repetition, got {k}")
        check_pathwise(estimator)
        self.estimator = estimator
        self.repetition = repetition
        self.logits = nn.Parameter(0.01 * torch.randn(k, features))  # nearly uniform; equal rows would stay equal

    def forward(self, x: Tensor, tau: float | Tensor = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
        """Select k features, (..., k), of `x` (..., d), in the dtype of `x`.

        Args:
            x: (..., d), floating point.
            tau: temperature of the estimator, a positive number or a tensor that broadcasts to (k, 1).
            generator: a source of randomness; default torch's own.

        Raises:
            TypeError: `x` is not floating point.
            ValueError: the last dimension of `x` is not d, or `tau` is not positive.
            LogitsError: a logit is NaN or +inf, or all logits of a row are -inf.
        """
        k, d = self.logits.shape
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a floating-point tensor, got {got}")
        if x.ndim == 0 or x.shape[-1] != d:
            raise ValueError(f"x must have features = {d} in its last dimension, got shape {tuple(x.shape)}")
        tau = check_tau(tau, self.logits)
        if not self.training:
            return x[..., self.indices()]
        if self.repetition:
            z = self.estimator.sample(self.logits, tau, generator=generator)
        else:
            each = iter(tau.expand(k, 1).split(1)) if isinstance(tau, Tensor) else repeat(tau)
            z = self._one_after_another(lambda row: self.estimator.sample(row, next(each), generator=generator))
        return x @ z.to(x.dtype).mT

    @torch.no_grad()
    def indices(self) -> Tensor:
        """Return the k features of evaluation mode, (k,), int64: the most probable of each row, of those not taken."""
        check_rows(self.logits.softmax(-1), -1)
        if self.repetition:
            return self.logits.argmax(-1)
        return self._one_after_another(lambda row: one_hot(row.argmax(-1), row)).argmax(-1)

    def _one_after_another(self, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Return (k, d), where row j chooses of what the rows before have left."""
        taken, z = torch.zeros_like(self.logits[:1], dtype=torch.bool), []
        for row in self.logits.split(1):
            z.append(choose(row.masked_fill(taken, -math.inf)))
            taken = taken | one_hot(z[-1].argmax(-1), taken).bool()
        return torch.cat(z)

    def extra_repr(self) -> str:
        """Show sizes and estimator in the module's repr."""
        k, d = self.logits.shape
        return f"features={d}, k={k}, {self.estimator!r}, repetition={self.repetition}"
