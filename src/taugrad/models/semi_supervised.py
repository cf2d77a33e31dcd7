r"""Semi-supervised generative classification: Kingma's M2 (1406.5298) with a class that may be sampled (1611.01144).

    q(y|x) = Cat(classifier(x)),  q(z|x,y) = N(mu, sigma^2)(h(x), y),  p(x|y,z) = Bernoulli(decoder(y, z))
    p(y)   = uniform,             p(z) = N(0, I)
    F(x,y) = E_q(z|x,y) log p(x|y,z) - KL(q(z|x,y) || p(z))
    labelled:    L(x,y) = F(x,y) - log C                                       <= log p(x,y)
    unlabelled:  U(x)   = E_q(y|x) F(x,y) - KL(q(y|x) || p(y))                 <= log p(x)
    loss = -mean of U and L over the batch's images - alpha * mean of log q(y|x) over the labelled ones

E_q(y|x) and its gradient come from any estimator at tau = schedule(step): `estimator=enumeration` marginalizes y, at a
cost that grows with C; a pathwise one evaluates F once. z is Gaussian, its expectation by one reparametrized sample.

In training the classifier sees images through a random `augment`: q(y|x) is then q(y|augment(x)), a proposal like any
other, for which U is a bound as before. Every augmentation of an image thus has to agree with the class that F(x, y)
prefers.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from taugrad.bounds import elbo, hard_samples
from taugrad.checks import check_count, check_counts, check_positive, check_share
from taugrad.errors import DataError
from taugrad.estimators import Estimator
from taugrad.models.pictures import grid
from taugrad.nets import ConvDecoder, ConvEncoder, mlp
from taugrad.ops._torch import readable
from taugrad.ops.categorical import bernoulli_log_prob
from taugrad.ops.onehot import one_hot


class SemiSupervised(nn.Module):
    """A generative classifier that learns from images without labels too; a label of -1 is none.

    Args:
        classes: C, at least 2.
        latent_size: D, the size of z.
        channels: output channels of the convolutions of classifier and h, each of which halves the image; the decoder
            mirrors them.
        hidden: size of h(x), and of the hidden layers of classifier and q(z|x,y).
        activation: name of the activation of `torch.nn`.
        dropout: probability that a hidden unit of the classifier is set to zero in training.
        augment: a random function of images (batch, ...) that keeps their class.
        alpha: weight of the labelled images' mean log q(y|x), in nats an image.
        image_size: height and width of an image, or channels, height and width.

    Raises:
        ValueError: a size is out of range, or the image cannot be halved that often.
    """

    metrics: ClassVar[tuple[str, ...]] = ("val/elbo", "val/accuracy", "test/elbo", "test/accuracy")

    def __init__(
        self,
        classes: int,
        latent_size: int,
        channels: Sequence[int],
        hidden: int,
        activation: str,
        dropout: float,
        augment: Callable[[Tensor], Tensor],
        alpha: float,
        image_size: Sequence[int] = (28, 28),
    ) -> None:
        super().__init__()
        check_count("classes", classes, smallest=2)
        check_count("latent_size", latent_size)
        check_count("hidden", hidden)
        check_share("dropout", dropout)
        check_positive("alpha", alpha)
        check_counts("channels", channels)
        check_counts("image_size", image_size)
        self.image_size = tuple(image_size)
        self.classes, self.latent_size, self.alpha = classes, latent_size, alpha
        self.augment = augment
        # The classifier has its own convolutions: what separates classes is not what reconstructs an image.
        trunk = ConvEncoder(image_size, channels, hidden, activation)
        head = mlp(hidden, [hidden], classes, activation, dropout=dropout)
        self.classifier = nn.Sequential(trunk, nn.Dropout(dropout), head)
        self.features = ConvEncoder(image_size, channels, hidden, activation)
        self.posterior = mlp(hidden + classes, [hidden], 2 * latent_size, activation)
        self.decoder = ConvDecoder(classes + latent_size, channels, image_size, activation)

    def check(self, estimator: Estimator, labels: Tensor | None = None) -> None:
        """Raise DataError if a label is not below `classes`, and not -1."""
        if labels is not None:
            self._check(labels)

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits of q(y|x), (batch, C), of images (batch, ...) in [0, 1]."""
        return self.classifier(x)

    def encode(self, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log sigma of q(z|x,y), (..., D) each, of features `h` and one-hot `y` that broadcast."""
        shape = torch.broadcast_shapes(h.shape[:-1], y.shape[:-1])
        hy = torch.cat([h.expand(*shape, -1), y.expand(*shape, -1)], -1)
        mean, log_sigma = self.posterior(hy).chunk(2, -1)
        return mean, log_sigma

    def decode(self, y: Tensor, z: Tensor) -> Tensor:
        """Return the logits of p(x|y,z), (..., pixels), of one-hot `y` (..., C) and `z` (..., D)."""
        return self.decoder(torch.cat([y, z], -1))

    def bound_given(self, x: Tensor, h: Tensor, y: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Return F(x, y) by one sample of z, (*more, batch), of images, features, and `y` (*more, batch, C)."""
        mean, log_sigma = self.encode(h, y)
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
        log_likelihood = bernoulli_log_prob(self.decode(y, mean + log_sigma.exp() * noise), x.flatten(1))
        return log_likelihood - kl_to_standard_normal(mean, log_sigma)

    def loss_terms(self, x: Tensor, labels: Tensor, estimator: Estimator, tau: float) -> dict[str, Tensor]:
        """Return the loss, U where there are unlabelled images, L, accuracy and -log q(y|x) where there are labels."""
        self._check(labels)
        h = self.features(x)
        logits = self.classify(self.augment(x))
        known = labels >= 0
        terms, bounds = {}, []
        if not readable(labels):
            return self._masked_terms(x, h, logits, labels, estimator, tau)
        if not known.all():
            x_u, h_u, logits_u = (part[~known] for part in (x, h, logits))
            U = self.unlabelled_bound(x_u, h_u, logits_u, estimator, tau)
            bounds.append(U)
            terms["elbo"] = U.mean()
        loss = torch.zeros((), device=x.device)
        if known.any():
            x_l, h_l, logits_l, y_l = (part[known] for part in (x, h, logits, labels))
            L = self.bound_given(x_l, h_l, one_hot(y_l, logits_l)) - math.log(self.classes)
            bounds.append(L)
            classification = cross_entropy(logits_l, y_l)
            loss = self.alpha * classification
            accuracy = (logits_l.argmax(-1) == y_l).float().mean()
            terms |= {"labelled_elbo": L.mean(), "classification": classification, "accuracy": accuracy}
        return {"loss": loss - torch.cat(bounds).mean(), **terms}

    def _masked_terms(
        self, x: Tensor, h: Tensor, logits: Tensor, labels: Tensor, estimator: Estimator, tau: float
    ) -> dict[str, Tensor]:
        """Return what `loss_terms` does with both bounds of every image: which is whose would have to be read."""
        known = labels >= 0
        y = labels.clamp_min(0)
        U = self.unlabelled_bound(x, h, logits, estimator, tau)
        L = self.bound_given(x, h, one_hot(y, logits)) - math.log(self.classes)
        cross = cross_entropy(logits, y, reduction="none")
        correct = (logits.argmax(-1) == y).float()

        def mean(values: Tensor, of: Tensor) -> Tensor:
            return torch.where(of, values, 0.0).sum() / of.sum().clamp_min(1)

        classification = mean(cross, known)
        return {
            "loss": self.alpha * classification - torch.where(known, L, U).mean(),
            "elbo": mean(U, ~known),
            "labelled_elbo": mean(L, known),
            "classification": classification,
            "accuracy": mean(correct, known),
        }

    def unlabelled_bound(self, x: Tensor, h: Tensor, logits: Tensor, estimator: Estimator, tau: float) -> Tensor:
        """Return U(x), (batch,), with E_q(y|x) by the estimator."""
        one = logits.unsqueeze(-2)  # a single latent
        expected = estimator.expectation(lambda y: self.bound_given(x, h, y.squeeze(-2)), one, tau, generator=None)
        return elbo(expected, one)

    def evaluation_terms(self, x: Tensor, labels: Tensor, generator: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Return U with a hard sample of y, and the share of images whose most probable class is their label."""
        self._check(labels)
        h = self.features(x)
        logits = self.classify(x)
        y = hard_samples(logits, 1, generator=generator)[0]
        bound = elbo(self.bound_given(x, h, y, generator=generator), logits.unsqueeze(-2)).mean()
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return {"loss": -bound, "elbo": bound, "accuracy": accuracy}, logits.unsqueeze(-2)

    def greedy(self, x: Tensor) -> Tensor:
        """Return the most probable class (batch,) of images."""
        return self.classify(x).argmax(-1)

    @torch.no_grad()
    def pictures(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return samples of each class (a column), images in the style of others, and the first image's `z`, varied.

        A row of samples has one z from the prior. A row of analogies is an image and its z, by its most probable class,
        with every class. A traversal's row has one element of z from -3 to 3 and the first image's most probable class.
        """
        generator = Generator(x.device).manual_seed(0)
        z = torch.randn(10, self.latent_size, generator=generator, device=x.device)
        logits = self.classify(x[:10])
        y = one_hot(logits.argmax(-1), logits)
        style, _ = self.encode(self.features(x[:10]), y)
        analogies = torch.cat([x[:10].unsqueeze(1), self._of_every_class(style)], 1)
        values = torch.linspace(-3, 3, 9, device=x.device)
        rows = min(20, self.latent_size)
        varied = style[0].repeat(rows, len(values), 1)
        d = torch.arange(rows, device=x.device)
        varied[d, :, d] = values
        return {
            "class_samples": grid(self._of_every_class(z)),
            "analogies": grid(analogies),
            "latent_traversal": grid(self._means(y[0].expand(*varied.shape[:-1], -1), varied)),
        }

    def _of_every_class(self, z: Tensor) -> Tensor:
        """Return the means of p(x|y,z) for every class and each `z` (n, D): (n, C, ...)."""
        y = torch.eye(self.classes, device=z.device).expand(len(z), -1, -1)
        return self._means(y, z.unsqueeze(1).expand(-1, self.classes, -1))

    def _means(self, y: Tensor, z: Tensor) -> Tensor:
        return self.decode(y, z).sigmoid().unflatten(-1, self.image_size)

    def _check(self, labels: Tensor) -> None:
        """Raise when a label is no class and not -1, where that can be read without waiting for a device."""
        if not readable(labels):
            return
        if labels.min() < -1 or labels.max() >= self.classes:
            raise DataError(
                f"labels must be in 0 to {self.classes - 1}, or -1 for none, got {int(labels.min())} to "
                f"{int(labels.max())}: model.classes must be the data's number of classes"
            )


def kl_to_standard_normal(mean: Tensor, log_sigma: Tensor) -> Tensor:
    r"""$\mathrm{KL}(N(\mu, \sigma^2) \| N(0, I)) = \frac12 \sum_d \mu_d^2 + \sigma_d^2 - 1 - 2 \log \sigma_d$, in nats.

    >>> kl_to_standard_normal(torch.zeros(2), torch.zeros(2))
    tensor(0.)
    """
    return 0.5 * (mean.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(-1)
