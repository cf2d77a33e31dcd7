r"""A variational auto-encoder with N categorical latents of K classes (1611.01144).

    q(z|x) = prod_n Cat(z_n; softmax(encoder(x)_n)),   p(z) = uniform,   p(x|z) = Bernoulli(decoder(z))
    loss   = -ELBO = KL(q(z|x) || p(z)) - E_q log p(x|z)

The KL is analytic; E_q log p(x|z) and its gradient come from any estimator, at tau = schedule(step). Bernoulli latents
are categorical ones of two classes.

With `centred`, the encoder sees x - mean and the decoder's last bias starts at logit(mean), for the mean image of the
data (1402.0030 centres its inputs likewise). A decoder that must learn the mean image first leaves the codes without a
gradient worth having, and hard samples then take twice as many steps to the same likelihood.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from taugrad.bounds import elbo, hard_samples, importance_weighted_bound
from taugrad.checks import check_count, check_counts
from taugrad.estimators import Enumeration, Estimator, check_enumerable
from taugrad.models.pictures import grid, traversal
from taugrad.nets import mlp, start_at
from taugrad.ops.categorical import bernoulli_log_prob, kl_to_uniform
from taugrad.ops.onehot import one_hot


class CatVAE(nn.Module):
    """A categorical VAE.

    Args:
        latents: N, the number of categorical latents.
        categories: K, the number of classes of a latent, at least 2.
        encoder: sizes of the encoder's hidden layers.
        decoder: sizes of the decoder's hidden layers.
        activation: name of the activation of `torch.nn` between their layers.
        image_size: height and width of an image, or channels, height and width.
        nll_samples: m, the number of samples of the importance-weighted bound at test.
        centred: start from the data's mean image.
        samples: S, the number of estimates of E_q log p(x|z) for each image in a training step; their mean is the loss.

    Raises:
        ValueError: a size is out of range.
    """

    changeable: ClassVar[tuple[str, ...]] = ("nll_samples", "samples")
    metrics: ClassVar[tuple[str, ...]] = (
        *(f"{split}/{name}" for split in ("val", "test") for name in ("elbo", "reconstruction", "kl")),
        "test/nll",
        "test/nll_samples",
    )

    def __init__(
        self,
        latents: int = 20,
        categories: int = 10,
        encoder: Sequence[int] = (200,),
        decoder: Sequence[int] = (200,),
        activation: str = "ReLU",
        image_size: Sequence[int] = (28, 28),
        nll_samples: int = 1000,
        centred: bool = False,
        samples: int = 1,
    ) -> None:
        super().__init__()
        for name, count in {"latents": latents, "nll_samples": nll_samples, "samples": samples}.items():
            check_count(name, count)
        check_count("categories", categories, smallest=2)
        for name, sizes in {"encoder": encoder, "decoder": decoder, "image_size": image_size}.items():
            check_counts(name, sizes)
        self.image_size = tuple(image_size)
        self.latents, self.categories = latents, categories
        self.nll_samples, self.samples = nll_samples, samples
        pixels = math.prod(image_size)
        self.encoder = mlp(pixels, encoder, latents * categories, activation)
        self.decoder = mlp(latents * categories, decoder, pixels, activation)
        self.mean: Tensor | None = nn.Buffer(torch.zeros(pixels)) if centred else None

    def check(self, estimator: Estimator, labels: Tensor | None = None) -> None:
        """Raise ValueError if there are too many codes to enumerate."""
        if isinstance(estimator, Enumeration):
            check_enumerable(self.latents, self.categories)

    @torch.no_grad()
    def start(self, mean: Tensor) -> None:
        """Centre the encoder's input at the mean, and start the decoder there, if the model is `centred`."""
        if self.mean is not None:
            self.mean.copy_(mean.flatten())
            start_at(self.decoder, self.mean)

    def encode(self, x: Tensor) -> Tensor:
        """Return the logits of q(z|x), (batch, N, K), of images (batch, ...) in [0, 1]."""
        x = x.flatten(1) if self.mean is None else x.flatten(1) - self.mean
        return self.encoder(x).unflatten(-1, (self.latents, self.categories))

    def decode(self, z: Tensor) -> Tensor:
        """Return the logits of p(x|z), (..., pixels), of one-hot `z` (..., N, K)."""
        return self.decoder(z.flatten(-2))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z), (*more, batch), of images (batch, ...), one-hot `z` (*more, batch, N, K)."""
        return bernoulli_log_prob(self.decode(z), x.flatten(1))

    def loss_terms(self, x: Tensor, labels: Tensor, estimator: Estimator, tau: float) -> dict[str, Tensor]:
        """Return -ELBO with E_q log p(x|z) by the estimator at tau, and its terms."""
        logits = self.encode(x)
        kl = kl_to_uniform(logits).sum(-1).mean()
        repeated = logits.expand(self.samples, *logits.shape)
        expected = estimator.expectation(lambda z: self.log_likelihood(x, z), repeated, tau, generator=None)
        reconstruction = expected.mean()  # over samples and images
        loss = kl - reconstruction
        return {"loss": loss, "elbo": -loss, "reconstruction": reconstruction, "kl": kl}

    def evaluation_terms(self, x: Tensor, labels: Tensor, generator: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Return -ELBO with one hard sample, its terms, and the logits."""
        logits = self.encode(x)
        z = hard_samples(logits, 1, generator=generator)[0]
        reconstruction = self.log_likelihood(x, z)
        bound = elbo(reconstruction, logits).mean()
        expected = reconstruction.mean()
        return {"loss": -bound, "elbo": bound, "reconstruction": expected, "kl": expected - bound}, logits

    def test_terms(self, x: Tensor, labels: Tensor, generator: Generator) -> dict[str, Tensor | float]:
        """Return the importance-weighted bound on the negative log-likelihood."""
        log_prior = -self.latents * math.log(self.categories)
        bound = importance_weighted_bound(
            lambda z: self.log_likelihood(x, z) + log_prior, self.encode(x), self.nll_samples, generator=generator
        )
        return {"nll": -bound.mean(), "nll_samples": float(self.nll_samples)}

    def greedy(self, x: Tensor) -> Tensor:
        """Return the most probable code (batch, N) of images."""
        return self.encode(x).argmax(-1)

    @torch.no_grad()
    def pictures(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return reconstructions, samples of the prior and of each class (a row), the first image's latents, varied.

        A class's codes are drawn from the mean of q(z|x) over its images, each latent independently.
        """
        generator = Generator(x.device).manual_seed(0)
        logits = self.encode(x)
        modes = one_hot(logits.argmax(-1), logits)
        columns = min(10, len(x))
        rows = min(5, len(x) // columns)
        both = (part[: rows * columns].unflatten(0, (rows, columns)) for part in (x, self._means(modes)))
        pairs = torch.stack(tuple(both), 1)
        prior = torch.zeros_like(logits[0]).expand(5, *logits.shape[1:])
        of_class = torch.stack([logits[labels == c].softmax(-1).mean(0).log() for c in labels.unique()])
        return {
            "reconstruction": grid(pairs.flatten(0, 1)),
            "prior_samples": grid(self._means(hard_samples(prior, 10, generator=generator)).transpose(0, 1)),
            "class_samples": grid(self._means(hard_samples(of_class, 10, generator=generator)).transpose(0, 1)),
            "latent_traversal": grid(self._means(traversal(modes[0]))),
        }

    def _means(self, z: Tensor) -> Tensor:
        """Return the means of p(x|z) as images (..., *image_size)."""
        return self.decode(z).sigmoid().unflatten(-1, self.image_size)
