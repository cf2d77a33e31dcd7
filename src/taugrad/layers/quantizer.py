r"""Features to codes of a codebook and back: the quantizers of discrete VAEs, wav2vec 2.0 and residual codecs.

    linear      logits_k = <w_k, x> + b_k                                           1910.05453, 2006.11477, 2102.12092
    distance    logits_k = -s |x' - e_k|^2,  x' = (x - mean) / std                  after 2205.07547
    i ~ softmax(logits),  quantized = e_i                                           with the gradient of an estimator

With G groups each has logits and a codebook of its own, and their entries are concatenated (product quantization).
"""

import math
from contextlib import nullcontext
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from taugrad.checks import check_count, check_mixed, check_number, check_positive
from taugrad.estimators import Pathwise, check_pathwise
from taugrad.layers.codes import check_mask, divergence, features_last, indices_of, usage_of
from taugrad.layers.distances import Distances
from taugrad.ops._checks import check_tau
from taugrad.ops._torch import tracing
from taugrad.ops.categorical import unimix

_LOGITS = ("linear", "distance")
_LOSSES = ("kl", "diversity")
# Of entries by distance over their parameters, so that Adam moves them ten times as fast as a net's weights.
_GAIN = 10.0


class Quantized(NamedTuple):
    """Quantized features, the indices of their codes, and a loss to add: `quantized, indices, loss = quantizer(x)`."""

    quantized: Tensor
    indices: Tensor
    loss: Tensor


@final
class CategoricalQuantizer(nn.Module):
    r"""Draws a code for each feature vector; the most probable one in evaluation mode.

    `logits="distance"` has the codebook's entries compete by their distance to the features, which are standardized as
    by batch normalization; the precision s is learned. It works best with entries of few dimensions, 4 to 8: at 64 a
    straight-through gradient hardly reaches the encoder. `logits="linear"` draws by a linear map of the features, as
    wav2vec 2.0 and DALL-E do; the entries may then have any dimension `code_dim`.

    The loss is `weight` times, for "kl", $\sum_g \mathrm{KL}(q_g \| \mathrm{uniform})$, the mean over positions, in
    [0, G log K] nats: it keeps each position's choice open. For "diversity" it is wav2vec's
    $(G K - \sum_g \exp H(\bar q_g)) / (G K)$, in [0, 1 - 1/K], of the mean $\bar q_g$ over positions: it asks for all
    codes to be in use, and lets each position be sure.

    Args:
        dim: D, of the features.
        codes: K, the size of each group's codebook, at least 2.
        estimator: any pathwise estimator; straight-through ones need no one-hot of the codebook's size.
        groups: G, which divides `code_dim`, and `dim` with distances.
        code_dim: dimension of the quantized features; default `dim`. With distances it is `dim`.
        logits: "linear" or "distance".
        loss: "kl" or "diversity".
        weight: of the loss, at least 0; the loss of weight 0 is a plain zero.
        precision: with distances, s at first, in units of $K^{2/d} / d$, about the inverse square of the distance from
            a feature of d dimensions to the nearest of K entries. A higher one draws with less noise.
        unimix: share of the uniform categorical in q, in [0, 1).
        restore: with distances, return entries in the scale of x, by the running mean and deviation.
        channel_first: features are (batch, D, ...) in place of (..., D).

    Raises:
        ValueError: an argument is out of range.
        TypeError: `estimator` is not a pathwise estimator.

    Bias: that of the estimator.
    Source: 2006.11477, 2102.12092, 2205.07547; its triple unpacks as vector-quantize-pytorch's does.

    >>> from taugrad import STGumbelSoftmax
    >>> quantizer = CategoricalQuantizer(4, codes=512, estimator=STGumbelSoftmax(), logits="distance")
    >>> quantized, indices, loss = quantizer(torch.randn(2, 10, 4), tau=0.5)
    >>> quantized.shape, indices.shape, loss.item()
    (torch.Size([2, 10, 4]), torch.Size([2, 10]), 0.0)
    """

    def __init__(
        self,
        dim: int,
        codes: int,
        estimator: Pathwise,
        *,
        groups: int = 1,
        code_dim: int | None = None,
        logits: str = "linear",
        loss: str = "kl",
        weight: float = 0.0,
        precision: float = 2.0,
        unimix: float = 0.0,
        restore: bool = False,
        channel_first: bool = False,
    ) -> None:
        super().__init__()
        code_dim = dim if code_dim is None else code_dim
        for name, count in {"dim": dim, "groups": groups, "code_dim": code_dim}.items():
            check_count(name, count)
        check_count("codes", codes, smallest=2)
        check_pathwise(estimator)
        for name, value, known in (("logits", logits, _LOGITS), ("loss", loss, _LOSSES)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value}")
        if logits == "distance" and code_dim != dim:
            raise ValueError(f"code_dim must be dim, {dim}, for logits by distance, got {code_dim}")
        if code_dim % groups:
            raise ValueError(f"groups must divide code_dim, {code_dim}, got {groups}")
        check_positive("precision", precision)
        check_mixed("unimix", unimix)
        check_number("weight", weight)
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be a finite number >= 0, got {weight}")
        self.dim, self.codes, self.groups, self.code_dim = dim, codes, groups, code_dim
        self.estimator, self.weight, self.loss, self.unimix = estimator, weight, loss, unimix
        self.restore, self.channel_first = restore, channel_first
        book = torch.randn(groups, codes, code_dim // groups)
        # In the state, so that one from before, whose parameter is the entries, does not load.
        self.gain = None if logits == "linear" else nn.Buffer(torch.tensor(_GAIN))
        self.codebook = nn.Parameter(book if self.gain is None else book / self.gain)
        if logits == "linear":
            self.projection, self.distances = nn.Linear(dim, groups * codes), None
            nn.init.normal_(self.projection.weight)  # as in wav2vec 2.0: smaller ones leave the choice to the noise
            nn.init.zeros_(self.projection.bias)
        else:
            self.projection, self.distances = None, Distances(dim, codes, groups, precision)

    @property
    def entries(self) -> Tensor:
        """Entries e of the codebooks, (G, K, code_dim / G): the parameter `codebook`, with distances ten times it."""
        return self.codebook if self.gain is None else self.gain * self.codebook

    def forward(
        self,
        x: Tensor,
        tau: float | Tensor = 1.0,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Quantize features (..., D), or (batch, D, ...), to `code_dim`; indices are (...), or (..., G) for G > 1.

        Positions where the boolean `mask` (...) is False count neither in the loss nor in what standardizes.
        """
        logits = self._logits(x, self.training, mask)
        e, indices = self.embed(logits, tau, generator=generator)
        loss = self.divergence(logits, mask) if self.weight else logits.new_zeros(())
        return Quantized(self._out(e), indices if self.groups > 1 else indices.squeeze(-1), loss)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (..., G, K) of features; float32 at least."""
        return self._logits(x, self.training)

    def _logits(self, x: Tensor, training: bool, mask: Tensor | None = None) -> Tensor:
        x = features_last(x, self.dim, self.channel_first, self.codebook.dtype)
        if mask is not None:
            check_mask(mask, x.shape[:-1])
        kind = x.device.type
        plain = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with plain:  # differences of near numbers need their digits
            if self.distances is not None:
                logits = self.distances(x, self.entries, training=training, mask=mask)
            else:
                assert self.projection is not None
                logits = self.projection(x).unflatten(-1, (self.groups, self.codes))
            return unimix(logits, self.unimix) if self.unimix else logits

    def embed(
        self,
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        estimator: Pathwise | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return entries (..., code_dim) and indices (..., G) of logits (..., G, K).

        The estimator is this layer's, or another one. In evaluation mode they are the most probable ones.
        """
        self._check_sizes("logits", logits)
        if not self.training:
            check_tau(tau, logits.select(-2, 0))
            indices = logits.argmax(-1)
            return self._restored(self._chosen(indices)), indices
        estimator = self.estimator if estimator is None else estimator
        check_pathwise(estimator)
        drawn = [
            estimator.embedding(group, book, tau, generator=generator)
            for group, book in zip(logits.unbind(-2), self.entries, strict=True)
        ]
        entries, indices = zip(*drawn, strict=True)
        return self._restored(torch.cat(entries, -1)), torch.stack(indices, -1)

    def divergence(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the weighted loss of logits (..., G, K), a scalar, over the positions of a boolean `mask` (...)."""
        rows = logits.flatten(0, -3) if logits.ndim > 3 else logits.view(-1, *logits.shape[-2:])
        if mask is not None:
            check_mask(mask, logits.shape[:-2])
            mask = mask.flatten()
        return self.weight * divergence(rows, self.loss, mask)

    def encode(self, x: Tensor) -> Tensor:
        """Return the indices of the most probable codes, (...), or (..., G) for G > 1; the same in training."""
        indices = self._logits(x, training=False).argmax(-1)
        return indices if self.groups > 1 else indices.squeeze(-1)

    def decode(self, indices: Tensor) -> Tensor:
        """Return the entries of codes, laid out as the features are.

        Raises:
            ValueError: an index is out of range, or there is not one for each group.
            TypeError: the indices are no whole numbers.
        """
        return self._out(self._restored(self._chosen(self._of_groups(indices))))

    def mix(self, z: Tensor) -> Tensor:
        """Return entries (..., code_dim) of one-hot, or soft, `z` (..., G, K)."""
        self._check_sizes("z", z)
        return self._restored(
            torch.cat([part @ book for part, book in zip(z.unbind(-2), self.entries, strict=True)], -1)
        )

    def usage(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the perplexity of codes and the share of the codebook in use, means over groups, of all processes.

        Raises:
            ValueError, TypeError: as of `decode`; or there is no index in any process.
        """
        rows = self._of_groups(indices).reshape(-1, self.groups)
        counts = torch.stack([column.bincount(minlength=self.codes) for column in rows.unbind(-1)]).float()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        if not counts.any():
            raise ValueError("indices must hold a code, got none")
        return usage_of(counts)

    def extra_repr(self) -> str:
        """Show sizes and estimator in the module's repr."""
        return f"{self.dim}, codes={self.codes}, estimator={self.estimator!r}, groups={self.groups}"

    def _check_sizes(self, name: str, x: Tensor) -> None:
        if not tracing() and x.shape[-2:] != (self.groups, self.codes):
            raise ValueError(f"{name} must have shape (..., {self.groups}, {self.codes}), got {tuple(x.shape)}")

    def _of_groups(self, indices: Tensor) -> Tensor:
        """Return the indices as (..., G), checked."""
        indices = indices_of(indices, self.codes)
        if not tracing() and self.groups > 1 and indices.shape[-1:] != (self.groups,):
            raise ValueError(
                f"indices must have shape (..., {self.groups}), a code a group, got {tuple(indices.shape)}"
            )
        return indices if self.groups > 1 else indices.unsqueeze(-1)

    def _chosen(self, indices: Tensor) -> Tensor:
        parts = [book[index] for book, index in zip(self.entries, indices.unbind(-1), strict=True)]
        return torch.cat(parts, -1)

    def _restored(self, e: Tensor) -> Tensor:
        """Return entries in the scale that they are to have."""
        return self.distances.restored(e) if self.distances is not None and self.restore else e

    def _out(self, e: Tensor) -> Tensor:
        return e.movedim(-1, 1).contiguous() if self.channel_first else e
