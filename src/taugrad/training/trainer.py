"""Lightning's trainer in a run: its arguments, the ones that are refused, and the run's report."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from taugrad import __version__
from taugrad.config import Config, in_sweep, instantiate
from taugrad.data.datamodule import ImageData
from taugrad.errors import ConfigError
from taugrad.files import writing
from taugrad.ops._torch import unscales_gradients
from taugrad.training import checkpoints, hyperparameters
from taugrad.training.gradient_probe import GradientProbe
from taugrad.training.images import ImageTask
from taugrad.training.task import Task
from taugrad.training.tensorboard import Film

_FOLLOWS = {  # a trainer's arguments that are set here, and their sources
    "callbacks": "the group callbacks",
    "logger": "the group logger",
    "default_root_dir": "the run's directory",
    "enable_checkpointing": "the ModelCheckpoints among the callbacks",
    "model_registry": "the ModelCheckpoints among the callbacks",
}
_POSITIVE = (  # a trainer's arguments that must be more than 0
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "val_check_interval"),
    *("check_val_every_n_epoch", "gradient_clip_val"),
)


def check_limits(trainer: Config) -> None:
    """Refuse arguments of a trainer that leave nothing to do, or that are set here."""
    for name, cause in _FOLLOWS.items():
        if trainer.get(name) is not None:
            raise ConfigError(f"trainer.{name} cannot be set: it follows from {cause}")
    if trainer.get("barebones"):
        raise ConfigError("trainer.barebones must be false, as it logs nothing of what a run reports")
    for name in _POSITIVE:
        amount = trainer.get(name)
        if isinstance(amount, (int, float)) and amount <= 0:
            raise ConfigError(f"trainer.{name} must be more than 0, got {amount}")
    if (every := trainer.get("log_every_n_steps")) is not None and every < 0:
        raise ConfigError(f"trainer.log_every_n_steps must be at least 0, got {every}")


def check_callbacks(callbacks: list[Callback], task: Task) -> None:
    """Refuse a callback that monitors a metric which no evaluation during training reports, or cannot probe or film."""
    evaluated = {name.partition("/")[0] for name in task.metrics} - {"train"}
    known = [name for name in task.metrics if not name.startswith(("test/", "best/"))]
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in known and monitor.partition("/")[0] in evaluated:
            name = type(callback).__name__
            raise ConfigError(f"monitor of callback {name} must be one of {', '.join(known)}, got {monitor}")
        if isinstance(callback, (GradientProbe, Film)):
            callback.check(task)


def check_optimization(trainer: Trainer, given: Config, task: Task) -> None:
    """Take over gradient clipping from the trainer, and refuse arguments that the tasks' own steps do not support."""
    if given.get("accumulate_grad_batches", 1) != 1:
        raise ConfigError(
            "trainer.accumulate_grad_batches must be 1, as every batch is an optimizer step: batch_size makes larger "
            f"ones, got {given['accumulate_grad_batches']}"
        )
    for name in ("overfit_batches", "reload_dataloaders_every_n_epochs"):
        if value := given.get(name):
            other = ": trainer.limit_train_batches limits an epoch" if name == "overfit_batches" else ""
            raise ConfigError(f"trainer.{name} must be 0, as every epoch has an order of its own{other}, got {value}")
    environment = getattr(trainer.strategy, "cluster_environment", None)
    started = environment is not None and (environment.creates_processes_externally or "NODE_RANK" in os.environ)
    if given.get("num_nodes", 1) != 1 and not started:  # it would wait for the others
        raise ConfigError(
            "trainer.num_nodes must be 1 where neither SLURM nor torchrun starts the processes of all nodes, "
            f"got {given['num_nodes']}"
        )
    if trainer.gradient_clip_val is None:
        return
    if not isinstance(task, ImageTask):
        raise ConfigError(
            "trainer.gradient_clip_val is for models of images: a policy clips by arguments of its own, such as "
            f"model.actor_clip or model.max_grad_norm, got {trainer.gradient_clip_val}"
        )
    if trainer.scaler is not None and unscales_gradients(task.configure_optimizers()):
        raise ConfigError("trainer.gradient_clip_val with trainer.precision=16-mixed needs optimizer.fused=false")
    task.gradient_clip_val, trainer.gradient_clip_val = trainer.gradient_clip_val, None


def check_processes(trainer: Trainer, given: Config, task: Task, data: LightningDataModule | None) -> None:
    """Refuse several processes where they would train on the same data, on shares of unlike sizes or configs."""
    if trainer.world_size == 1:
        return
    several = f"{trainer.world_size} processes"
    if not isinstance(task, ImageTask):
        raise ConfigError(f"trainer.devices must be 1 for {type(task).__name__}, got {several}")
    if given.get("strategy", "auto") not in ("auto", "ddp"):
        raise ConfigError(f"trainer.strategy must be ddp for {several}, got {given['strategy']}")
    if in_sweep():
        # Lightning starts the whole command line again for each process: another sweep, not another part of this job.
        raise ConfigError(f"trainer.devices must be 1 in a sweep, whose jobs are one process each, got {several}")
    if isinstance(data, ImageData):
        data.check_shares(trainer.world_size)


def check_test(data: LightningDataModule | None, given: Config) -> None:
    """Refuse a share of the test's batches that rounds to none, which Lightning detects only after the training."""
    limit = given.get("limit_test_batches")
    if not isinstance(limit, float) or limit == 1.0:
        return
    batches = 1  # a policy has one
    if data is not None:
        data.prepare_data()
        data.setup("test")
        batches = len(data.test_dataloader())
    if int(limit * batches) < 1:
        raise ConfigError(f"trainer.limit_test_batches must leave one of the {batches} batches, got {limit}")


def build_trainer(config: Config, directory: str, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    """Build the trainer of a partial config, with checkpoints that are whole files; ConfigError if it is refused."""
    parts: Config = {"callbacks": callbacks, "logger": loggers, "default_root_dir": directory}
    parts["enable_checkpointing"] = any(isinstance(c, Checkpoint) for c in callbacks)
    parts["enable_progress_bar"] = any(isinstance(c, ProgressBar) for c in callbacks)
    try:
        call = instantiate(config)
        given = call.keywords.get("plugins") or []
        plugins = [*(given if isinstance(given, list) else [given]), checkpoints.WholeCheckpoints()]
        return call(plugins=plugins, **parts)
    except (TypeError, ValueError, ImportError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def versions() -> dict[str, str]:
    """Return the versions that a run's figures depend on."""
    return {
        "versions/taugrad": __version__,
        "versions/torch": torch.__version__,
        "versions/lightning": lightning.__version__,
        "versions/python": platform.python_version(),
    }


@rank_zero_only
def log_hyperparameters(
    loggers: list[Logger], config: Mapping[str, Any], objectives: Sequence[str], metrics: dict[str, float]
) -> None:
    """Fill TensorBoard's HParams tab: hyperparameters next to metrics, the objective first."""
    reported = [name for name in ("test/nll", "test/accuracy") if name in metrics]  # in the docs' tables
    tested = [name for name in metrics if name.startswith("test/")]
    tags = {f"hp/{name}": metrics[name] for name in dict.fromkeys([*objectives, *reported, *tested, *metrics])}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_metrics(tags)
            for summary in hyperparameters.summaries(hyperparameters.chosen(config), list(tags)):
                logger.experiment._get_file_writer().add_summary(summary)
            logger.finalize("success")


def write_json(path: Path, metrics: dict[str, Any]) -> None:
    """Write a file of metrics, whole or not at all."""
    with writing(path):
        checkpoints.write_whole(path, (json.dumps(metrics, indent=2, sort_keys=True) + "\n").encode())


def print_metrics(console: Console, metrics: dict[str, float]) -> None:
    """Print a table of metrics: hundredths, of smaller ones two digits."""
    table = Table("metric", "value")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.2f}" if value == 0 or not abs(value) < 0.1 else f"{value:.2g}")
    console.print(table)
