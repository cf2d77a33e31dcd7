r"""A picture as a grid of tokens, and back: the discrete VAE of DALL-E (2102.12092).

    q(z|x) = prod_n Cat(z_n; softmax(logits(encoder(x)_n))),   p(z) = uniform,   p(x|z) = likelihood(decoder(e_z))
    loss   = -ELBO = KL(q(z|x) || p(z)) - E_q log p(x|z)

An encoder of convolutions halves height and width for each of its `channels`; the place n of the smaller grid is one
token of K, all of one codebook e. The decoder mirrors it. Training draws the tokens; evaluation takes the most probable
ones, as everyone does who uses a tokenizer.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from taugrad.checks import check_count, check_counts, check_image_size
from taugrad.estimators import Enumeration, Estimator, Pathwise, StraightThrough, check_enumerable
from taugrad.layers import CategoricalQuantizer
from taugrad.layers.codes import usage_of
from taugrad.models.likelihoods import Gaussian, Likelihood
from taugrad.models.pictures import grid
from taugrad.ops.categorical import kl_to_uniform


class Tokenizer(nn.Module):
    """A convolutional discrete VAE.

    Args:
        image_size: channels, height and width of a picture, or height and width of a grey one; the model takes any
            size that is divisible by its stride, 2^len(channels).
        codes: K, the size of the codebook, at least 2.
        dim: dimension of its entries.
        channels: output channels of each halving convolution.
        blocks: residual blocks of the encoder, and of the decoder, at the small size.
        logits: how features become logits, as in `CategoricalQuantizer`.
        unimix: share of the uniform categorical in q(z|x).
        likelihood: p(x|z), one of `taugrad.models.likelihoods`; default `Gaussian()`.

    Raises:
        ValueError: a size is out of range, or height or width is not divisible by the stride.

    >>> model = Tokenizer([3, 32, 32], codes=512, channels=[16, 32])
    >>> tokens = model.greedy(torch.rand(2, 3, 32, 32))
    >>> tokens.shape, model.picture(tokens).shape
    (torch.Size([2, 8, 8]), torch.Size([2, 3, 32, 32]))
    """

    metrics: ClassVar[tuple[str, ...]] = tuple(
        f"{split}/{name}"
        for split in ("val", "test")
        for name in ("elbo", "reconstruction", "kl", "mse", "psnr", "code_perplexity", "codes_in_use")
    )

    def __init__(
        self,
        image_size: Sequence[int] = (3, 32, 32),
        codes: int = 512,
        dim: int = 5,
        channels: Sequence[int] = (32, 64),
        blocks: int = 2,
        logits: str = "distance",
        unimix: float = 0.0,
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__()
        check_counts("image_size", image_size)
        check_image_size(image_size)
        check_counts("channels", channels)
        if not channels:
            raise ValueError("channels must name at least one convolution, got []")
        check_count("blocks", blocks, smallest=0)
        self.stride = 2 ** len(channels)
        for name, size in zip(("height", "width"), image_size[-2:], strict=True):
            if size % self.stride:
                raise ValueError(f"the {name} in image_size must be divisible by the stride {self.stride}, got {size}")
        self.image_size = tuple(image_size)
        self.likelihood = Gaussian() if likelihood is None else likelihood
        C = image_size[0] if len(image_size) == 3 else 1
        self.encoder = _encoder(C, channels, blocks, dim)
        self.quantizer = CategoricalQuantizer(dim, codes, StraightThrough(), logits=logits, unimix=unimix)
        self.decoder = _decoder(dim, channels, blocks, self.likelihood.outputs(C))

    def check(self, estimator: Estimator, labels: Tensor | None = None) -> None:
        """Raise ValueError if there are too many grids to enumerate."""
        if isinstance(estimator, Enumeration):
            height, width = (size // self.stride for size in self.image_size[-2:])
            check_enumerable(height * width, self.quantizer.codes)

    def encode(self, x: Tensor) -> Tensor:
        """Return the logits of q(z|x), (batch, N, K), of pictures (batch, C, height, width) in [0, 1]."""
        return self.quantizer.logits(self.features(x)).squeeze(-2)

    def features(self, x: Tensor) -> Tensor:
        """Return the encoder's features (batch, N, D) of pictures."""
        return self.encoder(2 * self._with_channels(x) - 1).flatten(-2).movedim(-1, -2)

    def decode(self, e: Tensor, height: int, width: int) -> Tensor:
        """Return the parameters of p(x|z), (..., P, height, width) for entries `e` (..., N, D) of a grid."""
        small = height // self.stride, width // self.stride
        features = e.movedim(-1, -2).unflatten(-1, small)
        return self.decoder(features.flatten(0, -4)).unflatten(0, features.shape[:-3])

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z), (*more, batch), of pictures (batch, C, height, width), one-hot `z` (..., batch, N, K)."""
        return self._log_prob(x, self.quantizer.mix(z.unsqueeze(-2)))

    def log_likelihood_of(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return log p(x|z), (batch,), of pictures and their tokens (batch, height, width)."""
        return self._log_prob(x, self.quantizer.decode(tokens.flatten(-2)))

    def loss_terms(self, x: Tensor, labels: Tensor, estimator: Estimator, tau: float) -> dict[str, Tensor]:
        """Return -ELBO with E_q log p(x|z) by the estimator at tau, and its terms."""
        logits = self.encode(x)
        if isinstance(estimator, Pathwise):  # without a one-hot of the codebook's size where the estimator can
            e, _ = self.quantizer.embed(logits.unsqueeze(-2), tau, estimator=estimator)
            reconstruction = self._log_prob(x, e).mean()
        else:
            reconstruction = estimator.expectation(lambda z: self.log_likelihood(x, z), logits, tau).mean()
        kl = kl_to_uniform(logits).sum(-1).mean()
        loss = kl - reconstruction
        return {"loss": loss, "elbo": -loss, "reconstruction": reconstruction, "kl": kl}

    def evaluation_terms(self, x: Tensor, labels: Tensor, generator: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Return -ELBO with the most probable tokens, its terms, the errors of the mean picture, counts (1, K).

        The mean picture's `mse` is of intensities in [0, 1]; `psnr` is the mean over the pictures, in dB.
        """
        logits = self.encode(x)
        tokens = logits.argmax(-1)
        parameters = self.decode(self.quantizer.decode(tokens), *x.shape[-2:])
        reconstruction = self.likelihood.log_prob(parameters, self._with_channels(x)).mean()
        kl = kl_to_uniform(logits).sum(-1).mean()
        errors = (self.likelihood.mean(parameters) - self._with_channels(x)).square().flatten(1).mean(1)
        psnr = -10 * errors.clamp_min(1e-12).log10()
        terms = {"loss": kl - reconstruction, "elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        counts = tokens.flatten().bincount(minlength=logits.shape[-1])
        return terms | {"mse": errors.mean(), "psnr": psnr.mean()}, counts.unsqueeze(0).to(x.dtype)

    def usage(self, counts: Tensor) -> dict[str, Tensor]:
        """Return the perplexity of the tokens of an evaluation, and the share of the codebook among them."""
        perplexity, in_use = usage_of(counts)
        return {"code_perplexity": perplexity, "codes_in_use": in_use}

    def greedy(self, x: Tensor) -> Tensor:
        """Return the most probable tokens, (batch, height / stride, width / stride), of pictures."""
        height, width = (size // self.stride for size in x.shape[-2:])
        return self.quantizer.encode(self.features(x)).unflatten(-1, (height, width))

    def picture(self, codes: Tensor) -> Tensor:
        """Return the mean pictures, shaped as the data's, of a grid of tokens (batch, height, width)."""
        height, width = (size * self.stride for size in codes.shape[-2:])
        mean = self.likelihood.mean(self.decode(self.quantizer.decode(codes.flatten(-2)), height, width))
        return mean if len(self.image_size) == 3 else mean.squeeze(-3)

    @torch.no_grad()
    def pictures(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return pictures of the first of `x`, a row of theirs above a row of their reconstructions."""
        columns = min(10, len(x))
        rows = min(5, len(x) // columns)
        x = x[: rows * columns]
        both = (part.unflatten(0, (rows, columns)) for part in (x, self.picture(self.greedy(x))))
        return {"reconstruction": grid(torch.stack(tuple(both), 1).flatten(0, 1))}

    def _log_prob(self, x: Tensor, e: Tensor) -> Tensor:
        return self.likelihood.log_prob(self.decode(e, *x.shape[-2:]), self._with_channels(x))

    def _with_channels(self, x: Tensor) -> Tensor:
        return x if len(self.image_size) == 3 else x.unsqueeze(-3)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = max(1, channels // 2)
        layers = [nn.ReLU(), nn.Conv2d(channels, half, 3, padding=1), nn.ReLU(), nn.Conv2d(half, channels, 1)]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def _encoder(inputs: int, channels: Sequence[int], blocks: int, outputs: int) -> nn.Sequential:
    """Build the net from (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride)."""
    layers: list[nn.Module] = []
    for a, b in pairwise([inputs, *channels]):
        layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.ReLU()]
    residual = [_Residual(channels[-1]) for _ in range(blocks)]
    return nn.Sequential(*layers[:-1], *residual, nn.ReLU(), nn.Conv2d(channels[-1], outputs, 1))


def _decoder(inputs: int, channels: Sequence[int], blocks: int, outputs: int) -> nn.Sequential:
    """Build the mirror of `_encoder`."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, channels[-1], 1), *(_Residual(channels[-1]) for _ in range(blocks))]
    for a, b in pairwise([*reversed(channels), outputs]):
        layers += [nn.ReLU(), nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)]
    return nn.Sequential(*layers)
