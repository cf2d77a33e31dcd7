"""Learning curves of several runs in one picture: interquartile means over seeds, with intervals.

Runs whose overrides differ in nothing but the seed count as one curve. Between two values a run's metric is taken to
be linear; a curve goes as far as its shortest run.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml

from taugrad.errors import ConfigError
from taugrad.extras import extra
from taugrad.outputs import require_picture, writing
from taugrad.rl.evaluation import interquartile_mean

_POINTS = 100
_NO_DIFFERENCE = ("seed=", "hydra.", "run_dir=")


def compare(runs: Sequence[Path], metric: str, out: Path) -> dict[str, int]:
    """Draw the metric of runs to a PNG.

    Args:
        runs: directories of runs, or of sweeps, which hold runs.
        metric: the tag of a scalar in TensorBoard.
        out: where the picture goes.

    Returns:
        How many runs each curve has, by its label: the overrides that made it.

    Raises:
        ConfigError: there is no run, one has no such metric, `out` cannot be written, or matplotlib is missing.
    """
    require_picture("out", out)
    groups: dict[str, list[Path]] = {}
    for run in _found(runs):
        groups.setdefault(_label(run), []).append(run)
    curves = {label: _interquartile([_series(run, metric) for run in members]) for label, members in groups.items()}
    _draw(curves, metric, out)
    return {label: len(members) for label, members in groups.items()}


def _found(runs: Sequence[Path]) -> list[Path]:
    found = [directory.parent for run in runs for directory in sorted(run.rglob("tensorboard"))]
    if not found:
        raise ConfigError(f"runs must be directories that hold runs, got {', '.join(map(str, runs))}")
    return found


def _label(run: Path) -> str:
    overrides = run / ".hydra" / "overrides.yaml"
    told = (yaml.safe_load(overrides.read_text()) if overrides.exists() else None) or []
    told = [x.lstrip("+") for x in told]
    return " ".join(x for x in told if not x.startswith(_NO_DIFFERENCE)) or "default"


def _series(run: Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    if metric not in tags:
        raise ConfigError(f"metric must be one of {', '.join(sorted(tags))} for {run}, got {metric}")
    scalars = events.Scalars(metric)
    return np.array([s.step for s in scalars], dtype=float), np.array([s.value for s in scalars], dtype=float)


def _interquartile(series: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,), and at each the interquartile mean with the ends of its interval, (n, 3)."""
    first, last = max(x[0] for x, _ in series), min(x[-1] for x, _ in series)
    steps = np.linspace(first, last, _POINTS)
    values = np.stack([np.interp(steps, x, y) for x, y in series])
    return steps, np.array([interquartile_mean(torch.from_numpy(column)) for column in values.T])


def _draw(curves: dict[str, tuple[np.ndarray, np.ndarray]], metric: str, out: Path) -> None:
    figure = extra("matplotlib.figure", "plot").Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for label, (steps, values) in curves.items():
        (line,) = axes.plot(steps, values[:, 0], label=label)
        axes.fill_between(steps, values[:, 1], values[:, 2], alpha=0.2, color=line.get_color(), linewidth=0)
    axes.set(xlabel="steps", ylabel=metric, title="interquartile mean and 95 % interval over seeds")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.1), frameon=False)
    with writing(out):
        figure.savefig(out, dpi=120)
