"""Plot the figures of the course, the results and the circuits in docs/: python scripts/figures.py [NAME ...].

Every figure is plotted again byte for byte by the same matplotlib on the same kind of CPU: its noise is seeded and
always torch's own, which does not depend on compiled kernels, and its numbers are rounded before they are plotted.
"""

import argparse
import base64
import csv
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import Tensor

import taugrad
from taugrad.bounds import importance_weighted_bound
from taugrad.circuits import Circuit, plot, simplify
from taugrad.cli import one_sentence
from taugrad.commands.probe import toy
from taugrad.data.binarized_mnist import binarized_mnist
from taugrad.data.images import Split
from taugrad.files import require_folder, writing
from taugrad.models.logic_gates import LogicGates
from taugrad.nets import mlp
from taugrad.ops.categorical import bernoulli_log_prob, kl_to_uniform
from taugrad.ops.onehot import one_hot
from taugrad.ops.softmax import softmax, softmax_jacobian
from taugrad.probe import probe, reference

Numbers = dict[str, Any]

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
PI = (0.15, 0.40, 0.45)
COLOURS = ("#4477aa", "#ee6677", "#228833")  # one for each class; told apart by the colour-blind too
DARK, GREY = "#222222", "#888888"
DRAWS = 100_000
TAUS = (0.01, 0.1, 0.5, 1.0, 10.0)
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "taugrad",  # ids of an SVG are random otherwise
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
ARMS = {  # arms of the comparison with and without noise: (noise, hard)
    "noise, hard": (True, True),
    "noise, soft": (True, False),
    "no noise, hard": (False, True),
    "no noise, soft": (False, False),
}
SEEDS, STEPS, BATCH, VAE_TAU = (0, 1, 2), 5000, 100, 0.5
LATENTS, CATEGORIES = 20, 10
WIDE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
USUAL = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
ESTIMATORS = {
    "Gumbel-Softmax, soft": taugrad.GumbelSoftmax(),
    "ST Gumbel-Softmax": taugrad.STGumbelSoftmax(),
    "Gumbel-Rao, 10 draws": taugrad.GumbelRao(draws=10),
    "straight-through": taugrad.StraightThrough(),
    "ReinMax": taugrad.ReinMax(),
}
OURS: dict[str, Any] = {"marker": "x", "color": COLOURS[1], "label": "ours, a seed each"}
BESIDE: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 7}
FORAGING: dict[str, dict[str, Any]] = {  # curves that the text speaks of
    "STGS, tau 1": {"color": COLOURS[1], "linewidth": 2},
    "STGS, tau 0.5": {"color": COLOURS[1], "linestyle": "--"},
    "gapped straight-through": {"color": COLOURS[0]},
    "RLOO": {"color": COLOURS[2], "linestyle": "--"},
    "enumeration": {"color": COLOURS[2], "linewidth": 2},
    "multilinear critic": {"color": DARK, "linewidth": 2},
    "MAPPO": {"color": DARK, "linestyle": ":"},
}
FAINT: dict[str, Any] = {"color": "#bbbbbb", "linewidth": 0.8}
GRID_COLUMNS = ("8x4", "4x24", "8x16", "10x30")
GRID = {  # 2603.08257's training -ELBO, means of 10 seeds
    "straight_through": (136.40, 112.21, 113.32, 136.73),
    "gapped_straight_through": (128.31, 101.64, 98.31, 98.66),
    "st_gumbel_softmax": (127.59, 101.49, 99.20, 99.80),
    "gumbel_rao": (125.65, 100.14, 99.63, 102.28),
    "reinmax": (125.08, 99.88, 97.80, 98.50),
    "reinmax_rao": (125.31, 100.41, 98.03, 98.61),
}


def figure_softmax(out: Path) -> Numbers:
    """Softmax of three classes, and how it, the argmax and a sample react to one logit."""
    pi = torch.tensor(PI, dtype=torch.float64)
    z = taugrad.gumbel_max(pi.log(), generator=seeded(0))
    mode = one_hot(pi.argmax(), pi)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    classes = torch.arange(3)
    for i, (name, values, colour) in enumerate(
        [("softmax", pi, COLOURS[0]), ("argmax", mode, GREY), ("a sample", z, COLOURS[1])]
    ):
        left.bar(classes + 0.27 * (i - 1), values, width=0.25, color=colour, label=name)
    left.set(xticks=classes, xticklabels=["class 1", "class 2", "class 3"], ylim=(0, 1.3), yticks=(0, 0.5, 1))
    left.legend(loc="upper center", ncols=3)
    left.set_title("one distribution, its mode, one draw")

    x2 = torch.linspace(-3, 3, 601, dtype=torch.float64)
    logits = torch.stack([x2.new_full(x2.shape, -0.5), x2, x2.new_zeros(x2.shape)], -1)
    g = taugrad.gumbel_noise(pi, generator=seeded(3))
    smooth = rounded(softmax(logits)[:, 1])
    right.plot(x2, smooth, color=COLOURS[0], label="softmax")
    right.plot(x2, one_hot(logits.argmax(-1), logits)[:, 1], color=GREY, ls="--", label="argmax")
    hard = one_hot((logits + g).argmax(-1), logits)[:, 1]
    right.plot(x2, hard, color=COLOURS[1], label="a sample, its noise held")
    right.set(xlabel="logit of class 2", ylabel="output for class 2", ylim=(-0.05, 1.3), yticks=(0, 0.5, 1))
    right.legend(loc="upper left", fontsize=8)
    right.set_title("only one of the three has a slope")
    save(figure, out, "softmax")
    return {"sample": z.tolist(), "jump": x2[hard.argmax()].item(), "smooth": smooth[::100]}


def figure_gumbel_max(out: Path) -> Numbers:
    """The perturbed logits' densities, and the frequencies of their argmax with 99 % intervals."""
    pi = torch.tensor(PI, dtype=torch.float64)
    drawn = taugrad.gumbel_argmax(pi.log().expand(DRAWS, 3), generator=seeded(0))
    counts = torch.bincount(drawn, minlength=3).tolist()
    intervals = [binomtest(k, DRAWS).proportion_ci(0.99, "exact") for k in counts]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    s = torch.linspace(-4, 6, 401, dtype=torch.float64)
    for k, p in enumerate(PI):
        u = s - pi[k].log()
        left.plot(s, rounded((-u - (-u).exp()).exp()), color=COLOURS[k], label=f"class {k + 1}, π = {p:.2f}")
    left.set(xlabel="log π + Gumbel noise", ylabel="density", ylim=(0, 0.5))
    left.legend(fontsize=8)
    left.set_title("the largest of three such draws wins")
    for k, (p, interval) in enumerate(zip(PI, intervals, strict=True)):
        f = counts[k] / DRAWS
        low, high = (round(100 * (f - interval.low), 6), round(100 * (interval.high - f), 6))
        right.errorbar(round(100 * (f - p), 6), 2 - k, xerr=[[low], [high]], fmt="o", color=COLOURS[k], capsize=5, lw=2)
    right.axvline(0, color=DARK, lw=1)
    labels = [f"class {k + 1}\n{f / DRAWS:.5f}" for k, f in enumerate(counts)]
    right.set(yticks=(2, 1, 0), yticklabels=labels, ylim=(-0.6, 2.6), xlim=(-0.6, 0.6))
    right.set(xlabel="frequency - π, percentage points")
    right.set_title(f"{DRAWS:,} draws, 99 % intervals")
    save(figure, out, "gumbel_max")
    return {"counts": counts, "low": [i.low for i in intervals], "high": [i.high for i in intervals]}


def figure_tau(out: Path) -> Numbers:
    """Relaxed samples at five temperatures on the simplex and as bars, the same noise at each."""
    logits = torch.tensor(PI, dtype=torch.float64).log()
    figure = Figure(figsize=(8, 3.9), layout="constrained")
    axes = figure.subplots(2, len(TAUS), height_ratios=(1, 0.9))
    for column, tau in zip(axes.T, TAUS, strict=True):
        y = taugrad.gumbel_softmax(logits.expand(500, 3), tau, generator=seeded(0))
        _ternary(column[0], y)
        column[0].set_title(f"τ = {tau:g}")
        _bars(column[1], y[:8], mean_soft_sample(tau))
    axes[1, 0].set(ylabel="share of each class", yticks=(0, 0.5, 1))
    for k, p in enumerate(PI):
        axes[1, 0].bar(0, 0, color=COLOURS[k], label=f"class {k + 1}, π = {p:.2f}")
    figure.legend(loc="outside lower center", ncols=3)
    save(figure, out, "tau")
    return {str(tau): mean_soft_sample(tau).tolist() for tau in (*TAUS[:4], 2.0, 5.0, 10.0)}


def mean_soft_sample(tau: float, draws: int = 1_000_000) -> Tensor:
    """The mean of Gumbel-Softmax samples (K,); its standard error is below 0.0005."""
    logits = torch.tensor(PI, dtype=torch.float64).log().expand(draws, 3)
    return taugrad.gumbel_softmax(logits, tau, generator=seeded(1)).mean(0)


def _ternary(axes: Axes, y: Tensor) -> None:
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
    axes.fill(*corners.T.tolist(), facecolor="none", edgecolor=GREY, lw=1)
    axes.scatter(*rounded(y @ corners, transposed=True), s=7, color=DARK, alpha=0.25, lw=0)
    pi = torch.tensor([PI], dtype=torch.float64)
    axes.scatter(*rounded(pi @ corners, transposed=True), s=60, marker="*", color="#ccbb44", edgecolor=DARK, lw=0.6)
    for k, (x, height) in enumerate([(-0.08, -0.11), (1.08, -0.11), (0.5, 0.96)]):
        axes.text(x, height, str(k + 1), color=COLOURS[k], ha="center", va="center", weight="bold")
    axes.set(xlim=(-0.15, 1.15), ylim=(-0.2, 1.06), aspect="equal")
    axes.axis("off")


def _bars(axes: Axes, y: Tensor, mean: Tensor) -> None:
    places = [*range(len(y)), len(y) + 0.9]
    bottom = torch.zeros(len(places), dtype=torch.float64)
    for k in range(y.shape[-1]):
        heights = torch.tensor(rounded(torch.cat([y[:, k], mean[k : k + 1]])), dtype=torch.float64)
        axes.bar(places, heights, bottom=bottom, color=COLOURS[k], width=0.8)
        bottom = bottom + heights
    axes.set(ylim=(0, 1), yticks=(), xticks=((len(y) - 1) / 2, places[-1]), xticklabels=("8 samples", "mean"))
    axes.tick_params(bottom=False, labelsize=8)
    axes.spines[["left", "bottom"]].set_visible(False)


def figure_noise(out: Path) -> Numbers:
    """A categorical VAE trained with and without noise: what training shows, and what the samples of q are worth."""
    numbers = json.loads((FIGURES / "noise.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    for i, arm in enumerate(ARMS):
        runs = [run for run in numbers["runs"] if run["arm"] == arm]
        for side, key, colour in ((-0.2, "train_loss", GREY), (0.2, "test_loss", COLOURS[1])):
            values = [run[key] for run in runs]
            mean = sum(values) / len(values)
            left.bar(i + side, round(mean, 4), width=0.36, color=colour)
            left.scatter([i + side] * len(values), values, s=9, color=DARK, zorder=3)
            left.text(i + side, max(values) + 14, f"{mean:.0f}", ha="center", fontsize=8)
    left.bar(0, 0, color=GREY, label="training loss, last 500 steps")
    left.bar(0, 0, color=COLOURS[1], label="test -ELBO, hard samples of q")
    left.set(xticks=range(len(ARMS)), xticklabels=[arm.replace(", ", ",\n") for arm in ARMS], ylabel="nats an image")
    left.set(ylim=(0, 850))
    left.legend(loc="upper left", fontsize=8)
    left.set_title(f"{len(SEEDS)} seeds, {STEPS:,} steps")
    pictures = torch.frombuffer(bytearray(base64.b64decode(numbers["pictures"])), dtype=torch.uint8).view(3, -1, 28, 28)
    sheet = torch.nn.functional.pad(pictures, (1, 1, 3, 3)).transpose(1, 2).reshape(3 * 34, -1)
    right.imshow(255 - sheet.float(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    right.set(xticks=(), yticks=[17 + 34 * i for i in range(3)])
    right.set_yticklabels(["test images", "noise,\nhard", "no noise,\nhard"])
    right.tick_params(left=False)
    right.spines[["left", "bottom"]].set_visible(False)
    right.set_title("means of p(x|z), one hard sample z of q each")
    save(figure, out, "noise")
    return {}


def measure_noise() -> Numbers:
    """Train the four VAEs on every seed."""
    splits = binarized_mnist()
    train, test = (cast(Tensor, split.images).flatten(1).float() / 255 for split in (splits.train, splits.test))
    runs, pictures = [], [test[:6]]
    for arm, (noise, hard) in ARMS.items():
        for seed in SEEDS:
            run, means = train_vae(train, test, noise, hard, seed)
            runs.append({"arm": arm, "seed": seed} | run)
            print(runs[-1], flush=True)
            if hard and seed == 0:
                pictures.append(means[:6])
    levels = (torch.stack(pictures) * 255).round().to(torch.uint8)
    return {
        "runs": runs,
        "mean": {arm: {k: _mean(runs, arm, k) for k in runs[0] if k not in ("arm", "seed")} for arm in ARMS},
        "pictures": base64.b64encode(levels.numpy().tobytes()).decode(),
    }


def _mean(runs: list[Numbers], arm: str, key: str) -> float:
    values = [run[key] for run in runs if run["arm"] == arm]
    return round(sum(values) / len(values), 3)


def train_vae(train: Tensor, test: Tensor, noise: bool, hard: bool, seed: int) -> tuple[Numbers, Tensor]:
    """Train 784-200-(20x10)-200-784 and evaluate it; its figures, and means of p(x|z) with z ~ q."""
    torch.manual_seed(seed)
    encoder = mlp(784, [200], LATENTS * CATEGORIES)
    decoder = mlp(LATENTS * CATEGORIES, [200], 784)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)

    def encode(x: Tensor) -> Tensor:
        return encoder(x).unflatten(-1, (LATENTS, CATEGORIES))

    def reconstruction(z: Tensor, x: Tensor) -> Tensor:
        return bernoulli_log_prob(decoder(z.flatten(-2)), x)

    losses = []
    for _ in range(STEPS):
        x = train[torch.randint(len(train), (BATCH,))]
        logits = encode(x)
        loss = (kl_to_uniform(logits).sum(-1) - reconstruction(code(logits, noise, hard), x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        logits = encode(test)
        kl = kl_to_uniform(logits).sum(-1).mean()
        z, mode = taugrad.gumbel_max(logits), one_hot(logits.argmax(-1), logits)
        sampled, argmax = (-reconstruction(c, test).mean() for c in (z, mode))
        log_prior = -LATENTS * math.log(CATEGORIES)
        bound = importance_weighted_bound(lambda z: reconstruction(z, test) + log_prior, logits, 100, chunk_size=4)
        figures = {
            "train_loss": sum(losses[-500:]) / 500,
            "test_loss": (kl + sampled).item(),
            "kl": kl.item(),
            "distortion_sample": sampled.item(),
            "distortion_argmax": argmax.item(),
            "nll_100": -bound.mean().item(),
            "most_probable": logits.softmax(-1).amax(-1).mean().item(),
        }
        return {k: round(v, 3) for k, v in figures.items()}, decoder(z.flatten(-2)).sigmoid()


def code(logits: Tensor, noise: bool, hard: bool) -> Tensor:
    """Return the decoder's input in training: with noise Gumbel-Softmax, without it the argmax or the softmax."""
    if noise:
        return taugrad.gumbel_softmax(logits, VAE_TAU, hard=hard)
    y = softmax(logits, VAE_TAU)
    return taugrad.straight_through(one_hot(logits.argmax(-1), logits), y) if hard else y


def figure_bias(out: Path) -> Numbers:
    """Bias and variance of five estimators over tau, against the exact gradient of the probe's toy problem."""
    results = json.loads((FIGURES / "bias.json").read_text(encoding="utf-8"))["results"]
    figure = Figure(figsize=(8, 4.0), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("bias", "variance"), strict=True):
        for i, name in enumerate(ESTIMATORS):
            line = [r for r in results if r["estimator"] == name and r["tau"] in USUAL]
            axes.errorbar(
                [r["tau"] for r in line],
                [r[key] for r in line],
                yerr=[r[f"{key}_error"] for r in line],
                label=name,
                marker="os^vD"[i],
                markersize=4,
                capsize=2,
                lw=1.3,
                color=(*COLOURS, "#aa3377", "#ccbb44")[i],
            )
        axes.set(xlabel="τ", xscale="log", xticks=USUAL, xticklabels=[f"{tau:g}" for tau in USUAL])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    bias, variance = figure.axes
    bias.set(ylabel="|bias| / |exact gradient|", ylim=(0, 1.0))
    variance.set(ylabel="variance / |exact gradient|²", yscale="log")
    figure.legend(*bias.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(figure, out, "bias")
    return {}


def measure_bias() -> Numbers:
    """Probe the estimators on the toy problem, 20,000 draws a cell."""
    torch.manual_seed(0)
    f, logits = toy()
    exact, how = reference(f, logits)
    results = []
    for name, estimator in ESTIMATORS.items():
        for tau in sorted({*USUAL, *(WIDE if "Gumbel-Softmax" in name else ())}):
            quality = probe(estimator, f, logits, exact, tau=tau, draws=20_000, name=name).as_dict()
            del quality["milliseconds"]  # the only one that the seed does not determine
            results.append({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in quality.items()})
            print(results[-1], flush=True)
    return {"reference": how, "draws": 20_000, "results": results}


def figure_schedules(out: Path) -> Numbers:
    """The schedules over a run, and what the variance of the gradient does as tau falls."""
    results = json.loads((FIGURES / "bias.json").read_text(encoding="utf-8"))["results"]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = list(range(0, 20_001, 50))
    schedules = {
        "Constant(0.7)": taugrad.Constant(0.7),
        "Linear(1, 0.5, 20_000)": taugrad.Linear(1.0, 0.5, 20_000),
        "Cosine(1, 0.5, 20_000)": taugrad.Cosine(1.0, 0.5, 20_000),
        "Exponential(1, 0.5, 1e-4, every=1000)": taugrad.Exponential(1.0, 0.5, 1e-4, every=1000),
    }
    values = {name: [round(schedule(step), 6) for step in steps] for name, schedule in schedules.items()}
    for name, colour in zip(values, (GREY, *COLOURS), strict=True):
        left.plot(steps, values[name], label=name, color=colour, lw=1.6)
    left.set(xlabel="step", ylabel="τ", ylim=(0.4, 1.5), xticks=(0, 10_000, 20_000), yticks=(0.5, 0.75, 1.0))
    left.legend(loc="upper left", fontsize=8)
    left.set_title("schedules")
    for name, marker, colour in (("ST Gumbel-Softmax", "s", COLOURS[1]), ("Gumbel-Softmax, soft", "o", COLOURS[0])):
        line = [r for r in results if r["estimator"] == name and r["tau"] in WIDE and r["variance"] > 1e-3]
        right.plot(
            [r["tau"] for r in line], [r["variance"] for r in line], f"{marker}-", ms=4, color=colour, label=name
        )
    right.plot([0.008, 0.12], [1400, round(1400 * 0.008 / 0.12, 6)], color=DARK, ls="--", lw=1)
    right.text(0.035, 450, "1/τ", ha="left")
    right.plot([2.5, 25], [1.0, 0.01], color=DARK, ls="--", lw=1)
    right.text(8.5, 0.14, "1/τ²", ha="left")
    right.set(xscale="log", yscale="log", xlabel="τ", ylabel="variance / |exact gradient|²", ylim=(1e-3, 3e3))
    right.legend(loc="lower left", fontsize=8)
    right.set_title("variance of one draw's gradient")
    save(figure, out, "schedules")
    return {name: line[::100] for name, line in values.items()}


def figure_backward(out: Path) -> Numbers:
    """The Jacobian of a softmax of eight classes, and what it takes to store it for 32 rows of K."""
    logits = torch.linspace(-1.5, 1.5, 8, dtype=torch.float64)[[3, 6, 0, 7, 2, 4, 1, 5]]
    jacobian = softmax_jacobian(softmax(logits))
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    shown = left.imshow(torch.tensor(rounded(jacobian)), cmap="RdBu_r", vmin=-0.25, vmax=0.25)
    figure.colorbar(shown, ax=left, shrink=0.85, ticks=(-0.2, 0, 0.2))
    left.set(xticks=(), yticks=(), xlabel="logit", ylabel="output")
    left.spines[["top", "right"]].set_visible(True)
    left.set_title("J = diag(y) - y yᵀ, 8 classes")
    K = [2**i for i in range(1, 14)]
    dense, ours = [32 * k * k * 8 for k in K], [32 * k * 8 for k in K]
    right.plot(K, dense, "s-", ms=4, color=COLOURS[1], label="the Jacobian")
    right.plot(K, ours, "o-", ms=4, color=COLOURS[0], label="what the efficient form keeps: y")
    ticks = {2**10: "1 KiB", 2**20: "1 MiB", 2**30: "1 GiB"}
    right.set(xscale="log", yscale="log", xlabel="classes K, 32 rows, float64", ylabel="memory", ylim=(200, 2**38))
    right.set(yticks=list(ticks), yticklabels=list(ticks.values()))
    right.set(xticks=[2, 16, 128, 512, 8192], xticklabels=["2", "16", "128", "512", "8192"])
    right.minorticks_off()
    right.annotate("64 MiB", (512, 2**26), (150, 2**29), ha="right", arrowprops={"arrowstyle": "-", "lw": 0.6})
    right.annotate("128 KiB", (512, 2**17), (1200, 2**13), arrowprops={"arrowstyle": "-", "lw": 0.6})
    right.grid(alpha=0.3)
    right.legend(loc="upper left", fontsize=8)
    right.set_title("memory")
    save(figure, out, "backward")
    return {"jacobian": rounded(jacobian.flatten()), "dense": dense, "ours": ours}


def figure_grid(out: Path) -> Numbers:
    """Training -ELBO of each cell of the grid that was run, next to the published one."""
    with (FIGURES / "grid.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "complete"]
    names = list(dict.fromkeys([*GRID, *(row["estimator"] for row in rows)]))
    figure = Figure(figsize=(8, 0.5 + 0.26 * len(names)), layout="constrained")
    ours: Numbers = {}
    for i, (axes, column) in enumerate(zip(figure.subplots(1, 4, sharey=True), GRID_COLUMNS, strict=True)):
        cells = [row for row in rows if row["experiment"] == f"grid_{column}"]
        ours[column] = [float(row["train/epoch_loss"]) for row in cells]
        published = [values[i] for values in GRID.values()]
        end = sorted(published)[-2] + 0.7  # the worst is far from all others
        for values, y, kwargs in (
            (published, range(len(GRID)), {"facecolors": "none", "edgecolors": DARK, "label": "published, 10 seeds"}),
            (ours[column], [names.index(row["estimator"]) for row in cells], OURS),
        ):
            axes.scatter([min(value, end) for value in values], y, s=26, **kwargs)
            for value, place in zip(values, y, strict=True):
                if value > end:
                    axes.annotate(f"{value:.1f} \u2192", (end, place), (-6, 0), textcoords="offset points", **BESIDE)
        axes.set(title=f"{column}, nats", yticks=range(len(names)), yticklabels=names)
        axes.grid(axis="x", alpha=0.3)
    figure.axes[0].invert_yaxis()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save(figure, out, "grid")
    return ours


def figure_foraging(out: Path) -> Numbers:
    """Learning curves of MADDPG's estimators in level-based foraging."""
    with (FIGURES / "foraging.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(8, 4), layout="constrained")
    environments, curves = (list(dict.fromkeys(row[key] for row in rows)) for key in ("environment", "curve"))
    ours: Numbers = {}
    for axes, environment in zip(figure.subplots(1, len(environments), squeeze=False)[0], environments, strict=True):
        for curve in curves:
            points: dict[int, list[float]] = {}
            for row in rows:
                if (row["environment"], row["curve"]) == (environment, curve):
                    points.setdefault(int(row["steps"]), []).append(float(row["return"]))
            means = [sum(values) / len(values) for values in points.values()]
            style = FORAGING.get(curve, FAINT) | {"label": curve if curve in FORAGING else "other estimators"}
            axes.plot([steps / 1000 for steps in points], means, **style)
            ours[f"{environment}, {curve}"] = rounded(torch.tensor(means[-1:]))
        axes.set(title=environment, xlabel="thousands of steps", ylim=(0, 1))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("return of all agents, mean of 100 episodes")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))  # the others once
    figure.legend(named.values(), named.keys(), loc="outside right center", fontsize=8)
    save(figure, out, "foraging")
    return ours


def figure_circuit(out: Path) -> Numbers:
    """A small circuit that was learned, simplified: is a digit of 4 x 4 pixels a 0 or a 1?"""
    learned = json.loads((FIGURES / "circuit.json").read_text(encoding="utf-8"))
    layers = tuple(tuple(torch.tensor(part) for part in layer) for layer in learned["layers"])
    netlist = simplify(Circuit(16, cast(Any, layers), classes=2))
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    plot(netlist, axes)
    before = sum(len(gate) for _, _, gate in layers)
    accuracy = f"{100 * learned['accuracy']:.1f} %"
    axes.set_title(f"0 or 1 from 4 x 4 pixels: {before} gates learned, {len(netlist.gates)} left, {accuracy} correct")
    save(figure, out, "circuit")
    return {"before": before, "gates": netlist.gates.flatten().tolist(), "outputs": netlist.outputs.tolist()}


def measure_circuit() -> Numbers:
    """Train a small network of gates on zeros and ones; its layers, and its accuracy on the test images."""
    torch.manual_seed(2)
    splits = binarized_mnist()
    (x, y), (x_test, y_test) = (_small_zeros_and_ones(split) for split in (splits.train, splits.test))
    model = LogicGates(gates=16, depth=3, classes=2, scale=1.0, residual=2.0, seed=2, image_size=(4, 4))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(2500):
        rows = torch.randint(len(x), (BATCH,))
        loss = model.loss_terms(x[rows], y[rows], taugrad.StraightThrough(), 1.0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (model.greedy(x_test) == y_test).float().mean().item()
    return {"accuracy": accuracy, "layers": [[part.tolist() for part in layer] for layer in model.circuit().layers]}


def _small_zeros_and_ones(split: Split) -> tuple[Tensor, Tensor]:
    """Images of the digits 0 and 1 at 4 x 4 pixels, each on where 15 % of its 7 x 7 were, and their labels."""
    kept = split.labels < 2
    x = cast(Tensor, split.images)[kept].float().unsqueeze(1) / 255
    return (torch.nn.functional.avg_pool2d(x, 7).squeeze(1) > 0.15).float(), split.labels[kept]


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for each use, so that no figure depends on another."""
    return torch.Generator().manual_seed(seed)


def rounded(values: Tensor, transposed: bool = False) -> Any:
    """Nested lists of six decimals: another CPU's last bit does not show in a file."""
    return (values.T if transposed else values).round(decimals=6).tolist()


def save(figure: Figure, out: Path, name: str) -> None:
    """Write NAME.png and NAME.svg without anything that differs from one run to the next."""
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{name}.png", dpi=130, facecolor="white", metadata={"Software": None})
    figure.savefig(out / f"{name}.svg", facecolor="white", metadata={"Date": None, "Creator": None})


PLOTTED: dict[str, Callable[[Path], Numbers]] = {
    "softmax": figure_softmax,
    "gumbel_max": figure_gumbel_max,
    "tau": figure_tau,
    "noise": figure_noise,
    "bias": figure_bias,
    "schedules": figure_schedules,
    "backward": figure_backward,
    "grid": figure_grid,
    "foraging": figure_foraging,
    "circuit": figure_circuit,
}
MEASURED: dict[str, Callable[[], Numbers]] = {"noise": measure_noise, "bias": measure_bias, "circuit": measure_circuit}


@one_sentence
def main() -> None:
    """Plot the figures that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PLOTTED)}; default all")
    parser.add_argument("--out", type=Path, default=FIGURES, help="the directory to plot into")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure again what noise shows (ten minutes), bias (half a minute, schedules shows it too) and circuit "
        "(ten seconds), into docs/figures/NAME.json; without it they are plotted from the numbers in these files",
    )
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in PLOTTED:
            parser.error(f"NAME must be one of {', '.join(PLOTTED)}, got {name}")
    require_folder("--out", arguments.out)
    os.environ["TAUGRAD_BACKEND"] = "torch"  # before the first sample, which decides
    torch.set_num_threads(1)
    numbers_file = arguments.out / "numbers.json"
    numbers = json.loads(numbers_file.read_text(encoding="utf-8")) if numbers_file.is_file() else {}
    # Whatever the user's matplotlibrc says.
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        for name in arguments.names or PLOTTED:
            if arguments.measure and name in MEASURED:
                (FIGURES / f"{name}.json").write_text(json.dumps(MEASURED[name](), indent=1) + "\n", encoding="utf-8")
            with writing(arguments.out / f"{name}.png"):
                numbers[name] = PLOTTED[name](arguments.out)
            print(arguments.out / f"{name}.png")
    # Whose bytes these are: another vector unit may round otherwise.
    numbers["drawn_by"] = f"matplotlib {mpl.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    with writing(numbers_file):
        numbers_file.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
