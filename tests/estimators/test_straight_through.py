"""Straight-through with a temperature for the sample, and with one that follows the row's confidence."""

import pytest
import torch
from helpers.cases import each
from helpers.samples import FALSE_FAILURE, frequencies_p_value, generator

from taugrad.estimators import CAGE, DecoupledStraightThrough, StraightThrough
from taugrad.estimators.straight_through import confidence


@each("tau", [0.4, 1.0, torch.tensor([[0.4], [2.0]], dtype=torch.float64)])
@each("forward_tau", [0.3, 1.0, 3.0])
def test_the_sample_has_one_temperature_and_its_gradient_another(forward_tau, tau):
    estimator = DecoupledStraightThrough(forward_tau)
    logits = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 4, dtype=torch.float64)
    (ours,) = torch.autograd.grad(estimator.sample(logits, tau), logits, g)
    (expected,) = torch.autograd.grad((logits / tau).softmax(-1), logits, g)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)
    counts = estimator.sample(logits[0].expand(20_000, 4), 0.7).detach().sum(0)
    assert frequencies_p_value(counts, (logits[0] / forward_tau).softmax(-1).detach()) > FALSE_FAILURE
    other = frequencies_p_value(counts, logits[0].softmax(-1).detach())
    assert other < FALSE_FAILURE or forward_tau == 1  # power


def test_with_a_forward_tau_of_one_it_is_straight_through():
    logits = torch.randn(50, 4, requires_grad=True)
    found = []
    for estimator in (DecoupledStraightThrough(), StraightThrough()):
        z = estimator.sample(logits, 0.6, generator=generator())
        found += [z, torch.autograd.grad(z, logits, torch.ones(50, 4).cumsum(-1))[0]]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_half_precision_samples_at_a_low_forward_tau_do_not_overflow():
    logits = torch.tensor([[6e4, 0.0, -6e4]], dtype=torch.float16, requires_grad=True)
    z = DecoupledStraightThrough(forward_tau=0.01).sample(logits)
    assert z.tolist() == [[1.0, 0.0, 0.0]]
    assert torch.isfinite(torch.autograd.grad(z.sum(), logits)[0]).all()


def test_the_confidence_sets_each_rows_temperature_and_tau_none():
    logits = torch.tensor([[0.0, 0.0, 0.0, -torch.inf], [1.0, 3.0, 0.0, 2.0], [9.0, 0.0, 0.0, 0.0]]).double()
    top, classes = logits.softmax(-1).amax(-1), torch.tensor([3.0, 4.0, 4.0]).double()
    c = (top - 1 / classes) / (1 - 1 / classes)
    torch.testing.assert_close(confidence(logits).squeeze(-1), c, rtol=0, atol=1e-15)
    tau = 2.0 - 1.6 * c
    g = torch.randn(3, 4, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    for given in (0.01, 5.0):
        z = CAGE(least_tau=0.4, most_tau=2.0).sample(leaf, given)
        (ours,) = torch.autograd.grad(z, leaf, g)
        for row in range(3):
            y = (logits[row] / tau[row]).softmax(-1)
            expected = (torch.diag(y) - torch.outer(y, y)) @ g[row] / tau[row]
            torch.testing.assert_close(ours[row], expected, rtol=0, atol=1e-14)


def test_a_low_tau_does_not_kill_the_gradient_of_a_decided_row():
    logits = torch.tensor([4.0, 0.0, 0.0, 0.0]).requires_grad_()
    g = torch.tensor([0.0, 1.0, 2.0, 3.0])
    live, dead = (torch.autograd.grad(e.sample(logits, 0.02), logits, g)[0] for e in (CAGE(), StraightThrough()))
    assert live.abs().max() > 1e-3
    assert dead.abs().max() < 1e-20


@each(
    "build, sentence",
    [
        (lambda: DecoupledStraightThrough(forward_tau=0.0), "forward_tau must be a positive finite number, got 0.0"),
        (lambda: CAGE(least_tau=-1.0), "least_tau must be a positive finite number, got -1.0"),
        (lambda: CAGE(least_tau=2.0, most_tau=1.0), "most_tau must be at least least_tau, 2.0, got 1.0"),
    ],
)
def test_bad_parameters_raise(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
