"""From a config to a trained and evaluated run: what the scripts call.

A run's directory holds `.hydra/` (the config and its overrides), `checkpoints/best.ckpt` and `last.ckpt`,
`tensorboard/`, and `metrics.json`.
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning import Callback, LightningDataModule, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from taugrad import __version__, checkpoints, hyperparameters, ownership, resuming
from taugrad.callbacks import Progress, RandomStates, SaveConfig, ShowConfig
from taugrad.config import instantiate, read
from taugrad.data.batches import first_images
from taugrad.data.datamodule import ImageData
from taugrad.errors import ConfigError, TaugradError, in_sweep
from taugrad.extras import extra
from taugrad.ops.native import kernels
from taugrad.outputs import require_file, require_folder, writing
from taugrad.paths import user_path
from taugrad.pictures import save
from taugrad.runs import load_run
from taugrad.stopping import LastStep, Stopped, StopSignals
from taugrad.tasks.acting import Acting
from taugrad.tasks.modelling import ImageModel

Config = dict[str, Any]
T = TypeVar("T")

_PICTURED = 1000  # test images, which a model draws from
_CHECKPOINTED = ("model", "data", "seed")  # the part of the config that a checkpoint needs to be evaluated
_FOLLOWS = {  # of a trainer's arguments those that are set here, and from what
    "callbacks": "the group callbacks",
    "logger": "the group logger",
    "default_root_dir": "the run's directory",
    "enable_checkpointing": "the ModelCheckpoints among the callbacks",
    "model_registry": "the ModelCheckpoints among the callbacks",
}
_LENGTH = "set trainer.max_steps, trainer.max_epochs or length, optimizer steps"
_POSITIVE = (  # of a trainer's arguments
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "val_check_interval"),
    *("check_val_every_n_epoch", "gradient_clip_val"),
)


@dataclass(frozen=True)
class TrainConfig:
    """The keys of conf/train.yaml and their types."""

    model: Config
    trainer: Config
    seed: int
    objective: str | list[str]
    direction: str | list[str]  # of a sweep
    run_dir: str
    length: int  # of the training, which schedules refer to
    estimator: Config | None = None  # as the four below: what the model refers to, and checks
    tau: Config | None = None
    lr_factor: Config | None = None
    optimizer: Config | None = None
    callbacks: Config | None = None
    logger: Config | None = None
    data: Config | None = None
    env: Config | None = None
    threads: int | None = None
    published: Config = field(default_factory=dict)  # a preset's values for each estimator, which other keys refer to
    ckpt_path: str | None = None
    debug: bool = False


@dataclass(frozen=True)
class EvaluateConfig:
    """The keys of conf/evaluate.yaml and their types."""

    run: str
    trainer: Config
    checkpoint: str | None = None
    trust: list[str] = field(default_factory=list)
    num_samples: int | None = None
    episodes: int | None = None
    video: str | None = None
    images: bool = False
    debug: bool = False


def train(config: DictConfig) -> float | list[float]:
    """Train, evaluate the best checkpoint, write `metrics.json`, print a table.

    Returns:
        The metric that `objective` names, or a list of metrics for a list of names.

    Raises:
        ConfigError: before training, when anything in the config does not fit.
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
    backend = "native" if kernels.available() else "torch"  # of the samples; found out, and logged, before all else
    console = Console(quiet=os.environ.get("LOCAL_RANK", "0") != "0")  # of the processes of a run the first speaks
    model, data = _model_and_data(run)
    checkpoint = _checkpoint(run, console)
    if checkpoint is not None:
        _check_resume(checkpoint, run, model)
    callbacks, loggers = _parts("callbacks", run.callbacks, Callback), _parts("logger", run.logger, Logger)
    _check_monitors(callbacks, model)
    callbacks = [c for c in callbacks if run.trainer.get("enable_progress_bar", True) or not isinstance(c, ProgressBar)]
    show = ShowConfig(OmegaConf.to_yaml(config, resolve=True))
    saved = {key: getattr(run, key) for key in _CHECKPOINTED}
    last = Path(run.run_dir) / "checkpoints" / "last.ckpt"
    stop, along = StopSignals(last), resuming.BestComesAlong(last, partial(console.print, soft_wrap=True, markup=False))
    parts = [show, *callbacks, RandomStates(), SaveConfig(saved), along, stop]
    trainer = _trainer(run.trainer, run.run_dir, parts, loggers)
    if trainer.checkpoint_callbacks:
        trainer.callbacks.append(LastStep(last))  # pyright: ignore  # behind Lightning's own, which it puts last
    evaluator = _trainer(run.trainer, run.run_dir, [c for c in callbacks if isinstance(c, ProgressBar)], [])
    _check_processes(trainer, run, model)
    _check_optimization(trainer, run, model)
    _check_test(data, run)

    try:
        with stop:
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            ranked = (c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor)
            best = next((c.best_model_path for c in ranked), "")
            facts = model.results()
            if best and model.evaluated == "best":
                model.load_state_dict(checkpoints.load(Path(best))["state_dict"])
            results: dict[str, Any] = {k: v.item() for k, v in trainer.callback_metrics.items() if k in model.metrics}
            for evaluate_split in (evaluator.validate, evaluator.test):
                results |= evaluate_split(model, data, verbose=False)[0]
    except Stopped:
        console.print(f"stopped; {resuming.advice(Path(run.run_dir))}", soft_wrap=True, markup=False, highlight=False)
        raise
    except (TypeError, ValueError) as error:
        if show.shown or isinstance(error, TaugradError):
            raise
        first = " ".join(str(error).split()).split(". ")[0]  # others give advice for Lightning's own steps
        raise ConfigError(first) from error

    before = {} if show.shown else _finished(run)  # there was nothing left to train: what it logged is there already
    results = {name: before[name] for name in model.metrics if name in before} | results
    facts |= {
        "wall_seconds": time.perf_counter() - start,
        "seed": run.seed,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "backend": backend,
    }
    facts |= {name: before[name] for name in facts if name in before}
    _print_metrics(console, results)  # before anything is written, which may fail
    console.print(f"{facts['wall_seconds']:.0f} s; the run is in {run.run_dir}", soft_wrap=True)
    if trainer.is_global_zero:
        _write_json(Path(run.run_dir) / "metrics.json", results | facts | _versions())
    with writing(Path(run.run_dir) / "tensorboard"):
        _log_hyperparameters(loggers, run, results)
    return _objective(run, results, console)


def evaluate(config: DictConfig) -> dict[str, float]:
    """Evaluate a run on its test split from its checkpoint alone; print the metrics and write `evaluation.json`.

    Raises:
        ConfigError: the run has no such checkpoint, or something in the config does not fit.
    """
    arguments = read(EvaluateConfig, config)
    run = user_path(arguments.run)
    changes = {"nll_samples": arguments.num_samples, "test_episodes": arguments.episodes}
    changes = {name: value for name, value in changes.items() if value is not None}
    if ownership.is_training(run):
        Console().print(f"{run} is still training: this evaluates its checkpoint as it is now", soft_wrap=True)
    model, data, saved = load_run(run, arguments.checkpoint, arguments.trust, **changes)
    _check_limits(arguments.trainer)
    seed_everything(saved["seed"], workers=True, verbose=False)
    video = None if arguments.video is None else user_path(arguments.video)
    film = None if video is None else _film(model, video)
    directory = run / "pictures"
    pictures = _pictures(model, data, directory) if arguments.images else {}
    progress = [Progress()] if arguments.trainer.get("enable_progress_bar", True) else []
    trainer = _trainer(arguments.trainer, str(run), [*progress], [])
    metrics = dict(trainer.test(model, data, verbose=False)[0])
    _print_metrics(Console(), metrics)  # before anything is written, which may fail
    if video is not None and film is not None:
        with writing(video):
            film()
    for name, picture in pictures.items():
        with writing(directory / f"{name}.png"):
            save(picture, directory / f"{name}.png")
    _write_json(run / "evaluation.json", metrics)
    return metrics


def _film(model: Any, path: Path) -> Callable[[], None]:
    """Play the policy's first episode; what then writes its film."""
    if not isinstance(model, Acting):
        raise ConfigError(f"video is for policies, got a run of {type(model).__name__}")
    if path.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"video must end in .gif or .mp4, got {path}")
    imageio = extra("imageio.v3", "video")
    require_file("video", path)
    frames, fps = model.film()
    options = {"duration": 1000 / fps, "loop": 0} if path.suffix == ".gif" else {"fps": fps}
    return lambda: imageio.imwrite(path, frames, **options)


def _pictures(model: Any, data: LightningDataModule | None, directory: Path) -> dict[str, Tensor]:
    """The model's pictures of the first test images, by name; the directory is where they will go."""
    if not isinstance(model, ImageModel) or data is None:
        raise ConfigError(f"images is for models of images, got a run of {type(model).__name__}")
    require_folder("run", directory)
    data.setup("test")
    return model.pictures(*first_images(data.test_dataloader(), _PICTURED))


def _finished(run: TrainConfig) -> dict[str, Any]:
    """What this run reported when it ended before, if it did."""
    path = Path(run.run_dir) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if run.ckpt_path is not None and path.is_file() else {}


def _objective(run: TrainConfig, results: dict[str, Any], console: Console) -> float | list[float]:
    """What the run returns to a sweep; nan for a metric that is logged only now and then, and was not."""
    names = [run.objective] if isinstance(run.objective, str) else run.objective
    missing = [name for name in names if name not in results]
    if missing:
        console.print(f"the run logged no {', '.join(missing)}: that objective is nan", soft_wrap=True)
    values = [float(results.get(name, math.nan)) for name in names]
    return values[0] if isinstance(run.objective, str) else values


def _check_limits(trainer: Config) -> None:
    """Refuse a trainer's arguments that leave nothing to do, or that are set here."""
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


def _check_amounts(run: TrainConfig) -> None:
    _check_limits(run.trainer)
    if run.threads is not None and run.threads < 1:
        raise ConfigError(f"threads must be at least 1, got {run.threads}")
    for name in ("max_steps", "max_epochs"):
        amount = run.trainer.get(name, -1)
        if amount is not None and amount != -1 and amount < 1:
            raise ConfigError(f"trainer.{name} must be at least 1, or -1 for no end, got {amount}")


def _with_steps(config: DictConfig, run: TrainConfig) -> DictConfig:
    """The config with `trainer.max_epochs` as `trainer.max_steps` too, to which the schedules' length refers.

    Where that is known: of our own data. A policy's length is its environment steps.
    """
    epochs, steps = run.trainer.get("max_epochs"), run.trainer.get("max_steps", -1)
    if not run.data or epochs is None or epochs < 1:
        return config
    data = _build("data", run.data, LightningDataModule)
    if not isinstance(data, ImageData):
        return config
    length = epochs * data.epoch_steps(run.trainer.get("limit_train_batches"))
    return OmegaConf.merge(config, {"trainer": {"max_steps": length if steps < 0 else min(length, steps)}})  # pyright: ignore


def _build(key: str, node: Any, *kinds: type, recursive: bool = False, hint: str = "") -> Any:
    """Build a node, and check what it is."""
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{key} must have a _target_, the import path of a {_names(kinds)}, got {node}")
    built = instantiate(node, recursive=recursive)
    if not isinstance(built, kinds):
        raise ConfigError(f"{key} must be a {_names(kinds)}, got {node['_target_']}, a {_names([type(built)])}{hint}")
    return built


def _names(kinds: Iterable[type]) -> str:
    return " or ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)


def _parts(group: str, nodes: Config | None, kind: type[T]) -> list[T]:
    """What the nodes of a group build; a group or a node that is null is switched off."""
    there = {name: node for name, node in (nodes or {}).items() if node is not None}
    return [_build(f"{group}.{name}", node, kind, recursive=True) for name, node in there.items()]


def _model_and_data(run: TrainConfig) -> tuple[Any, LightningDataModule | None]:
    """Build them from the seed, and check what can only be checked with them."""
    if not 0 <= run.seed < 2**32:
        raise ConfigError(f"seed must be in [0, {2**32 - 1}], got {run.seed}")
    seed_everything(run.seed, workers=True, verbose=False)
    try:
        model = _build("model", run.model, ImageModel, Acting, hint="; docs/extending.md shows what a model has")
    except ConfigError as error:
        if run.length >= 1:
            raise
        raise ConfigError(f"{error}; schedules go over length, which is {run.length}: {_LENGTH}") from error
    for name in [run.objective] if isinstance(run.objective, str) else run.objective:
        if name not in model.metrics:
            raise ConfigError(f"objective must be one of {', '.join(model.metrics)}, got {name}")
    model.configure_optimizers()  # which may refuse its arguments
    if bool(run.data) != isinstance(model, ImageModel):
        takes, got = "images" if isinstance(model, ImageModel) else "no data, but an env", run.data or {}
        raise ConfigError(
            f"data must fit {type(model).__name__}, which takes {takes}, got {got.get('_target_', 'null')}"
        )
    return model, _build("data", run.data, LightningDataModule) if run.data else None


def _check_monitors(callbacks: list[Callback], model: Any) -> None:
    """Refuse a callback that waits for an evaluation's metric which no evaluation during training gives."""
    evaluated = {name.partition("/")[0] for name in model.metrics} - {"train"}
    known = [name for name in model.metrics if not name.startswith("test/")]
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in known and monitor.partition("/")[0] in evaluated:
            name = type(callback).__name__
            raise ConfigError(f"monitor of callback {name} must be one of {', '.join(known)}, got {monitor}")


def _check_optimization(trainer: Trainer, run: TrainConfig, model: Any) -> None:
    """Take the gradients' clipping over from the trainer, and refuse what the tasks' own steps leave no place for.

    Raises:
        ConfigError: the argument has no meaning for the task.
    """
    given = run.trainer
    if given.get("accumulate_grad_batches", 1) != 1:
        raise ConfigError(
            "trainer.accumulate_grad_batches must be 1, as every batch is an optimizer step: batch_size makes larger "
            f"ones, got {given['accumulate_grad_batches']}"
        )
    for name, instead in (
        ("overfit_batches", "trainer.limit_train_batches"),
        ("reload_dataloaders_every_n_epochs", ""),
    ):
        if given.get(name):
            other = f": {instead} limits an epoch" if instead else ""
            raise ConfigError(
                f"trainer.{name} must be 0, as every epoch has an order of its own{other}, got {given[name]}"
            )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    started = environment is not None and (environment.creates_processes_externally or "NODE_RANK" in os.environ)
    if given.get("num_nodes", 1) != 1 and not started:  # it would wait for the others
        raise ConfigError(
            "trainer.num_nodes must be 1 where neither SLURM nor torchrun starts the processes of all nodes, "
            f"got {given['num_nodes']}"
        )
    if trainer.gradient_clip_val is None:
        return
    if not isinstance(model, ImageModel):
        raise ConfigError(
            "trainer.gradient_clip_val is for models of images: a policy clips by arguments of its own, such as "
            f"model.actor_clip or model.max_grad_norm, got {trainer.gradient_clip_val}"
        )
    if trainer.scaler is not None and getattr(model.configure_optimizers(), "_step_supports_amp_scaling", False):
        raise ConfigError("trainer.gradient_clip_val with trainer.precision=16-mixed needs optimizer.fused=false")
    model.gradient_clip_val, trainer.gradient_clip_val = trainer.gradient_clip_val, None


def _check_test(data: LightningDataModule | None, run: TrainConfig) -> None:
    """Refuse a share of the test's batches that is none, which Lightning finds only after the training."""
    limit = run.trainer.get("limit_test_batches")
    if not isinstance(limit, float) or limit == 1.0:
        return
    batches = 1  # of a policy
    if data is not None:
        data.prepare_data()
        data.setup("test")
        batches = len(data.test_dataloader())
    if int(limit * batches) < 1:
        raise ConfigError(f"trainer.limit_test_batches must leave one of the {batches} batches, got {limit}")


def _check_processes(trainer: Trainer, run: TrainConfig, model: Any) -> None:
    """Refuse several processes where they would train on the same data, or on different configs.

    Raises:
        ConfigError: the task, the strategy or a sweep's job cannot be shared.
    """
    if trainer.world_size == 1:
        return
    several = f"{trainer.world_size} processes"
    if not isinstance(model, ImageModel):
        raise ConfigError(f"trainer.devices must be 1 for {type(model).__name__}, got {several}")
    if run.trainer.get("strategy", "auto") not in ("auto", "ddp"):
        raise ConfigError(f"trainer.strategy must be ddp for {several}, got {run.trainer['strategy']}")
    if in_sweep():
        # Lightning starts the whole command line again for each process: another sweep, not another part of this job.
        raise ConfigError(f"trainer.devices must be 1 in a sweep, whose jobs are one process each, got {several}")


def _checkpoint(run: TrainConfig, console: Console) -> Path | None:
    """What to resume from: `ckpt_path`, or for `last` the newest whole checkpoint of the run's directory, if any.

    Raises:
        ConfigError: there is no such file, no run's directory, or none of its checkpoints is whole.
    """
    if run.ckpt_path is None:
        return None
    if run.ckpt_path != "last":
        path = user_path(run.ckpt_path)
        if not path.is_file():
            raise ConfigError(f"ckpt_path must be a checkpoint file, or last, got {run.ckpt_path}")
        return path
    if not resuming.directory_is_given():
        raise ConfigError("ckpt_path=last goes on with a run: give its directory as hydra.run.dir=...")
    newest, damaged = checkpoints.newest(Path(run.run_dir))
    for error in damaged:
        console.print(str(error), soft_wrap=True)
    if newest is None and damaged:
        raise ConfigError(f"ckpt_path=last: no checkpoint in {run.run_dir} is whole")
    told = f"going on from {newest}" if newest else f"{run.run_dir} holds no checkpoint yet: from the beginning"
    console.print(told, soft_wrap=True)
    return newest


def _check_resume(checkpoint: Path, run: TrainConfig, model: Any) -> None:
    """Refuse what a resumed run cannot follow: a checkpoint's weights, optimizer and rollouts have their sizes.

    Raises:
        ConfigError: an argument of the model differs from the checkpoint's, and its class does not name it changeable.
    """
    saved = checkpoints.load(checkpoint).get("config", {}).get("model")
    if saved is None:
        return
    there, here = _flat(saved), _flat(run.model)
    changeable = tuple(f"{name}." for name in model.changeable)
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key) and not f"{key}.".startswith(changeable):
            raise ConfigError(
                f"model.{key} cannot change on resume: the checkpoint has {there.get(key)}, got {here.get(key)}"
            )


def _flat(node: Any, key: str = "") -> Config:
    """The leaves of nested dicts, by their dotted keys."""
    if not isinstance(node, dict):
        return {key: node}
    return {name: leaf for k, child in node.items() for name, leaf in _flat(child, f"{key}.{k}" if key else k).items()}


def _versions() -> dict[str, str]:
    return {
        "versions/taugrad": __version__,
        "versions/torch": torch.__version__,
        "versions/lightning": lightning.__version__,
        "versions/python": platform.python_version(),
    }


def _trainer(config: Config, directory: str, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
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


@rank_zero_only
def _log_hyperparameters(loggers: list[Logger], run: TrainConfig, metrics: dict[str, float]) -> None:
    """Fill TensorBoard's HParams tab: what was swept or set, beside what came out, the objective first."""
    objectives = [run.objective] if isinstance(run.objective, str) else run.objective
    reported = [name for name in ("test/nll", "test/accuracy") if name in metrics]  # in the docs' tables
    tested = [name for name in metrics if name.startswith("test/")]
    tags = {f"hp/{name}": metrics[name] for name in dict.fromkeys([*objectives, *reported, *tested, *metrics])}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_metrics(tags)
            for summary in hyperparameters.summaries(hyperparameters.chosen(vars(run)), list(tags)):
                logger.experiment._get_file_writer().add_summary(summary)
            logger.finalize("success")


def _write_json(path: Path, metrics: dict[str, Any]) -> None:
    with writing(path):
        checkpoints.write_whole(path, (json.dumps(metrics, indent=2, sort_keys=True) + "\n").encode())


def _print_metrics(console: Console, metrics: dict[str, float]) -> None:
    table = Table("metric", "value")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.2f}")
    console.print(table)
