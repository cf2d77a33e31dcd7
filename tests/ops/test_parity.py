"""The same numbers as other people's packages, where they are installable: dev dependencies only."""

import pytest
import torch
from helpers.samples import FALSE_FAILURE, mean_p_value
from pyro.distributions import RelaxedOneHotCategoricalStraightThrough
from reinmax import reinmax

from taugrad.estimators import ReinMax, STGumbelSoftmax

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("tau", [1.0, 1.3, 2.0])
def test_reinmaxs_gradient_is_its_authors_given_the_same_draws(tau, monkeypatch):
    theta = torch.randn(200, 7, dtype=torch.float64, requires_grad=True)
    g = torch.randn(200, 7, dtype=torch.float64)
    ours = ReinMax().sample(theta, tau)
    monkeypatch.setattr(torch, "multinomial", lambda *_, **__: ours.argmax(-1, keepdim=True))
    theirs, _ = reinmax(theta, tau)
    assert torch.equal(ours, theirs.round())
    gradients = [torch.autograd.grad(z, theta, g)[0] for z in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_st_gumbel_softmaxs_gradient_has_the_mean_of_pyros():
    logits = torch.randn(4, dtype=torch.float64).expand(50_000, 4)
    A = torch.randn(4, 4, dtype=torch.float64)

    def gradients(sample, tau):
        leaf = logits.clone().requires_grad_()
        z = sample(leaf, tau)
        return torch.autograd.grad(((z @ A) * z).sum(), leaf)[0]

    def pyros(leaf, tau):
        return RelaxedOneHotCategoricalStraightThrough(torch.tensor(tau).double(), logits=leaf).rsample()

    theirs = gradients(pyros, 0.7)
    zero = torch.zeros(4, dtype=torch.float64)
    assert mean_p_value(gradients(STGumbelSoftmax().sample, 0.7) - theirs, zero) > FALSE_FAILURE
    assert mean_p_value(gradients(STGumbelSoftmax().sample, 1.2) - theirs, zero) < FALSE_FAILURE  # power
