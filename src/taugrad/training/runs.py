"""Loading a run: its task and data from a checkpoint alone, which may come from a stranger."""

import inspect
import os
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from lightning import LightningDataModule

from taugrad.config import instantiate
from taugrad.errors import CheckpointError, ConfigError, TaugradError
from taugrad.training import checkpoints
from taugrad.training.task import Task

# Packages that a checkpoint's config may name as `_target_`. All of torch, of hydra or of taugrad would be too much:
# torch has a class that starts a process when it is built, hydra a function that calls anything, our own build runs a
# compiler.
TRUSTED = (
    *("taugrad.data", "taugrad.estimators", "taugrad.models", "taugrad.nets", "taugrad.rl", "taugrad.schedules"),
    *("taugrad.training.images", "taugrad.training.policies", "taugrad.training.trained", "torch.nn", "torch.optim"),
)
# Modules that an environment's id imports: `module:name`, or all of it by these functions.
_IMPORTERS = ("taugrad.rl.envs.agents.make_parallel", "taugrad.rl.envs.turns.make")
_TRUSTED_ENVIRONMENTS = ("lbforaging", "mpe2", "pettingzoo", "rware")


def load_run(
    run: Path,
    checkpoint: str | None = None,
    trust: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    key: str = "run",
) -> tuple[Task, LightningDataModule | None, dict[str, Any]]:
    """Load a run's task with its weights, its data, and the config that its checkpoint carries.

    Only `checkpoints/` is read: `best` or `last`, by default the one that the task reports, its `evaluated`. The config
    may name packages of `TRUSTED` and `trust`. `changes` are arguments to set to other values than the run had, such as
    `model.nll_samples`. An error names the directory by the `key` that holds it.

    Raises:
        ConfigError: the directory holds no such checkpoint, or `changes` does not fit the task.
        CheckpointError: the checkpoint is damaged, does not fit this version, or names what is not trusted.
    """
    either = "last" if _is_file(run / "checkpoints" / "last.ckpt") else "best"
    content = _content(run, checkpoint or either, key)
    config = content.get("config")
    if config is None:
        raise CheckpointError(f"{run}/checkpoints holds no config to build the model from")
    require_trusted(config, trust)
    for key, value in (changes or {}).items():
        _set(config["task"], key, value)
    try:
        task = instantiate(config["task"])
        data = config["data"] and instantiate(config["data"])
        if checkpoint is None and task.evaluated != either:
            content = _content(run, task.evaluated, key)
        task.load_state_dict(content["state_dict"])
    except (TaugradError, RuntimeError) as error:  # an argument or a weight that is not this version's
        written = content.get("versions", {}).get("taugrad", "an unknown version")
        raise CheckpointError(f"{run}, written by taugrad {written}, does not load: {_first_line(error)}") from error
    return task, data, config


def _set(task: dict[str, Any], key: str, value: Any) -> None:
    """Set an argument of a part of the task; raise ConfigError if it has no such part or argument."""
    part, _, name = key.partition(".")
    target = task.get(part, task)["_target_"]
    if part not in task or name not in inspect.signature(get_object(target)).parameters:
        raise ConfigError(f"{name} cannot be set for a run of {target.rpartition('.')[2]}, which has none")
    task[part][name] = value


def require_trusted(config: Any, trust: Sequence[str] = ()) -> None:
    """Refuse a config that would call anything but `TRUSTED` and what the user trusts, before anything is called.

    Both the name and the object must be of a trusted package: a trusted module also holds names that it imports.

    Raises:
        CheckpointError: it names something else.

    >>> require_trusted({"_target_": "taugrad.schedules.Constant", "value": 1.0})
    >>> require_trusted({"model": [{"_target_": "os.system", "command": "true"}]})
    Traceback (most recent call last):
    taugrad.errors.CheckpointError: os.system is not trusted: trust=[os] allows it, if you know what it does
    """
    if isinstance(config, list):
        for child in config:
            require_trusted(child, trust)
    if not isinstance(config, dict):
        return
    if "_target_" in config:
        _require_trusted_target(str(config["_target_"]), (*TRUSTED, *trust))
        package, colon, _ = str(config.get("id", "")).partition(":")
        imports = colon or str(config["_target_"]) in _IMPORTERS
        if imports and not _within(package, (*_TRUSTED_ENVIRONMENTS, *trust)):
            raise CheckpointError(f"environment {config.get('id', 'by position')} {_not_trusted(package)}")
    for child in config.values():
        require_trusted(child, trust)


def _require_trusted_target(target: str, allowed: Sequence[str]) -> None:
    if _within(target, allowed):
        try:
            found = pkgutil.resolve_name(target)
        except (ImportError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{target} is not there in this version: {_first_line(error)}") from error
        if _within(str(getattr(found, "__module__", None)), allowed) and not found.__name__.startswith("_"):
            return
    raise CheckpointError(f"{target} {_not_trusted(target)}")


def _not_trusted(name: str) -> str:
    return f"is not trusted: trust=[{name.rpartition('.')[0] or name}] allows it, if you know what it does"


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _content(run: Path, checkpoint: str, key: str) -> dict[str, Any]:
    path = run / "checkpoints" / f"{checkpoint}.ckpt"
    if not _is_file(path):
        got = run if run.name else run.absolute()  # an empty name is the directory at hand
        raise ConfigError(f"{key} must be a run's directory that holds checkpoints/{path.name}, got {got}")
    return checkpoints.load(path)


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  # pathlib raises for a name that is too long


def _first_line(error: Exception) -> str:
    """Return an error's first line, with the next one where the first is torch's heading of a list."""
    first, *more = str(error).splitlines()
    return f"{first} {more[0].strip()}" if first.endswith(":") and more else first.rstrip(":")
