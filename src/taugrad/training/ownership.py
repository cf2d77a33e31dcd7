"""Ownership of a run's directory: one run at a time, and never over what another run left there.

A run holds `.lock` in its directory from before Hydra writes `.hydra/` until its process ends; the system frees the
lock of a process that died. A sweep holds its own directory, and each of its jobs the job's.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from taugrad.errors import ConfigError
from taugrad.training.resuming import assigned

_LOCK = ".lock"
_PATIENCE = 0.5  # seconds: a process that only checks the lock holds it for a moment
_LEFT_BY_A_RUN = ("*.ckpt", "checkpoints/*", "tensorboard/*", "csv/*", "wandb/*", "mlflow.db", "metrics.json")
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # set for each of several processes that train together
_TIME = "${now:"  # in the name of a directory that nobody chose


@contextmanager
def owned(directory: Path, key: str, ckpt_path: str | None = None) -> Iterator[None]:
    """Hold a run's directory until the context or this process ends; make it where it is missing.

    If several processes train together, rank 0 holds it for all.

    Raises:
        ConfigError: another process trains there, the directory holds a run that this one does not go on with by its
            `ckpt_path`, or nothing can be written there; the message names the config's `key` of the directory.
    """
    if not _first_process():
        yield
        return
    with held(directory, key):
        if any(any(directory.glob(pattern)) for pattern in _LEFT_BY_A_RUN) and not _goes_on(directory, ckpt_path):
            raise ConfigError(
                f"{key}={directory} holds a run already: choose another directory, or go on with that run by "
                "ckpt_path=last"
            )
        yield


@contextmanager
def held(directory: Path, key: str) -> Iterator[None]:
    """Hold a directory as `owned` does, whatever is in it."""
    lock = FileLock(directory / _LOCK, is_singleton=True)  # Hydra's callback and `train` hold the same one
    try:
        directory.mkdir(parents=True, exist_ok=True)
        acquired = lock.acquire(timeout=_PATIENCE)
    except Timeout as error:
        raise ConfigError(f"{key}={directory}: another run or sweep is going on there") from error
    except OSError as error:
        raise ConfigError(f"{key}={directory}: nothing can be written there: {error.strerror}") from error
    with acquired:
        yield


def is_training(directory: Path) -> bool:
    """Return True if a run that is training holds the directory."""
    if not (directory / _LOCK).is_file():
        return False
    try:
        with FileLock(directory / _LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # it cannot even be opened
        return False


def unused(directory: Path) -> Path:
    """Make a directory that was not there: `directory`, or its name with `_2`, `_3` and so on behind it."""
    names = chain([directory.name], (f"{directory.name}_{n}" for n in count(2)))
    return next(path for path in map(directory.with_name, names) if _made(path))


class OwnDirectory(Callback):
    """Hydra's callback that gives a run or a sweep its directory before Hydra writes into it.

    A taken name that was made from the time gets a number behind it; any other taken name ends the program.
    """

    def __init__(self) -> None:
        self._held = ExitStack()

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Hold the run's directory."""
        if not _first_process():
            return
        with _hydra_config(config):
            try:
                named = OmegaConf.to_container(config.hydra.run, resolve=False)["dir"]  # pyright: ignore
                directory, ckpt_path = Path(config.hydra.run.dir), OmegaConf.select(config, "ckpt_path")
                if _TIME in named and ckpt_path != "last":
                    directory = unused(directory)
                    with read_write(config.hydra), open_dict(config.hydra):
                        config.hydra.run.dir = str(directory)
                self._held.enter_context(owned(directory.absolute(), "hydra.run.dir", ckpt_path))
            except OmegaConfBaseException:  # which Hydra reports
                return
            except (ConfigError, OSError) as error:  # Hydra turns other exceptions of a callback into warnings
                raise SystemExit(f"error: {error}") from error

    def on_run_end(self, **_: Any) -> None:
        """Release the run's directory."""
        self._held.close()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Choose the sweep's directory, which the sweeper then holds."""
        with _hydra_config(config):
            try:
                named = OmegaConf.to_container(config.hydra.sweep, resolve=False)["dir"]  # pyright: ignore
                directory = Path(config.hydra.sweep.dir)
                if _TIME not in named or "ckpt_path=last" in config.hydra.overrides.task:
                    return
                if (chosen := unused(directory)) != directory:
                    with read_write(config.hydra), open_dict(config.hydra):
                        config.hydra.sweep.dir = str(chosen)
                        # Each job composes its config from these.
                        config.hydra.overrides.hydra.append(assigned("hydra.sweep.dir", str(chosen)))
            except OmegaConfBaseException:
                return
            except OSError as error:
                raise SystemExit(f"error: {error}") from error


def _made(path: Path) -> bool:
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _goes_on(directory: Path, ckpt_path: str | None) -> bool:
    if ckpt_path == "last":
        return True
    if ckpt_path is not None:
        path = Path(ckpt_path)
        if not path.is_file():
            raise ConfigError(f"ckpt_path must be a checkpoint file, or last, got {ckpt_path}")
        return path.resolve().is_relative_to(directory.resolve())
    # A requeued job goes on by the same command: Lightning loads what it saved on SLURM's signal.
    return SLURMEnvironment.detect() and any(directory.glob("hpc_ckpt_*.ckpt"))


def _first_process() -> bool:
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


@contextmanager
def _hydra_config(config: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` resolve, as it will when the job runs."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.set_config(config)
    try:
        yield
    finally:
        hydra.cfg = before
