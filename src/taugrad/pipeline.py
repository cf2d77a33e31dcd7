"""From a config to a trained and evaluated run: what the scripts call.

A run's directory holds `.hydra/` (the config and its overrides), `checkpoints/best.ckpt` and `last.ckpt`,
`tensorboard/`, and `metrics.json`.
"""

import json
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningDataModule, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from taugrad import checkpoints, hyperparameters
from taugrad.callbacks import Progress, RandomStates, SaveConfig
from taugrad.config import instantiate, read
from taugrad.data.batches import first_images
from taugrad.errors import ConfigError, in_sweep
from taugrad.extras import extra
from taugrad.native import kernels
from taugrad.pictures import save
from taugrad.runs import load_run
from taugrad.stopping import Stopped, StopSignals
from taugrad.tasks.acting import Acting
from taugrad.tasks.modelling import ImageModel

Config = dict[str, Any]

_PICTURED = 1000  # test images, which a model draws from
_CHECKPOINTED = ("model", "data", "seed")  # the part of the config that a checkpoint needs to be evaluated


@dataclass(frozen=True)
class TrainConfig:
    """The keys of conf/train.yaml and their types."""

    model: Config
    estimator: Config
    tau: Config
    lr_factor: Config
    optimizer: Config
    trainer: Config
    callbacks: Config
    logger: Config
    seed: int
    objective: str | list[str]
    direction: str | list[str]  # of a sweep
    run_dir: str
    length: int  # of the training, which schedules refer to
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
    _check_amounts(run)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
        os.environ["OMP_NUM_THREADS"] = str(run.threads)  # else Lightning sets the threads of several processes
    backend = "native" if kernels.available() else "torch"  # of the samples; found out, and logged, before all else
    console = Console(quiet=os.environ.get("LOCAL_RANK", "0") != "0")  # of the processes of a run the first speaks
    console.print(Syntax(OmegaConf.to_yaml(config, resolve=True), "yaml", background_color="default"))
    model, data = _model_and_data(run)
    checkpoint = _checkpoint(run, console)
    if checkpoint is not None:
        _check_resume(checkpoint, run, model)
    callbacks, loggers = ([instantiate(node) for node in group.values()] for group in (run.callbacks, run.logger))
    saved = {key: getattr(run, key) for key in _CHECKPOINTED}
    stop = StopSignals(Path(run.run_dir) / "checkpoints" / "last.ckpt")
    trainer = _trainer(run.trainer, run.run_dir, [*callbacks, RandomStates(), SaveConfig(saved), stop], loggers)
    evaluator = _trainer(run.trainer, run.run_dir, [c for c in callbacks if isinstance(c, ProgressBar)], [])
    _check_processes(trainer, run, model)

    try:
        with stop:
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            best = getattr(trainer.checkpoint_callback, "best_model_path", "")
            facts = model.results()
            if best and model.evaluated == "best":
                model.load_state_dict(checkpoints.load(Path(best))["state_dict"])
            results: dict[str, Any] = {k: v.item() for k, v in trainer.callback_metrics.items() if k in model.metrics}
            for evaluate_split in (evaluator.validate, evaluator.test):
                results |= evaluate_split(model, data, verbose=False)[0]
    except Stopped:
        console.print(f"stopped; to go on: {_resuming(run)}", soft_wrap=True, markup=False, highlight=False)
        raise

    _log_hyperparameters(loggers, run, results)
    facts |= {
        "wall_seconds": time.perf_counter() - start,
        "seed": run.seed,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "backend": backend,
    }
    if trainer.is_global_zero:
        _write_json(Path(run.run_dir) / "metrics.json", results | facts | _versions())
    _print_metrics(console, results)
    console.print(f"{facts['wall_seconds']:.0f} s; the run is in {run.run_dir}", soft_wrap=True)
    if isinstance(run.objective, str):
        return float(results[run.objective])
    return [float(results[name]) for name in run.objective]


def evaluate(config: DictConfig) -> dict[str, float]:
    """Evaluate a run on its test split from its checkpoint alone; print the metrics and write `evaluation.json`.

    Raises:
        ConfigError: the run has no such checkpoint, or something in the config does not fit.
    """
    arguments = read(EvaluateConfig, config)
    changes = {"nll_samples": arguments.num_samples, "test_episodes": arguments.episodes}
    changes = {name: value for name, value in changes.items() if value is not None}
    model, data, saved = load_run(Path(arguments.run), arguments.checkpoint, arguments.trust, **changes)
    seed_everything(saved["seed"], workers=True, verbose=False)
    if arguments.video is not None:
        _film(model, Path(arguments.video))
    if arguments.images:
        _draw(model, data, Path(arguments.run) / "pictures")
    trainer = _trainer(arguments.trainer, arguments.run, [Progress()], [])
    metrics = dict(trainer.test(model, data, verbose=False)[0])
    _write_json(Path(arguments.run) / "evaluation.json", metrics)
    _print_metrics(Console(), metrics)
    return metrics


def _film(model: Any, path: Path) -> None:
    if not isinstance(model, Acting):
        raise ConfigError(f"video is for policies, got a run of {type(model).__name__}")
    if path.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"video must end in .gif or .mp4, got {path}")
    imageio = extra("imageio.v3", "video")
    frames, fps = model.film()
    options = {"duration": 1000 / fps, "loop": 0} if path.suffix == ".gif" else {"fps": fps}
    imageio.imwrite(path, frames, **options)


def _draw(model: Any, data: LightningDataModule | None, directory: Path) -> None:
    """Write the model's pictures of the first test images as PNG files."""
    if not isinstance(model, ImageModel) or data is None:
        raise ConfigError(f"images is for models of images, got a run of {type(model).__name__}")
    data.setup("test")
    directory.mkdir(exist_ok=True)
    for name, picture in model.pictures(*first_images(data.test_dataloader(), _PICTURED)).items():
        save(picture, directory / f"{name}.png")


def _check_amounts(run: TrainConfig) -> None:
    if run.threads is not None and run.threads < 1:
        raise ConfigError(f"threads must be at least 1, got {run.threads}")
    for name in ("max_steps", "max_epochs"):
        amount = run.trainer.get(name, -1)
        if amount is not None and amount != -1 and amount < 1:
            raise ConfigError(f"trainer.{name} must be at least 1, or -1 for no end, got {amount}")


def _model_and_data(run: TrainConfig) -> tuple[Any, LightningDataModule | None]:
    """Build them from the seed, and check what can only be checked with them."""
    if not 0 <= run.seed < 2**32:
        raise ConfigError(f"seed must be in [0, {2**32 - 1}], got {run.seed}")
    seed_everything(run.seed, workers=True, verbose=False)
    model = instantiate(run.model, recursive=False)
    for name in [run.objective] if isinstance(run.objective, str) else run.objective:
        if name not in model.metrics:
            raise ConfigError(f"objective must be one of {', '.join(model.metrics)}, got {name}")
    model.configure_optimizers()  # which may refuse its arguments
    return model, instantiate(run.data, recursive=False) if run.data else None


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
        if not Path(run.ckpt_path).is_file():
            raise ConfigError(f"ckpt_path must be a checkpoint file, or last, got {run.ckpt_path}")
        return Path(run.ckpt_path)
    if not any(o.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for o in HydraConfig.get().overrides.hydra):
        raise ConfigError("ckpt_path=last goes on with a run: give its directory as hydra.run.dir=...")
    newest, damaged = checkpoints.newest(Path(run.run_dir))
    for error in damaged:
        console.print(str(error), soft_wrap=True)
    if newest is None and damaged:
        raise ConfigError(f"ckpt_path=last: no checkpoint in {run.run_dir} is whole")
    told = f"going on from {newest}" if newest else f"{run.run_dir} holds no checkpoint yet: from the beginning"
    console.print(told, soft_wrap=True)
    return newest


def _resuming(run: TrainConfig) -> str:
    """The command that goes on with this run."""
    given = HydraConfig.get().overrides
    kept = [o for o in given.hydra if o.startswith("hydra.searchpath")]
    kept += [o for o in given.task if not o.startswith("ckpt_path=")]
    program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else ["taugrad", "train"]
    return shlex.join([*program, *kept, f"hydra.run.dir={run.run_dir}", "ckpt_path=last"])


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
        "versions/taugrad": version("taugrad"),
        "versions/torch": torch.__version__,
        "versions/lightning": lightning.__version__,
        "versions/python": platform.python_version(),
    }


def _trainer(config: Config, directory: str, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    parts: Config = {"callbacks": callbacks, "logger": loggers, "default_root_dir": directory}
    parts["enable_checkpointing"] = any(isinstance(c, Checkpoint) for c in callbacks)
    try:
        call = instantiate(config)
        return call(plugins=[*(call.keywords.get("plugins") or []), checkpoints.WholeCheckpoints()], **parts)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {error}") from error


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
    checkpoints.write_whole(path, (json.dumps(metrics, indent=2, sort_keys=True) + "\n").encode())


def _print_metrics(console: Console, metrics: dict[str, float]) -> None:
    table = Table("metric", "value")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.2f}")
    console.print(table)
