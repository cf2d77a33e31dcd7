"""Sweepers, as plugins of Hydra, which every Hydra application imports: nothing heavy is imported before a sweep runs.

`GridSweeper` runs every combination of the values on the command line, `OptunaSweeper` asks Optuna for them. Both
continue after a failed job, and write a table, `sweep.csv` and `sweep.png` (`taugrad.sweeps.report`).
"""

import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

_SETTINGS = "multirun.yaml"


class _Sweeper(Sweeper):
    """Base of both: the launcher, and the parts of a command line."""

    jobs: int | None  # launched at a time
    going_on: str | None  # ckpt_path by which a stopped sweep resumes; None: by the same command

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the config and the launcher; Hydra's interface."""
        self.settings, self.config_loader = config, hydra_context.config_loader
        self.jobs_launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.directory = Path(config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run the jobs, report them, and return their objectives; an error ends in one sentence."""
        from taugrad.errors import ConfigError, TaugradError
        from taugrad.sweeps.report import report
        from taugrad.training import ownership, resuming, stopping

        try:
            if self.jobs is not None and self.jobs < 1:
                raise ConfigError(f"hydra.sweeper.jobs must be at least 1, got {self.jobs}")
            with ownership.held(self.directory, "hydra.sweep.dir"):
                fixed, swept = self.split(arguments)
                self.job_config = self.first_config(fixed, swept)
                jobs = self.run(fixed, swept)
                report(jobs, self.directory, self.job_config, swept)
        except TaugradError as error:
            sys.exit(f"error: {error}")
        except (KeyboardInterrupt, SystemExit) as stop:
            code = stop.code if isinstance(stop, SystemExit) else 130
            if code in stopping.CODES:
                how = resuming.command("hydra.sweep.dir", self.directory.absolute(), sys.argv, self.going_on)
                sys.stdout.write(f"the sweep was stopped; to go on: {how}\n")
            raise SystemExit(code) from stop
        return [job.values for job in jobs]

    @abstractmethod
    def run(self, fixed: list[str], swept: list[Override]) -> list[Any]:
        """Run the jobs and return them."""

    def launch(self, fixed: list[str], points: list[dict[str, Any]], first: int) -> Sequence[JobReturn]:
        """Run a job at each point, numbered from `first`."""
        OmegaConf.save(self.settings, self.directory / _SETTINGS)
        overrides = [[*fixed, *(self.override(name, value) for name, value in point.items())] for point in points]
        return self.jobs_launcher.launch(overrides, first)

    def override(self, name: str, value: Any) -> str:
        """Override that sets a swept key; null switches a group off."""
        if value == "null" and self.config_loader.get_group_options(name):
            return f"~{name}"
        return f"{self.keys[name]}={value}"

    def first_config(self, fixed: list[str], swept: list[Override]) -> DictConfig:
        """Config of the first job, which has the objective: the sweep's own has the default model's."""
        from taugrad.sweeps.jobs import name_of, values

        groups = [o for o in swept if o.is_discrete_sweep() and self.config_loader.get_group_options(name_of(o))]
        if not groups:
            return self.settings
        firsts = [self.override(name_of(o), values(o)[0]) for o in groups]
        return self.config_loader.load_sweep_config(self.settings, [*fixed, *firsts])

    def split(self, arguments: list[str]) -> tuple[list[str], list[Override]]:
        """Split the overrides into those that all jobs share, and those to sweep."""
        from taugrad.sweeps.jobs import name_of

        parser = OverridesParser.create(config_loader=self.config_loader)
        overrides = parser.parse_overrides(arguments)
        fixed = [o.input_line for o in overrides if not o.is_sweep_override() and o.input_line is not None]
        swept = [o for o in overrides if o.is_sweep_override()]
        self.keys = {name_of(o): o.get_key_element() for o in swept}  # keys as Hydra reads them
        return fixed, swept


class GridSweeper(_Sweeper):
    """Every combination of the swept values.

    Args:
        jobs: number of jobs launched at a time, for a launcher without a limit of its own; None: all.
    """

    going_on = "last"

    def __init__(self, jobs: int | None) -> None:
        self.jobs = jobs

    def run(self, fixed: list[str], swept: list[Override]) -> list[Any]:
        """Run all jobs, `jobs` at a launch."""
        from taugrad.errors import ConfigError
        from taugrad.sweeps import jobs

        if (self.directory / _SETTINGS).exists() and "ckpt_path=last" not in fixed:
            raise ConfigError(
                f"hydra.sweep.dir={self.directory} holds a sweep already: choose another directory, or go on with the "
                "jobs of this one by ckpt_path=last"
            )
        names = [jobs.name_of(o) for o in swept]
        values = [jobs.values(o) for o in swept]
        points = [dict(zip(names, point, strict=True)) for point in product(*values)]
        jobs.require_same(self.directory, points)
        at_a_time = self.jobs or len(points)
        firsts = range(0, len(points), at_a_time)
        returns = [r for first in firsts for r in self.launch(fixed, points[first : first + at_a_time], first)]
        return [jobs.job(n, point, r) for n, (point, r) in enumerate(zip(points, returns, strict=True))]


class OptunaSweeper(_Sweeper):
    """Trials of a study, up to a total that counts those of an earlier run of the same study.

    Args:
        trials: number of trials in all.
        jobs: number of jobs launched at a time.
        seed: of the sampler.
        sampler: from a seed to a sampler of Optuna; in a config, a partial one.
        pruner: one of Optuna.
    """

    going_on = None

    def __init__(self, trials: int, jobs: int, seed: int, sampler: Callable[..., Any], pruner: Any) -> None:
        self.trials, self.jobs, self.seed = trials, jobs, seed
        self.sampler, self.pruner = sampler, pruner

    def run(self, fixed: list[str], swept: list[Override]) -> list[Any]:
        """Run the trials that are left, `jobs` at a launch; return all of the study."""
        from taugrad.sweeps.study import Trials

        trials = Trials(self.directory, self.job_config, fixed, swept, self.sampler, self.pruner, self.seed)
        while (left := self.trials - len(trials)) > 0:
            batch = trials.ask(min(left, self.jobs or left))
            trials.tell(batch, self.launch(fixed, [trial.params for trial in batch], batch[0].number))
        return trials.jobs()
