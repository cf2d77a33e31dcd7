"""The report of a sweep: a table with the best first, `sweep.csv`, and a plot of what was swept."""

import csv
import io
import itertools
import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from taugrad.errors import ConfigError
from taugrad.extras import extra
from taugrad.files import writing
from taugrad.sweeps.jobs import Job, directions, name_of, objectives
from taugrad.training.checkpoints import write_whole

_CHARACTERS = 30  # characters of marks side by side below an axis
_LONGEST = 28  # characters of one mark
_MOST_TICKS = 6  # marks at the values themselves


def report(jobs: Sequence[Job], directory: Path, config: DictConfig, swept: Sequence[Override]) -> None:
    """Print a table with the best first, write `sweep.csv` and `sweep.png`, and end with an error if a job failed.

    A job that failed now, or that is not one of these, keeps what an earlier report says of it.

    Raises:
        ConfigError: jobs failed; all others have been reported.
        TaugradError: a file cannot be written.
    """
    failed = [j for j in jobs if j.state == "failed" and j.error != "interrupted"]
    total, names = len(jobs), objectives(config)
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
                plot(complete, params, names, directory / "sweep.png", swept)
        except ConfigError as error:  # matplotlib is an extra
            console.print(f"no sweep.png: {error}", soft_wrap=True)
    console.print(f"{directory}/sweep.csv", soft_wrap=True)
    if failed:
        first = failed[0]
        raise ConfigError(f"{len(failed)} of {total} jobs failed, the first of them {first.number}: {first.error}")


def plot(jobs: Sequence[Job], params: list[str], names: list[str], path: Path, swept: Sequence[Override] = ()) -> Any:
    """Plot each objective (a row) against each swept parameter (a column), on the scale of its override in `swept`."""
    figure = extra("matplotlib.figure", "plot").Figure
    ticker = extra("matplotlib.ticker", "plot")
    plotted = figure(figsize=(1.5 + 3.5 * len(params), 0.5 + 3 * len(names)), layout="constrained")
    grid = plotted.subplots(len(names), len(params), squeeze=False, sharey="row", sharex="col")
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
    plotted.set_size_inches(plotted.get_figwidth(), plotted.get_figheight() + slanted)
    plotted.savefig(path, dpi=130)
    return plotted


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
    """Places of the values of a swept parameter, their scale, and the marks below; None: matplotlib's own."""

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
    """Return a finite number; None for anything else, such as a truth value."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def even_in_log(distinct: Sequence[float]) -> bool:
    """Return whether the logarithms of increasing numbers are spaced more evenly than the numbers.

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
