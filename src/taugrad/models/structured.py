r"""Structured output prediction: the lower half of an image from its upper half, through two stochastic layers.

    p(z1|u) = prod_n Cat(z1_n; softmax(first(u)_n)),   p(z2|z1) = prod_n Cat(z2_n; softmax(second(z1)_n))
    p(x|z2) = Bernoulli(decoder(z2)),     u the upper half, x the lower
    loss    = -E log 1/S sum_i p(x|z2_i)  >=  -log p(x|u),  S samples of both layers    (1406.2989, 1602.06725)
    test    = -log 1/m sum_i p(x|z2_i)    with m hard samples of both layers

The expectations over the layers are nested, each by any estimator at tau = schedule(step). With S = 1 (1611.01144) a
single sample has to be right, which leaves no room for several lower halves that fit one upper half. Bernoulli units
are categorical ones of two classes. With `centred`, `first` sees u less its mean over the data, and the decoder starts
at the mean of x, as in `CatVAE`.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from taugrad.bounds import hard_samples, multi_sample_bound
from taugrad.checks import check_count, check_counts, check_image_size
from taugrad.estimators import Enumeration, Estimator, check_enumerable
from taugrad.models.pictures import grid, traversal
from taugrad.nets import mlp, start_at
from taugrad.ops.categorical import bernoulli_log_prob
from taugrad.ops.onehot import one_hot


class Structured(nn.Module):
    """A conditional model of an image's lower half given its upper half.

    Args:
        latents: N, the number of categorical latents of each of the two layers.
        categories: K, the number of classes of a latent, at least 2.
        first: sizes of the hidden layers between the upper half and z1.
        second: sizes of the hidden layers between z1 and z2.
        decoder: sizes of the hidden layers between z2 and the lower half.
        activation: name of the activation of `torch.nn` between their layers.
        image_size: height and width of an image, or channels, height and width; the height is even.
        nll_samples: m, the number of samples of the bound at test.
        centred: start from the data's mean image.
        samples: S, the number of samples of both layers for each image in a training step.

    Raises:
        ValueError: a size is out of range, or the height is odd.
    """

    changeable: ClassVar[tuple[str, ...]] = ("nll_samples",)
    metrics: ClassVar[tuple[str, ...]] = ("test/nll", "test/nll_samples")

    def __init__(
        self,
        latents: int = 20,
        categories: int = 10,
        first: Sequence[int] = (200,),
        second: Sequence[int] = (200,),
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
        check_image_size(image_size)
        if image_size[-2] % 2:
            place = len(image_size) - 2
            raise ValueError(f"image_size[{place}], the height, must be even for two halves, got {image_size[-2]}")
        for name, sizes in {"first": first, "second": second, "decoder": decoder, "image_size": image_size}.items():
            check_counts(name, sizes)
        self.image_size = tuple(image_size)
        self.latents, self.categories = latents, categories
        self.nll_samples, self.samples = nll_samples, samples
        pixels, codes = math.prod(image_size) // 2, latents * categories
        self.first = mlp(pixels, first, codes, activation)
        self.second = mlp(codes, second, codes, activation)
        self.decoder = mlp(codes, decoder, pixels, activation)
        self.mean: Tensor | None = nn.Buffer(torch.zeros(pixels)) if centred else None

    def check(self, estimator: Estimator, labels: Tensor | None = None) -> None:
        """Raise ValueError if there are too many codes to enumerate."""
        if isinstance(estimator, Enumeration):
            check_enumerable(2 * self.samples * self.latents, self.categories)  # codes of both layers, nested

    @torch.no_grad()
    def start(self, mean: Tensor) -> None:
        """Centre the upper halves, and start the decoder at the mean lower half, if the model is `centred`."""
        if self.mean is not None:
            upper, lower = halves(mean)
            self.mean.copy_(upper.flatten())
            start_at(self.decoder, lower.flatten())

    def logits_1(self, x: Tensor) -> Tensor:
        """Return the logits of p(z1|u), (batch, N, K), of images (batch, ...); only upper halves count."""
        upper = halves(x)[0].flatten(1)
        if self.mean is not None:
            upper = upper - self.mean
        return self.first(upper).unflatten(-1, (self.latents, self.categories))

    def logits_2(self, z1: Tensor) -> Tensor:
        """Return the logits of p(z2|z1), (..., N, K), of one-hot `z1` (..., N, K)."""
        return self.second(z1.flatten(-2)).unflatten(-1, (self.latents, self.categories))

    def decode(self, z2: Tensor) -> Tensor:
        """Return the logits of p(x|z2), (..., pixels of a half), of one-hot `z2` (..., N, K)."""
        return self.decoder(z2.flatten(-2))

    def log_likelihood(self, x: Tensor, z2: Tensor) -> Tensor:
        """Return log p(lower half|z2), (*more, batch), of images (batch, ...), `z2` (*more, batch, N, K)."""
        return bernoulli_log_prob(self.decode(z2), halves(x)[1].flatten(1))

    def expected_bound(self, x: Tensor, estimator: Estimator, tau: float) -> Tensor:
        """Return E log 1/S sum_i p(x|z2_i), (batch,), over S independent samples of both layers, by the estimator.

        The S samples of a layer are one draw of S N latents, so that any estimator can be used.
        """
        S, N = self.samples, self.latents

        def given_z1(z1: Tensor) -> Tensor:
            logits_2 = self.logits_2(z1.unflatten(-2, (S, N))).flatten(-3, -2)
            return estimator.expectation(given_z2, logits_2, tau, generator=None)

        def given_z2(z2: Tensor) -> Tensor:
            log_p = self.log_likelihood(x, z2.unflatten(-2, (S, N)).movedim(-3, 0))
            return log_p.logsumexp(0) - math.log(S)

        logits_1 = self.logits_1(x)
        return estimator.expectation(given_z1, logits_1.repeat(1, S, 1), tau, generator=None)

    def loss_terms(self, x: Tensor, labels: Tensor, estimator: Estimator, tau: float) -> dict[str, Tensor]:
        """Return the negative of the expected bound."""
        return {"loss": -self.expected_bound(x, estimator, tau).mean()}

    def evaluation_terms(self, x: Tensor, labels: Tensor, generator: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Return the same by S hard samples, and the logits of both layers, of the first sample."""
        logits_1 = self.logits_1(x)
        logits_2 = self.logits_2(hard_samples(logits_1, self.samples, generator=generator))
        z2 = hard_samples(logits_2, 1, generator=generator)[0]
        bound = self.log_likelihood(x, z2).logsumexp(0) - math.log(self.samples)
        return {"loss": -bound.mean()}, torch.cat([logits_1, logits_2[0]], -2)

    def test_terms(self, x: Tensor, labels: Tensor, generator: Generator) -> dict[str, Tensor | float]:
        """Return the bound on the negative log-likelihood of the lower half."""
        bound = self.log_likelihood_bound(x, self.nll_samples, generator=generator)
        return {"nll": -bound.mean(), "nll_samples": float(self.nll_samples)}

    def log_likelihood_bound(self, x: Tensor, num_samples: int, *, generator: Generator | None = None) -> Tensor:
        """Return a lower bound on log p(lower half|upper half), (batch,), by hard samples of both layers."""
        logits_1 = self.logits_1(x)

        def log_weights(S: int) -> Tensor:
            z1 = hard_samples(logits_1, S, generator=generator)
            z2 = hard_samples(self.logits_2(z1), 1, generator=generator)[0]
            return self.log_likelihood(x, z2)

        return multi_sample_bound(log_weights, num_samples)

    def greedy(self, x: Tensor) -> Tensor:
        """Return images whose lower halves are the means of p(x|z2) at the most probable `z1`, and `z2` given it."""
        return self._completed(x, self._mode(x))

    @torch.no_grad()
    def pictures(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return completions of the first upper half of each class (a row), and the first image's `z2`, varied.

        A row of completions is the whole image, then the means of p(x|z2) for nine hard samples of both layers.
        """
        generator = Generator(x.device).manual_seed(0)
        first = torch.stack([x[labels == c][0] for c in labels.unique()])
        z1 = hard_samples(self.logits_1(first), 9, generator=generator)
        z2 = hard_samples(self.logits_2(z1), 1, generator=generator)[0]
        completions = torch.cat([first.unsqueeze(0), self._completed(first, z2)])
        varied = self._completed(x[0], traversal(self._mode(x[:1])[0]))
        return {"completions": grid(completions.transpose(0, 1)), "latent_traversal": grid(varied)}

    def _mode(self, x: Tensor) -> Tensor:
        """Return the most probable `z2` given the most probable `z1`, one-hot, (batch, N, K)."""
        logits_1 = self.logits_1(x)
        logits_2 = self.logits_2(one_hot(logits_1.argmax(-1), logits_1))
        return one_hot(logits_2.argmax(-1), logits_2)

    def _completed(self, x: Tensor, z2: Tensor) -> Tensor:
        """Return images (..., *image_size): the upper halves of `x`, below them the means of p(x|z2)."""
        upper, lower = halves(x)
        means = self.decode(z2).sigmoid().unflatten(-1, lower.shape[-len(self.image_size) :])
        return torch.cat([upper.expand_as(means), means], -2)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the upper and lower half of images (..., height, width), the height even.

    >>> halves(torch.tensor([[1.0], [2.0]]))
    (tensor([[1.]]), tensor([[2.]]))
    """
    upper, lower = x.chunk(2, -2)
    return upper, lower
