"""Learning curves of several runs in one plot: interquartile means over seeds, with intervals.

Runs whose overrides differ in nothing but the seed count as one curve. Between two values a run's metric is taken to
be linear; a curve ends where its shortest run ends. Fewer than five runs are plotted one by one: an interval would lie
within their range, which holds the median of two with a probability of a half only, that of four with 0.88.
"""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from taugrad.errors import ConfigError
from taugrad.extras import extra
from taugrad.files import require_picture, writing
from taugrad.rl.evaluation import interquartile_mean

Series = tuple[np.ndarray, np.ndarray]  # steps and values

_POINTS = 100
_ENOUGH = 5  # runs for an interval; from here on the bootstrap covers nine in ten or more
_NO_DIFFERENCE = ("seed", "run_dir", "ckpt_path", "debug", "hydra")
_WIDTH = 9.0  # width of the plot in inches
_CHARACTERS = 120  # length of a line of text below or above the axes


def compare(runs: Sequence[Path], metric: str, out: Path) -> dict[str, int]:
    """Plot a metric, the tag of a scalar in TensorBoard, of the runs in directories, or in those of sweeps, to a file.

    Return the number of runs of each curve, by its label: the overrides that the others do not share.

    Raises:
        ConfigError: there is no run, one has no such metric, `out` cannot be written, or matplotlib is missing.
    """
    require_picture("out", out)
    figure = extra("matplotlib.figure", "plot").Figure
    groups: dict[tuple[str, ...], list[Path]] = {}
    for run in _found(runs):
        groups.setdefault(_settings(run), []).append(run)
    labels, shared = _labels(list(groups))
    members = [[_series(run, metric) for run in group] for group in groups.values()]
    curves = dict(zip(labels, members, strict=True))
    _plot(figure(figsize=(_WIDTH, 5.0), layout="constrained"), curves, metric, shared, out)
    return {label: len(series) for label, series in curves.items()}


def _found(runs: Sequence[Path]) -> list[Path]:
    found = [directory.parent for run in runs for directory in sorted(run.rglob("tensorboard"), key=_by_numbers)]
    if not found:
        raise ConfigError(f"runs must be directories that hold runs, got {', '.join(map(str, runs))}")
    return list(dict.fromkeys(found))


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """Sorting key that puts job 10 after job 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def _settings(run: Path) -> tuple[str, ...]:
    """Overrides of a run, the last one of each key, sorted: equal settings are equal in whatever order."""
    overrides = run / ".hydra" / "overrides.yaml"
    told = (yaml.safe_load(overrides.read_text(encoding="utf-8")) if overrides.exists() else None) or []
    last = {x.partition("=")[0].lstrip("+"): x.lstrip("+") for x in told}
    return tuple(sorted(x for key, x in last.items() if key.split(".")[0].split("/")[0] not in _NO_DIFFERENCE))


def _labels(settings: Sequence[tuple[str, ...]]) -> tuple[list[str], str]:
    """Overrides that only some of several settings have, as a label for each, and those that all share.

    >>> _labels([("a=1", "b=2"), ("a=1", "b=3"), ("a=1",)])
    (['b=2', 'b=3', 'default'], 'a=1')
    >>> _labels([("a=1", "b=2")])
    (['one setting'], 'a=1 b=2')
    """
    counts = Counter(x for told in settings for x in told)
    own = [" ".join(x for x in told if counts[x] < len(settings)) or "default" for told in settings]
    shared = " ".join(x for x in settings[0] if counts[x] == len(settings))
    return own if len(settings) > 1 else ["one setting"], shared


def _series(run: Path, metric: str) -> Series:
    """Steps and values of a metric."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    if metric not in tags:
        raise ConfigError(f"metric must be one of {', '.join(sorted(tags)) or 'none'} for {run}, got {metric}")
    scalars = events.Scalars(metric)
    return np.array([s.step for s in scalars], dtype=float), np.array([s.value for s in scalars], dtype=float)


def _interquartile(series: Sequence[Series]) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps (n,), and the interquartile mean with the ends of its interval, (n, 3); None if no step is in all runs."""
    first, last = max(x[0] for x, _ in series), min(x[-1] for x, _ in series)
    if first > last:
        return None
    steps = np.linspace(first, last, _POINTS)
    values = np.stack([np.interp(steps, x, y) for x, y in series])
    return steps, np.array([interquartile_mean(torch.from_numpy(column)) for column in values.T])


def _plot(figure: Any, curves: Mapping[str, Sequence[Series]], metric: str, shared: str, out: Path) -> None:
    axes = figure.subplots()
    for i, (label, series) in enumerate(curves.items()):
        style = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":", "-.")[i // 10 % 4]}
        _plot_curve(axes, series, textwrap.fill(f"{label} ({_told(series)})", _CHARACTERS), style)
    axes.set(xlabel="steps", ylabel=metric)
    axes.grid(alpha=0.3)
    counts = [len(series) for series in curves.values()]
    title = ["interquartile mean over seeds"] if max(counts) > 1 else []
    title += ["band: bootstrap interval of 95 %"] if max(counts) >= _ENOUGH else []
    title += ["thin: every run, too few for an interval"] if any(1 < n < _ENOUGH for n in counts) else []
    above = figure.suptitle("; ".join(title) or "single runs", fontsize=11)
    settings = textwrap.fill(shared, _CHARACTERS) or " "
    below_title = axes.set_title(settings, fontsize=8, loc="left", color="0.4")
    below = figure.legend(loc="outside lower left", frameon=False, fontsize=8)
    columns = max(1, int(0.95 * figure.bbox.width / below.get_window_extent().width))
    below.remove()
    below = figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=columns)
    texts = sum(artist.get_window_extent().height for artist in (above, below_title, below)) / figure.dpi
    figure.set_size_inches(_WIDTH, 4.5 + texts)  # the axes keep their size, however long the texts are
    with writing(out):
        figure.savefig(out, dpi=120)


def _plot_curve(axes: Any, series: Sequence[Series], label: str, style: Mapping[str, str]) -> None:
    found = _interquartile(series) if len(series) > 1 else None
    if found is None or len(series) < _ENOUGH:
        for i, (x, y) in enumerate(series):
            told = label if found is None and i == 0 else None
            mark = "o" if len(x) == 1 else None
            thin = {"linewidth": 0.8, "alpha": 0.5} if len(series) > 1 else {}
            axes.plot(x, y, marker=mark, label=told, **style, **thin)
    if found is not None:
        steps, values = found
        axes.plot(steps, values[:, 0], label=label, marker="o" if steps[0] == steps[-1] else None, **style)
        if len(series) >= _ENOUGH:
            axes.fill_between(steps, values[:, 1], values[:, 2], alpha=0.2, color=style["color"], linewidth=0)


def _told(series: Sequence[Series]) -> str:
    """Number of runs of a curve, and the step where it ends if that is before the longest of them."""
    if len(series) == 1:
        return "a single run"
    ends = [x[-1] for x, _ in series]
    if max(x[0] for x, _ in series) > min(ends):
        return f"n = {len(series)}, no steps in common"
    return f"n = {len(series)}" + (f" to step {min(ends):.0f}" if min(ends) < 0.95 * max(ends) else "")
