"""ReDGE and ReinDGE against their equations, a row and a step at a time, given the Gaussian and the class."""

import pytest
import torch
from helpers.cases import each
from helpers.samples import FALSE_FAILURE, frequencies_p_value, generator

from taugrad.estimators import ReDGE, ReinDGE, ReinMax, StraightThrough
from taugrad.estimators.second_order import zgr_product

ROWS, K = 6, 5


def last_x(theta, x, steps, tau):
    """x_1 and its alpha and sigma, of one row."""
    alphas = torch.linspace(1 - tau, 1e-4, steps - 1, dtype=torch.float64).tolist()
    for t in reversed(range(1, steps - 1)):
        a, b = alphas[t], alphas[t - 1]
        weights = (theta + a * x / (1 - a) ** 2).exp()
        x0 = weights / weights.sum()
        x = b * x0 + (1 - b) * (x - a * x0) / (1 - a)
    return x, alphas[0], 1 - alphas[0]


def textbook(theta, x, z, g, steps, tau):
    """The gradients of ReDGE and ReinDGE to the logits of one row, by dense Jacobians."""
    point, alpha, sigma = last_x(theta, x, steps, tau)
    p = (theta + alpha * point / sigma**2).softmax(-1)
    J = torch.diag(p) - torch.outer(p, p)
    path = torch.autograd.functional.jacobian(lambda y: last_x(y, x, steps, tau)[0], theta) * alpha / sigma**2
    reinmax = (J + torch.outer(z - p, z - p)) / 2
    return J @ g + path.T @ J @ g, reinmax @ g + path.T @ J @ g


@each("tau", [0.2, 0.6, 1.0])
@each("steps", [2, 3, 6])
def test_the_gradients_are_the_papers_given_the_draws(steps, tau):
    logits = torch.randn(ROWS, K, dtype=torch.float64, requires_grad=True)
    g = torch.randn(ROWS, K, dtype=torch.float64)
    x = torch.randn(ROWS, K, generator=generator(4), dtype=torch.float64)
    for which, estimator in enumerate((ReDGE(steps), ReinDGE(steps))):
        z = estimator.sample(logits, tau, generator=generator(4))  # the Gaussian is its first draw
        (ours,) = torch.autograd.grad(z, logits, g)
        for row in range(ROWS):
            expected = textbook(logits[row].detach(), x[row], z[row].detach(), g[row], steps, tau)[which]
            torch.testing.assert_close(ours[row], expected, rtol=1e-11, atol=1e-13)


@each("dtype", [torch.float16, torch.float32, torch.float64])
@each("estimator", [ReDGE(), ReinDGE()])
def test_samples_are_one_hot_to_the_bit(estimator, dtype):
    z = estimator.sample(torch.randn(1000, K).to(dtype), 0.4)
    assert torch.equal(z.unique(), torch.tensor([0.0, 1.0], dtype=dtype))
    assert torch.equal(z.sum(-1), torch.ones(1000, dtype=dtype))


def test_at_the_last_time_they_are_straight_through_and_reinmax():
    logits = torch.randn(200, K, dtype=torch.float64, requires_grad=True)
    g = torch.randn(200, K, dtype=torch.float64)
    pi = logits.detach().softmax(-1)
    (plain,) = torch.autograd.grad(StraightThrough().sample(logits), logits, g)
    for tau in (1.0, 7.0):
        z = ReDGE().sample(logits, tau)
        torch.testing.assert_close(torch.autograd.grad(z, logits, g)[0], plain, rtol=0, atol=1e-14)
        z = ReinDGE().sample(logits, tau)
        expected = zgr_product(g, pi, z.detach())
        torch.testing.assert_close(torch.autograd.grad(z, logits, g)[0], expected, rtol=0, atol=1e-14)
    z = ReinMax().sample(logits)
    torch.testing.assert_close(torch.autograd.grad(z, logits, g)[0], zgr_product(g, pi, z.detach()), rtol=0, atol=1e-14)


def test_samples_become_those_of_the_logits_as_the_steps_grow():
    logits = torch.tensor([1.0, 0.0, -1.5, 0.5])
    counts = {n: ReDGE(n).sample(logits.expand(20_000, 4), 0.3, generator=generator()).sum(0) for n in (2, 3, 60)}
    p_values = {n: frequencies_p_value(count, logits.softmax(-1)) for n, count in counts.items()}
    assert p_values[60] > FALSE_FAILURE
    assert p_values[2] < FALSE_FAILURE
    assert p_values[3] < FALSE_FAILURE  # power


def test_a_tau_that_is_a_parameter_learns_and_a_bad_one_raises():
    tau = torch.tensor(0.5, requires_grad=True)
    for estimator in (ReDGE(), ReinDGE()):
        z = estimator.sample(torch.randn(4, K), tau)
        (dtau,) = torch.autograd.grad((z * torch.randn(4, K)).sum(), tau)
        assert torch.isfinite(dtau)
        assert dtau != 0
        with pytest.raises(ValueError, match="tau must be a positive finite number, got a tensor with"):
            estimator.sample(torch.randn(4, K), torch.tensor(-1.0))
        with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
            type(estimator)(steps=1)
