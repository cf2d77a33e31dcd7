import math
from functools import partial

import pytest
import torch
from helpers.images import ESTIMATORS, Losses, cat_vae, first_and_last_loss, images, loaders, trainer
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from taugrad import Constant, Enumeration, GumbelSoftmax, estimators
from taugrad.bounds import elbo
from taugrad.data.images import Split
from taugrad.errors import NonFiniteLossError
from taugrad.estimators import configurations
from taugrad.models.pictures import grid
from taugrad.ops.categorical import bernoulli_log_prob, log_prob
from taugrad.training.checkpoints import RandomStates


def weights(module):
    return torch.nn.utils.parameters_to_vector(module.parameters())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_training_lowers_the_loss_with_every_estimator(name, tmp_path):
    few = {"draws": 5} if name == "GumbelRao" else {}
    fast = partial(torch.optim.Adam, lr=3e-2, fused=True)
    task = cat_vae(estimator=getattr(estimators, name)(**few), lr_factor=Constant(1.0), optimizer=fast)
    x = torch.zeros(50, 4, 4, dtype=torch.uint8)
    x[:25, :2], x[25:, 2:] = 255, 255  # two images: 0.69 nats
    first, last = first_and_last_loss(task, x, tmp_path, steps=80)
    assert last < first / 2  # a third of it at most, of two seeds of five estimators


def test_the_training_loss_is_minus_the_elbo():
    model = cat_vae().model.double()
    x = torch.randint(2, (7, 4, 4)).double()
    logits = model.encode(x)
    z = configurations(logits)
    pixels = model.decode(z)
    reconstruction = Enumeration().expectation(lambda z: bernoulli_log_prob(pixels, x.flatten(1)), logits)
    expected = -elbo(reconstruction, logits).mean()
    terms = model.loss_terms(x, torch.zeros(7), Enumeration(), 1.0)
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(terms["kl"] - terms["reconstruction"], expected)


def test_the_tested_bound_approaches_the_enumerated_likelihood_from_below(tmp_path):
    task = cat_vae(nll_samples=500)
    data = loaders()[1]
    metrics = trainer(tmp_path).test(task, data, verbose=False)[0]
    log_px = []
    for x, _ in data:
        z = configurations(torch.zeros(len(x), 3, 4))
        log_px.append(torch.logsumexp(task.model.log_likelihood(x, z), 0) - 3 * math.log(4))
    nll = -torch.cat(log_px).mean().item()
    assert nll < metrics["test/nll"] < nll + 0.05
    assert metrics["test/nll"] < metrics["test/loss"]
    assert metrics["test/nll_samples"] == 500
    assert metrics["test/loss"] == -metrics["test/elbo"]
    assert metrics["test/elbo"] == pytest.approx(metrics["test/reconstruction"] - metrics["test/kl"], rel=1e-5)


def test_evaluation_is_discrete_repeatable_and_leaves_the_random_state_alone(tmp_path):
    task = cat_vae(estimator=GumbelSoftmax())
    seen = []
    task.model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    before = torch.get_rng_state()
    metrics = [trainer(tmp_path).test(task, loaders()[1], verbose=False)[0] for _ in range(2)]
    assert metrics[0] == metrics[1]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(((z == 0) | (z == 1)).all() for z in seen)


def test_elbo_plus_kl_to_the_posterior_is_the_log_evidence():
    model = cat_vae().model.double()
    x = torch.randint(2, (7, 4, 4)).double()
    logits = model.encode(x)
    z = configurations(logits)
    log_joint = model.log_likelihood(x, z) - 3 * math.log(4)
    log_evidence = log_joint.logsumexp(0)
    log_q = log_prob(logits, z).sum(-1)
    gap = (log_q.exp() * (log_q - (log_joint - log_evidence))).sum(0)
    elbo = model.loss_terms(x, torch.zeros(7), Enumeration(), 1.0)["elbo"]
    torch.testing.assert_close(elbo + gap.mean(), log_evidence.mean(), rtol=0, atol=1e-10)


def test_pictures_have_a_row_a_class_and_a_row_a_latent_and_repeat():
    model = cat_vae().model
    split = images(40)
    x, labels = split.images / 255, torch.arange(40) % 5
    a, b = (model.pictures(x, labels) for _ in range(2))
    sizes = {"reconstruction": (4 * 2 * 4, 10 * 4), "prior_samples": (5 * 4, 10 * 4)}
    sizes |= {"class_samples": (5 * 4, 10 * 4), "latent_traversal": (3 * 4, 4 * 4)}
    assert {name: tuple(picture.shape) for name, picture in a.items()} == sizes
    for name, picture in a.items():
        assert torch.equal(picture, b[name])
        assert ((picture >= 0) & (picture <= 1)).all()
    assert torch.equal(a["reconstruction"][:4], grid(x[:10].unsqueeze(0)))
    assert torch.equal(a["reconstruction"][8:12], grid(x[10:20].unsqueeze(0)))


def test_code_usage_is_all_codes_for_a_uniform_q_and_one_for_a_constant_code(tmp_path):
    task = cat_vae()
    head = task.model.encoder[-1]
    with torch.no_grad():
        head.weight.zero_()
        for bias, perplexity, active in ((torch.zeros(12), 4.0, 4.0), (torch.tensor([50.0, 0, 0, 0] * 3), 1.0, 1.0)):
            head.bias.copy_(bias)
            metrics = trainer(tmp_path).validate(task, loaders()[1], verbose=False)[0]
            assert metrics["val/code_perplexity"] == pytest.approx(perplexity, abs=1e-4)
            assert metrics["val/active_codes"] == active


def test_tau_and_the_learning_rate_follow_from_the_step(tmp_path):
    losses = Losses()
    task = cat_vae()
    trainer(tmp_path, losses, max_steps=30).fit(task, *loaders())
    for step, (_, tau, lr, _) in losses.losses.items():
        assert tau == task.tau(step)
        assert lr == pytest.approx(1e-2 * task.lr_factor(step))


def test_a_stack_of_batches_is_as_many_optimizer_steps_as_batches(tmp_path):
    one, stacked = Losses(), Losses()
    for losses, stack in ((one, 1), (stacked, 4)):
        torch.manual_seed(1)
        trainer(tmp_path, losses, max_steps=30).fit(cat_vae(), *loaders(stack=stack))
    assert list(one.losses) == list(range(30))
    assert stacked.losses == one.losses


@pytest.mark.filterwarnings("ignore:.* does not have many workers")
def test_a_batch_of_an_ordinary_loader_is_one_step(tmp_path):
    split = images()
    ordinary = DataLoader(TensorDataset(split.images.float() / 255, split.labels), batch_size=10)
    losses = Losses()
    run = trainer(tmp_path, losses, max_epochs=2)
    run.fit(cat_vae(), ordinary, loaders()[1])
    assert run.global_step == len(losses.losses) == 26


def checkpoints_every(steps, tmp_path):
    return ModelCheckpoint(
        tmp_path / "c", "{step}", every_n_train_steps=steps, save_top_k=-1, auto_insert_metric_name=False
    )


def resumes_in_its_directory(test):
    """Lightning warns of a directory in use, and that a checkpoint of manual optimization is as of after the step."""
    for warning in ("Checkpoint directory .* exists", "Using ModelCheckpoint with manual optimization"):
        test = pytest.mark.filterwarnings(f"ignore:{warning}:UserWarning")(test)
    return test


@resumes_in_its_directory
@pytest.mark.parametrize(
    ("stop", "stack"), [(7, 1), (13, 1), (20, 1), (21, 4)]
)  # in the middle of the first epoch, at its end, in the second; test_stopping.py has more, in stacks of four
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(stop, stack, tmp_path):
    whole, rest = Losses(), Losses()
    torch.manual_seed(1)
    uninterrupted = cat_vae()
    trainer(tmp_path, whole, RandomStates(), checkpoints_every(stop, tmp_path), max_steps=40).fit(
        uninterrupted, *loaders(stack=stack)
    )
    torch.manual_seed(2)
    resumed = cat_vae()
    trainer(tmp_path, rest, RandomStates(), checkpoints_every(stop, tmp_path), max_steps=40).fit(
        resumed, *loaders(stack=stack), ckpt_path=tmp_path / "c" / f"{stop}.ckpt", weights_only=True
    )
    assert list(rest.losses) == list(range(stop, 40))
    assert rest.losses == {step: whole.losses[step] for step in rest.losses}
    for a, b in zip(uninterrupted.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@resumes_in_its_directory
def test_without_the_random_states_the_resumed_run_differs(tmp_path):
    whole, rest = Losses(), Losses()
    for losses, start in ((whole, None), (rest, tmp_path / "c" / "7.ckpt")):
        trainer(tmp_path, losses, checkpoints_every(7, tmp_path), max_steps=10).fit(
            cat_vae(), *loaders(), ckpt_path=start, weights_only=True
        )
    assert rest.losses[7][1:] == whole.losses[7][1:]  # tau, the learning rate and the batch are right
    assert rest.losses[7] != whole.losses[7]  # the noise is not


def test_a_checkpoint_reloads_safely_into_a_task_of_the_same_parts(tmp_path):
    task = cat_vae()
    run = trainer(tmp_path, max_steps=3)
    run.fit(task, *loaders())
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = cat_vae()
    assert not torch.equal(weights(again), weights(task))
    again.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(weights(again), weights(task))


@pytest.mark.parametrize(
    ("layer", "named"),
    [("encoder", "logits that are not finite"), ("decoder", "loss = nan, elbo = nan, reconstruction = nan")],
)
def test_a_loss_that_is_not_finite_stops_training_and_names_its_terms_step_and_tau(layer, named, tmp_path):
    class Break(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5:
                getattr(pl_module.model, layer)[-1].bias.data.fill_(math.nan)

    sentence = rf"^the loss is not finite at step 5 \(tau = 0.95\), with {named}: a lower learning rate or a higher tau"
    with pytest.raises(NonFiniteLossError, match=sentence):
        trainer(tmp_path, Break(), max_steps=10).fit(cat_vae(), *loaders())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"categories": 1}, "categories must be at least 2, got 1"),
        (
            {"latents": 30, "estimator": Enumeration()},
            r"30 latents of 4 classes have 4\^30 configurations",
        ),
        ({"latents": 0}, "latents must be at least 1, got 0"),
        ({"latents": -3}, "latents must be at least 1, got -3"),
        ({"encoder": [16, 0]}, r"encoder\[1\] must be at least 1, got 0"),
        (
            {"activation": "relu6x"},
            "activation must be the name of a module of torch.nn, such as ReLU or SiLU, got relu6x",
        ),
        ({"nll_samples": 0}, "nll_samples must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"image_size": [4, 0]}, r"image_size\[1\] must be at least 1, got 0"),
    ],
)
def test_bad_sizes_get_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        cat_vae(**changes)


def test_a_centred_model_starts_at_the_mean_of_its_first_images_once(tmp_path):
    split = Split(images().images.clone(), images().labels)
    split.images[:, 0, 0] = 0  # never on, which is rare and not impossible
    train, val = loaders(split, stack=13)
    mean = split.images.flatten(1).float().mean(0) / 255
    still = partial(torch.optim.SGD, lr=0.0)  # leaves the start as it is
    task = cat_vae(centred=True, optimizer=still)
    first = trainer(tmp_path, max_steps=13)
    first.fit(task, train, val)
    first.save_checkpoint(tmp_path / "last.ckpt")
    torch.testing.assert_close(task.model.mean, mean)
    torch.testing.assert_close(task.model.decoder[-1].bias.sigmoid(), mean.clamp(min=1e-3))
    x = torch.rand(5, 4, 4)
    torch.testing.assert_close(task.model.encode(x).flatten(1), task.model.encoder(x.flatten(1) - mean))

    resumed = cat_vae(centred=True, optimizer=still)
    other = loaders(Split(255 - split.images, split.labels), stack=13)  # of which it takes no mean
    trainer(tmp_path, max_steps=26).fit(resumed, *other, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    torch.testing.assert_close(resumed.model.mean, mean)

    plain = cat_vae().model
    before = plain.decoder[-1].bias.detach().clone()
    plain.start(torch.rand(4, 4))
    assert torch.equal(plain.decoder[-1].bias, before)
    assert "mean" not in plain.state_dict()
