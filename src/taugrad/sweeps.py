"""What a sweep of several runs needs beside Hydra: its space, a study of Optuna, and a report of its jobs.

A sweep's directory holds a folder for each job, named by its number, `multirun.yaml`, `sweep.csv`, `sweep.png`, and
with Optuna `study.db`, from which a sweep that was killed goes on.
"""

import csv
import fcntl
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from taugrad.checkpoints import write_whole
from taugrad.errors import ConfigError
from taugrad.extras import extra
from taugrad.outputs import require_folder, writing

NAME = "sweep"  # of the one study in a sweep's study.db


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its number, swept values by name, objectives, and how it ended."""

    number: int
    point: dict[str, Any]
    values: list[float] | None
    state: str  # complete, pruned or failed
    seconds: float | None = None
    error: str = ""


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Hold a sweep's directory, made if need be, until the end or the death of this process.

    Raises:
        ConfigError: another process holds it.
    """
    require_folder("hydra.sweep.dir", directory)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"hydra.sweep.dir={directory}: another sweep is running there") from error
        yield


def name_of(override: Override) -> str:
    """The key that a swept override sets, without the plus with which Hydra adds one."""
    return override.get_key_element().lstrip("+")


def require_same(directory: Path, points: Sequence[dict[str, Any]]) -> None:
    """Refuse to go on with the jobs in a sweep's directory at other points than theirs.

    Raises:
        ConfigError: a job there has another value.
    """
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
    """All values of a swept override, as texts that Hydra reads again.

    Raises:
        ConfigError: it has no end of them.
    """
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.get_key_element()} must be a list of values in a grid, got {override.input_line}")
    return list(override.sweep_string_iterator())


def job(number: int, point: dict[str, Any], result: JobReturn) -> Job:
    """What became of a job that a launcher returned."""
    if result.status == JobStatus.COMPLETED:
        returned = result.return_value
        found = [float(x) for x in (returned if isinstance(returned, Sequence) else [returned])]
        if all(map(math.isfinite, found)):
            return Job(number, point, found, "complete", _seconds(result))
        return Job(number, point, None, "failed", _seconds(result), f"the objective is {found}")
    error = result._return_value
    state = "pruned" if type(error).__name__ == "TrialPruned" else "failed"
    return Job(number, point, None, state, _seconds(result), " ".join(str(error).split()) or type(error).__name__)


def distribution(override: Override) -> Any:
    """The distribution of Optuna that a swept override stands for.

    Choices are categorical; `range(a, b, step)` is a whole or fractional number; `interval(a, b)` any number between,
    `int(interval(a, b))` a whole one; `tag(log, interval(a, b))` is uniform in its logarithm.
    """
    kinds = extra("optuna", "optuna").distributions

    def between(low: Any, high: Any, **how: Any) -> Any:
        whole = isinstance(low, int) and isinstance(high, int)
        return (kinds.IntDistribution if whole else kinds.FloatDistribution)(low, high, **how)

    swept = override.value()
    if isinstance(swept, IntervalSweep):
        return between(swept.start, swept.end, log="log" in swept.tags)
    if isinstance(swept, RangeSweep):
        found = list(swept.range())
        return between(found[0], found[-1], step=swept.step)
    return kinds.CategoricalDistribution(values(override))


def storage(directory: str | Path) -> str:
    """The address of the study in a sweep's directory."""
    return f"sqlite:///{Path(directory) / 'study.db'}"


class Trials:
    """The trials of a study in `study.db`, asked for and told of; a trial's number is its job's folder.

    Args:
        directory: of the sweep.
        config: of the sweep; its `objective` and `direction` are a name each, or a list of names.
        fixed: overrides that all jobs share.
        swept: overrides that stand for distributions.
        sampler: from a seed to a sampler of Optuna.
        pruner: one of Optuna.
        seed: of the sampler.

    Raises:
        ConfigError: there is nothing to sweep, or the study is one of another sweep.
    """

    def __init__(
        self,
        directory: Path,
        config: DictConfig,
        fixed: Sequence[str],
        swept: Sequence[Override],
        sampler: Callable[..., Any],
        pruner: Any,
        seed: int,
    ) -> None:
        optuna = extra("optuna", "optuna")
        if not swept:
            raise ConfigError(
                "sweep=optuna needs something to sweep, such as optimizer.lr=tag(log,interval(1e-4,1e-2))"
            )
        if len(_names(config)) > 1 and "pruning" in config.callbacks:
            raise ConfigError("pruning needs a single objective: add ~callbacks.pruning, or give one objective")
        self._space = {name_of(o): distribution(o) for o in swept}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            storage=storage(directory),
            study_name=NAME,
            directions=directions(config),
            pruner=pruner,
            load_if_exists=True,
        )
        # Another seed for every beginning, or a resumed sweep would ask for its first points again.
        self.study.sampler = sampler(seed=seed + len(self.study.trials))
        lines = [str(o.input_line) for o in swept]
        about = {"swept": lines, "fixed": sorted(fixed), "objective": _names(config)}
        for name, here in about.items():
            there = self.study.user_attrs.get(name, here)
            if [line.lstrip("+") for line in there] != [line.lstrip("+") for line in here]:
                raise ConfigError(f"the study in {directory} is of another sweep: {name} was {there}, got {here}")
            self.study.set_user_attr(name, here)

        self._drop_interrupted()

    def __len__(self) -> int:
        """How many have ended by themselves."""
        ended = sum(trial.state.is_finished() for trial in self.study.trials)
        return ended - len(self.study.user_attrs.get("interrupted", []))

    def ask(self, n: int) -> list[Any]:
        """New trials, numbered one after the other."""
        return [self.study.ask(self._space) for _ in range(n)]

    def tell(self, trials: Sequence[Any], results: Sequence[JobReturn]) -> None:
        """Put down what became of them."""
        from optuna.trial import TrialState

        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        for trial, result in zip(trials, results, strict=True):
            ended = job(trial.number, trial.params, result)
            trial.set_user_attr("job", {"seconds": ended.seconds, "error": ended.error})
            self.study.tell(trial, ended.values, states[ended.state])

    def jobs(self) -> list[Job]:
        """Every trial that has ended, as a job."""
        states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        return [
            Job(t.number, t.params, t.values, states[t.state.name], **t.user_attrs.get("job", {"error": "interrupted"}))
            for t in self.study.trials
            if t.state.is_finished()
        ]

    def _drop_interrupted(self) -> None:
        """Ask again for the points of trials that were running when an earlier sweep was killed; they count once."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            self.study.set_user_attr("interrupted", [*self.study.user_attrs.get("interrupted", []), trial.number])
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.study.enqueue_trial(trial.params)


def report(jobs: Sequence[Job], directory: Path, config: DictConfig) -> None:
    """Print a table with the best first, write `sweep.csv` and `sweep.png`, and end with an error if a job failed.

    What an earlier report says of a job that failed now, or that is not one of these, stays.

    Raises:
        ConfigError: jobs failed; all others have been reported.
        TaugradError: a file cannot be written.
    """
    failed = [j for j in jobs if j.state == "failed" and j.error != "interrupted"]
    total, names = len(jobs), _names(config)
    jobs = _with_earlier(jobs, directory / "sweep.csv", names)
    params = list(dict.fromkeys(name for job in jobs for name in job.point))
    rows = [
        {"job": j.number, **j.point, **dict(zip(names, j.values or [], strict=False)), "state": j.state}
        | {"seconds": j.seconds, "error": j.error}
        for j in jobs
    ]
    console = Console()
    console.print(_table(jobs, params, names, directions(config)[0] == "maximize"))
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, ["job", *params, *names, "state", "seconds", "error"])
    writer.writeheader()
    writer.writerows(rows)
    with writing(directory / "sweep.csv"):
        write_whole(directory / "sweep.csv", content.getvalue().encode())
    complete = [j for j in jobs if j.values is not None]
    if complete and params:
        try:
            with writing(directory / "sweep.png"):
                draw(complete, params, names, directory / "sweep.png")
        except ConfigError as error:  # matplotlib is an extra
            console.print(f"no sweep.png: {error}", soft_wrap=True)
    console.print(f"{directory}/sweep.csv", soft_wrap=True)
    if failed:
        raise ConfigError(
            f"{len(failed)} of {total} jobs failed, the first of them {failed[0].number}: {failed[0].error}"
        )


def _with_earlier(jobs: Sequence[Job], path: Path, names: Sequence[str]) -> list[Job]:
    """The jobs, and for those without a result the complete ones of an earlier report on the same objectives."""
    found = {job.number: job for job in jobs}
    with path.open(newline="") if path.is_file() else io.StringIO() as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "complete" and all(row.get(n) for n in names)]
    for row in rows:
        number, told = int(row["job"]), {*names, "job", "state", "seconds", "error"}
        point = {name: value for name, value in row.items() if name not in told and value}
        values, seconds = [float(row[name]) for name in names], float(row["seconds"]) if row["seconds"] else None
        if number not in found or found[number].values is None:
            found[number] = Job(number, point, values, "complete", seconds)
    return [found[number] for number in sorted(found)]


def draw(jobs: Sequence[Job], params: Sequence[str], names: Sequence[str], path: Path) -> None:
    """Each objective (a row) against each swept parameter (a column)."""
    figure = extra("matplotlib.figure", "plot").Figure
    drawn = figure(figsize=(1.5 + 3.5 * len(params), 0.5 + 3 * len(names)), layout="constrained")
    grid = drawn.subplots(len(names), len(params), squeeze=False, sharey="row")
    for row, (axes_row, name) in enumerate(zip(grid, names, strict=True)):
        for axes, param in zip(axes_row, params, strict=True):
            x, scale = _axis([j.point[param] for j in jobs])
            axes.set_xscale(scale)
            axes.plot(x, [j.values[row] for j in jobs if j.values], "o", alpha=0.7)
            axes.set_xlabel(param)
            axes.grid(alpha=0.3)
        axes_row[0].set_ylabel(name)
    drawn.savefig(path, dpi=130)


def directions(config: DictConfig) -> list[str]:
    """`minimize` or `maximize` for each objective.

    Raises:
        ConfigError: it is neither, or not as many as there are objectives.
    """
    names, found = _names(config), config.direction
    found = [found] if isinstance(found, str) else list(found)
    if len(found) != len(names) or not set(found) <= {"minimize", "maximize"}:
        raise ConfigError(
            f"direction must be minimize or maximize for each of {', '.join(names)}, got {', '.join(found)}"
        )
    return found


def _names(config: DictConfig) -> list[str]:
    return [config.objective] if isinstance(config.objective, str) else list(config.objective)


def _table(jobs: Sequence[Job], params: Sequence[str], names: Sequence[str], maximize: bool) -> Table:
    table = Table("job", *params, *names, "state", "s")
    sign = -1 if maximize else 1
    for j in sorted(jobs, key=lambda j: (j.values is None, sign * j.values[0] if j.values else j.number)):
        values = [f"{value:.4g}" for value in j.values] if j.values else ["-"] * len(names)
        point = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in (j.point.get(name, "-") for name in params)]
        table.add_row(str(j.number), *point, *values, j.state, "-" if j.seconds is None else f"{j.seconds:.0f}")
    return table


def _axis(found: list[Any]) -> tuple[list[Any], str]:
    """Values to draw, numbers if they all are, and the scale of their axis.

    >>> _axis(["1e-4", "1e-2"]), _axis(["rloo", "1"])
    (([0.0001, 0.01], 'log'), (['rloo', '1'], 'linear'))
    """
    try:
        numbers = [float(value) for value in found]
    except ValueError:
        return [str(value) for value in found], "linear"
    return numbers, "log" if min(numbers) > 0 and max(numbers) >= 20 * min(numbers) else "linear"


def _seconds(result: JobReturn) -> float | None:
    """What the run itself put down."""
    path = Path(str(result.hydra_cfg and result.hydra_cfg.hydra.runtime.output_dir)) / "metrics.json"
    return json.loads(path.read_text())["wall_seconds"] if path.is_file() else None
