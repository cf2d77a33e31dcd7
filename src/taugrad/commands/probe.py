"""The command `taugrad probe`: from a config to a table, `probe.json` and `probe.png`."""

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from taugrad.checks import check_count, check_positive
from taugrad.config import instantiate, read, resolve
from taugrad.data.batches import first_images
from taugrad.errors import ConfigError
from taugrad.estimators import Estimator
from taugrad.extras import extra
from taugrad.files import require_folder, user_path, writing
from taugrad.models.base import Latent
from taugrad.probe import GROUPS, Function, Quality, probe, reference
from taugrad.sweeps.report import even_in_log
from taugrad.training.images import ImageTask
from taugrad.training.runs import load_run


@dataclass(frozen=True)
class ProbeConfig:
    """The keys of conf/probe.yaml and their types."""

    estimators: list[str]
    taus: list[float]
    draws: int
    reference_samples: int
    images: int
    seed: int
    out: str
    checkpoint: str
    run: str | None = None
    trust: list[str] = field(default_factory=list)
    debug: bool = False


def run_probe(config: DictConfig, estimators: Path) -> list[Quality]:
    """Probe estimators, of a directory of configs, at every tau; print a table, write `probe.json` and `probe.png`."""
    extra("matplotlib.figure", "plot")  # a missing package is found before the computing, not after it
    arguments = read(ProbeConfig, config)
    try:
        for key in ("estimators", "taus"):
            if not getattr(arguments, key):
                raise ConfigError(f"{key} must be a list of at least one, got []")
        for tau in arguments.taus:
            check_positive("taus", tau)
        check_count("images", arguments.images)
        check_count("draws", arguments.draws, smallest=2 * GROUPS)
        if arguments.draws % GROUPS:
            raise ConfigError(f"draws must be a multiple of {GROUPS}, got {arguments.draws}")
        check_count("reference_samples", arguments.reference_samples, smallest=100)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    named = {name: _estimator(estimators, name) for name in arguments.estimators}
    out = user_path(arguments.out)
    require_folder("out", out)
    seed_everything(arguments.seed, verbose=False)
    f, logits = toy() if arguments.run is None else problem(arguments)
    exact, how = reference(f, logits, samples=arguments.reference_samples)
    cells = [(name, tau) for name in named for tau in arguments.taus]
    qualities = [
        probe(named[name], f, logits, exact, tau=tau, draws=arguments.draws, name=name)
        for name, tau in track(cells, description="probing", transient=True)
    ]
    facts = {"reference": how, "draws": arguments.draws, "logits": list(logits.shape), "run": arguments.run}
    _print(qualities, f"{list(logits.shape)} logits, {arguments.draws} draws, reference: {how}")
    content = json.dumps(facts | {"results": [q.as_dict() for q in qualities]}, indent=2) + "\n"
    with writing(out / "probe.json"):
        (out / "probe.json").write_text(content, encoding="utf-8")
    with writing(out / "probe.png"):
        plot(qualities, out / "probe.png")
    Console().print(f"{out}/probe.json, {out}/probe.png", soft_wrap=True)
    return qualities


def toy() -> tuple[Function, Tensor]:
    """A function of three 5-way choices that is neither linear nor quadratic, with four rows of logits."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(15, 15, generator=generator)
    logits = torch.randn(4, 3, 5, generator=generator)
    return lambda z: torch.tanh(torch.einsum("...i,ij,...j->...", z.flatten(-2), A, z.flatten(-2)) / 4), logits


def problem(arguments: ProbeConfig) -> tuple[Function, Tensor]:
    """Log p(x|z) by a run's decoder, and the logits of its encoder, for the first test images."""
    task, data, _ = load_run(user_path(arguments.run or ""), arguments.checkpoint, arguments.trust)
    task.requires_grad_(False)
    model = task.model if isinstance(task, ImageTask) else None
    if data is None or not isinstance(model, Latent):
        raise ConfigError(f"run must be a run of a VAE, got {arguments.run}, one of {type(model or task).__name__}")
    data.setup("test")
    x, _ = first_images(data.test_dataloader(), arguments.images)
    return lambda z: model.log_likelihood(x, z), model.encode(x)


def plot(qualities: list[Quality], path: Path) -> None:
    """Plot bias and variance against `tau`, a line for each estimator, with standard errors."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    names = dict.fromkeys(q.estimator for q in qualities)
    lines = {name: [q for q in qualities if q.estimator == name] for name in names}
    taus = sorted({q.tau for q in qualities})
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("bias", "variance"), strict=True):
        for i, (estimator, line) in enumerate(lines.items()):
            values = [getattr(q, name) for q in line]
            errors = [getattr(q, f"{name}_error") for q in line]
            style = {"marker": "osv^D<>pX"[i % 9], "markersize": 4, "capsize": 2, "linewidth": 1.2}
            axes.errorbar([q.tau for q in line], values, yerr=errors, label=estimator, **style)
        axes.set(xlabel="tau", xscale="log" if even_in_log(taus) else "linear", xticks=taus)
        axes.xaxis.set(major_formatter="{x:g}", minor_locator=NullLocator())
        axes.grid(alpha=0.3)
    bias, variance = figure.axes
    bias.set(ylabel="|bias| / |exact gradient|", ylim=(0, min(2.0, 1.1 * max(q.bias for q in qualities) + 0.05)))
    variance.set(ylabel="variance / |exact gradient|²", yscale="log")
    figure.axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=130)


def _estimator(directory: Path, name: str) -> Estimator:
    path = directory / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in directory.glob("*.yaml"))
        close = difflib.get_close_matches(name, known) or known
        raise ConfigError(f"estimators must be names of conf/estimator, got {name}; did you mean {', '.join(close)}?")
    config: Any = OmegaConf.load(path)
    return instantiate(resolve(config))


def _print(qualities: list[Quality], title: str) -> None:
    columns = ("bias", "variance", "mse", "cosine")
    table = Table("estimator", "tau", *(f"{c} ±" for c in columns), "ms", title=title, box=None)
    for q in qualities:
        values = (f"{getattr(q, c):.2f} {getattr(q, f'{c}_error'):.2f}" for c in columns)
        table.add_row(q.estimator, f"{q.tau:g}", *values, f"{q.milliseconds:.2f}")
    Console().print(table)
