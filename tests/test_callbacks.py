import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cat_vae import cat_vae, loaders, trainer

from taugrad.callbacks import (
    Pictures,
    Progress,
    RandomStates,
    SaveConfig,
    Scalars,
)

ONE = SimpleNamespace(world_size=1)


def draws():
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def test_random_states_restore_python_numpy_and_torch_when_training_starts():
    states = RandomStates()
    saved = states.state_dict()
    expected = draws()
    restored = RandomStates()
    restored.load_state_dict(saved)
    assert draws() != expected  # not yet
    restored.on_train_start(ONE)
    assert draws() == expected
    restored.on_train_start(ONE)
    assert draws() != expected  # once


def test_random_states_are_safe_to_load(tmp_path):
    torch.save(RandomStates().state_dict(), tmp_path / "states")
    loaded = torch.load(tmp_path / "states", weights_only=True)
    expected = draws()
    states = RandomStates()
    states.load_state_dict(loaded)
    states.on_train_start(ONE)
    assert draws() == expected


def test_a_checkpoint_carries_the_config(tmp_path):
    config = {"model": {"latents": 3}, "seed": 0}
    run = trainer(tmp_path, SaveConfig(config), max_steps=1)
    run.fit(cat_vae(), *loaders())
    run.save_checkpoint(tmp_path / "c.ckpt")
    assert torch.load(tmp_path / "c.ckpt", weights_only=True)["config"] == config


def test_tensorboard_shows_scalars_images_and_histograms(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard", default_hp_metric=False)
    callbacks = (Scalars(), Pictures())
    run = trainer(tmp_path, *callbacks, logger=logger, max_steps=39, log_every_n_steps=3)
    run.fit(cat_vae(), *loaders(stack=4))
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    training = {"train/loss", "train/elbo", "train/reconstruction", "train/kl", "train/grad_norm", "tau"}
    validation = {"val/loss", "val/elbo", "val/reconstruction", "val/kl", "val/code_perplexity", "val/active_codes"}
    assert training | validation | {"train/steps_per_second"} <= set(tags["scalars"])
    assert set(tags["images"]) == {"reconstruction", "prior_samples", "class_samples", "latent_traversal"}
    assert set(tags["histograms"]) == {"codes/perplexity_per_latent", "codes/active_per_latent"}
    model = run.lightning_module
    for event in events.Scalars("tau"):
        assert event.value == pytest.approx(model.tau(event.step - 1))
    assert [event.step for event in events.Scalars("train/loss")] == [12, 21, 30, 39]  # optimizer steps
    assert [event.step for event in events.Scalars("val/loss")] == [13, 26, 39]
    assert all(event.value > 0 for event in events.Scalars("train/steps_per_second"))


def test_steps_per_second_leaves_validation_out(tmp_path):
    class Slow(Callback):
        def on_validation_end(self, *_):
            time.sleep(1.0)

    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard", default_hp_metric=False)
    run = trainer(tmp_path, Scalars(), Slow(), logger=logger, max_steps=39, log_every_n_steps=5)
    run.fit(cat_vae(), *loaders())
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    speeds = [event.value for event in events.Scalars("train/steps_per_second")]
    assert min(speeds) > 5  # five steps and the second of sleep would be below


def test_a_progress_bar_counts_optimizer_steps_and_shows_loss_and_tau(tmp_path, capsys):
    run = trainer(tmp_path, Progress(every=10), enable_progress_bar=True, max_steps=39)
    run.fit(cat_vae(), *loaders(stack=4))
    run.test(cat_vae(), loaders()[1], verbose=False)
    out = capsys.readouterr().out
    assert "training" in out
    assert "39/39" in out
    assert "13/13" in out
    assert run.progress_bar_callback is not None
