import math
from itertools import pairwise, product

import pytest
import torch
from helpers.samples import FALSE_FAILURE, frequencies_p_value, mean_p_value

from taugrad.bounds import elbo, hard_samples, importance_weighted_bound, vimco
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


# VIMCO


def enumerated_bound(log_joint, logits, m):
    """E log 1/m sum_i w_i over all m-tuples of configurations, one at a time."""
    z = configurations(logits)
    log_q = log_prob(logits, z).sum(-1)
    log_w = log_joint(z) - log_q
    total = torch.zeros((), dtype=logits.dtype)
    for tuple_ in product(range(len(z)), repeat=m):
        i = list(tuple_)
        total = total + log_q[i].sum().exp() * log_w[i].exp().mean().log()
    return total


@pytest.mark.parametrize(("latents", "m"), [(2, 2), (1, 3)])
def test_vimcos_gradient_over_all_tuples_of_samples_is_that_of_the_enumerated_bound(model, latents, m):
    logits = model.logits[:latents] / 4  # the rarest tuple has a probability of 0.005, and is missed with 5e-12
    decoder = model.weights[: latents * K].clone().requires_grad_()
    samples = []

    def log_joint(z):
        samples.append(z)
        return torch.distributions.Bernoulli(logits=z.flatten(-2) @ decoder).log_prob(model.x).sum(-1)

    leaf = logits.expand(5000, latents, K).clone().requires_grad_()
    bound = vimco(log_joint, leaf, m)
    gradients = torch.autograd.grad(bound.sum(), leaf, retain_graph=True)[0]
    q = (samples[0] * logits.softmax(-1)).sum(-1).prod(-1).prod(0)  # of a tuple
    classes = samples[0].argmax(-1).movedim(0, 1).flatten(1).tolist()
    rows = torch.tensor(list({tuple(c): i for i, c in enumerate(classes)}.values()))  # each tuple once
    assert q[rows].sum().item() == pytest.approx(1, abs=1e-12)  # all were found: nothing is sampled
    whole = logits.clone().requires_grad_()
    exact = enumerated_bound(log_joint, whole, m)
    to_q, to_decoder = torch.autograd.grad(exact, (whole, decoder))
    torch.testing.assert_close((q[rows] * bound[rows]).sum(), exact, rtol=0, atol=1e-12)
    ours = (q[rows, None, None] * gradients[rows]).sum(0)
    torch.testing.assert_close(ours, to_q, rtol=0, atol=1e-12)
    (ours,) = torch.autograd.grad((q[rows] * bound[rows]).sum(), decoder)
    torch.testing.assert_close(ours, to_decoder, rtol=0, atol=1e-12)


def test_vimco_is_the_importance_weighted_bound_with_the_papers_learning_signal(model):
    m = 4
    leaf = model.logits.clone().requires_grad_()
    kept = []
    bound = vimco(lambda z: kept.append(z) or model.log_joint(z), leaf, m, generator=torch.Generator().manual_seed(3))
    same = importance_weighted_bound(model.log_joint, leaf, m, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(bound, same, rtol=0, atol=1e-14)
    log_q = log_prob(leaf, kept[0]).sum(-1)
    log_w = (model.log_joint(kept[0]) - log_q).tolist()
    expected = torch.autograd.grad(same, leaf)[0]
    for i in range(m):
        others = log_w[:i] + log_w[i + 1 :]
        weights = [math.exp(w) for w in [*others, sum(others) / (m - 1)]]
        signal = same.item() - math.log(sum(weights) / m)
        expected = expected + signal * torch.autograd.grad(log_q[i], leaf, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(bound, leaf)[0], expected, rtol=0, atol=1e-12)


def test_vimco_takes_leading_shapes_dtypes_masks_and_the_prior_as_proposal():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        logits = torch.randn(2, 5, N, K, dtype=dtype)
        logits[..., 0, 1] = -torch.inf
        logits.requires_grad_()
        W = torch.randn(N * K, dtype=dtype)
        bound = vimco(lambda z, W=W, p=logits: z.flatten(-2) @ W + log_prob(p, z).sum(-1), logits, 3)
        (g,) = torch.autograd.grad(bound.sum(), logits)
        assert (bound.shape, bound.dtype) == ((2, 5), dtype)
        assert torch.isfinite(g).all()
        assert (g[..., 0, 1] == 0).all()
        assert (g[..., 0, 0] != 0).any()
    same = vimco(lambda z: log_prob(logits, z).sum(-1) - 2.0, logits, 3)  # equal likelihoods: nothing to estimate
    torch.testing.assert_close(same, torch.full((2, 5), -2.0, dtype=dtype))
    assert torch.autograd.grad(same.sum(), logits)[0].abs().max() < 1e-12


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
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        vimco(model.log_joint, model.logits, 1)


@pytest.mark.parametrize("bound", [importance_weighted_bound, vimco])
def test_bounds_refuse_what_would_be_broadcast(model, bound):
    with pytest.raises(ValueError, match=r"logits must have shape \(..., N, K\), got \(3,\)"):
        bound(lambda z: z.sum(-1), torch.zeros(3), 4)
    with pytest.raises(ValueError, match=r"log_joint must return one value for each sample, shape \(4,\) .* \(\)"):
        bound(lambda z: model.log_joint(z).mean(), model.logits, 4)


def test_vimcos_value_is_the_bounds_to_the_bit_in_half_precision():
    logits = torch.randn(20, 400, 3).half().requires_grad_()
    f = lambda z: 300 * z[..., 0, 0] + log_prob(logits, z).sum(-1).detach()  # noqa: E731
    value, same = (
        b(f, logits, 4, generator=torch.Generator().manual_seed(0)) for b in (vimco, importance_weighted_bound)
    )
    assert torch.equal(value, same)
    assert torch.isfinite(torch.autograd.grad(value.sum(), logits)[0]).all()
