import math

import pytest
import torch
from helpers.cases import each
from helpers.images import C, semi_supervised, stripes, trainer
from torch.distributions import Bernoulli, Normal, kl_divergence

from taugrad import Enumeration, GumbelSoftmax, STGumbelSoftmax, estimators
from taugrad.data.augmentation import RandomAffine
from taugrad.data.batches import Batches, ShuffledBatches
from taugrad.data.images import Split, balanced
from taugrad.errors import DataError, NonFiniteLossError
from taugrad.models import semi_supervised as module
from taugrad.models.semi_supervised import kl_to_standard_normal

PATHWISE = ("GumbelSoftmax", "STGumbelSoftmax", "StraightThrough", "GappedStraightThrough", "ReinMax", "GumbelRao")


def sharp(**changes):
    """A model in float64 whose classes and `z` matter."""
    model = semi_supervised(**changes).model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    return model


def log_p_x_given_y(model, x, y):
    """Log p(x|y) and F(x, y) + KL(q(z|x,y) || p(z|x,y)) of a model with one z, by quadrature."""
    h = model.features(x)
    mean, log_sigma = (part[:, 0] for part in model.encode(h, y))
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64).unsqueeze(-1)
    pixels = model.decode(y.expand(len(z), *y.shape), z.unsqueeze(-1).expand(-1, len(x), -1))
    log_likelihood = Bernoulli(logits=pixels).log_prob(x.flatten(1)).sum(-1)
    prior, q = Normal(0.0, 1.0), Normal(mean, log_sigma.exp())
    evidence = torch.trapezoid((prior.log_prob(z) + log_likelihood).exp(), z, dim=0).log()
    log_posterior = prior.log_prob(z) + log_likelihood - evidence
    log_q = q.log_prob(z)
    gap = torch.trapezoid(log_q.exp() * (log_q - log_posterior), z, dim=0)
    F = torch.trapezoid(log_q.exp() * log_likelihood, z, dim=0) - kl_to_standard_normal(
        mean.unsqueeze(-1), log_sigma.unsqueeze(-1)
    )
    return evidence, F, F + gap


def test_f_plus_the_kl_to_the_posterior_of_z_is_the_log_evidence_given_y():
    model = sharp(latent_size=1)
    x = torch.randint(2, (6, 4, 4)).double()
    for c in range(C):
        y = torch.eye(C, dtype=torch.float64)[c].expand(6, -1)
        evidence, F, total = log_p_x_given_y(model, x, y)
        torch.testing.assert_close(total, evidence, rtol=0, atol=1e-6)
        assert (evidence > F).all()
        with torch.no_grad():
            h = model.features(x)
            draws = model.bound_given(x, h, y.expand(4000, 6, C))
        error = draws.std(0) / len(draws) ** 0.5
        assert ((draws.mean(0) - F).abs() < 5 * error).all()  # 6e-7 an image


def test_the_unlabelled_bound_plus_the_kl_to_the_posterior_of_y_is_the_log_evidence():
    model = sharp(latent_size=1)
    with torch.no_grad():  # q(z|x,y) = p(z) and a decoder that ignores z: F(x, y) is log p(x|y), without noise
        model.posterior[-1].weight.zero_()
        model.posterior[-1].bias.zero_()
        model.decoder.net[0].weight[:, C:].zero_()
    x = torch.randint(2, (6, 4, 4)).double()
    y = torch.eye(C, dtype=torch.float64).unsqueeze(1).expand(-1, 6, -1)
    log_likelihood = Bernoulli(logits=model.decode(y, torch.zeros(C, 6, 1).double())).log_prob(x.flatten(1)).sum(-1)
    log_joint = log_likelihood - math.log(C)
    log_evidence = log_joint.logsumexp(0)
    h = model.features(x)
    log_q = model.classify(x).log_softmax(-1).T
    gap = (log_q.exp() * (log_q - (log_joint - log_evidence))).sum(0)
    U = model.unlabelled_bound(x, h, model.classify(x), Enumeration(), tau=1.0)
    torch.testing.assert_close(U + gap, log_evidence, rtol=0, atol=1e-10)
    # A sampled class has the same bound in expectation.
    with torch.no_grad():
        many = (part.repeat(4000, *[1] * (part.ndim - 1)) for part in (x, h, model.classify(x)))
        draws = model.unlabelled_bound(*many, STGumbelSoftmax(), tau=1.0).view(4000, 6)
    assert ((draws.mean(0) - U).abs() < 5 * draws.std(0) / len(draws) ** 0.5 + 1e-9).all()


def test_the_loss_weighs_bounds_by_images_and_the_labelled_log_q_by_alpha():
    model = sharp()
    x = torch.randint(2, (5, 4, 4)).double()
    labels = torch.tensor([-1, 2, -1, -1, 0])
    torch.manual_seed(3)
    terms = model.loss_terms(x, labels, Enumeration(), 1.0)
    log_q = model.classify(x).log_softmax(-1)
    classification = -(log_q[1, 2] + log_q[4, 0]) / 2
    expected = -(3 * terms["elbo"] + 2 * terms["labelled_elbo"]) / 5 + 2.0 * classification
    torch.testing.assert_close(terms["loss"], expected)
    # the labelled bound knows the class
    torch.manual_seed(5)
    h = model.features(x[[1, 4]])
    L = model.bound_given(x[[1, 4]], h, torch.eye(C, dtype=torch.float64)[[2, 0]]) - math.log(C)
    torch.manual_seed(5)
    terms = model.loss_terms(x[[1, 4]], labels[[1, 4]], Enumeration(), 1.0)
    torch.testing.assert_close(terms["labelled_elbo"], L.mean())


def test_only_the_classifier_sees_augmented_images_and_only_in_training():
    model = semi_supervised(augment=RandomAffine(degrees=10, scale=0.1, shear=0.1, shift=0.2)).model
    seen = {"classifier": [], "features": []}
    for name, images in seen.items():
        getattr(model, name).register_forward_pre_hook(lambda _, inputs, images=images: images.append(inputs[0]))
    x = torch.rand(50, 4, 4).round()
    model.loss_terms(x, torch.full((50,), -1), STGumbelSoftmax(), 1.0)
    assert torch.equal(seen["features"][0], x)
    assert not torch.equal(seen["classifier"][0], x)
    model.evaluation_terms(x, torch.zeros(50), torch.Generator().manual_seed(0))
    assert torch.equal(seen["classifier"][1], x)


def test_batches_without_labels_and_with_labels_only_have_the_terms_that_they_can():
    model = semi_supervised().model
    x = torch.rand(4, 4, 4).round()
    unlabelled, labelled = (
        model.loss_terms(x, labels, STGumbelSoftmax(), 1.0) for labels in (torch.full((4,), -1), torch.arange(4) % C)
    )
    assert set(unlabelled) == {"loss", "elbo"}
    assert set(labelled) == {"loss", "labelled_elbo", "classification", "accuracy"}


def test_a_sampled_class_costs_one_evaluation_of_the_decoder_and_a_marginalized_one_c():
    x = torch.rand(7, 4, 4).round()
    for classes in (3, 100):
        rows, seen = {}, []
        model = semi_supervised(classes=classes).model
        model.decoder.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0][..., 0].numel()))
        for name in ("Enumeration", *PATHWISE):
            few = {"draws": 5} if name == "GumbelRao" else {}
            seen.clear()
            model.loss_terms(x, torch.full((7,), -1), getattr(estimators, name)(**few), 1.0)
            rows[name] = sum(seen)
        assert rows.pop("Enumeration") == 7 * classes
        assert set(rows.values()) == {7}


@pytest.mark.parametrize("estimator", [Enumeration(), STGumbelSoftmax()], ids=lambda e: type(e).__name__)
def test_three_labels_and_many_images_make_a_classifier(estimator, tmp_path):
    split = stripes()
    labelled = balanced(split.labels, C, seed=0)
    batches = ShuffledBatches(split, 40, seed=0, labelled=labelled, labelled_batch_size=C, stack=3)
    task = semi_supervised(estimator=estimator)
    run = trainer(tmp_path, max_steps=120, limit_val_batches=0)
    before = run.test(task, Batches(split, 40), verbose=False)[0]
    run.fit(task, batches, Batches(split, 40))
    after = run.test(task, Batches(split, 40), verbose=False)[0]
    assert after["test/accuracy"] > 0.9 > before["test/accuracy"] + 0.3  # of four seeds none ended below 0.95
    assert after["test/elbo"] == -after["test/loss"] > before["test/elbo"]


def test_accuracy_is_the_share_of_images_whose_most_probable_class_is_their_label(tmp_path):
    task = semi_supervised()
    head = task.model.classifier[-1][-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 3.0, 1.0]))
    split = stripes(30)
    metrics = trainer(tmp_path).test(task, Batches(split, 10), verbose=False)[0]
    assert metrics["test/accuracy"] == pytest.approx(1 / 3)
    metrics = trainer(tmp_path).validate(task, Batches(split, 10), verbose=False)[0]
    p = torch.tensor([0.0, 3.0, 1.0]).softmax(-1)
    assert metrics["val/code_perplexity"] == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-4)


def test_evaluation_is_discrete_repeatable_and_leaves_the_random_state_alone(tmp_path):
    task = semi_supervised(estimator=GumbelSoftmax())
    seen = []
    task.model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., :C]))
    before = torch.get_rng_state()
    metrics = [trainer(tmp_path).test(task, Batches(stripes(), 40), verbose=False)[0] for _ in range(2)]
    assert metrics[0] == metrics[1]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(((y == 0) | (y == 1)).all() for y in seen)


def test_the_kl_of_the_gaussian_is_torchs():
    mean, log_sigma = torch.randn(2, 5, 4, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, log_sigma.exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_sigma), expected)


def test_pictures_show_classes_in_columns():
    model = semi_supervised().model
    split = stripes(30)
    x = split.images / 255
    pictures = model.pictures(x, split.labels)
    sizes = {"class_samples": (40, C * 4), "analogies": (40, (1 + C) * 4), "latent_traversal": (2 * 4, 9 * 4)}
    assert {name: tuple(picture.shape) for name, picture in pictures.items()} == sizes
    assert torch.equal(pictures["analogies"][:4, :4], x[0])
    again = model.pictures(x, split.labels)
    assert all(torch.equal(picture, again[name]) for name, picture in pictures.items())


@pytest.mark.parametrize("labels", [[0, 3], [-2, 0]])
def test_labels_outside_the_classes_get_a_sentence_in_training_and_evaluation(labels, tmp_path):
    task = semi_supervised()
    split = Split(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.tensor(labels))
    sentence = rf"labels must be in 0 to 2, or -1 for none, got {min(labels)} to {max(labels)}: model.classes must be"
    with pytest.raises(DataError, match=sentence):
        trainer(tmp_path, max_steps=1).fit(task, ShuffledBatches(split, 2, seed=0), Batches(split, 2))
    with pytest.raises(DataError, match=sentence):
        trainer(tmp_path).test(task, Batches(split, 2), verbose=False)


@pytest.mark.parametrize("part", ["posterior", "decoder"])
@pytest.mark.parametrize(
    ("label", "named"), [(-1, "loss = nan, elbo = nan"), (0, "loss = nan, labelled_elbo = nan")], ids=["none", "label"]
)
def test_a_loss_that_is_not_finite_names_the_bound_that_is(part, label, named, tmp_path):
    task = semi_supervised()
    next(getattr(task.model, part).parameters()).data.fill_(math.nan)
    split = Split(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.full((2,), label))
    with pytest.raises(NonFiniteLossError, match=rf"not finite at step 0 \(tau = 1\), with {named}: a lower"):
        trainer(tmp_path, max_steps=1).fit(task, ShuffledBatches(split, 2, seed=0), Batches(split, 2))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"latent_size": 0}, "latent_size must be at least 1, got 0"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"channels": [4, 0]}, r"channels\[1\] must be at least 1, got 0"),
        ({"channels": [4, 4, 4]}, r"image_size\[0\] must be a multiple of 8 for 3 convolutions, got 4"),
        ({"dropout": 1.5}, r"dropout must be in \[0, 1\], got 1.5"),
        ({"alpha": 0.0}, "alpha must be a positive finite number, got 0.0"),
        ({"activation": "Tan"}, "activation must be the name of a module of torch.nn"),
    ],
)
def test_bad_sizes_get_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        semi_supervised(**changes)


@each("labels", [[0, 1, 2, -1, -1, 1], [-1] * 6, [0, 1, 2, 0, 1, 2]])
def test_where_labels_cannot_be_read_the_terms_are_the_same(labels, monkeypatch):
    model = semi_supervised().model.eval()
    x, y = torch.rand(6, 4, 4), torch.tensor(labels)
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape))  # the posterior's mean
    expected = model.loss_terms(x, y, Enumeration(), 1.0)
    monkeypatch.setattr(module, "readable", lambda _: False)
    actual = model.loss_terms(x, y, Enumeration(), 1.0)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value)
