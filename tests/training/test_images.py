"""`ImageTask`: a model of one's own, composed by hand, under a plain `lightning.Trainer`."""

from functools import partial

import lightning
import pytest
import torch
from helpers.images import cat_vae, images, loaders, semi_supervised, structured, task, token_prior, trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from taugrad import Constant, Enumeration, GumbelSoftmax, Linear, STGumbelSoftmax
from taugrad.commands import export
from taugrad.data.binarized_mnist import binarized_mnist
from taugrad.data.datamodule import ImageData
from taugrad.data.images import Split, Splits
from taugrad.errors import ConfigError, DataError, NonFiniteLossError
from taugrad.models.cat_vae import CatVAE
from taugrad.rl.multilinear import MultilinearActorCritic
from taugrad.rl.rollouts import Collection
from taugrad.training.images import ImageTask
from taugrad.training.policies import PolicyTask
from taugrad.training.tensorboard import Pictures, Scalars


class Own(nn.Module):
    """The one method that a model needs, and nothing more."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 6), nn.Linear(6, 16)
        self.seen = []

    def loss_terms(self, x, labels, estimator, tau):
        logits = self.encoder(x.flatten(1)).unflatten(-1, (2, 3))
        f = lambda z: -(self.error(x, z))  # noqa: E731
        loss = -estimator.expectation(f, logits, tau).mean()
        return {"loss": loss, "entropy": torch.special.entr(logits.softmax(-1)).sum(-1).mean()}

    def error(self, x, z):
        self.seen.append((self.training, z.detach()))
        return (self.decoder(z.flatten(-2)).sigmoid() - x.flatten(1)).square().sum(-1)


def weights(module):
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach()


def test_a_model_with_loss_terms_alone_trains_validates_and_tests(tmp_path):
    own = task(Own(), estimator=GumbelSoftmax(), tau=Constant(0.7))
    run = trainer(tmp_path, max_epochs=20)
    before = run.test(own, loaders()[1], verbose=False)[0]
    run.fit(own, *loaders(stack=13))
    assert {*own.metrics[:2], "val/entropy"} <= {*run.callback_metrics}
    after = run.test(own, loaders()[1], verbose=False)[0]
    assert {*before} == {"test/loss", "test/entropy"}
    assert after["test/loss"] < before["test/loss"]
    assert run.test(own, loaders()[1], verbose=False)[0] == after
    relaxed = [z for training, z in own.model.seen if training]
    hard = [z for training, z in own.model.seen if not training]
    assert all(((z > 0) & (z < 1)).any() for z in relaxed)
    assert all(((z == 0) | (z == 1)).all() for z in hard)


def test_its_validation_repeats_and_leaves_the_training_as_it_was(tmp_path):
    ends, validated = [], []
    for limit in (1.0, 0):
        torch.manual_seed(3)
        own = task(Own())
        run = trainer(tmp_path, max_steps=30, limit_val_batches=limit)
        run.fit(own, *loaders())
        ends.append((weights(own), torch.get_rng_state()))
        validated.append("val/loss" in run.callback_metrics)
        first, second = (trainer(tmp_path).validate(own, loaders()[1], verbose=False)[0] for _ in range(2))
        assert first == second
    assert validated == [True, False]
    for with_validation, without in zip(*ends, strict=True):
        assert torch.equal(with_validation, without)


def test_what_it_does_not_have_is_not_asked_of_it(tmp_path):
    own = task(Own())
    assert own.input_size == ()
    assert own.metrics == ("train/epoch_loss", "val/loss", "test/loss")
    assert "val/code_perplexity" in cat_vae().metrics
    assert own.pictures(torch.rand(3, 4, 4), torch.zeros(3)) == {}
    with pytest.raises(ConfigError, match=r"^Own cannot be exported: it has no greedy$"):
        own.greedy(torch.rand(3, 4, 4))
    with pytest.raises(RuntimeError, match="code_usage needs a validation epoch before it, of a model with"):
        own.code_usage()
    logger = TensorBoardLogger(tmp_path, name="", version="board", default_hp_metric=False)
    trainer(tmp_path, Scalars(), Pictures(), logger=logger, max_steps=13, log_every_n_steps=1).fit(
        own, *loaders(stack=13)
    )
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert {"train/loss", "train/entropy", "val/loss", "val/entropy", "tau"} <= {*events.Tags()["scalars"]}
    assert (events.Tags()["images"], events.Tags()["histograms"]) == ([], [])


def test_a_model_of_a_part_that_can_be_exported_names_it():
    with pytest.raises(
        ConfigError, match=r"^TokenPrior cannot be .* no greedy; its tokenizer has: export a run of that$"
    ):
        token_prior().greedy(torch.rand(3, 4, 4))


def test_images_that_do_not_fit_a_model_without_an_argument_for_them_are_what_must_change():
    data = ImageData(lambda: Splits(*[Split(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.zeros(9))] * 3))
    own = Own()
    own.image_size = (4, 4)
    for other, name in ((token_prior(), "TokenPrior"), (task(own), "Own")):
        with pytest.raises(
            ConfigError, match=rf"^the data's images must be \[4, 4\], the size that {name} takes, got \[3, 8"
        ):
            other.check_data(data)


def test_its_export_by_the_command_ends_in_a_sentence(tmp_path, monkeypatch):
    own = task(Own())
    data = ImageData(lambda: Splits(images(), images(), images()), 10, 10)
    monkeypatch.setattr(export, "load_run", lambda *_: (own, data, {}))
    with pytest.raises(ConfigError, match=r"^Own cannot be exported: it has no greedy$"):
        export.export(OmegaConf.create({"run": str(tmp_path), "out": str(tmp_path / "a.pt2")}))


@pytest.mark.filterwarnings("ignore:.*ModelCheckpoint.*:UserWarning")
def test_a_vae_composed_by_hand_trains_under_a_plain_trainer_on_the_embedded_digits(tmp_path):
    steps = 20
    small = {"encoder": (32,), "decoder": (32,), "nll_samples": 5}
    model = CatVAE(latents=20, **small)
    adam = partial(torch.optim.Adam, lr=1e-3)
    composed = ImageTask(model, STGumbelSoftmax(), Linear(1.0, 0.5, steps=steps), adam, Constant(1.0))
    data = ImageData(binarized_mnist, seed=0)
    plain = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=2,
        limit_test_batches=2,
        default_root_dir=tmp_path,
    )
    (before,) = plain.test(composed, data, verbose=False)
    plain.fit(composed, data)
    (after,) = plain.test(composed, data, verbose=False)
    assert plain.global_step == steps
    assert after["test/loss"] < before["test/loss"] - 50
    assert {name for name in composed.metrics if name.startswith("test/")} <= {*after}
    assert composed.greedy(torch.zeros(2, 28, 28)).shape == (2, 20)


class NoLoss(nn.Module):
    """A module, and no model."""


class NoModule:
    """A loss, and no module."""

    def loss_terms(self, x, labels, estimator, tau):
        return {}


@pytest.mark.parametrize(
    ("argument", "value", "sentence"),
    [
        ("model", NoLoss(), "model must be an nn.Module with loss_terms, got NoLoss"),
        ("model", NoModule(), "model must be an nn.Module with loss_terms, got NoModule"),
        ("model", CatVAE, "model must be an nn.Module with loss_terms, got type"),
        ("model", None, "model must be an nn.Module with loss_terms, got NoneType"),
        ("estimator", "reinmax", r"estimator must be an Estimator, such as STGumbelSoftmax\(\), got 'reinmax'"),
        ("estimator", STGumbelSoftmax, r"estimator must be an Estimator, such as STGumbelSoftmax\(\), got <class"),
        ("tau", 0.5, r"tau must be a schedule, a function from a step to a number, such as Constant\(1.0\), got 0.5"),
        ("tau", Linear, "tau must be a schedule, a function from a step to a number, .* got <class"),
        ("lr_factor", 1.0, "lr_factor must be a schedule, a function from a step to a number, .* got 1.0"),
        ("optimizer", 1e-3, "optimizer must be a function from parameters to an optimizer, such as .* got 0.001"),
        (
            "optimizer",
            torch.optim.Adam([torch.zeros(1, requires_grad=True)]),
            r"optimizer must be a function from parameters to an optimizer, such as partial\(torch.optim.Adam, lr",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_a_part_that_does_not_fit_gets_a_sentence(argument, value, sentence):
    with pytest.raises(TypeError, match=f"^{sentence}"):
        task(**{"model": Own()} | {argument: value})


def test_a_policy_s_task_takes_no_class_of_algorithms():
    with pytest.raises(TypeError, match=r"^model must be an Algorithm, such as PPO\(\), got <class"):
        PolicyTask(None, MultilinearActorCritic, Collection(100), None, torch.optim.Adam, Constant(1.0))


@pytest.mark.parametrize("small", [cat_vae, structured])
def test_an_enumeration_of_too_many_codes_is_refused_when_the_task_is_built(small):
    with pytest.raises(ValueError, match=r"latents of 3 classes have 3\^.* configurations"):
        small(latents=30, categories=3, estimator=Enumeration())


def test_labels_and_sizes_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path):
    many = Split(images().images, torch.arange(130) % 4)
    data = ImageData(lambda: Splits(many, many, many), 10, 10)
    own = semi_supervised(classes=3)
    own.model.loss_terms = None  # never called
    with pytest.raises(DataError, match=r"labels must be in 0 to 2, or -1 for none, got 0 to 3: model.classes must be"):
        trainer(tmp_path, max_steps=1).fit(own, data)
    wide = cat_vae(image_size=[4, 5])
    with pytest.raises(ConfigError, match=r"^model.image_size must be \[4, 4\], the size of the data's images, got \["):
        trainer(tmp_path, max_steps=1).fit(wide, data)


class Diverging(Own):
    """Some of its terms are NaN or infinite."""

    def loss_terms(self, x, labels, estimator, tau):
        terms = super().loss_terms(x, labels, estimator, tau)
        bad = {"penalty": torch.tensor(torch.inf), "rate": terms["entropy"] * torch.nan}
        return terms | bad | {"loss": terms["loss"] + bad["penalty"]}


def test_every_term_that_is_not_finite_is_named_with_step_and_tau(tmp_path):
    sentence = (
        r"^the loss is not finite at step 0 \(tau = 0.7\), with loss = inf, penalty = inf, rate = nan: "
        "a lower learning rate or a higher tau usually helps$"
    )
    with pytest.raises(NonFiniteLossError, match=sentence):
        trainer(tmp_path, max_steps=1).fit(task(Diverging(), tau=Constant(0.7)), *loaders())


class Refusing(Own):
    """Raises an error of its own."""

    def loss_terms(self, x, labels, estimator, tau):
        raise ValueError("logits of mine")


def test_a_model_s_own_error_is_passed_on(tmp_path):
    with pytest.raises(ValueError, match=r"^logits of mine$"):
        trainer(tmp_path, max_steps=1).fit(task(Refusing()), *loaders())
