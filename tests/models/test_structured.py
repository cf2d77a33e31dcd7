import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from helpers.cases import each
from helpers.images import K, N, first_and_last_loss, images, loaders, structured, trainer
from helpers.samples import FALSE_FAILURE, mean_p_value

from taugrad import REBAR, RLOO, DisARM, Enumeration, GumbelSoftmax, IndeCateR, STGumbelSoftmax
from taugrad.errors import NonFiniteLossError
from taugrad.estimators import configurations
from taugrad.models.structured import halves
from taugrad.ops.categorical import log_prob


def exact():
    """A model in float64, images, E log p(x|z), log p(x|u), and log p(z|u), log p(x|z) of all configurations."""
    model = structured().model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # codes that matter
    x = torch.randint(2, (5, 4, 4)).double()
    logits_1 = model.logits_1(x)
    terms = []
    for z1 in configurations(logits_1):
        logits_2 = model.logits_2(z1)
        for z2 in configurations(logits_2):
            log_p = log_prob(logits_1, z1).sum(-1) + log_prob(logits_2, z2).sum(-1)
            pixels = torch.distributions.Bernoulli(logits=model.decode(z2))
            terms.append((log_p, pixels.log_prob(x[:, 2:].flatten(1)).sum(-1)))
    log_p, log_likelihood = (torch.stack(part) for part in zip(*terms, strict=True))
    assert len(log_p) == K ** (2 * N)
    expected, log_evidence = (log_p.exp() * log_likelihood).sum(0), (log_p + log_likelihood).logsumexp(0)
    return model, x, expected, log_evidence, log_p, log_likelihood


def test_the_training_loss_is_minus_the_expected_log_likelihood_and_bounds_the_evidence():
    model, x, expected, log_evidence, *_ = exact()
    loss = model.loss_terms(x, torch.zeros(5), Enumeration(), 1.0)["loss"]
    torch.testing.assert_close(loss, -expected.mean(), rtol=0, atol=1e-10)
    assert -loss < log_evidence.mean()


def test_the_exact_loss_has_the_gradient_of_the_enumerated_one():
    model, x, expected, *_ = exact()
    parameters = list(model.parameters())
    ours = torch.autograd.grad(model.loss_terms(x, torch.zeros(5), Enumeration(), 1.0)["loss"], parameters)
    enumerated = torch.autograd.grad(-expected.mean(), parameters)
    for a, b in zip(ours, enumerated, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_loss_of_two_samples_is_their_enumerated_bound_and_tighter():
    model, x, expected, log_evidence, log_p, log_likelihood = exact()
    pairs = (log_p.unsqueeze(0) + log_p.unsqueeze(1)).exp()
    bounds = torch.logaddexp(log_likelihood.unsqueeze(0), log_likelihood.unsqueeze(1)) - math.log(2)
    bound = (pairs * bounds).sum((0, 1)).mean()
    two = structured(samples=2).model.double()
    two.load_state_dict(model.state_dict())
    loss = two.loss_terms(x, torch.zeros(5), Enumeration(), 1.0)["loss"]
    torch.testing.assert_close(loss, -bound, rtol=0, atol=1e-10)
    assert expected.mean() < -loss < log_evidence.mean()
    ours = torch.autograd.grad(loss, list(two.parameters()))
    for a, b in zip(ours, torch.autograd.grad(-bound, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@each("estimator", [RLOO(samples=4), IndeCateR(), DisARM()])
def test_the_score_function_is_unbiased_through_both_layers(estimator):
    model, x, expected, *_ = exact()
    (gradient,) = torch.autograd.grad(expected[0], model.first[0].weight)
    logits_1 = []
    model.first.register_forward_hook(lambda _, inputs, output: logits_1.append(output))
    draws = x[:1].expand(5000, -1, -1)
    value = model.expected_bound(draws, estimator, tau=1.0).sum()
    # A draw's gradient of the weight is that of its logits times the upper half.
    along = halves(draws)[0].flatten(1) @ gradient.T
    draws = (torch.autograd.grad(value, logits_1)[0] * along).sum(-1)
    target = gradient.square().sum()
    assert mean_p_value(draws, target.detach()) > FALSE_FAILURE
    assert mean_p_value(draws, 0.8 * target.detach()) < FALSE_FAILURE


def test_the_bound_lies_below_the_evidence_and_approaches_it_as_m_grows():
    # The mean of m = 300 is 0.0025 below with a standard error of 0.0011; neighbours lie 6 of theirs apart or more.
    model, x, expected, log_evidence, *_ = exact()
    many = x[:1].expand(4000, -1, -1)
    with torch.no_grad():
        means = [model.log_likelihood_bound(many, m).mean() for m in (1, 3, 10, 30, 300)]
        single = model.log_likelihood_bound(x[:1].expand(150_000, -1, -1), 1)  # 0.05 is 11 standard errors
    assert all(a < b for a, b in pairwise(means))
    assert log_evidence[0] - 0.01 < means[-1] < log_evidence[0] + 0.001
    assert mean_p_value(single, expected[0].detach()) > FALSE_FAILURE
    assert mean_p_value(single, expected[0].detach() + 0.05) < FALSE_FAILURE


KINDS = [GumbelSoftmax(), STGumbelSoftmax(), RLOO(samples=3), DisARM(), IndeCateR(), REBAR(), Enumeration()]


@pytest.mark.parametrize("estimator", KINDS, ids=repr)  # of `expectation`; test_cat_vae.py trains by every estimator
def test_training_lowers_the_loss_with_every_kind_of_estimator(estimator, tmp_path):
    task = structured(estimator=estimator, optimizer=partial(torch.optim.Adam, lr=3e-2))
    x = torch.zeros(50, 4, 4, dtype=torch.uint8)
    x[:25] = 255  # white or black, as the upper half: 5.5 nats without it
    first, last = first_and_last_loss(task, x, tmp_path, steps=100)
    assert last < first / 4  # 0.6 nats at most, of three seeds


def test_the_test_reports_the_bound_with_its_number_of_samples_and_repeats(tmp_path):
    task = structured(nll_samples=200)
    metrics = [trainer(tmp_path).test(task, loaders()[1], verbose=False)[0] for _ in range(2)]
    assert metrics[0] == metrics[1]
    assert metrics[0]["test/nll_samples"] == 200
    assert metrics[0]["test/nll"] < metrics[0]["test/loss"]


def test_the_prediction_does_not_see_the_lower_half():
    model = structured().model
    x = torch.rand(3, 4, 4)
    changed = x.clone()
    changed[:, 2:] = 1 - changed[:, 2:]
    assert torch.equal(model.logits_1(x), model.logits_1(changed))
    upper, lower = halves(x)
    assert torch.equal(torch.cat([upper, lower], 1), x)


def test_a_centred_model_starts_at_the_mean_of_both_halves():
    model, mean, x = structured(centred=True).model, torch.rand(4, 4), torch.rand(3, 4, 4)
    model.start(mean)
    torch.testing.assert_close(model.decoder[-1].bias.sigmoid(), mean[2:].flatten().clamp(1e-3, 1 - 1e-3))
    torch.testing.assert_close(model.logits_1(x).flatten(1), model.first((x - mean)[:, :2].flatten(1)))
    assert "mean" not in structured().model.state_dict()


def test_code_usage_counts_the_latents_of_both_layers(tmp_path):
    task = structured()
    metrics = trainer(tmp_path).validate(task, loaders()[1], verbose=False)[0]
    perplexity, active = task.code_usage()
    assert perplexity.shape == active.shape == (2 * N,)
    assert 1 <= metrics["val/code_perplexity"] <= K


def test_completions_keep_the_upper_half_and_differ_below():
    model = structured().model
    with torch.no_grad():
        model.decoder[-1].weight.mul_(20)
    split = images(30)
    x, labels = split.images / 255, torch.arange(30) % 3
    pictures = model.pictures(x, labels)
    assert pictures["completions"].shape == (3 * 4, 10 * 4)
    assert pictures["latent_traversal"].shape == (N * 4, K * 4)
    rows = pictures["completions"].view(3, 4, 10, 4).transpose(1, 2)
    assert torch.equal(rows[:, 0], x[:3])
    assert torch.equal(rows[:, :, :2], x[:3, None, :2].expand(-1, 10, -1, -1))
    assert rows[:, 1:, 2:].std(1).max() > 0.05
    assert torch.equal(model.pictures(x, labels)["completions"], pictures["completions"])


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    task = structured()
    task.model.decoder[-1].bias.data.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 0 \(tau = 1\), with loss = nan: a lower"):
        trainer(tmp_path, max_steps=1).fit(task, *loaders())
    task = structured()
    task.model.second[-1].bias.data.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"at step 0 \(tau = 1\), with logits that are not finite: a lower"):
        trainer(tmp_path, max_steps=1).fit(task, *loaders())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": [5, 4]}, r"image_size\[0\], the height, must be even for two halves, got 5"),
        ({"latents": 0}, "latents must be at least 1, got 0"),
        ({"categories": 1}, "categories must be at least 2, got 1"),
        ({"second": [0]}, r"second\[0\] must be at least 1, got 0"),
        ({"nll_samples": 0}, "nll_samples must be at least 1, got 0"),
        (
            {"latents": 10, "estimator": Enumeration()},
            r"20 latents of 3 classes have 3\^20 configurations",
        ),
    ],
)
def test_bad_sizes_get_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        structured(**changes)
