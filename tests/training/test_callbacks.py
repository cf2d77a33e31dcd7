import random
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.images import cat_vae, loaders, trainer
from lightning import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from taugrad.data.batches import Batches
from taugrad.data.images import Split
from taugrad.training import progress
from taugrad.training.checkpoints import RandomStates, SaveConfig
from taugrad.training.progress import Progress, _Lines
from taugrad.training.tensorboard import Pictures, Scalars

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
    config = {"task": {"model": {"latents": 3}}, "seed": 0}
    run = trainer(tmp_path, SaveConfig(config), max_steps=1)
    run.fit(cat_vae(), *loaders())
    run.save_checkpoint(tmp_path / "c.ckpt")
    assert torch.load(tmp_path / "c.ckpt", weights_only=True)["config"] == config


def test_pictures_are_made_of_images_of_the_whole_validation_split(tmp_path):
    model, seen = cat_vae(), []
    model.model.pictures = lambda x, labels: seen.append(labels.tolist()) or {}
    images = torch.zeros(100, 4, 4, dtype=torch.uint8)
    validation = Batches(Split(images, torch.arange(100) // 10), 5)
    logger = TensorBoardLogger(tmp_path, name="", version="board")
    run = trainer(tmp_path, Pictures(20), logger=logger, max_steps=1, log_every_n_steps=1)
    run.fit(model, loaders()[0], validation)
    assert {*seen[0]} == {*range(10)}


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
    assert [event.step for event in events.Images("reconstruction")] == [13, 26, 39]  # the last not twice
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


def progress_of(tmp_path, capsys, **arguments):
    """Output of a run of 39 steps and its test."""
    best = ModelCheckpoint(tmp_path, monitor="val/loss")
    run = trainer(tmp_path, Progress(every=10), best, enable_progress_bar=True, max_steps=39, **arguments)
    run.fit(cat_vae(), *loaders(stack=4))
    run.test(cat_vae(), loaders()[1], verbose=False)
    return capsys.readouterr().out


def test_a_terminal_gets_a_bar_that_counts_optimizer_steps_and_shows_loss_and_tau(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", progress_of(tmp_path, capsys, log_every_n_steps=2))
    for shown in ("training ━", "39/39", "train/loss", "tau", "13/13"):
        assert shown in out


def test_a_log_file_gets_plain_lines_at_tenths_and_validations(tmp_path, capsys):
    out = progress_of(tmp_path, capsys, log_every_n_steps=2)
    assert all(character.isprintable() or character == "\n" for character in out)
    lines = out.splitlines()
    counted = [int(match[1]) for line in lines if (match := re.match(r"training (\d+)/39 ", line))]
    assert counted == [4, 8, 12, 13, 17, 21, 25, 26, 30, 34, 38, 39]  # stacks of four steps, an epoch of 13
    assert re.fullmatch(r"training 4/39  \S+ steps/s  \d:\d\d:\d\d left", lines[0])
    metrics = r"train/loss \S+  tau \S+  val/loss \S+"
    assert re.fullmatch(rf"training 39/39  {metrics}  \S+ steps/s  \d:\d\d:\d\d in all", lines[11])
    assert [line for line in lines if line.startswith("test")] == [lines[-1]]
    assert lines[-1].startswith("test 13/13 ")


def test_a_slow_training_gets_a_line_after_half_a_minute_and_frequent_validations_few(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    lines = _Lines(Console(), "job 3: training", 1_000_000, 0, 10)
    now = 29.0
    assert not lines.due(10)
    now = 31.0
    assert lines.due(10)
    lines.show(10, "tau 1")
    assert capsys.readouterr().out == "job 3: training 10/1000000  tau 1  0.3226 steps/s  35 days, 21:06:09 left\n"
    lines.evaluated = True
    assert not lines.due(5_000)
    assert lines.due(10_010)


def test_processes_other_than_the_first_print_no_progress(capsys):
    progress = Progress()
    trainer = SimpleNamespace(is_global_zero=False, lightning_module=SimpleNamespace(clock=lambda: (10, 10)))
    progress.setup(trainer, None, "fit")
    progress.on_train_start(trainer)
    progress.on_train_batch_start(trainer)
    assert capsys.readouterr().out == ""


def test_a_training_without_a_validation_has_pictures_of_its_end_and_curves(tmp_path):
    class Data(LightningDataModule):
        def train_dataloader(self):
            return loaders(stack=4)[0]

        def val_dataloader(self):
            return loaders()[1]

    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard", default_hp_metric=False)
    run = trainer(tmp_path, Scalars(), Pictures(), logger=logger, max_steps=7, log_every_n_steps=4)
    run.fit(cat_vae(), Data())
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("reconstruction")] == [7]
    assert [event.step for event in events.Scalars("train/loss")] == [7]
    assert [event.step for event in events.Scalars("tau")] == [7]
