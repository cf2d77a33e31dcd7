"""Jobs of a sweep: their folders, their values, and their results.

A sweep's directory holds a folder for each job, named by its number, `multirun.yaml`, `sweep.csv`, `sweep.png`, and
with Optuna `study.db`, from which a sweep that was killed goes on.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from taugrad.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its number, swept values by name, objectives, and how it ended."""

    number: int
    point: dict[str, Any]
    values: list[float] | None
    state: str  # complete, pruned or failed
    seconds: float | None = None
    error: str = ""


def name_of(override: Override) -> str:
    """Key that a swept override sets, without the plus of a key that Hydra adds."""
    return override.get_key_element().lstrip("+")


def require_same(directory: Path, points: Sequence[dict[str, Any]]) -> None:
    """Raise ConfigError if a job in a sweep's directory had another value than the one to resume it with."""
    for number, point in enumerate(points):
        path = directory / str(number) / ".hydra" / "overrides.yaml"
        lines = map(str, OmegaConf.load(path) if path.is_file() else [])
        there = dict(line.lstrip("+").split("=", 1) for line in lines if "=" in line)
        for name, here in point.items():
            if there.get(name, here) != here:
                raise ConfigError(
                    f"hydra.sweep.dir={directory} is of another sweep: its job {number} has {name}={there[name]}, "
                    f"got {here}"
                )


def values(override: Override) -> list[Any]:
    """List the values of a swept override, as texts that Hydra can parse; ConfigError if it is no list."""
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.get_key_element()} must be a list of values in a grid, got {override.input_line}")
    return list(override.sweep_string_iterator())


def job(number: int, point: dict[str, Any], result: JobReturn) -> Job:
    """Make a `Job` of what a launcher returned."""
    if result.status == JobStatus.COMPLETED:
        returned = result.return_value
        found = [float(x) for x in (returned if isinstance(returned, Sequence) else [returned])]
        if all(map(math.isfinite, found)):
            return Job(number, point, found, "complete", _seconds(result))
        return Job(number, point, None, "failed", _seconds(result), f"the objective is {found}")
    error = result._return_value
    state = "pruned" if type(error).__name__ == "TrialPruned" else "failed"
    return Job(number, point, None, state, _seconds(result), " ".join(str(error).split()) or type(error).__name__)


def directions(config: DictConfig) -> list[str]:
    """Return `minimize` or `maximize` for each objective; ConfigError if it is neither, or they are not as many."""
    names, found = objectives(config), config.direction
    found = [found] if isinstance(found, str) else list(found)
    if len(found) != len(names) or not set(found) <= {"minimize", "maximize"}:
        of, got = ", ".join(names), ", ".join(found)
        raise ConfigError(f"direction must be minimize or maximize for each of {of}, got {got}")
    return found


def objectives(config: Any) -> list[str]:
    """Names of the metrics that a run or a sweep reports, one or several: of its config, or of a dataclass of it."""
    return [config.objective] if isinstance(config.objective, str) else list(config.objective)


def _seconds(result: JobReturn) -> float | None:
    """Wall time that the run itself wrote, if it ended."""
    path = Path(str(result.hydra_cfg and result.hydra_cfg.hydra.runtime.output_dir)) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8"))["wall_seconds"] if path.is_file() else None
