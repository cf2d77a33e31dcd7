"""What a sweep of several runs needs beside Hydra: its space, a study of Optuna, and a report of its jobs.

A sweep's directory holds a folder for each job, named by its number, `multirun.yaml`, `sweep.csv`, `sweep.png`, and
with Optuna `study.db`, from which a sweep that was killed goes on.
"""

import csv
import io
import itertools
import json
import math
import statistics
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
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

_CHARACTERS = 30  # of marks side by side below an axis of the picture
_LONGEST = 28  # of a mark
_MOST_TICKS = 6  # marks at the values themselves


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
    try:
        held = FileLock(directory / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"hydra.sweep.dir={directory}: another sweep is running there") from error
    with held:
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
        same = sorted(set(fixed) - {"ckpt_path=last"})  # by which a grid goes on, and which changes no trial
        about = {"swept": [str(o.input_line) for o in swept], "fixed": same, "objective": _names(config)}
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


def report(jobs: Sequence[Job], directory: Path, config: DictConfig, swept: Sequence[Override]) -> None:
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
                draw(complete, params, names, directory / "sweep.png", swept)
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
    with path.open(newline="", encoding="utf-8") if path.is_file() else io.StringIO() as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "complete" and all(row.get(n) for n in names)]
    for row in rows:
        number, told = int(row["job"]), {*names, "job", "state", "seconds", "error"}
        point = {name: value for name, value in row.items() if name not in told and value}
        values, seconds = [float(row[name]) for name in names], float(row["seconds"]) if row["seconds"] else None
        if number not in found or found[number].values is None:
            found[number] = Job(number, point, values, "complete", seconds)
    return [found[number] for number in sorted(found)]


def draw(
    jobs: Sequence[Job], params: Sequence[str], names: Sequence[str], path: Path, swept: Sequence[Override] = ()
) -> Any:
    """Each objective (a row) against each swept parameter (a column), on the scale of its override among `swept`.

    Returns:
        The figure.
    """
    figure = extra("matplotlib.figure", "plot").Figure
    ticker = extra("matplotlib.ticker", "plot")
    drawn = figure(figsize=(1.5 + 3.5 * len(params), 0.5 + 3 * len(names)), layout="constrained")
    grid = drawn.subplots(len(names), len(params), squeeze=False, sharey="row", sharex="col")
    overrides = {name_of(o): o for o in swept}
    slanted = 0.0  # inches that slanted labels take
    for column, param in enumerate(params):
        axis = _axis([job.point[param] for job in jobs], overrides.get(param))
        for row, axes in enumerate(grid[:, column]):
            axes.plot(axis.places, [job.values[row] for job in jobs if job.values], "o", alpha=0.7)
            axes.set_xscale(axis.scale)
            axes.grid(alpha=0.3)
        bottom = grid[-1, column]
        bottom.set_xlabel(textwrap.fill(param.replace(".", ". "), 40).replace(". ", "."))
        if axis.ticks is not None and axis.labels is not None:
            crowded = sum(map(len, axis.labels)) > _CHARACTERS
            turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
            bottom.set_xticks(axis.ticks, axis.labels, **turned)
            bottom.xaxis.set_minor_locator(ticker.NullLocator())
            slanted = max(slanted, 0.05 * max(map(len, axis.labels)) if crowded else 0.0)
            if axis.scale == "linear":
                gap = min((b - a for a, b in itertools.pairwise(axis.ticks)), default=1.0)
                bottom.set_xlim(axis.ticks[0] - gap / 2, axis.ticks[-1] + gap / 2)
        elif all(x == int(x) for x in axis.places):
            bottom.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name)
    drawn.set_size_inches(drawn.get_figwidth(), drawn.get_figheight() + slanted)
    drawn.savefig(path, dpi=130)
    return drawn


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


@dataclass(frozen=True)
class _Axis:
    """Where the values of a swept parameter stand, on which scale, and the marks below; None: matplotlib's own."""

    places: list[float]
    scale: str = "linear"
    ticks: list[float] | None = None
    labels: list[str] | None = None


def _axis(found: Sequence[Any], override: Override | None = None) -> _Axis:
    """The axis for the values that jobs had: the scale that was swept, or the one on which a grid is more even.

    Values that are not all numbers stand side by side, in the order in which they were given.

    >>> _axis(["1e-4", "1e-3", "1e-2"]).scale, _axis(["1", "2", "3"]).scale
    ('log', 'linear')
    >>> _axis(["rloo", "1"])
    _Axis(places=[0, 1], scale='linear', ticks=[0, 1], labels=['rloo', '1'])
    """
    swept = override.value() if override else None
    numbers = [_number(value) for value in found]
    if isinstance(swept, IntervalSweep):
        return _numeric([float(x) for x in found], log="log" in swept.tags)
    distinct = sorted({x for x in numbers if x is not None})
    positive = [x for x in distinct if x > 0]
    if None in numbers or (even_in_log(positive) and len(positive) < len(distinct)):  # no place for 0
        given = list(override.sweep_string_iterator()) if override and override.is_discrete_sweep() else []
        names = [str(value) for value in found]
        order = list(dict.fromkeys([*(name for name in given if name in names), *names]))
        labels = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in order]
        return _Axis([order.index(name) for name in names], ticks=list(range(len(order))), labels=labels)
    log = not isinstance(swept, RangeSweep) and even_in_log(distinct)
    if len(distinct) > _MOST_TICKS:
        return _numeric([float(x) for x in found], log=log)
    return _Axis([float(x) for x in found], "log" if log else "linear", distinct, [f"{x:g}" for x in distinct])


def _numeric(places: list[float], *, log: bool) -> _Axis:
    """The axis for many numbers, with marks at round ones."""
    low, high = min(places), max(places)
    if not log:
        return _Axis(places)
    ticks: list[float] = []
    for rounds in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        exponents = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
        ticks = [x for e in exponents for r in rounds if low <= (x := r * 10.0**e) <= high]
        if len(ticks) >= 3:
            break
    else:
        ticks = sorted({low, high})
    ticks = ticks[:: math.ceil(len(ticks) / _MOST_TICKS)]
    return _Axis(places, "log", ticks, [f"{x:.3g}" for x in ticks])


def _number(value: Any) -> float | None:
    """None for what is no finite number, as a truth value."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def even_in_log(distinct: Sequence[float]) -> bool:
    """Whether the logarithms of increasing numbers are spaced more evenly than they are.

    >>> even_in_log([0.1, 0.2, 0.5, 1.0]), even_in_log([0.1, 0.2, 0.3])
    (True, False)
    """
    if len(distinct) < 2 or distinct[0] <= 0:
        return False
    if len(distinct) == 2:
        return distinct[1] >= 10 * distinct[0]

    def unevenness(x: Sequence[float]) -> float:
        gaps = [b - a for a, b in itertools.pairwise(x)]
        return statistics.pstdev(gaps) / statistics.mean(gaps)

    return unevenness([math.log(x) for x in distinct]) < unevenness(distinct)


def _seconds(result: JobReturn) -> float | None:
    """What the run itself put down."""
    path = Path(str(result.hydra_cfg and result.hydra_cfg.hydra.runtime.output_dir)) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8"))["wall_seconds"] if path.is_file() else None
