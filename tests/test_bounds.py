import math
from itertools import pairwise

import pytest
import torch
from helpers.samples import FALSE_FAILURE, frequencies_p_value, mean_p_value

from taugrad.bounds import elbo, hard_samples, importance_weighted_bound
from taugrad.estimators import Enumeration, configurations
from taugrad.ops.categorical import kl, log_prob

pytestmark = pytest.mark.usefixtures("backend")

N, K, D = 2, 3, 4


class Model:
    """A model of two 3-way latents whose p(x), posterior and ELBO are enumerated in float64."""

    def __init__(self):
        g = torch.Generator().manual_seed(1)
        self.weights = 2 * torch.randn(N * K, D, generator=g, dtype=torch.float64)
        self.x = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
        self.logits = torch.randn(N, K, generator=g, dtype=torch.float64)
        self.z = configurations(self.logits)

    def log_likelihood(self, z):
        logits = z.flatten(-2) @ self.weights
        return torch.distributions.Bernoulli(logits=logits).log_prob(self.x).sum(-1)

    def log_joint(self, z):
        return self.log_likelihood(z) - N * math.log(K)

    @property
    def log_evidence(self):
        return self.log_joint(self.z).logsumexp(0)


@pytest.fixture
def model():
    return Model()


def test_elbo_plus_kl_to_the_posterior_is_the_log_evidence(model):
    reconstruction = Enumeration().expectation(model.log_likelihood, model.logits)
    log_posterior = model.log_joint(model.z) - model.log_evidence
    log_q = log_prob(model.logits, model.z).sum(-1)
    kl_to_posterior = (log_q.exp() * (log_q - log_posterior)).sum()
    total = elbo(reconstruction, model.logits) + kl_to_posterior
    torch.testing.assert_close(total, model.log_evidence, rtol=0, atol=1e-12)


def test_elbo_takes_the_kl_to_the_uniform_prior_of_every_latent():
    logits = torch.randn(5, N, K)
    expected = -7.0 - kl(logits, torch.zeros_like(logits)).sum(-1)
    torch.testing.assert_close(elbo(torch.full((5,), -7.0), logits), expected)


def test_the_bound_lies_below_the_evidence_and_approaches_it_as_m_grows(model):
    logits = model.logits.expand(4000, N, K)
    means = [importance_weighted_bound(model.log_joint, logits, m).mean() for m in (1, 3, 10, 100)]
    assert all(a < b for a, b in pairwise(means))
    assert means[-1] < model.log_evidence
    assert model.log_evidence - means[-1] < 0.02


def test_the_bound_with_one_sample_is_the_elbo_in_expectation(model):
    exact = elbo(Enumeration().expectation(model.log_likelihood, model.logits), model.logits)
    samples = importance_weighted_bound(model.log_joint, model.logits.expand(100_000, N, K), 1)
    assert mean_p_value(samples, exact) > FALSE_FAILURE
    assert mean_p_value(samples, exact + 0.05) < FALSE_FAILURE


def test_with_the_posterior_as_proposal_the_bound_is_exact_for_every_sample():
    # One latent: its posterior is a categorical, so q can be it.
    log_joint_of = torch.tensor([-3.0, -1.0, -2.0], dtype=torch.float64)
    logits = (log_joint_of - log_joint_of.logsumexp(0)).unsqueeze(0)
    bound = importance_weighted_bound(lambda z: (z @ log_joint_of).squeeze(-1), logits, 7)
    torch.testing.assert_close(bound, log_joint_of.logsumexp(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_chunks_hold_at_most_chunk_size_samples_and_count_each_once(model, chunk_size):
    sizes = []

    def log_joint(z):
        sizes.append(len(z))
        return model.log_joint(z)

    bound = importance_weighted_bound(log_joint, model.logits.expand(2000, N, K), 7, chunk_size=chunk_size)
    whole = importance_weighted_bound(model.log_joint, model.logits.expand(2000, N, K), 7, chunk_size=7)
    assert sum(sizes) == 7
    assert max(sizes) <= chunk_size
    assert mean_p_value(bound, whole.mean()) > FALSE_FAILURE


def test_samples_of_the_bound_are_hard_and_need_no_gradient(model):
    logits = model.logits.clone().requires_grad_()

    def log_joint(z):
        assert not z.requires_grad
        assert ((z == 0) | (z == 1)).all()
        return model.log_joint(z)

    importance_weighted_bound(log_joint, logits, 5)


def test_hard_samples_are_distributed_as_softmax():
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.0, -torch.inf]])
    z = hard_samples(logits, 100_000)
    assert z.shape == (100_000, 2, 3)
    for n in range(2):
        assert frequencies_p_value(z[:, n].sum(0), logits[n].softmax(-1)) > FALSE_FAILURE


def test_a_generator_determines_the_bound(model):
    a, b = (
        importance_weighted_bound(model.log_joint, model.logits, 9, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert a == b


def test_sizes_below_one_get_a_sentence(model):
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        importance_weighted_bound(model.log_joint, model.logits, 0)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        importance_weighted_bound(model.log_joint, model.logits, 5, chunk_size=0)
