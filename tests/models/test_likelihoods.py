import math

import pytest
import torch
from helpers.cases import each
from torch import distributions

from taugrad.models.likelihoods import Bernoulli, Gaussian, LogisticMixture, LogitLaplace

LIKELIHOODS = [Bernoulli(), Gaussian(0.2), LogitLaplace(), LogisticMixture(3)]
LEVELS = torch.arange(256, dtype=torch.float64) / 255


def _parameters(likelihood, channels, *batch):
    return torch.randn(*batch, likelihood.outputs(channels), 1, 1, dtype=torch.float64)


@each("channels", [1, 2])
def test_the_probabilities_of_all_levels_of_a_mixture_sum_to_one(channels):
    mixture = LogisticMixture(3)
    parameters = _parameters(mixture, channels, 1)
    parameters[:, 3:] *= 2  # some mass on the lowest and the highest level
    x = torch.cartesian_prod(*[LEVELS] * channels).view(-1, channels)
    total = mixture.log_prob(parameters, x[..., None, None]).exp().sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


def test_a_third_channel_sums_to_one_for_every_level_of_the_first_two():
    mixture = LogisticMixture(3)
    parameters = _parameters(mixture, 3, 1)
    kept = [*range(3), *(3 + 9 * m + i for m in range(3) for i in (0, 1, 3, 4, 6))]  # pi, and what the first two have
    x = torch.tensor([[0.0, 1.0], [0.2, 0.6]], dtype=torch.float64)
    for first in x:
        three = torch.cat([first.expand(256, 2), LEVELS.unsqueeze(-1)], -1)
        total = torch.logsumexp(mixture.log_prob(parameters, three[..., None, None]), 0)
        torch.testing.assert_close(total, mixture.log_prob(parameters[:, kept], first.view(1, 2, 1, 1))[0])


def test_a_middle_level_has_the_difference_of_two_logistic_cdfs():
    parameters = torch.tensor([0.0, 0.3, -1.0], dtype=torch.float64).view(1, 3, 1, 1)  # log pi, mu, log s
    logistic = distributions.TransformedDistribution(
        distributions.Uniform(torch.zeros((), dtype=torch.float64), 1),
        [distributions.SigmoidTransform().inv, distributions.AffineTransform(0.3, math.exp(-1))],
    )
    x = LEVELS[100]
    sides = [logistic.cdf(2 * x - 1 + side / 255) for side in (1, -1)]
    log_p = LogisticMixture(1).log_prob(parameters, x.view(1, 1, 1, 1))
    torch.testing.assert_close(log_p[0], (sides[0] - sides[1]).log())


def test_a_narrow_mixture_far_from_its_data_keeps_a_finite_gradient():
    parameters = torch.tensor([0.0, -1.0, -20.0]).view(1, 3, 1, 1).requires_grad_()
    for x in (0.0, 0.5, 1.0):
        log_p = LogisticMixture(1).log_prob(parameters, torch.full((1, 1, 1, 1), x))
        (grad,) = torch.autograd.grad(log_p.sum(), parameters)
        assert log_p.isfinite().all()
        assert grad.isfinite().all()


@each("likelihood", [Gaussian(0.2), LogitLaplace(0.1), LogitLaplace(0.01)])
def test_a_density_is_one_of_the_intensity(likelihood):
    parameters = 0.5 * _parameters(likelihood, 1, 1)
    ends = (0, 1) if isinstance(likelihood, LogitLaplace) else (-3, 4)
    x = torch.linspace(*ends, 200_001, dtype=torch.float64)
    density = likelihood.log_prob(parameters, x.view(-1, 1, 1, 1)).exp()
    inside = torch.trapezoid(density, x)
    if isinstance(likelihood, Gaussian):
        torch.testing.assert_close(inside, torch.ones((), dtype=torch.float64))
        expected = distributions.Normal(parameters.squeeze() + 0.5, 0.2).log_prob(x)
        torch.testing.assert_close(density.log(), expected)
    else:  # its tails lie outside of [0, 1], where there are no pictures
        mu, log_b = parameters.flatten()
        e = likelihood.epsilon
        laplace = distributions.Laplace(mu, log_b.exp())
        low, high = (laplace.cdf(torch.tensor(p, dtype=torch.float64).logit()) for p in (e, 1 - e))
        torch.testing.assert_close(inside, high - low, rtol=1e-6, atol=1e-6)


@each("likelihood", LIKELIHOODS)
def test_shapes_batches_and_gradients(likelihood):
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    parameters = torch.randn(6, 2, likelihood.outputs(3), 4, 5, dtype=torch.float64)
    log_p = likelihood.log_prob(parameters, x)
    assert log_p.shape == (6, 2)
    torch.testing.assert_close(log_p[3], likelihood.log_prob(parameters[3], x))
    pixels = [
        likelihood.log_prob(parameters[..., i : i + 1, j : j + 1], x[..., i : i + 1, j : j + 1])
        for i in range(4)
        for j in range(5)
    ]
    torch.testing.assert_close(log_p, sum(pixels))  # pixels are independent
    mean = likelihood.mean(parameters)
    assert mean.shape == (6, 2, 3, 4, 5)
    assert mean.min() >= 0
    assert mean.max() <= 1
    small = parameters[0, :1, :, :1, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: likelihood.log_prob(p, x[:1, :, :1, :1]), (small,))


def test_the_mean_of_a_narrow_mixture_is_the_picture_that_it_gives_most_of_its_mass():
    mixture = LogisticMixture(2)
    parameters = torch.zeros(1, mixture.outputs(2), 1, 1, dtype=torch.float64)
    parameters[0, :, 0, 0] = torch.tensor([9.0, -9.0, 0.2, -0.4, -6.0, -6.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    mean = mixture.mean(parameters)
    x = torch.cartesian_prod(LEVELS, LEVELS)
    log_p = mixture.log_prob(parameters, x[..., None, None])
    expected = (log_p.exp().unsqueeze(-1) * x).sum(0)
    torch.testing.assert_close(mean.flatten(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Gaussian(0.0), "scale must be a positive finite number, got 0.0"),
        (lambda: LogitLaplace(0.5), r"epsilon must be in \(0, 0.5\), got 0.5"),
        (lambda: LogisticMixture(0), "components must be at least 1"),
    ],
)
def test_bad_settings_are_named(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
