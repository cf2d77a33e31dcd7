"""The command `taugrad train`: from a config to a trained and evaluated run.

A run's directory holds `.hydra/` (the config and its overrides), `checkpoints/best.ckpt` and `last.ckpt`,
`tensorboard/`, and `metrics.json`.
"""

import json
import math
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning import Callback, LightningDataModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from taugrad.config import Config, full_name, instantiate, keys_of, read
from taugrad.data.datamodule import ImageData
from taugrad.errors import ConfigError, TaugradError
from taugrad.files import writing
from taugrad.ops._fused import backend
from taugrad.sweeps.jobs import objectives
from taugrad.training import checkpoints, ownership, resuming
from taugrad.training import trainer as trainers
from taugrad.training.images import ImageTask
from taugrad.training.progress import ShowConfig
from taugrad.training.stopping import LastStep, Stopped, StopSignals
from taugrad.training.task import Task

T = TypeVar("T")

_CHECKPOINTED = ("task", "data", "seed")  # keys that the evaluation of a checkpoint needs
_LENGTH = "set trainer.max_steps, trainer.max_epochs or length, optimizer steps"


@dataclass(frozen=True)
class TrainConfig:
    """The keys of conf/train.yaml and their types."""

    task: Config
    trainer: Config
    seed: int
    objective: str | list[str]
    direction: str | list[str]  # direction of a sweep's objective
    run_dir: str
    length: int  # length of the training; schedules refer to it
    model: Config | None = None  # the task refers to this and to the eight below
    estimator: Config | None = None
    tau: Config | None = None
    kl_weight: Config | None = None
    likelihood: Config | None = None  # likelihood of a tokenizer
    optimizer: Config | None = None
    lr_factor: Config | None = None
    collection: Config | None = None
    evaluation: Config | None = None
    callbacks: Config | None = None
    logger: Config | None = None
    data: Config | None = None
    env: Config | None = None
    threads: int | None = None
    ckpt_path: str | None = None
    debug: bool = False


def train(config: DictConfig) -> float | list[float]:
    """Train, evaluate the last weights or the best, write `metrics.json`, print a table; return what `objective` names.

    Anything in the config that does not fit is a ConfigError before the training.
    """
    start = time.perf_counter()
    run = read(TrainConfig, config)
    with ownership.owned(Path(run.run_dir).absolute(), "run_dir", run.ckpt_path):
        return _train(run, config, start)


def _train(run: TrainConfig, config: DictConfig, start: float) -> float | list[float]:
    _check_amounts(run)
    if (longer := _with_steps(config, run)) is not config:
        config, run = longer, read(TrainConfig, longer)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
        os.environ["OMP_NUM_THREADS"] = str(run.threads)  # else Lightning sets the threads of several processes
    drawn_by = backend()  # the first call decides and logs it, before all else
    console = Console(quiet=os.environ.get("LOCAL_RANK", "0") != "0")  # only rank 0 prints
    task, data = _task_and_data(run)
    checkpoint = resuming.checkpoint(Path(run.run_dir), run.ckpt_path, partial(console.print, soft_wrap=True))
    if checkpoint is not None:
        resuming.check_resume(checkpoint, run.task, task, lambda key: keys_of(config).set_as(f"task.{key}"))
    callbacks, loggers = _parts("callbacks", run.callbacks, Callback), _parts("logger", run.logger, Logger)
    trainers.check_callbacks(callbacks, task)
    callbacks = [c for c in callbacks if run.trainer.get("enable_progress_bar", True) or not isinstance(c, ProgressBar)]
    show = ShowConfig(OmegaConf.to_yaml(config, resolve=True))
    saved = {key: getattr(run, key) for key in _CHECKPOINTED}
    last = Path(run.run_dir) / "checkpoints" / "last.ckpt"
    stop, along = StopSignals(last), resuming.BestComesAlong(last, partial(console.print, soft_wrap=True, markup=False))
    parts = [show, *callbacks, checkpoints.RandomStates(), checkpoints.SaveConfig(saved), along, stop]
    trainer = trainers.build_trainer(run.trainer, run.run_dir, parts, loggers)
    if trainer.checkpoint_callbacks:
        trainer.callbacks.append(LastStep(last))  # pyright: ignore  # after Lightning's own, which it puts last
    bars: list[Callback] = [c for c in callbacks if isinstance(c, ProgressBar)]
    evaluator = trainers.build_trainer(run.trainer, run.run_dir, bars, [])
    trainers.check_processes(trainer, run.trainer, task, data)
    trainers.check_optimization(trainer, run.trainer, task)
    trainers.check_test(data, run.trainer)

    try:
        with stop:
            if isinstance(data, ImageData) and isinstance(task, ImageTask):
                data.prepare_data()
                data.setup("fit")  # before a logger opens its file, so that a mended command may train there
                task.check_data(data)
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            ranked = (c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor)
            best = next((c.best_model_path for c in ranked), "")
            facts = task.results()
            if best and task.evaluated == "best":
                task.load_state_dict(checkpoints.load(Path(best))["state_dict"])
            results: dict[str, Any] = {k: v.item() for k, v in trainer.callback_metrics.items() if k in task.metrics}
            for evaluate_split in (evaluator.validate, evaluator.test):
                results |= evaluate_split(task, data, verbose=False)[0]
            if best and task.evaluated == "last":
                task.load_state_dict(checkpoints.load(Path(best))["state_dict"])
                results |= task.of_best()
    except Stopped:
        console.print(f"stopped; {resuming.advice(Path(run.run_dir))}", soft_wrap=True, markup=False, highlight=False)
        raise
    except (TypeError, ValueError) as error:
        if show.shown or isinstance(error, TaugradError):
            raise
        first = " ".join(str(error).split()).split(". ")[0]  # later sentences are advice for Lightning's own steps
        raise ConfigError(first) from error

    path = Path(run.run_dir) / "metrics.json"
    ended = not show.shown and run.ckpt_path is not None and path.is_file()  # nothing was left to train
    before = json.loads(path.read_text(encoding="utf-8")) if ended else {}
    results = {name: before[name] for name in task.metrics if name in before} | results
    facts |= {
        "wall_seconds": time.perf_counter() - start,
        "seed": run.seed,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "backend": drawn_by,
    }
    facts |= {name: before[name] for name in facts if name in before}
    trainers.print_metrics(console, results)  # first, because writing may fail
    console.print(f"{facts['wall_seconds']:.0f} s; the run is in {run.run_dir}", soft_wrap=True)
    if trainer.is_global_zero:
        trainers.write_json(path, results | facts | trainers.versions())
    with writing(Path(run.run_dir) / "tensorboard"):
        trainers.log_hyperparameters(loggers, vars(run), objectives(run), results)
    return _objective(run, results, console)


def _objective(run: TrainConfig, results: dict[str, Any], console: Console) -> float | list[float]:
    """Value or values that the run returns to a sweep; nan for a metric that was never logged."""
    names = objectives(run)
    if missing := [name for name in names if name not in results]:
        console.print(f"the run logged no {', '.join(missing)}: that objective is nan", soft_wrap=True)
    values = [float(results.get(name, math.nan)) for name in names]
    return values[0] if isinstance(run.objective, str) else values


def _check_amounts(run: TrainConfig) -> None:
    trainers.check_limits(run.trainer)
    if run.threads is not None and run.threads < 1:
        raise ConfigError(f"threads must be at least 1, got {run.threads}")
    for name in ("max_steps", "max_epochs"):
        amount = run.trainer.get(name, -1)
        if amount is not None and amount != -1 and amount < 1:
            raise ConfigError(f"trainer.{name} must be at least 1, or -1 for no end, got {amount}")


def _with_steps(config: DictConfig, run: TrainConfig) -> DictConfig:
    """Set `trainer.max_steps` from `trainer.max_epochs`, because the schedules' length refers to the former.

    Only `ImageData` has a known number of steps in an epoch. The length of a policy is in environment steps.
    """
    epochs, steps = run.trainer.get("max_epochs"), run.trainer.get("max_steps", -1)
    if not run.data or epochs is None or epochs < 1:
        return config
    data = _build("data", run.data, LightningDataModule)
    if not isinstance(data, ImageData):
        return config
    length = epochs * data.epoch_steps(run.trainer.get("limit_train_batches"))
    return OmegaConf.merge(config, {"trainer": {"max_steps": length if steps < 0 else min(length, steps)}})  # pyright: ignore


def _build(key: str, node: Any, kind: type[T], hint: str = "") -> T:
    """Build a node, and check its type."""
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{key} must have a _target_, the import path of a {full_name(kind)}, got {node}")
    built = instantiate(node)
    if not isinstance(built, kind):
        got = f"{node['_target_']}, a {full_name(type(built))}"
        raise ConfigError(f"{key} must be a {full_name(kind)}, got {got}{hint}")
    return built


def _parts(group: str, nodes: Config | None, kind: type[T]) -> list[T]:
    """Objects of the nodes of a group; a group or a node that is null is switched off."""
    return [_build(f"{group}.{name}", node, kind) for name, node in (nodes or {}).items() if node is not None]


def _task_and_data(run: TrainConfig) -> tuple[Task, LightningDataModule | None]:
    """Build task and data from the seed, and check what needs both."""
    if not 0 <= run.seed < 2**32:
        raise ConfigError(f"seed must be in [0, {2**32 - 1}], got {run.seed}")
    seed_everything(run.seed, workers=True, verbose=False)
    try:
        task = _build("task", run.task, Task, hint="; docs/extending.md shows how a model of your own is trained")
    except ConfigError as error:
        if run.length >= 1:
            raise
        where = _LENGTH if run.data else "set env.max_env_steps or length, environment steps"
        raise ConfigError(f"{error}; schedules go over length, which is {run.length}: {where}") from error
    for name in objectives(run):
        if name not in task.metrics:
            raise ConfigError(f"objective must be one of {', '.join(task.metrics)}, got {name}")
    task.configure_optimizers()  # an optimizer may refuse its arguments
    if bool(run.data) != isinstance(task, ImageTask):
        takes = "images" if isinstance(task, ImageTask) else "no data, but an env"
        got = (run.data or {}).get("_target_", "null")
        raise ConfigError(f"data must fit {type(task).__name__}, which takes {takes}, got {got}")
    return task, _build("data", run.data, LightningDataModule) if run.data else None
