"""Benchmarks, interleaved, as ratios of medians.

python scripts/bench.py train: a step of the categorical VAE in Lightning, with bar and TensorBoard on, beside the same
model, data and optimizer in a hand-written loop.

python scripts/bench.py backward: the softmax's backward without the Jacobian, with it, and torch's own.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import Callback, Trainer
from rich.console import Console
from rich.table import Table

from taugrad.categorical import kl_to_uniform
from taugrad.config import instantiate, resolve
from taugrad.softmax import softmax_backward, softmax_backward_by_jacobian

_CONF = Path(__file__).resolve().parent.parent / "conf"
_WARM_UP = 20  # steps not counted


class StepTimes(Callback):
    """Takes the time at the end of every training step."""

    def __init__(self) -> None:
        self.times: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Keep the optimizer step and the time."""
        self.times.append((trainer.global_step, time.perf_counter()))


def seconds_per_step(times: list[tuple[int, float]]) -> float:
    """The mean from the first counted step on, of (step, time) pairs."""
    counted = [(step, time) for step, time in times if step >= _WARM_UP]
    (first, start), (last, end) = counted[0], counted[-1]
    return (end - start) / (last - first)


def lightning_loop(steps: int, overrides: list[str]) -> float:
    """Seconds a step of `scripts/train.py`'s own trainer, everything that it shows and logs switched on."""
    with tempfile.TemporaryDirectory() as directory, initialize_config_dir(str(_CONF), version_base="1.3"):
        keys = [f"run_dir={directory}", f"trainer.max_steps={steps}", "+trainer.limit_val_batches=0", *overrides]
        config = resolve(compose("train", ["model=cat_vae", *keys]))
        clock = StepTimes()
        callbacks = [instantiate(node) for node in config["callbacks"].values()]
        loggers = [instantiate(node) for node in config["logger"].values()]
        trainer: Trainer = instantiate(config["trainer"])(callbacks=[*callbacks, clock], logger=loggers)
        trainer.fit(*parts(config))
        return seconds_per_step(clock.times)


def hand_written_loop(steps: int, overrides: list[str]) -> float:
    """Seconds a step of the loop that one would write without Lightning."""
    with initialize_config_dir(str(_CONF), version_base="1.3"):
        keys = ["run_dir=.", f"trainer.max_steps={steps}", *overrides]
        model, data = parts(resolve(compose("train", ["model=cat_vae", *keys])))
    data.setup("fit")
    batches = data.train_dataloader()
    optimizer = model.configure_optimizers()
    times: list[tuple[int, float]] = []
    step = 0
    while step < steps:
        for x in (x for stack, _ in batches for x in stack):
            tau = model.tau(step)
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * model.lr_factor(step)
            logits = model.encode(x)
            kl = kl_to_uniform(logits).sum(-1).mean()
            reconstruction = model.log_likelihood(x, model.estimator.sample(logits, tau)).mean()
            loss = kl - reconstruction
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            times.append((step, time.perf_counter()))
            if step == steps:
                break
    return seconds_per_step(times)


def parts(config: dict[str, Any]) -> tuple[Any, Any]:
    """The model and the datamodule of a config."""
    return instantiate(config["model"], recursive=False), instantiate(config["data"], recursive=False)


def bench_train(arguments: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """The two loops, in milliseconds a step."""
    return {
        "hand-written": lambda: 1e3 * hand_written_loop(arguments.steps, arguments.overrides),
        "Lightning": lambda: 1e3 * lightning_loop(arguments.steps, arguments.overrides),
    }


def bench_backward(arguments: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """The three backwards, in milliseconds a call, of softmax over the last dimension, in float64."""
    y = torch.randn(arguments.shape, dtype=torch.float64).softmax(-1)
    grad = torch.randn_like(y)
    calls: dict[str, Callable[[], Any]] = {
        "Jacobian product": lambda: softmax_backward_by_jacobian(grad, y),
        "efficient": lambda: softmax_backward(grad, y),
        "torch": lambda: torch._softmax_backward_data(grad, y, -1, y.dtype),  # pyright: ignore
    }
    return {name: lambda call=call: 1e3 * time_call(call) for name, call in calls.items()}


def time_call(call: Callable[[], Any], at_least: float = 0.1) -> float:
    """Seconds a call, averaged over calls that last `at_least` seconds together."""
    call()
    start, n = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < at_least:
        call()
        n += 1
    return elapsed / n


def interleave(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure each side once a round, in turn."""
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            measured[name].append(side())
    return measured


def report(measured: dict[str, list[float]], title: str) -> None:
    """Print the medians, their ranges, and the ratio of each to the first."""
    first = statistics.median(next(iter(measured.values())))
    table = Table("", "median ms", "min", "max", "ratio to the first", title=title)
    for name, values in measured.items():
        median = statistics.median(values)
        table.add_row(name, f"{median:.4g}", f"{min(values):.4g}", f"{max(values):.4g}", f"{median / first:.4g}")
    Console().print(table)


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write every measurement here")
    benches = parser.add_subparsers(dest="bench", required=True)
    train = benches.add_parser("train", help="Lightning beside a hand-written loop")
    train.add_argument("--steps", type=int, default=400)
    train.add_argument("overrides", nargs="*", help="of the config, such as model.encoder=[] data.batch_size=20")
    train.set_defaults(sides=bench_train)
    backward = benches.add_parser("backward", help="the softmax's backward")
    backward.add_argument("--shape", type=int, nargs="+", default=[32, 512])
    backward.set_defaults(sides=bench_backward)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measured = interleave(arguments.sides(arguments), arguments.rounds)
    report(
        measured,
        f"{arguments.bench}, {arguments.threads} threads, {arguments.rounds} rounds, torch {torch.__version__}",
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
