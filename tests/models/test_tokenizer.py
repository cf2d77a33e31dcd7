"""Tokenizers and the prior over their tokens."""

import math

import pytest
import torch
from helpers.cases import each
from helpers.images import first_and_last_loss, images, loaders, token_prior, tokenizer, trainer

from taugrad import RLOO, Linear, STGumbelSoftmax, StraightThrough
from taugrad.errors import ConfigError
from taugrad.estimators import Enumeration
from taugrad.models.likelihoods import Bernoulli, Gaussian, LogisticMixture, LogitLaplace
from taugrad.models.token_prior import TokenPrior
from taugrad.models.tokenizer import Tokenizer


def small(**changes):
    torch.manual_seed(0)
    return Tokenizer(**{"image_size": [3, 8, 12], "codes": 7, "dim": 3, "channels": [4, 6], "blocks": 1} | changes)


@each("likelihood", [Bernoulli(), Gaussian(), LogitLaplace(), LogisticMixture(2)])
@each("logits", ["linear", "distance"])
def test_the_loss_is_the_kl_and_the_likelihood_of_the_drawn_tokens(likelihood, logits):
    model = small(likelihood=likelihood, logits=logits)
    x = torch.rand(5, 3, 8, 12)
    torch.manual_seed(3)
    terms = model.loss_terms(x, torch.zeros(5), STGumbelSoftmax(), 0.7)
    torch.testing.assert_close(terms["loss"], terms["kl"] - terms["reconstruction"])
    assert 0 <= terms["kl"] <= 6 * math.log(7)
    torch.manual_seed(3)
    z = STGumbelSoftmax().sample(model.encode(x), 0.7)
    torch.testing.assert_close(terms["reconstruction"], model.log_likelihood(x, z).mean(), rtol=1e-4, atol=1e-3)
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_estimator_without_samples_trains_it_too():
    model = small()
    model.loss_terms(torch.rand(5, 3, 8, 12), torch.zeros(5), RLOO(samples=3), 1.0)["loss"].backward()
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_a_picture_of_any_size_that_the_stride_divides_is_a_grid_of_tokens_and_back():
    model = small().eval()
    for height, width in ((8, 12), (16, 4), (4, 4)):
        x = torch.rand(2, 3, height, width)
        tokens = model.greedy(x)
        assert tokens.shape == (2, height // 4, width // 4)
        assert model.picture(tokens).shape == x.shape
    grey = small(image_size=[8, 12]).eval()
    assert grey.picture(grey.greedy(torch.rand(2, 8, 12))).shape == (2, 8, 12)


def test_evaluation_takes_the_most_probable_tokens_and_counts_them():
    model = small().eval()
    x = torch.rand(5, 3, 8, 12)
    terms, counts = model.evaluation_terms(x, torch.zeros(5), torch.Generator())
    tokens = model.greedy(x)
    assert torch.equal(counts[0], tokens.flatten().bincount(minlength=7).float())
    errors = (model.picture(tokens) - x).square().flatten(1).mean(1)
    torch.testing.assert_close(terms["mse"], errors.mean())
    torch.testing.assert_close(terms["psnr"], (-10 * errors.log10()).mean())
    torch.testing.assert_close(terms["reconstruction"], model.log_likelihood_of(x, tokens).mean())
    usage = model.usage(torch.tensor([[2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    assert usage["code_perplexity"].item() == pytest.approx(2)
    assert usage["codes_in_use"].item() == pytest.approx(2 / 7)


def test_a_run_reports_the_tokens_of_the_whole_evaluation(tmp_path):
    task = tokenizer()
    run = trainer(tmp_path, max_steps=4)
    run.fit(task, *loaders())
    batches = loaders()[1]
    (metrics,) = run.test(task, batches, verbose=False)
    tokens = task.model.eval().greedy(images().images.float() / 255)
    assert metrics["test/codes_in_use"] == pytest.approx(len(tokens.unique()) / 8)
    assert {*metrics} <= {*task.metrics}
    with pytest.raises(RuntimeError, match="code_usage needs a validation epoch"):
        task.code_usage()


def test_training_lowers_the_loss(tmp_path):
    x = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).repeat(25, 2, 2).repeat(2, 1, 1)
    x[::2] = 255 - x[::2]
    first, last = first_and_last_loss(tokenizer(likelihood=Bernoulli()), x, tmp_path)
    assert last < first - 3


def test_the_weight_of_the_kl_is_of_the_training_alone(tmp_path):
    losses = {}
    for name, schedule in {"whole": Linear(1.0, 1.0, 10), "warm": Linear(0.25, 0.5, 10)}.items():
        torch.manual_seed(0)
        task = tokenizer(kl_weight=schedule)
        terms = {}
        own = task.model.loss_terms
        task.model.loss_terms = lambda *a, own=own, terms=terms: terms.update(own(*a)) or dict(terms)
        run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
        run.fit(task, *loaders())
        losses[name] = task.epoch_losses[0]
        weight = schedule(0)
        torch.testing.assert_close(losses[name], (weight * terms["kl"] - terms["reconstruction"]).detach())
    with pytest.raises(ConfigError, match="kl_weight needs a model with a term `kl`, got TokenPrior, which has loss"):
        trainer(tmp_path, max_steps=1).fit(token_prior(kl_weight=Linear(0.5, 0.6, 10)), *loaders())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: small(codes=1), "codes must be at least 2, got 1"),
        (lambda: small(image_size=[3, 8, 10]), "the width in image_size must be divisible by the stride 4, got 10"),
        (lambda: small(image_size=[8]), "image_size must be height and width, or channels, height and width"),
        (lambda: small(channels=[]), "channels must name at least one convolution"),
        (lambda: small(codes=99).check(Enumeration()), "99"),
        (lambda: TokenPrior(small(), width=9, heads=2), "width must be divisible by heads, 2, got 9"),
        (lambda: TokenPrior(small(), dropout=1.5), r"dropout must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_input_gets_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


# The prior


def test_a_priors_probabilities_sum_to_one_and_look_at_no_later_token():
    model = TokenPrior(small(image_size=[4, 8], codes=5), width=8, depth=2, heads=2).double().eval()
    every = torch.cartesian_prod(torch.arange(5), torch.arange(5)).view(25, 1, 2)
    torch.testing.assert_close(model.log_prob(every).exp().sum(), torch.ones((), dtype=torch.float64))
    model = TokenPrior(small(image_size=[8, 8], codes=5), width=8, depth=2, heads=2).double().eval()
    tokens = torch.randint(5, (6, 3))
    logits = model.logits(tokens)
    changed = model.logits(torch.cat([tokens[:, :2], (tokens[:, 2:] + 1) % 5], 1))
    torch.testing.assert_close(logits[:, :3], changed[:, :3])
    assert not torch.allclose(logits[:, 3], changed[:, 3])


def test_a_priors_samples_have_its_probabilities():
    """Chi-squared over 25 grids, 5,000 samples: fails one time in 10^6; uniform grids would fail."""
    torch.manual_seed(1)
    model = TokenPrior(small(image_size=[4, 8], codes=5), width=8, depth=1, heads=2).eval()
    with torch.no_grad():
        model.head.weight.mul_(5)
    every = torch.cartesian_prod(torch.arange(5), torch.arange(5)).view(25, 1, 2)
    expected = 5000 * model.log_prob(every).exp().detach().double()
    drawn = model.sample(5000, torch.Generator().manual_seed(0)).flatten(1) @ torch.tensor([5, 1])
    counts = drawn.bincount(minlength=25).double()
    assert ((counts - expected).square() / expected).sum() < 70.5
    assert ((counts - 200).square() / 200).sum() > 70.5


def test_a_prior_learns_the_tokens_and_leaves_the_tokenizer_as_it_is(tmp_path):
    task = token_prior()
    before = {name: p.clone() for name, p in task.model.tokenizer.state_dict().items()}
    x = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)]).mul(255).to(torch.uint8).repeat(25, 1, 1)
    first, last = first_and_last_loss(task, x, tmp_path)
    assert last < first - 1
    after = task.model.tokenizer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {*task.model.pictures(x[:4].float() / 255, torch.zeros(4))} == {"prior_samples", "reconstruction"}


def test_bits_a_dimension_are_of_a_discrete_likelihood_alone():
    x, labels = torch.rand(2, 4, 8), torch.zeros(2)
    model = TokenPrior(small(image_size=[4, 8], likelihood=LogisticMixture(2)), width=8, depth=1, heads=2).eval()
    bits = model.test_terms(x, labels, torch.Generator())["bits_per_dim"]
    tokens = model.tokenizer.greedy(x)
    nats = -(model.tokenizer.log_likelihood_of(x, tokens) + model.log_prob(tokens)).mean()
    torch.testing.assert_close(bits, nats / (32 * math.log(2)))
    assert "test/bits_per_dim" in model.metrics
    other = TokenPrior(small(image_size=[4, 8]), width=8, depth=1, heads=2)
    assert other.test_terms(x, labels, torch.Generator()) == {}
    assert "test/bits_per_dim" not in other.metrics


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"codes": 5}, "tokenizer must have the 5 codes that the prior was trained on, got one of 7: was the run"),
        (
            {"channels": [4]},
            "tokenizer must have the 24 tokens of a picture that the prior was trained on, got one of 6:",
        ),
        ({"blocks": 2}, "tokenizer must have the net that the prior was trained on, got another: was the run of"),
        ({"likelihood": LogisticMixture(2)}, "tokenizer must have the net that the prior was trained on, got another:"),
    ],
)
def test_a_tokenizer_of_another_net_is_refused_when_a_prior_is_loaded(changes, sentence):
    state = TokenPrior(small(**changes), width=8, depth=1, heads=2).state_dict()
    with pytest.raises(ConfigError, match=sentence):
        TokenPrior(small(), width=8, depth=1, heads=2).load_state_dict(state)


def test_a_prior_keeps_the_weights_of_its_tokenizer_in_its_own_state():
    prior, other = (TokenPrior(small(), width=8, depth=1, heads=2) for _ in range(2))
    x = torch.rand(5, 3, 8, 12)
    for weight in other.tokenizer.encoder.parameters():
        torch.nn.init.normal_(weight)
    assert not torch.equal(other.tokenizer.greedy(x), prior.tokenizer.greedy(x))
    other.load_state_dict(prior.state_dict())  # of the same net, with other weights until now
    assert torch.equal(other.tokenizer.greedy(x), prior.tokenizer.greedy(x))


@pytest.mark.parametrize(
    ("tokens", "error", "sentence"),
    [
        (torch.zeros(4, 1, 1, dtype=torch.int64), ValueError, r"tokens must be grids of \(2, 3\), got \(1, 1\)"),
        (torch.zeros(4, 6, dtype=torch.int64), ValueError, r"tokens must be grids of \(2, 3\), got \(6,\)"),
        (torch.zeros(4, 2, 3), TypeError, "tokens must be torch.int64, got torch.float32"),
        (torch.full((4, 2, 3), 7), ValueError, "tokens must be in 0 to 6, got 7 to 7"),
        (torch.full((4, 2, 3), -100), ValueError, "tokens must be in 0 to 6, got -100 to -100"),
    ],
)
def test_tokens_that_no_tokenizer_gives_get_a_sentence(tokens, error, sentence):
    with pytest.raises(error, match=sentence):
        TokenPrior(small(), width=8, depth=1, heads=2).log_prob(tokens)


def test_hard_gradients_reach_the_encoder_through_straight_through_as_well():
    model = small()
    model.loss_terms(torch.rand(5, 3, 8, 12), torch.zeros(5), StraightThrough(), 1.0)["loss"].backward()
    assert max(p.grad.abs().max() for p in model.encoder.parameters()) > 0
