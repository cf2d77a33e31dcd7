r"""Likelihoods p(x|z) of pictures, as functions of what a decoder puts out.

    Bernoulli          log p = x log sigmoid(l) + (1 - x) log sigmoid(-l)
    Gaussian           log p = -(x - mu)^2 / (2 s^2) - log(s sqrt(2 pi))             the squared error
    LogitLaplace       log p = -|logit(x') - mu| / b - log(2 b x' (1 - x')),  x' = (1 - 2 e) x + e
    LogisticMixture    log p = log sum_m pi_m prod_c (sigmoid(a_cm) - sigmoid(b_cm)),  a and b half a level to each side

The contract: pictures x are (batch, C, height, width) in [0, 1], parameters (*more, batch, P, height, width) with P =
`outputs(C)`. `log_prob` sums over pixels and channels, in nats, (*more, batch); `mean` gives pictures in [0, 1],
(*more, batch, C, height, width). A `discrete` likelihood is one of the 256 levels of a byte (or of a bit), so that
-log p / log 2 are bits; the others are densities over [0, 1].
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from taugrad.checks import check_count, check_positive
from taugrad.ops.categorical import bernoulli_log_prob

_LEVELS = 256
_LEAST_LOG_SCALE = -7.0  # a scale of e^-7 is a tenth of a level; smaller ones reward only copies of the data


class Likelihood(Protocol):
    """Distribution of a picture."""

    discrete: ClassVar[bool]

    def outputs(self, channels: int) -> int:
        """Return the number of parameters of a pixel."""
        ...

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x), (*more, batch)."""
        ...

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the mean picture, (*more, batch, C, height, width), in [0, 1]."""
        ...


@dataclass(frozen=True)
class Bernoulli:
    r"""A bit for each channel of a pixel: $\log p(x) = x \log \sigma(l) + (1 - x) \log \sigma(-l)$.

    >>> Bernoulli().log_prob(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    tensor([-2.7726])
    """

    discrete: ClassVar[bool] = True

    def outputs(self, channels: int) -> int:
        """Return C, a logit for each channel."""
        return channels

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x), (*more, batch); intensities between 0 and 1 count as probabilities of a 1."""
        return bernoulli_log_prob(parameters.flatten(-3), x.flatten(-3))

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the probability of a 1."""
        return parameters.sigmoid()


@dataclass(frozen=True)
class Gaussian:
    r"""The squared error, as a density: $\log p(x) = -(x - \mu)^2 / (2 s^2) - \log(s \sqrt{2 \pi})$.

    Args:
        scale: s, the standard deviation of an intensity in [0, 1]. The KL weighs 2 s^2 against the sum of the squared
            errors; a root mean squared error near s is the best for the bound.

    Raises:
        ValueError: `scale` is not positive.

    >>> Gaussian(scale=1.0).log_prob(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5))
    tensor([-0.9189])
    """

    scale: float = 0.1
    discrete: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    def outputs(self, channels: int) -> int:
        """Return C, the mean of each channel."""
        return channels

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x), (*more, batch)."""
        constant = x[0].numel() * math.log(self.scale * math.sqrt(2 * math.pi))
        squares = (x - self._mu(parameters)).square().flatten(-3).sum(-1)
        return -squares / (2 * self.scale**2) - constant

    def mean(self, parameters: Tensor) -> Tensor:
        """Return mu, clamped to [0, 1]."""
        return self._mu(parameters).clamp(0, 1)

    def _mu(self, parameters: Tensor) -> Tensor:
        return parameters + 0.5  # a decoder starts near zero


@dataclass(frozen=True)
class LogitLaplace:
    r"""Laplace's density of logit intensities: $-|\mathrm{logit}(x') - \mu| / b - \log(2 b \, x' (1 - x'))$.

    $x' = (1 - 2 \epsilon) x + \epsilon$ keeps away from 0 and 1; the density is one over x, for which
    $\log(1 - 2 \epsilon)$ is added.

    Args:
        epsilon: in (0, 0.5).

    Raises:
        ValueError: `epsilon` is out of range.

    Source: 2102.12092, appendix A.3.

    >>> LogitLaplace().log_prob(torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1, 1), 0.5))
    tensor([0.4700])
    """

    epsilon: float = 0.1
    discrete: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 0.5:
            raise ValueError(f"epsilon must be in (0, 0.5), got {self.epsilon}")

    def outputs(self, channels: int) -> int:
        """Return 2 C, mu and log b of each channel."""
        return 2 * channels

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x), (*more, batch)."""
        mu, log_b = parameters.chunk(2, -3)
        log_b = log_b.clamp_min(_LEAST_LOG_SCALE)
        e = self.epsilon
        x = (1 - 2 * e) * x + e
        log_p = -(x.logit() - mu).abs() * (-log_b).exp() - log_b - (2 * x * (1 - x)).log() + math.log(1 - 2 * e)
        return log_p.flatten(-3).sum(-1)

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the median, the picture whose logit is mu, as the paper does."""
        mu, _ = parameters.chunk(2, -3)
        return ((mu.sigmoid() - self.epsilon) / (1 - 2 * self.epsilon)).clamp(0, 1)


@dataclass(frozen=True)
class LogisticMixture:
    r"""A mixture of logistics over the 256 levels of a byte, whose later channels follow the earlier ones.

    $\log p(x) = \log \sum_m \pi_m \prod_c (\sigma(a_{cm}) - \sigma(b_{cm}))$ for a pixel, where
    $a, b = (x_c - \mu_{cm} \pm \frac{1}{255}) / s_{cm}$ for x in [-1, 1], $a = \infty$ at the highest level and
    $b = -\infty$ at the lowest, and $\mu_{cm}$ is the component's mean plus $\sum_{d < c} \tanh(k_{cdm}) x_d$.

    Args:
        components: m = 1 ... M.

    Raises:
        ValueError: `components` is below 1.

    Source: 1701.05517.

    >>> x = torch.rand(2, 3, 4, 4)
    >>> mixture = LogisticMixture(components=5)
    >>> mixture.log_prob(torch.zeros(2, mixture.outputs(3), 4, 4), x).shape
    torch.Size([2])
    """

    components: int = 10
    discrete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("components", self.components)

    def outputs(self, channels: int) -> int:
        """Return M (1 + 2 C + C (C - 1) / 2): weights, means, log-scales and coefficients."""
        return self.components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x), (*more, batch); an intensity counts as its nearest of the 256 levels."""
        log_pi, mu, log_s, k = self._split(parameters, x.shape[-3])
        level = (x * (_LEVELS - 1)).round()
        x = (2 * level / (_LEVELS - 1) - 1).unsqueeze(-4)  # (batch, 1, C, height, width), broadcast over the components
        mu = self._following(mu, k, list(x.unbind(-3)))
        s = log_s.exp()
        a, b = ((x - mu + side / (_LEVELS - 1)) / s for side in (1, -1))
        # log(sigmoid(a) - sigmoid(b)) without a difference of near numbers; a - b is the width of a level.
        width = torch.log(-torch.expm1(b - a))
        level = level.unsqueeze(-4)
        low, high = logsigmoid(a), logsigmoid(-b)
        log_p = torch.where(level == 0, low, torch.where(level == _LEVELS - 1, high, low + high + width))
        return torch.logsumexp(log_pi + log_p.sum(-3), -3).flatten(-2).sum(-1)

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the weighted mean of the components, whose channels follow the means of the earlier ones."""
        M, P = self.components, parameters.shape[-3]
        channels = next(c for c in range(1, P + 1) if M * (1 + 2 * c + c * (c - 1) // 2) == P)
        log_pi, mu, _, k = self._split(parameters, channels)
        followed: list[Tensor] = []
        for _ in range(channels):
            followed.append(self._following(mu, k, followed).select(-3, len(followed)).clamp(-1, 1))
        mean = torch.stack(followed, -3)
        return ((log_pi.exp().unsqueeze(-3) * mean).sum(-4) + 1) / 2

    def _split(self, parameters: Tensor, C: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log pi (..., M, height, width), mu and log s (..., M, C, ...), k (..., M, C (C - 1) / 2, ...)."""
        M = self.components
        pi, rest = parameters.split((M, parameters.shape[-3] - M), -3)
        mu, log_s, k = rest.unflatten(-3, (M, -1)).split((C, C, C * (C - 1) // 2), -3)
        return pi.log_softmax(-3), mu, log_s.clamp_min(_LEAST_LOG_SCALE), k.tanh()

    def _following(self, mu: Tensor, k: Tensor, x: list[Tensor]) -> Tensor:
        """Add to the mean of channel c its share of the channels d < c among `x`; k goes row by row."""
        means = list(mu.unbind(-3))
        for c in range(1, len(means)):
            for d in range(min(c, len(x))):
                means[c] = means[c] + k.select(-3, c * (c - 1) // 2 + d) * x[d]
        return torch.stack(torch.broadcast_tensors(*means), -3)
